"""The relatives of SDS and PSD: identities between published methods, each stated in full. float64, nothing is sampled.

The package stands on one side. A method that it does not have is written here in a line or two, on predictions that come
from plain algebra; and each identity is shown to refuse the mistakes that people make in it.
"""

import math

import pytest
import torch
from plain_mixture import SCHEDULE, close, levels, normal, plain_posterior, tensor, world

from psd_mini import CSD, SDS, Context, GaussianMixture, cfg, omega
from psd_mini.methods import DreamDPO, csd_gradient
from psd_mini.rewards import LinearReward

WEIGHTS, MEANS, COVARIANCES = world(3)
PRIOR = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, SCHEDULE)
Y, NULL, NEG = tensor(1.5, -1.0, 0.3), tensor(0.0, 0.0, 0.0), tensor(-2.0, 0.5, 1.0)  # log-weights: three prompts
G = 7.5
TOLERANCE = 1e-10


def case():
    """Six renders with their timesteps and noises."""
    return 1.3 * normal(1, 6, 3), torch.tensor([60, 199, 200, 450, 700, 950]), normal(2, 6, 3)


def noised(x, t, eps):
    a, s = levels(t)
    return a * x + s * eps


def plain_noise(x_t, t, prompt):
    """eps_hat = (x_t - alpha_t E[x_0 | x_t, prompt]) / sigma_t, with explicit inverses."""
    a, s = levels(t)
    g, m, _ = plain_posterior(x_t, t, WEIGHTS * prompt.exp(), MEANS, COVARIANCES)
    return (x_t - a * (g[..., None] * m).sum(1)) / s


def picture(x):
    return x[..., None, None]


def package(method, x, t, eps, prompt=Y, negative=NEG):
    """The package's gradient, with w(t) = 1 where the method was made so."""
    context = Context(PRIOR, torch.stack((prompt, negative)))
    return method(picture(x), t, picture(eps)[None], context)[0].flatten(1)


def differs(got, expected):
    """A wrong implementation is off by much more than rounding, for every picture."""
    assert bool(((got - expected).abs().amax(-1) > 1e-3).all())


# identity 12
def sjc(x, t, eps, g=G, var_red=True, width=lambda a, s: s / a):
    """Noise the unscaled render, z = x + sb eps, denoise it to D, pull x (or z, without var_red) towards D in units of sb."""
    sb = width(*levels(t))
    z, denoised = x + sb * eps, []
    for prompt in (Y, NEG):
        joint, means = [], []
        for w, mu, S in zip(WEIGHTS * prompt.exp(), MEANS, COVARIANCES, strict=True):
            C = S + sb[..., None] ** 2 * torch.eye(3)
            solved = torch.linalg.solve(C, (z - mu)[..., None])[..., 0]
            joint.append(w * torch.exp(-0.5 * ((z - mu) * solved).sum(-1)) / torch.linalg.det(C).sqrt())
            means.append(mu + solved @ S)
        denoised.append((torch.stack(joint)[..., None] * torch.stack(means)).sum(0) / sum(joint)[:, None])
    D = denoised[1] + g * (denoised[0] - denoised[1])
    return -(D - (x if var_red else z)) / sb


def test_sjc_is_sds_with_uniform_weight_sample_by_sample():
    """G_SJC = -(D(z) - x) / sb = eps_cfg(x_t) - eps = G_SDS with w = 1, where z = x + sb eps, sb = sigma_t / alpha_t,
    x_t = z / sqrt(1 + sb^2), D(z) = z - sb eps_cfg(x_t); without variance reduction -(D - z) / sb = eps_cfg: eps more.

    Source: Score Jacobian Chaining (Wang et al. 2022, arXiv 2212.00774). D is the exact denoiser of the unscaled world.
    """
    x, t, eps = case()
    sds = package(SDS(G, "uniform"), x, t, eps)
    close(sjc(x, t, eps), sds, TOLERANCE)
    close(sjc(x, t, eps, var_red=False) - sds, eps, TOLERANCE)
    differs(sjc(x, t, eps, g=G - 1), sds)  # the other convention of guidance
    differs(sjc(x, t, eps, width=lambda a, s: s), sds)  # the variance-preserving width for unscaled pictures
    differs(package(SDS(G, "sds"), x, t, eps)[:5], sjc(x, t, eps)[:5])  # another weight (which tends to 1 at the last t)


