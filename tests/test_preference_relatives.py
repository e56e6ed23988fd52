"""The relatives of PSD: guidance by preference models, the DPO losses; as in `test_relatives`.
float64, nothing sampled.
"""

import math

import pytest
import torch
from plain_mixture import SCHEDULE, close, levels, normal, plain_posterior, tensor
from relatives import (
    COVARIANCES,
    MEANS,
    NEG,
    PRIOR,
    TOLERANCE,
    WEIGHTS,
    G,
    Y,
    case,
    differs,
    noised,
    picture,
    plain_noise,
)

from psd_mini import SDS, Context, GaussianMixture, cfg, omega
from psd_mini.methods import DreamDPO
from psd_mini.rewards import LinearReward

pytestmark = pytest.mark.algebra

# identity 30
V, BETA = tensor(0.8, -0.6, 0.3), 0.7
GAUSS = GaussianMixture([1.0], MEANS[:1], COVARIANCES[:1], SCHEDULE)


@pytest.mark.parametrize("k", [0.0, 0.4, 1.0, 3.0, 10.0])
def test_pgd_extrapolates_a_tilted_gaussian_to_a_lower_temperature(k):
    """eps = (1 - k) eps_ref + k eps_tuned, eps_tuned exact for p exp(r / beta), r linear, p
    Gaussian: exact for p exp(k r / beta), eps = sigma_t C^-1 (x_t - alpha_t (mu + k S v / beta)); k
    = 0 is the reference and k = 1 the tuned.

    Source: PGD (arXiv 2602.18799); the Gaussian case is derived here.
    """
    x, t, eps = case()
    x_t = noised(x, t, eps)
    reference, tuned = (p.predict_noise(x_t, t)[0] for p in (GAUSS, GAUSS.tilt_linear(V, BETA)[0]))
    got = cfg(tuned, reference, k)
    a, s = levels(t)
    for i in range(len(t)):
        C = a[i] ** 2 * COVARIANCES[0] + s[i] ** 2 * torch.eye(3)
        close(
            got[i],
            s[i]
            * torch.linalg.inv(C)
            @ (x_t[i] - a[i] * (MEANS[0] + k * COVARIANCES[0] @ V / BETA)),
            TOLERANCE,
        )
    if k:
        close(GAUSS.tilt_linear(V, BETA / k)[0].predict_noise(x_t, t)[0], got, TOLERANCE)
        differs(reference + (1 + k) * (tuned - reference), got)  # the other convention
        # temperature the wrong way
        differs(GAUSS.tilt_linear(V, BETA * k + (k == 1))[0].predict_noise(x_t, t)[0], got)
    else:
        close(got, reference, TOLERANCE)


def test_pgd_is_not_exact_for_a_mixture():
    """eps_ref + k (eps_tuned - eps_ref) != eps of p exp(k r / beta) between components, except at k
    = 0 and 1.

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
    """eps_ref + k (eps_win - eps_lose) = eps*_t where eps_c = eps_ref - sigma_t grad log P(c |
    x_t), P(win | x_t) = sigmoid(V_t / tau), V_t = beta log E[exp(r / beta) | x_t], and k = tau /
    beta. On both halves of guidance it commutes with guidance: cfg(pgd(y), pgd(neg)) = pgd(cfg); on
    the prompt's half alone it is too strong by the factor g.

    Source: cPGD (arXiv 2602.18799); V_t in closed form by completing the square, with explicit
    inverses.
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
    """L(m) = -log sigmoid(beta m): dL/dm = -beta sigmoid(-beta m) = -(beta / 2)(1 - omega_bt(m)) at
    tau = 1 / beta; -beta / 2 at m = 0, to -beta where the pair is ranked wrong, to 0 where it is
    ranked right.

    Source: DPO (Rafailov et al. 2023, arXiv 2305.18290), eq. 7.
    """
    for beta in (0.3, 1.0, 5.0):
        m = torch.cat((torch.zeros(1), normal(5, 20)))[None].requires_grad_()
        (slope,) = torch.autograd.grad(-torch.log(torch.sigmoid(beta * m)).sum(), m)
        m.requires_grad_(False)
        close(slope, -beta * (1 - omega(m, "bt", 1 / beta)) / 2, TOLERANCE)
        # large where the pair is ranked right
        differs(slope, -beta * (1 + omega(m, "bt", 1 / beta)) / 2)
        differs(slope, -beta * (1 - omega(m, "bt", 1 / beta)))  # without the half
        differs(slope, -beta * (1 - omega(m, "bt", 2 / beta)) / 2)  # half the temperature
        ends = -beta * (1 - omega(tensor(0.0, -1e3, 1e3), "bt", 1 / beta)) / 2
        close(ends, tensor(-beta / 2, -beta, 0.0), TOLERANCE)


