"""Tilted mixtures and the implicit reward: against densities on a grid, and plain algebra."""

import pytest
import torch
from plain_mixture import (
    SCHEDULE,
    close,
    gaussian_kernel,
    grid,
    levels,
    noisy,
    normal,
    plain_density,
    plain_posterior,
    tensor,
    tilt_quadratic,
    world,
)

from psd_mini.mixture import GaussianMixture, implicit_reward
from psd_mini.schedule import NoiseSchedule

pytestmark = pytest.mark.algebra


def rewards(d: int):
    """r on points (N, d); how a prior is tilted by it; log E[exp(r/beta)] under one Gaussian."""
    v, b = tensor(0.8, -0.6, 0.3)[:d], tensor(0.5, 1.0, -0.2)[:d]
    eye = torch.eye(d, dtype=torch.float64)
    q = tensor([1.0, 0.5, 0.2], [0.5, 2.0, -0.3], [0.2, -0.3, 0.7])[:d, :d]
    singular = torch.outer(v, v)

    def gaussian_linear(m, cov, beta):
        return (v @ m + 0.3) / beta + v @ cov @ v / (2 * beta**2)

    def gaussian_quadratic(Q):
        def f(m, cov, beta):
            mixed = torch.linalg.inv(eye + cov @ Q / beta)
            return 0.5 * torch.logdet(mixed) - 0.5 * (m - b) @ (Q / beta) @ mixed @ (m - b)

        return f

    yield lambda x: x @ v + 0.3, lambda p, beta: p.tilt_linear(v, beta, c=0.3), gaussian_linear
    for Q in (q, singular):
        r = lambda x, Q=Q: -0.5 * torch.einsum("ni,ij,nj->n", x - b, Q, x - b)  # noqa: E731
        yield r, lambda p, beta, Q=Q: tilt_quadratic(p, b, Q, beta), gaussian_quadratic(Q)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_tilted_mixture_is_the_reweighted_density(d, which):
    """By integration: the optimum, the noised optimum, and the implicit reward.

    p*   = p_0 exp(r/beta) / Z
    p*_t = p_t E[exp(r/beta) | x_t] / Z
    V_t  = beta log E[exp(r/beta) | x_t]
    """
    weights, means, covariances = world(d)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    beta, (x_t, t) = 0.8, noisy(14, 5, d)
    reward, tilt, _ = list(rewards(d))[which]
    tilted, log_z = tilt(prior, beta)

    points, cell = grid(d)
    clean, factor = (
        plain_density(points, weights, means, covariances),
        torch.exp(reward(points) / beta),
    )
    z = (clean * factor).sum() * cell
    close(log_z, z.log(), 1e-11)
    close(tilted.log_prob(points[::500])[0].exp(), (clean * factor / z)[::500], 1e-11)
    kernel = gaussian_kernel(x_t, points, t) * cell
    expectation = kernel @ (clean * factor) / (kernel @ clean)
    close(tilted.log_prob(x_t, t)[0], (kernel @ clean * expectation / z).log(), 1e-11)
    close(implicit_reward(prior, tilted, log_z, beta, x_t, t), beta * expectation.log(), 1e-11)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_implicit_reward_in_closed_form(d, which):
    """V_t = beta log sum_k g_k E[exp(r/beta)] under N(m_k, Lam_k); without noise V = r."""
    weights, means, covariances = world(d)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    beta, (x_t, t) = 0.8, noisy(21, 5, d)
    reward, tilt, gaussian = list(rewards(d))[which]
    tilted, log_z = tilt(prior, beta)
    g, m, lam = plain_posterior(x_t, t, weights, means, covariances)
    per_component = [
        [gaussian(m[i, k], lam[i, k], beta) for k in range(len(weights))] for i in range(len(t))
    ]
    expected = beta * (g.log() + torch.tensor(per_component).double()).logsumexp(-1)
    close(implicit_reward(prior, tilted, log_z, beta, x_t, t), expected)
    close(implicit_reward(prior, tilted, log_z, beta, x_t), reward(x_t), 1e-10)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_implicit_reward_guides_to_the_optimum(which):
    """eps*_t = eps_hat - (s/beta) grad V_t, and V_t >= E[r|x_t] (Jensen).

    At large beta the gap is Var(r|x_t) / (2 beta).
    """
    weights, means, covariances = world(2)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    x_t, t = noisy(15, 5, 2)
    _, s = levels(t)
    reward, tilt, _ = list(rewards(2))[which]

    def value(beta, x_t=x_t):
        tilted, log_z = tilt(prior, beta)
        return implicit_reward(prior, tilted, log_z, beta, x_t, t)

    beta, x = 0.8, x_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(beta, x).sum(), x)
    close(
        tilt(prior, beta)[0].predict_noise(x_t, t),
        prior.predict_noise(x_t, t) - s / beta * gradient,
        1e-11,
    )

    points, cell = grid(2)
    joint = gaussian_kernel(x_t, points, t) * plain_density(points, weights, means, covariances)
    expected_reward = joint @ reward(points) / joint.sum(-1)
    gaps = torch.stack([value(beta) - expected_reward for beta in (0.5, 1e3, 1e4)])
    assert bool((gaps > 1e-7).all())
    # the leading term is Var(r|x_t) / (2 beta)
    variance = joint @ reward(points) ** 2 / joint.sum(-1) - expected_reward**2
    close(gaps[1] * 2e3, variance, 1e-2)
    close(gaps[2] * 2e4, variance, 1e-3)