# identity 14
def triple_scale(x, t, eps, cond, uncond, null, noise):
    """CSD's code: four coefficients on the predictions for prompt, negative and null prompt, and on the noise."""
    x_t = noised(x, t, eps)
    return cond * plain_noise(x_t, t, Y) + uncond * plain_noise(x_t, t, NEG) + null * plain_noise(x_t, t, NULL) + noise * eps


def test_csd_with_two_weights_and_the_triple_scale_form():
    """G = w1 eps_y + (w2 - w1) eps_null - w2 eps_neg = w1 (eps_y - eps_null) + w2 (eps_null - eps_neg):
    w2 = w1 gives w1 (eps_y - eps_neg), w2 = 0 gives w1 (eps_y - eps_null); as coefficients (cond, uncond, null, noise) of
    the published code these are (w1, -w2, w2 - w1, 0), and (g, 1 - g, 0, -1) is SDS with guidance g.

    Source: CSD (Yu et al. 2023, arXiv 2310.19415) and its code.
    """
    x, t, eps = case()
    w1, w2 = 2.0, 0.7
    # the package's CSD knows one pair of prompts: twice it, with another second prompt
    to_null, to_negative = (package(CSD(weighting="uniform"), x, t, eps, Y, n) for n in (NULL, NEG))
    null_to_negative = package(CSD(weighting="uniform"), x, t, eps, NULL, NEG)
    close(triple_scale(x, t, eps, w1, -w2, w2 - w1, 0), w1 * to_null + w2 * null_to_negative, TOLERANCE)
    close(triple_scale(x, t, eps, w1, -w1, 0, 0), w1 * to_negative, TOLERANCE)
    close(triple_scale(x, t, eps, w1, 0, -w1, 0), w1 * to_null, TOLERANCE)
    sds = package(SDS(G, "uniform"), x, t, eps)
    close(triple_scale(x, t, eps, G, 1 - G, 0, -1), sds, TOLERANCE)
    for wrong in ((G, -G, 0, -1), (1 + G, -G, 0, -1), (G, 0, 1 - G, -1), (G, 1 - G, 0, 0), (G, 1 - G, 0, 1)):
        differs(triple_scale(x, t, eps, *wrong), sds)
    differs(triple_scale(x, t, eps, w1, w2, w2 - w1, 0), w1 * to_null + w2 * null_to_negative)


# identity 16
def nfsd(x, t, eps, g=G, switch=200):
    """dD + g dC: dC = eps_y - eps_null, dD = eps_null below the switch (out of 1000) and eps_null - eps_neg above."""
    y, null, neg = (plain_noise(noised(x, t, eps), t, prompt) for prompt in (Y, NULL, NEG))
    return torch.where((t < switch)[:, None], null, null - neg) + g * (y - null)


def test_nfsd_is_csd_with_a_weight_for_the_negative():
    """t >= 200: G_NFSD = (eps_null - eps_neg) + g (eps_y - eps_null) = G_CSD with w1 = g, w2 = 1;
    t < 200: G_NFSD = eps_null + g (eps_y - eps_null), the guided prediction itself.

    Source: Noise-Free Score Distillation (Katzir et al. 2023, arXiv 2310.17590); CSD (arXiv 2310.19415).
    """
    x, t, eps = case()
    csd = G * package(CSD(weighting="uniform"), x, t, eps, Y, NULL) + package(CSD(weighting="uniform"), x, t, eps, NULL, NEG)
    late = t >= 200
    assert late.tolist() == [False, False, True, True, True, True]
    close(nfsd(x, t, eps)[late], csd[late], TOLERANCE)
    guided = package(SDS(G, "uniform"), x, t, eps, Y, NULL) + eps
    close(nfsd(x, t, eps)[~late], guided[~late], TOLERANCE)
    differs(nfsd(x, t, eps)[~late], csd[~late])
    differs(nfsd(x, t, eps, switch=1000)[late], csd[late])
    differs(nfsd(x, t, eps, g=G + 1)[late], csd[late])


