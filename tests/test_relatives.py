"""The relatives of SDS: identities between published methods, each stated in full. float64, nothing
is sampled.

The package stands on one side. A method that it does not have is written here in a line or two, on
predictions that come from plain algebra; and each identity is shown to refuse the mistakes that
people make in it.
"""

import pytest
import torch
from plain_mixture import SCHEDULE, close, levels, normal, tensor
from relatives import (
    COVARIANCES,
    MEANS,
    NEG,
    NULL,
    PRIOR,
    TOLERANCE,
    WEIGHTS,
    G,
    Y,
    case,
    differs,
    noised,
    package,
    plain_noise,
)

from psd_mini import CSD, SDS, cfg
from psd_mini.sds import csd_gradient

pytestmark = pytest.mark.algebra


# identity 12
def sjc(x, t, eps, g=G, var_red=True, width=lambda a, s: s / a):
    """Noise the unscaled render, z = x + sb eps, denoise it to D, pull x (or z, without var_red)
    towards D in units of sb.
    """
    sb = width(*levels(t))
    z, denoised = x + sb * eps, []
    for prompt in (Y, NEG):
        joint, means = [], []
        for w, mu, S in zip(WEIGHTS * prompt.exp(), MEANS, COVARIANCES, strict=True):
            C = S + sb[..., None] ** 2 * torch.eye(3)
            solved = torch.linalg.solve(C, (z - mu)[..., None])[..., 0]
            joint.append(
                w * torch.exp(-0.5 * ((z - mu) * solved).sum(-1)) / torch.linalg.det(C).sqrt()
            )
            means.append(mu + solved @ S)
        denoised.append(
            (torch.stack(joint)[..., None] * torch.stack(means)).sum(0) / sum(joint)[:, None]
        )
    D = denoised[1] + g * (denoised[0] - denoised[1])
    return -(D - (x if var_red else z)) / sb


def test_sjc_is_sds_with_uniform_weight_sample_by_sample():
    """G_SJC = -(D(z) - x) / sb = eps_cfg(x_t) - eps = G_SDS with w = 1, where z = x + sb eps, sb =
    sigma_t / alpha_t, x_t = z / sqrt(1 + sb^2), D(z) = z - sb eps_cfg(x_t); without variance
    reduction -(D - z) / sb = eps_cfg: eps more.

    Source: Score Jacobian Chaining (Wang et al. 2022, arXiv 2212.00774). D is the exact denoiser of
    the unscaled world.
    """
    x, t, eps = case()
    sds = package(SDS(G, "uniform"), x, t, eps)
    close(sjc(x, t, eps), sds, TOLERANCE)
    close(sjc(x, t, eps, var_red=False) - sds, eps, TOLERANCE)
    differs(sjc(x, t, eps, g=G - 1), sds)  # the other convention of guidance
    # the variance-preserving width for unscaled pictures
    differs(sjc(x, t, eps, width=lambda a, s: s), sds)
    # another weight (which tends to 1 at the last t)
    differs(package(SDS(G, "sds"), x, t, eps)[:5], sjc(x, t, eps)[:5])


# identity 14
def triple_scale(x, t, eps, cond, uncond, null, noise):
    """CSD's code: four coefficients on the predictions for prompt, negative and null prompt, and
    on the noise.
    """
    x_t = noised(x, t, eps)
    return (
        cond * plain_noise(x_t, t, Y)
        + uncond * plain_noise(x_t, t, NEG)
        + null * plain_noise(x_t, t, NULL)
        + noise * eps
    )