@pytest.mark.parametrize("d", [1, 2])
def test_optimum_for_a_logistic_preference(d):
    """P(win | x) = sigmoid((v . x + c) / tau) and r = beta log P.

        V_t = beta log sum_k g_k E_z sigmoid((v . m_k + c + z |v|_Lam) / tau)

    eps_hat - (s / beta) grad V_t is the noise prediction of the noised p* = p_0 P / Z.

    Source: derived here. p* is no mixture: it is known by integration on a grid only.
    """
    weights, means, covariances = world(d)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    v, c, tau, beta = tensor(0.8, -0.6)[:d], 0.3, 0.5, 0.7
    (x_t, t), z = noisy(22, 5, d), torch.linspace(-9, 9, 2001, dtype=torch.float64)
    a, s = levels(t)
    mass = torch.exp(-0.5 * z**2) / (2 * torch.pi) ** 0.5 * (z[1] - z[0])
    x = x_t.clone().requires_grad_()
    g, m, lam = plain_posterior(x, t, weights, means, covariances)
    spread = torch.einsum("i,bkij,j->bk", v, lam, v).sqrt()
    win = torch.sigmoid((m @ v + c)[..., None] / tau + spread[..., None] * z / tau) @ mass
    value = beta * (g * win).sum(-1).log()
    (gradient,) = torch.autograd.grad(value.sum(), x)

    points, _ = grid(d)
    joint = gaussian_kernel(x_t, points, t) * plain_density(points, weights, means, covariances)
    preferred = joint * torch.sigmoid((points @ v + c) / tau)
    close(value.detach(), beta * (preferred.sum(-1) / joint.sum(-1)).log(), 1e-10)
    eps_star = (x_t - a * (preferred @ points) / preferred.sum(-1, keepdim=True)) / s
    close(prior.predict_noise(x_t, t)[0] - s / beta * gradient, eps_star, 1e-10)
    for wrong in (-1 / beta, 1.0, 1 / tau):
        assert (prior.predict_noise(x_t, t)[0] - s * wrong * gradient - eps_star).abs().max() > 1e-3


@pytest.mark.parametrize("which", [0, 1, 2])
def test_binary_guidance_with_the_implicit_reward_is_the_tilted_prior(which):
    """Guidance with preference as a class is the score of p*_t, with lam = tau / beta.

        score_p + lam (grad log P(win | x_t) - grad log P(lose | x_t)) = score of p*_t
        P(win | x_t) = sigmoid((V_t - b) / tau),    any b

    P(win) alone is not enough, and lam = 1 / beta is wrong.

    Source: derived here, after the idea of PSD (arXiv 2603.01594); V_t by plain algebra with
    explicit inverses.
    """
    weights, means, covariances = world(3)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    beta, tau, b, (x_t, t) = 0.8, 2.0, -1.0, noisy(23, 5, 3)
    _, tilt, gaussian = list(rewards(3))[which]
    x = x_t.clone().requires_grad_()
    g, m, lam_k = plain_posterior(x, t, weights, means, covariances)
    parts = [
        torch.stack([gaussian(m[i, k], lam_k[i, k], beta) for k in range(len(weights))])
        for i in range(len(t))
    ]
    value = beta * (g.log() + torch.stack(parts)).logsumexp(-1)
    chances = [torch.nn.functional.logsigmoid(sign * (value - b) / tau).sum() for sign in (1, -1)]
    win, lose = (torch.autograd.grad(chance, x, retain_graph=True)[0] for chance in chances)
    score, wanted, lam = prior.score(x_t, t)[0], tilt(prior, beta)[0].score(x_t, t)[0], tau / beta
    close(score + lam * (win - lose), wanted, 1e-10)
    for wrong in (
        lam * (lose - win),
        lam * win,
        (win - lose) / beta,
        lam * (win + lose),
        2 * lam * (win - lose),
    ):
        assert (score + wrong - wanted).abs().max() > 0.1