def test_csd_and_nfsd_depend_on_the_noise_only_through_the_noised_picture():
    """alpha_t x' + sigma_t eps' = alpha_t x + sigma_t eps  =>  G_CSD' = G_CSD and G_NFSD' = G_NFSD, but
    G_SDS' = G_SDS + eps - eps': no noise is subtracted.

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
    """G_bridge = w g ( eps(x_t; target) - eps(x_t; source) ); source = null, target = y: g G_CSD, with w = sigma_t^2.

    Source: Rethinking Score Distillation as a Bridge (McAllister et al. 2024, arXiv 2406.09417), second stage.
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
    "not squared": lambda u, v: u - (u * v).sum(-1, keepdim=True) / v.norm(dim=-1, keepdim=True) * v,
    "over the batch": lambda u, v: u - (u * v).sum() / (v * v).sum() * v,
    "the other part": lambda u, v: u - perp(u, v),
    "the other way round": lambda u, v: perp(v, u),
}


def perp_neg(dp, dns, weights, null, g, perp=perp):
    return null + g * (dp + sum(w * perp(dn, dp) for w, dn in zip(weights, dns, strict=True)))


def perp_neg_case():
    x, t, eps = case()
    x_t = noised(x, t, eps)
    y, null, neg, other = PRIOR.predict_noise(x_t, t, torch.stack((Y, NULL, NEG, tensor(0.2, 1.0, -1.0))))
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
    assert bool(((only_first * dns[0]).sum(-1) < 0).all())
    scaled = perp_neg(3 * dp, [3 * dn for dn in dns], weights, 3 * null, G, perp)
    close(scaled, 3 * (guided + added), TOLERANCE)
    close(perp_neg(3 * dp, dns, weights, null, G, perp) - cfg(null + 3 * dp, null, G), added, TOLERANCE)


def test_perp_neg_adds_only_what_is_orthogonal_to_the_prompt():
    """eps = eps_null + g ( dp + sum_i w_i [ dn_i - (dn_i . dp / |dp|^2) dp ] ), dp = eps_y - eps_null, dn_i = eps_i - eps_null:
    the added vector is orthogonal to dp; zero weights, or dn_i parallel to dp, leave guidance alone; k (dp, dn, eps_null)
    gives k eps, and the length of dp does not matter to what is added.

    Source: Perp-Neg (Armandpour et al. 2023, arXiv 2304.04968).
    """
    perp_neg_holds(perp)


@pytest.mark.parametrize("name", BROKEN_PERPS)
def test_broken_perp_neg_is_noticed(name):
    with pytest.raises(AssertionError):
        perp_neg_holds(BROKEN_PERPS[name])


# identity 30
V, BETA = tensor(0.8, -0.6, 0.3), 0.7
GAUSS = GaussianMixture([1.0], MEANS[:1], COVARIANCES[:1], SCHEDULE)


@pytest.mark.parametrize("k", [0.0, 0.4, 1.0, 3.0, 10.0])
def test_pgd_extrapolates_a_tilted_gaussian_to_a_lower_temperature(k):
    """eps = (1 - k) eps_ref + k eps_tuned, eps_tuned exact for p exp(r / beta), r linear, p Gaussian: exact for
    p exp(k r / beta), eps = sigma_t C^-1 (x_t - alpha_t (mu + k S v / beta)); k = 0 is the reference and k = 1 the tuned.

    Source: PGD (arXiv 2602.18799); the Gaussian case is derived here.
    """
    x, t, eps = case()
    x_t = noised(x, t, eps)
    reference, tuned = (p.predict_noise(x_t, t)[0] for p in (GAUSS, GAUSS.tilt_linear(V, BETA)[0]))
    got = cfg(tuned, reference, k)
    a, s = levels(t)
    for i in range(len(t)):
        C = a[i] ** 2 * COVARIANCES[0] + s[i] ** 2 * torch.eye(3)
        close(got[i], s[i] * torch.linalg.inv(C) @ (x_t[i] - a[i] * (MEANS[0] + k * COVARIANCES[0] @ V / BETA)), TOLERANCE)
    if k:
        close(GAUSS.tilt_linear(V, BETA / k)[0].predict_noise(x_t, t)[0], got, TOLERANCE)
        differs(reference + (1 + k) * (tuned - reference), got)  # the other convention
        differs(GAUSS.tilt_linear(V, BETA * k + (k == 1))[0].predict_noise(x_t, t)[0], got)  # temperature the wrong way
    else:
        close(got, reference, TOLERANCE)