def test_csd_with_two_weights_and_the_triple_scale_form():
    """G = w1 eps_y + (w2 - w1) eps_null - w2 eps_neg = w1 (eps_y - eps_null) + w2 (eps_null -
    eps_neg): w2 = w1 gives w1 (eps_y - eps_neg), w2 = 0 gives w1 (eps_y - eps_null); as
    coefficients (cond, uncond, null, noise) of the published code these are (w1, -w2, w2 - w1, 0),
    and (g, 1 - g, 0, -1) is SDS with guidance g.

    Source: CSD (Yu et al. 2023, arXiv 2310.19415) and its code.
    """
    x, t, eps = case()
    w1, w2 = 2.0, 0.7
    # the package's CSD knows one pair of prompts: twice it, with another second prompt
    to_null, to_negative = (package(CSD(weighting="uniform"), x, t, eps, Y, n) for n in (NULL, NEG))
    null_to_negative = package(CSD(weighting="uniform"), x, t, eps, NULL, NEG)
    close(
        triple_scale(x, t, eps, w1, -w2, w2 - w1, 0),
        w1 * to_null + w2 * null_to_negative,
        TOLERANCE,
    )
    close(triple_scale(x, t, eps, w1, -w1, 0, 0), w1 * to_negative, TOLERANCE)
    close(triple_scale(x, t, eps, w1, 0, -w1, 0), w1 * to_null, TOLERANCE)
    sds = package(SDS(G, "uniform"), x, t, eps)
    close(triple_scale(x, t, eps, G, 1 - G, 0, -1), sds, TOLERANCE)
    for wrong in (
        (G, -G, 0, -1),
        (1 + G, -G, 0, -1),
        (G, 0, 1 - G, -1),
        (G, 1 - G, 0, 0),
        (G, 1 - G, 0, 1),
    ):
        differs(triple_scale(x, t, eps, *wrong), sds)
    differs(triple_scale(x, t, eps, w1, w2, w2 - w1, 0), w1 * to_null + w2 * null_to_negative)


# identity 16
def nfsd(x, t, eps, g=G, switch=200):
    """dD + g dC: dC = eps_y - eps_null, dD = eps_null below the switch (out of 1000) and
    eps_null - eps_neg above.
    """
    y, null, neg = (plain_noise(noised(x, t, eps), t, prompt) for prompt in (Y, NULL, NEG))
    return torch.where((t < switch)[:, None], null, null - neg) + g * (y - null)


def test_nfsd_is_csd_with_a_weight_for_the_negative():
    """t >= 200: G_NFSD = (eps_null - eps_neg) + g (eps_y - eps_null) = G_CSD with w1 = g, w2 = 1;
    t < 200: G_NFSD = eps_null + g (eps_y - eps_null), the guided prediction itself.

    Source: Noise-Free Score Distillation (Katzir et al. 2023, arXiv 2310.17590); CSD (arXiv
    2310.19415).
    """
    x, t, eps = case()
    csd = G * package(CSD(weighting="uniform"), x, t, eps, Y, NULL) + package(
        CSD(weighting="uniform"), x, t, eps, NULL, NEG
    )
    late = t >= 200
    assert late.tolist() == [False, False, True, True, True, True]
    close(nfsd(x, t, eps)[late], csd[late], TOLERANCE)
    guided = package(SDS(G, "uniform"), x, t, eps, Y, NULL) + eps
    close(nfsd(x, t, eps)[~late], guided[~late], TOLERANCE)
    differs(nfsd(x, t, eps)[~late], csd[~late])
    differs(nfsd(x, t, eps, switch=1000)[late], csd[late])
    differs(nfsd(x, t, eps, g=G + 1)[late], csd[late])


def test_csd_and_nfsd_depend_on_the_noise_only_through_the_noised_picture():
    """alpha_t x' + sigma_t eps' = alpha_t x + sigma_t eps  =>  G_CSD' = G_CSD, G_NFSD' = G_NFSD.

    But G_SDS' = G_SDS + eps - eps': CSD and NFSD subtract no noise.

    Source: arXiv 2310.17590 (hence its name), arXiv 2310.19415.
    """
    x, t, eps = case()
    a, s = levels(t)
    other = normal(3, 6, 3)
    x_other = x + s / a * (eps - other)
    for method in (CSD(weighting="uniform"), CSD(weighting="sds")):
        close(package(method, x_other, t, other), package(method, x, t, eps), TOLERANCE)
    close(nfsd(x_other, t, other), nfsd(x, t, eps), TOLERANCE)
    sds = package(SDS(G, "uniform"), x_other, t, other)
    close(sds, package(SDS(G, "uniform"), x, t, eps) + eps - other, TOLERANCE)
    differs(sds, package(SDS(G, "uniform"), x, t, eps))