@pytest.mark.parametrize("tau", [0.25, 0.8, 3.0])
def test_one_preference_for_clean_pictures_has_other_odds_at_every_noise_level(tau):
    """P(win | x) = sigmoid(r / tau) for clean x has other log-odds given x_t than V_t / tau.

    They agree where the noise vanishes, at the rate sigma_t^2. With noise the slopes differ:
    log E[sigmoid(r / tau) | x_t] is not log E[exp(r / beta) | x_t].

    Source: derived here; the odds by integration over x = (x_t - sigma_t u) / alpha_t.
    """
    weights, means, covariances = world(1)
    beta, v, x_0, u = (
        0.8,
        tensor(0.9),
        tensor([-1.0], [-0.2], [0.5], [1.4]),
        torch.linspace(-9, 9, 4001).double(),
    )

    def relative_difference(noise):
        prior = GaussianMixture(weights, means, covariances, NoiseSchedule(tensor(1 - noise)))
        tilted, log_z = prior.tilt_linear(v, beta)
        x = ((1 - noise) ** 0.5 * x_0).requires_grad_()
        pictures = (x - noise**0.5 * u) / (1 - noise) ** 0.5  # (4, 4001)
        mass = plain_density(pictures.reshape(-1, 1), weights, means, covariances).view_as(
            pictures
        ) * torch.exp(-0.5 * u**2)
        win, lose = ((mass * torch.sigmoid(sign * v * pictures / tau)).sum(1) for sign in (1, -1))
        odds = (win / lose).log()
        value = implicit_reward(prior, tilted, log_z, beta, x, torch.zeros(4).long()) / tau
        slopes = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (odds, value)]
        return ((slopes[0] - slopes[1]).norm() / slopes[1].norm()).item()

    errors = [relative_difference(noise) for noise in (1e-4, 1e-6)]
    assert errors[1] < 1e-4 and 50 < errors[0] / errors[1] < 200
    for step in (200, 400, 800):
        assert relative_difference(1 - SCHEDULE.alphas_cumprod[step].item()) > 0.1


@pytest.mark.parametrize("which", [0, 1, 2])
def test_implicit_reward_is_the_reward_where_the_noise_vanishes(which):
    """V_t -> r as t -> 0, at the rate sigma_t^2.

    P(x_1 beats x_2) = sigmoid((r_1 - r_2) / tau) follows from densities alone, with beta log p*/p
    in place of r: log Z cancels.

    Source: DPO (Rafailov et al. 2023, arXiv 2305.18290), eq. 5 and 6.
    """
    weights, means, covariances = world(3)
    beta, (x, _) = 0.8, noisy(24, 6, 3)
    reward, tilt, _ = list(rewards(3))[which]
    tau, errors = reward(x).std(), []  # so that no duel is decided in advance
    for noise in (1e-6, 1e-8):
        prior = GaussianMixture(weights, means, covariances, NoiseSchedule(tensor(1 - noise)))
        tilted, log_z = tilt(prior, beta)
        x_t = (1 - noise) ** 0.5 * x
        errors.append(
            (implicit_reward(prior, tilted, log_z, beta, x_t, torch.zeros(6).long()) - reward(x))
            .abs()
            .max()
        )
    assert errors[0] < 1e-3 and 50 < errors[0] / errors[1] < 200

    implicit = beta * (tilted.log_prob(x)[0] - prior.log_prob(x)[0])
    duel, wanted = (torch.sigmoid((r[::2] - r[1::2]) / tau) for r in (implicit, reward(x)))
    close(duel, wanted, 1e-10)
    assert (implicit - reward(x)).abs().min() > 1e-3  # the constant itself is not in the densities
    for wrong in (implicit / beta, -implicit):
        assert (torch.sigmoid((wrong[::2] - wrong[1::2]) / tau) - wanted).abs().max() > 1e-3


def test_scaling_and_shifting_the_reward():
    """(k r, k beta) keeps p* and scales V_t by k; r + c keeps p* and shifts V_t by c."""
    weights, means, covariances = world(2)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    (x_t, t), v, Q = noisy(16, 5, 2), normal(17, 2), torch.eye(2).double()
    for tilt in (
        lambda k: prior.tilt_linear(k * v, 0.5 * k),
        lambda k: tilt_quadratic(prior, v, k * Q, 0.5 * k),
    ):
        (one, log_z1), (three, log_z3) = tilt(1), tilt(3)
        close(three.log_prob(x_t, t), one.log_prob(x_t, t))
        close(
            implicit_reward(prior, three, log_z3, 1.5, x_t, t),
            3 * implicit_reward(prior, one, log_z1, 0.5, x_t, t),
        )
    shifted, log_z = prior.tilt_linear(v, 0.5, c=2.0)
    plain, log_z0 = prior.tilt_linear(v, 0.5)
    close(shifted.log_prob(x_t, t), plain.log_prob(x_t, t))
    close(
        implicit_reward(prior, shifted, log_z, 0.5, x_t, t),
        2 + implicit_reward(prior, plain, log_z0, 0.5, x_t, t),
    )


def test_tilting_by_component():
    """log pi* = log pi + r/beta - log Z; V_t = beta log sum_k g_k exp(r_k/beta)."""
    weights, means, covariances = world(2)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    r, beta, (x_t, t) = tensor(0.5, -1.0, 2.0), 0.6, noisy(18, 5, 2)
    tilted, log_z = prior.tilt_components(r, beta)
    z = (weights * torch.exp(r / beta)).sum()
    close(log_z, z.log())
    close(tilted.log_weights.exp(), weights * torch.exp(r / beta) / z)
    g = plain_posterior(x_t, t, weights, means, covariances)[0]
    close(
        implicit_reward(prior, tilted, log_z, beta, x_t, t),
        beta * torch.log(g @ torch.exp(r / beta)),
    )