def test_pgd_is_not_exact_for_a_mixture():
    """eps_ref + k (eps_tuned - eps_ref) != eps of p exp(k r / beta) between components, except at k = 0 and 1.

    Source: PGD (arXiv 2602.18799); the counterexample is ours.
    """
    x, t, eps = case()
    x_t = noised(x, t, eps)
    reference, tuned = (p.predict_noise(x_t, t)[0] for p in (PRIOR, PRIOR.tilt_linear(V, BETA)[0]))
    for k, exact in ((1.0, True), (3.0, False)):
        wanted = PRIOR.tilt_linear(V, BETA / k)[0].predict_noise(x_t, t)[0]
        error = (cfg(tuned, reference, k) - wanted).abs().amax()
        assert (error < TOLERANCE) == exact and (exact or error > 0.05)


def test_cpgd_with_exact_winner_and_loser_models_is_the_tilted_prior():
    """eps_ref + k (eps_win - eps_lose) = eps*_t where eps_c = eps_ref - sigma_t grad log P(c | x_t), P(win | x_t) =
    sigmoid(V_t / tau), V_t = beta log E[exp(r / beta) | x_t], and k = tau / beta. On both halves of guidance it commutes
    with guidance: cfg(pgd(y), pgd(neg)) = pgd(cfg); on the prompt's half alone it is too strong by the factor g.

    Source: cPGD (arXiv 2602.18799); V_t in closed form by completing the square, with explicit inverses.
    """
    x, t, eps = case()
    x_t, tau = noised(x, t, eps), 0.4
    _, s = levels(t)

    def win_minus_lose(prompt):
        leaf = x_t.clone().requires_grad_()
        g, m, lam = plain_posterior(leaf, t, WEIGHTS * prompt.exp(), MEANS, COVARIANCES)
        value = BETA * torch.logsumexp(g.log() + m @ V / BETA + (lam @ V) @ V / (2 * BETA**2), -1)
        win, lose = (torch.nn.functional.logsigmoid(sign * value / tau) for sign in (1, -1))
        return -s * (torch.autograd.grad((win - lose).sum(), leaf)[0])

    guided = []
    for prompt in (Y, NEG):
        world_of_prompt = PRIOR.condition(prompt)
        tilted = world_of_prompt.tilt_linear(V, BETA)[0].predict_noise(x_t, t)[0]
        reference, pull = world_of_prompt.predict_noise(x_t, t)[0], win_minus_lose(prompt)
        close(reference + tau / BETA * pull, tilted, TOLERANCE)
        for wrong in (1 / BETA, BETA / tau, -tau / BETA, 2 * tau / BETA):
            differs(reference + wrong * pull, tilted)
        guided.append((reference, pull, tilted))
    (y, pull_y, tilted_y), (neg, pull_neg, tilted_neg) = guided
    k = tau / BETA
    close(cfg(y, neg, G) + k * cfg(pull_y, pull_neg, G), cfg(tilted_y, tilted_neg, G), TOLERANCE)
    differs(cfg(y + k * pull_y, neg, G), cfg(tilted_y, tilted_neg, G))