def test_bridge_with_the_null_prompt_as_its_source_is_csd():
    """G_bridge = w g ( eps(x_t; target) - eps(x_t; source) ); source = null, target = y: g G_CSD,
    with w = sigma_t^2.

    Source: Rethinking Score Distillation as a Bridge (McAllister et al. 2024, arXiv 2406.09417),
    second stage.
    """
    x, t, eps = case()
    x_t, weight = noised(x, t, eps), (1 - SCHEDULE.alphas_cumprod[t])[:, None]

    def bridge(target, source):
        return weight * G * (plain_noise(x_t, t, target) - plain_noise(x_t, t, source))

    csd = G * package(CSD(), x, t, eps, Y, NULL)
    close(bridge(Y, NULL), csd, TOLERANCE)
    differs(bridge(NULL, Y), csd)
    differs(bridge(Y, NEG), csd)
    differs(bridge(Y, NULL), csd / weight)


# identity 17
def perp(u, v):
    """The part of u that is orthogonal to v, picture by picture."""
    return u - (u * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True) * v


BROKEN_PERPS = {
    "not squared": (
        lambda u, v: u - (u * v).sum(-1, keepdim=True) / v.norm(dim=-1, keepdim=True) * v
    ),
    "over the batch": lambda u, v: u - (u * v).sum() / (v * v).sum() * v,
    "the other part": lambda u, v: u - perp(u, v),
    "the other way round": lambda u, v: perp(v, u),
}


def perp_neg(dp, dns, weights, null, g, perp=perp):
    return null + g * (dp + sum(w * perp(dn, dp) for w, dn in zip(weights, dns, strict=True)))


def perp_neg_case():
    x, t, eps = case()
    x_t = noised(x, t, eps)
    y, null, neg, other = PRIOR.predict_noise(
        x_t, t, torch.stack((Y, NULL, NEG, tensor(0.2, 1.0, -1.0)))
    )
    return y, null, [csd_gradient(neg, null), csd_gradient(other, null)]


def perp_neg_holds(perp):
    y, null, dns = perp_neg_case()
    dp = csd_gradient(y, null)
    guided = cfg(y, null, G)
    weights = (-1.0, -0.4)
    added = perp_neg(dp, dns, weights, null, G, perp) - guided
    zero = torch.zeros(len(y)).double()
    close((added * dp).sum(-1), zero, TOLERANCE)
    close(perp_neg(dp, dns, (0.0, 0.0), null, G, perp), guided, TOLERANCE)
    close(perp_neg(dp, [-3 * dp, 0.5 * dp], weights, null, G, perp), guided, TOLERANCE)
    # what it takes away is all of the negative that does not contradict the prompt
    size = (dns[0].square().sum(-1) - (dns[0] * dp).sum(-1) ** 2 / dp.square().sum(-1)) * G**2
    only_first = perp_neg(dp, dns, (-1.0, 0.0), null, G, perp) - guided
    close(only_first.square().sum(-1), size, TOLERANCE)
    # downwards, by as much as it is long
    close((only_first * dns[0]).sum(-1), -size / G, TOLERANCE)
    assert size.max() > 0.1
    scaled = perp_neg(3 * dp, [3 * dn for dn in dns], weights, 3 * null, G, perp)
    close(scaled, 3 * (guided + added), TOLERANCE)
    close(
        perp_neg(3 * dp, dns, weights, null, G, perp) - cfg(null + 3 * dp, null, G),
        added,
        TOLERANCE,
    )


def test_perp_neg_adds_only_what_is_orthogonal_to_the_prompt():
    """eps = eps_null + g ( dp + sum_i w_i [ dn_i - (dn_i . dp / |dp|^2) dp ] ), dp = eps_y -
    eps_null, dn_i = eps_i - eps_null: the added vector is orthogonal to dp; zero weights, or dn_i
    parallel to dp, leave guidance alone; k (dp, dn, eps_null) gives k eps, and the length of dp
    does not matter to what is added.

    Source: Perp-Neg (Armandpour et al. 2023, arXiv 2304.04968).
    """
    perp_neg_holds(perp)


@pytest.mark.parametrize("name", BROKEN_PERPS)
def test_broken_perp_neg_is_noticed(name):
    with pytest.raises(AssertionError):
        perp_neg_holds(BROKEN_PERPS[name])