def diffusion_dpo_loss(h_w, h_l, shift, beta):
    """-log sigmoid( -beta [ (|h_w + s|^2 - |h_w|^2) - (|h_l + s|^2 - |h_l|^2) ] ), s the shift."""

    def gained(h):
        return (h + shift).square().sum(-1) - h.square().sum(-1)

    return -torch.log(torch.sigmoid(-beta * (gained(h_w) - gained(h_l))))


def test_diffusion_dpo_starts_at_log_2_and_its_first_step_is_dreamdpo():
    """L = -log sigmoid( -beta [ (|eps_w - eps_theta(x_t^w)|^2 - |eps_w - eps_ref(x_t^w)|^2) - (the
    same of l) ] ): log 2 at theta = ref. For eps_theta = eps_ref + c, dL/dc = 2 beta sigmoid(-beta
    m) (h_w - h_l), m = -2 c . (h_w - h_l); at c = 0 beta (h_w - h_l), with slope weight 1/2: for
    beta = 1 DreamDPO's G / w(t) with the UNet's Jacobian dropped.

    Source: Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908), eq. 14; DreamDPO (Zhou et al.
    2025, arXiv 2502.04370).
    """
    x, t, eps = case()
    x, t, other = x.repeat(2, 1), t.repeat(2), normal(6, 6, 3)
    # in both orders, so that both noises win somewhere
    pair = torch.stack((torch.cat((eps, other)), torch.cat((other, eps))))
    context = Context(PRIOR, torch.stack((Y, NEG)), None, [""] * 12, LinearReward(V))
    dreamdpo = DreamDPO(SDS(1.0, "uniform"), tau=0.0)(picture(x), t, picture(pair), context)[
        0
    ].flatten(1)
    # winner and loser by plain algebra
    h = torch.stack([plain_noise(noised(x, t, e), t, Y) - e for e in pair])
    a, s = levels(t)
    rewards = (x - s / a * h) @ V  # x0_hat = x - (sigma / alpha) h
    first = (rewards[0] > rewards[1])[:, None]
    assert int(first.sum()) == 6
    h_w, h_l = torch.where(first, h[0], h[1]), torch.where(first, h[1], h[0])
    c = torch.zeros(12, 3, dtype=torch.float64, requires_grad=True)
    loss = diffusion_dpo_loss(h_w, h_l, c, 1.0)
    close(loss.detach(), torch.full((12,), math.log(2), dtype=torch.float64), TOLERANCE)
    (slope,) = torch.autograd.grad(loss.sum(), c)
    close(slope, dreamdpo, TOLERANCE)
    for wrong in (
        2 * dreamdpo,
        -dreamdpo,
        dreamdpo + torch.where(first, pair[0] - pair[1], pair[1] - pair[0]),
    ):
        differs(slope, wrong)  # slope weight 1, the loser preferred, the noises not subtracted
    for beta in (0.1, 2.0):
        c = (0.3 * normal(7, 12, 3)).requires_grad_()
        (slope,) = torch.autograd.grad(diffusion_dpo_loss(h_w, h_l, c, beta).sum(), c)
        m = -2 * (c.detach() * dreamdpo).sum(-1)
        close(slope, 2 * beta * (1 - omega(m, "bt", 1 / beta))[:, None] / 2 * dreamdpo, TOLERANCE)