# identity 48
def test_slope_of_the_dpo_loss():
    """L(m) = -log sigmoid(beta m): dL/dm = -beta sigmoid(-beta m) = -(beta / 2)(1 - omega_bt(m)) at tau = 1 / beta;
    -beta / 2 at m = 0, to -beta where the pair is ranked wrong, to 0 where it is ranked right.

    Source: DPO (Rafailov et al. 2023, arXiv 2305.18290), eq. 7.
    """
    for beta in (0.3, 1.0, 5.0):
        m = torch.cat((torch.zeros(1), normal(5, 20)))[None].requires_grad_()
        (slope,) = torch.autograd.grad(-torch.log(torch.sigmoid(beta * m)).sum(), m)
        m.requires_grad_(False)
        close(slope, -beta * (1 - omega(m, "bt", 1 / beta)) / 2, TOLERANCE)
        differs(slope, -beta * (1 + omega(m, "bt", 1 / beta)) / 2)  # large where the pair is ranked right
        differs(slope, -beta * (1 - omega(m, "bt", 1 / beta)))  # without the half
        differs(slope, -beta * (1 - omega(m, "bt", 2 / beta)) / 2)  # half the temperature
        ends = -beta * (1 - omega(tensor(0.0, -1e3, 1e3), "bt", 1 / beta)) / 2
        close(ends, tensor(-beta / 2, -beta, 0.0), TOLERANCE)


def diffusion_dpo_loss(h_w, h_l, shift, beta):
    """-log sigmoid( -beta [ (|h_w + shift|^2 - |h_w|^2) - (|h_l + shift|^2 - |h_l|^2) ] ), by picture."""

    def gained(h):
        return (h + shift).square().sum(-1) - h.square().sum(-1)

    return -torch.log(torch.sigmoid(-beta * (gained(h_w) - gained(h_l))))


def test_diffusion_dpo_starts_at_log_2_and_its_first_step_is_dreamdpo():
    """L = -log sigmoid( -beta [ (|eps_w - eps_theta(x_t^w)|^2 - |eps_w - eps_ref(x_t^w)|^2) - (the same of l) ] ): log 2 at
    theta = ref. For eps_theta = eps_ref + c, dL/dc = 2 beta sigmoid(-beta m) (h_w - h_l), m = -2 c . (h_w - h_l); at c = 0
    beta (h_w - h_l), with slope weight 1/2: for beta = 1 DreamDPO's G / w(t) with the UNet's Jacobian dropped.

    Source: Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908), eq. 14; DreamDPO (Zhou et al. 2025, arXiv 2502.04370).
    """
    x, t, eps = case()
    pair = torch.stack((eps, normal(6, 6, 3)))
    context = Context(PRIOR, torch.stack((Y, NEG)), None, [""] * 6, LinearReward(V))
    dreamdpo = DreamDPO(SDS(1.0, "uniform"), tau=0.0)(picture(x), t, picture(pair), context)[0].flatten(1)
    # winner and loser by plain algebra
    h = torch.stack([plain_noise(noised(x, t, e), t, Y) - e for e in pair])
    a, s = levels(t)
    rewards = (x - s / a * h) @ V  # x0_hat = x - (sigma / alpha) h
    first = (rewards[0] > rewards[1])[:, None]
    assert 0 < int(first.sum()) < 6  # both noises win somewhere
    h_w, h_l = torch.where(first, h[0], h[1]), torch.where(first, h[1], h[0])
    c = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    loss = diffusion_dpo_loss(h_w, h_l, c, 1.0)
    close(loss.detach(), torch.full((6,), math.log(2), dtype=torch.float64), TOLERANCE)
    (slope,) = torch.autograd.grad(loss.sum(), c)
    close(slope, dreamdpo, TOLERANCE)
    for wrong in (2 * dreamdpo, -dreamdpo, dreamdpo + torch.where(first, pair[0] - pair[1], pair[1] - pair[0])):
        differs(slope, wrong)  # slope weight 1, the loser preferred, the noises not subtracted
    for beta in (0.1, 2.0):
        c = (0.3 * normal(7, 6, 3)).requires_grad_()
        (slope,) = torch.autograd.grad(diffusion_dpo_loss(h_w, h_l, c, beta).sum(), c)
        m = -2 * (c.detach() * dreamdpo).sum(-1)
        close(slope, 2 * beta * (1 - omega(m, "bt", 1 / beta))[:, None] / 2 * dreamdpo, TOLERANCE)
