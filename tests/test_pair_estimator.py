"""What a ranked pair of noises estimates: expectations of the preference term; float64.

Exact, or within 4 standard errors of at most 1% of the quantity; each refuses the flipped sign,
twice and half the size, and the noise not subtracted.
"""

import math

import numpy as np
import pytest
import torch
from gaussian_world import (
    ALPHA,
    EYE,
    GAUSS,
    MU,
    S_R,
    SCHEDULE,
    SIGMA,
    STEP,
    UNIFORM,
    WORLD,
    C,
    J,
    N,
    S,
    U,
    V,
    X,
    assert_mean,
    context,
    e_sech2,
    expected_pair,
    noise_kept,
    normal,
    picture,
)

from psd_mini import SDS, GaussianMixture, NoiseSchedule
from psd_mini.methods import RewardSDS
from psd_mini.psd import PSD, omega, psd_gradient, rank
from psd_mini.rewards import LinearReward, black_box

pytestmark = pytest.mark.algebra

# identities 35, 36, 50 and the antithetic constants: E[omega (h_1 - h_2)] for a Gaussian prior and
# a linear reward
TAU = 0.4
CONSTANTS = {
    ("hard", False): -(2 / math.sqrt(math.pi)) * ALPHA * J @ U,
    ("hard", True): -(2 * math.sqrt(2 / math.pi)) * ALPHA * J @ U,
    ("gap", False): -2 * ALPHA * SIGMA * J @ J @ V / TAU,
    ("gap", True): -4 * ALPHA * SIGMA * J @ J @ V / TAU,
    ("bt", False): -ALPHA * (S_R / TAU) * e_sech2(S_R / (math.sqrt(2) * TAU)) * J @ U,
    ("bt", True): -ALPHA * 2 * (S_R / TAU) * e_sech2(S_R / TAU) * J @ U,
}


@pytest.mark.parametrize(("kind", "antithetic"), CONSTANTS)
def test_expectation_of_the_preference_term(kind, antithetic):
    """E[omega (h_1 - h_2)], k = (s_R / tau) E sech^2(s_R z / (sqrt 2 tau)).

        hard -(2 / sqrt pi) alpha J u;  gap -2 alpha sigma J J v / tau;  bt -alpha k J u

    Antithetic pairs: hard times sqrt 2, gap times 2, k = 2 (s_R / tau) E sech^2(s_R z / tau).
    """
    method = PSD(**UNIFORM, omega=kind, tau=TAU, antithetic=antithetic)
    expected = CONSTANTS[kind, antithetic]
    assert_mean(
        expected_pair(method, seed=11),
        expected,
        noise_kept(expected),
        CONSTANTS[kind, not antithetic],
    )


def test_the_term_raises_the_reward():
    """Descent along the preference term raises a linear reward for every omega.

    <v, -E[term]> > 0
    """
    for expected in CONSTANTS.values():
        assert V @ expected < -0.5 * V.norm() * expected.norm()


# identity 34
def finite_law():
    """h (300, 3) and rewards of 300 noises: expectations over pairs are finite sums."""
    n = 300
    eps = normal(n, 3, seed=51)
    ranked = rank(
        SDS(),
        X.view(1, 3, 1, 1).expand(n, -1, -1, -1),
        torch.full((n,), STEP),
        picture(eps),
        context(WORLD, n=n),
    )
    return ranked.residuals[0].flatten(1), ranked.rewards[0]


@pytest.mark.parametrize(("kind", "tau"), [("bt", 0.4), ("bt", 1e-9), ("hard", 0.4), ("gap", 0.4)])
def test_pair_weight_is_the_difference_of_two_conditional_means(kind, tau):
    """What each omega estimates for any f, with p_w(R) = E_R' sigmoid((R - R') / tau).

        bt: E[tanh((R_1 - R_2) / (2 tau)) (f_1 - f_2)] = E[f | win] - E[f | lose] = 4 Cov(p_w(R), f)
        hard, and bt as tau -> 0: p_w -> F_R(R), the rank;  gap: 2 Cov(R, f) / tau

    f = h of a mixture; all expectations are sums over 300 x 300 pairs. Source: derived here;
    Bradley & Terry 1952.
    """
    h, r = finite_law()
    n = len(h)
    gap = r[:, None] - r[None]
    pairs = [f.expand(n, n, 3).reshape(-1, 3) for f in (h[:, None], h[None])]
    got = psd_gradient(torch.zeros(n * n, 3), *pairs, omega(gap.flatten(), kind, tau), 1.0).mean(0)
    if kind == "gap":
        expected = 2 / tau * ((r - r.mean())[:, None] * h).mean(0)
    else:
        p_w = (
            torch.special.expit(gap / tau).mean(1)
            if kind == "bt"
            else (0.5 + 0.5 * gap.sign()).mean(1)
        )
        given_win = (p_w[:, None] * h).sum(0) / p_w.sum()
        given_lose = ((1 - p_w)[:, None] * h).sum(0) / (1 - p_w).sum()
        expected = 4 * ((p_w - 0.5)[:, None] * h).mean(0)
        torch.testing.assert_close(given_win - given_lose, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    for wrong in ("bt", "hard", "gap"):
        if wrong != kind and tau > 1e-3:
            other = psd_gradient(
                torch.zeros(n * n, 3), *pairs, omega(gap.flatten(), wrong, tau), 1.0
            ).mean(0)
            assert (other - expected).norm() > 0.05 * expected.norm()


def test_winner_of_a_sampled_duel_has_the_same_mean():
    """The label is drawn with P(1 wins) = sigmoid((R_1 - R_2) / tau).

    E[f_w - f_l] = E[tanh((R_1 - R_2) / (2 tau)) (f_1 - f_2)]
    """
    h, r = finite_law()
    n, generator = 2_000_000, torch.Generator().manual_seed(52)
    i, j = torch.randint(len(h), (2, n), generator=generator)
    first = torch.rand(n, generator=generator, dtype=torch.float64) < torch.special.expit(
        (r[i] - r[j]) / TAU
    )
    samples = torch.where(first[:, None], h[i] - h[j], h[j] - h[i])
    weights = omega(r[:, None] - r[None], "bt", TAU)
    expected = (weights[..., None] * (h[:, None] - h[None])).mean((0, 1))
    assert_mean(samples, expected)


# identity 35: any reward, independent pairs
def test_preference_is_a_covariance():
    """Also for a reward that is neither linear nor differentiable.

    E[sign(R_1 - R_2)(h_1 - h_2)] = 4 Cov(F_R(R), h)
    """

    def steps(images, prompts):
        return torch.floor(3 * images.flatten(1)[:, 0]) + images.flatten(1)[:, 1].abs()

    samples = expected_pair(PSD(**UNIFORM, antithetic=False), seed=21, reward=black_box(steps))
    eps = normal(2_000_000, 3, seed=22)
    # plain algebra: h is affine in eps, x0_hat too
    x0_hat = MU + (ALPHA * X + SIGMA * eps - ALPHA * MU) @ J.T
    h = ALPHA / SIGMA * (X - x0_hat)
    rewards = torch.floor(3 * x0_hat[:, 0]) + x0_hat[:, 1].abs()
    ranks = torch.empty_like(rewards)
    ranks[rewards.argsort()] = torch.arange(len(rewards), dtype=torch.float64) / len(rewards)
    # ranks lie in (0, 1) with deviation 0.29
    scatter = 4 * h.std(0) * 0.29 / len(h) ** 0.5
    covariance = 4 * ((ranks - 0.5)[:, None] * (h - h.mean(0))).mean(0)
    assert_mean(samples, covariance, noise_kept(covariance), uncertainty=scatter)


def test_best_minus_worst_of_four():
    """The best of four: 2.0588, where a pair (N = 2) has 2 / sqrt(pi) = 1.128.

        E[h_best - h_worst] = -2 E[max of N normals] alpha J u

    RewardSDS "best" of four with the reward, minus the same with the reward turned round.
    """
    x, t = X.view(1, 3, 1, 1).expand(N, -1, -1, -1), torch.full((N,), STEP)
    uniform = SDS(weighting="uniform")
    best, worst = (
        RewardSDS(uniform, "best", 4)(
            x, t, normal(4, *x.shape, seed=61), context(reward=LinearReward(v), n=N)
        )[0]
        for v in (V, -V)
    )
    # E max = integral of z d Phi(z)^4
    z = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    largest = (z * 4 * torch.special.ndtr(z) ** 3 * density).sum() * (z[1] - z[0])
    assert 2 * largest.item() == pytest.approx(2.0588, abs=5e-5)
    expected = -2 * largest * ALPHA * J @ U
    assert_mean((best - worst).flatten(1), expected, noise_kept(expected), CONSTANTS["hard", False])


@pytest.mark.parametrize("antithetic", [False, True])
def test_constant_of_a_probit_weight(antithetic):
    """An omega that the package does not have: any odd weight is accepted.

    omega = 2 Phi(gap / kappa) - 1:  E = -alpha k J u,
    k = (4 s_R / kappa) / sqrt(2 pi) / sqrt(1 + 2 s_R^2 / kappa^2)
    antithetic: k = (8 s_R / kappa) / sqrt(2 pi) / sqrt(1 + 4 s_R^2 / kappa^2)
    """
    kappa = 0.5
    x, t = X.view(1, 3, 1, 1).expand(N, -1, -1, -1), torch.full((N,), STEP)
    eps = normal(2, *x.shape, seed=71)
    ranked = rank(SDS(), x, t, torch.stack((eps[0], -eps[0])) if antithetic else eps, context(n=N))
    weights = 2 * torch.special.ndtr((ranked.rewards[0] - ranked.rewards[1]) / kappa) - 1
    samples = psd_gradient(torch.zeros_like(x), *ranked.residuals, weights, 1.0).flatten(1)
    n = 2 if antithetic else 1
    k = 4 * n * S_R / kappa / math.sqrt(2 * math.pi) / (1 + 2 * n * S_R**2 / kappa**2).sqrt()
    other = (
        4
        * S_R
        * (3 - n)
        / kappa
        / math.sqrt(2 * math.pi)
        / (1 + 2 * (3 - n) * S_R**2 / kappa**2).sqrt()
    )
    expected = -ALPHA * k * J @ U
    assert_mean(samples, expected, noise_kept(expected), -ALPHA * other * J @ U)


# identity 37
def test_stein_form_estimates_the_reward_gradient():
    """For a mixture and a smooth reward, differentiated by autograd.

        E[Delta (eps_1 - eps_2)] = 2 sigma E[grad_{x_t} r(x0_hat(x_t))]

    First both sides by Gauss-Hermite quadrature, exact to rounding; then the pair estimator by
    sampling.
    """

    def reward_of(x_t):
        x0_hat = WORLD.denoise(x_t, torch.full((len(x_t),), STEP))[0]
        return torch.sin(2 * x0_hat[:, 0]) + x0_hat[:, 1] * x0_hat[:, 2]

    nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(30))
    eps = torch.cartesian_prod(nodes, nodes, nodes)
    mass = torch.cartesian_prod(weights, weights, weights).prod(1)[:, None] / (2 * math.pi) ** 1.5
    leaf = (ALPHA * X + SIGMA * eps).requires_grad_()
    (gradient,) = torch.autograd.grad(reward_of(leaf).sum(), leaf)
    expected = 2 * SIGMA * (mass * gradient).sum(0)
    # E[(R_1 - R_2)(eps_1 - eps_2)] = 2 Cov(R, eps) of independent pairs
    torch.testing.assert_close(
        2 * (mass * reward_of(leaf.detach())[:, None] * eps).sum(0),
        expected,
        rtol=1e-11,
        atol=1e-11,
    )

    eps = normal(2, N, 3, seed=31)
    gap = reward_of(ALPHA * X + SIGMA * eps[0]) - reward_of(ALPHA * X + SIGMA * eps[1])
    samples = psd_gradient(torch.zeros(N, 3), eps[0], eps[1], omega(gap, "gap"), 1.0)
    assert_mean(samples, expected, expected / SIGMA)


# identity 38
def test_without_subtracting_the_noise_the_sign_is_wrong():
    """Without subtracting the noise the term points away from the reward.

    E[Delta (eps_hat_1 - eps_hat_2)] = +2 sigma^3 C^-1 J^T v;  raw = delta + (eps_w - eps_l)
    """
    x = X.view(1, 3, 1, 1).expand(N, -1, -1, -1)
    t, eps = torch.full((N,), STEP), normal(2, N, 3, 1, 1, seed=41)
    ranked = rank(SDS(), x, t, eps, context(n=N))
    gap = (ranked.rewards[0] - ranked.rewards[1]).view(-1, 1, 1, 1)
    raw = ranked.residuals + eps  # eps_hat
    zero = torch.zeros_like(x)
    wrong = psd_gradient(zero, raw[0], raw[1], gap.flatten(), 1.0).flatten(1)
    expected = 2 * SIGMA**3 * torch.linalg.solve(C, J.T @ V)
    torch.testing.assert_close(
        noise_kept(TAU * CONSTANTS["gap", False]), expected, rtol=1e-10, atol=1e-10
    )
    assert_mean(wrong, expected, TAU * CONSTANTS["gap", False])
    right = psd_gradient(
        zero, ranked.residuals[0], ranked.residuals[1], gap.flatten(), 1.0
    ).flatten(1)
    assert V @ right.mean(0) < 0.9 * TAU * (V @ CONSTANTS["gap", False])  # which is negative
    assert V @ wrong.mean(0) > 0.9 * (V @ expected) > 0.01
    torch.testing.assert_close(
        wrong, right + (gap * (eps[0] - eps[1])).flatten(1), rtol=1e-10, atol=1e-10
    )


# identity 39
def affine_maps(x, schedule, step):
    """h(0), R(0) and their slopes in eps: both are affine for a Gaussian prior, linear reward."""
    prior = GaussianMixture(torch.ones(1), MU[None], S[None], schedule)
    eps = torch.cat((torch.zeros(1, 3), torch.eye(3))).double()
    ctx = context(prior, n=4)
    ranked = rank(
        SDS(), x.view(1, 3, 1, 1).expand(4, -1, -1, -1), torch.full((4,), step), picture(eps), ctx
    )
    h, r = ranked.residuals[0].flatten(1), ranked.rewards[0]
    return h[0], (h[1:] - h[:1]).T, r[1:] - r[:1]


@pytest.mark.parametrize("step", [60, 450, 900])
def test_equilibrium_of_gap_and_stein_psd(step):
    """Where gap with tau = 1 comes to rest, exactly: E[(R_1 - R_2)(f_1 - f_2)] = 2 Cov(R, f).

    E[G] = 0 at x = mu + 2 lambda alpha^2 S C^-1 S v. With -Delta (eps_1 - eps_2) / (2 beta) in
    place of the residuals it is 0 at mu + S v / beta, the tilted mean, at every t.
    """
    abar = SCHEDULE.alphas_cumprod[step]
    C_t = abar * S + (1 - abar) * EYE
    lam, beta, zero = 0.7, 0.6, torch.zeros(3, dtype=torch.float64)
    h_0, slope_h, slope_r = affine_maps(
        MU + 2 * lam * abar * S @ torch.linalg.solve(C_t, S @ V), SCHEDULE, step
    )
    torch.testing.assert_close(h_0 + lam * 2 * slope_h @ slope_r, zero, rtol=0, atol=1e-10)
    for wrong in (-2, 1, 4):  # the sign, half and twice the size
        assert (h_0 + lam * wrong * slope_h @ slope_r).norm() > 0.3 * h_0.norm()
    h_0, _, slope_r = affine_maps(GAUSS.tilt_linear(V, beta)[0].means[0], SCHEDULE, step)
    torch.testing.assert_close(h_0 - 2 * slope_r / (2 * beta), zero, rtol=0, atol=1e-10)
    for wrong in (-2, 1, 4):
        assert (h_0 - wrong * slope_r / (2 * beta)).norm() > 0.3 * h_0.norm()


def test_gap_psd_reaches_the_tilted_mean_as_the_noise_vanishes():
    """t -> 0: gap-PSD's equilibrium tends to mu + 2 lambda S v at the rate sigma_t^2.

    That is the tilted mean of beta = 1 / (2 lambda).
    """
    lam = 0.7
    tilted = GAUSS.tilt_linear(V, 1 / (2 * lam))[0].means[0]
    for noise in (1e-4, 1e-6):
        h_0, slope_h, slope_r = affine_maps(
            tilted, NoiseSchedule(torch.tensor([1 - noise], dtype=torch.float64)), 0
        )
        # both parts carry the factor sigma; what is left of them is smaller by sigma^2
        left, part = (h_0 + lam * 2 * slope_h @ slope_r).norm(), h_0.norm()
        assert part > 0.5 * noise**0.5 and 0.01 * noise < left / part < 20 * noise


def test_hard_pairs_stay_bounded_where_the_exact_term_vanishes():
    """sigma_t -> 0: the hard pair keeps its length, while the exact term vanishes.

    Gaussian prior, linear reward: |E[sign(R_1 - R_2)(h_1 - h_2)]| -> 2 / sqrt(pi), while
    sigma_t grad V_t / beta -> 0. With one lambda their ratio grows like 1 / sigma_t. So does the
    distance from mu at which prior and preference balance, |E[h]| = lambda |E[pair]|. With
    lambda(t) = preference_weight sigma_t the ratio tends to
    preference_weight (2 / sqrt(pi)) beta / |v|.
    """
    beta, ratios, n = 0.6, [], 100_000
    zero = torch.zeros(n, 3, 1, 1, dtype=torch.float64)
    for noise in (1e-2, 1e-4, 1e-6):
        schedule, sigma = NoiseSchedule(torch.tensor([1 - noise], dtype=torch.float64)), noise**0.5
        prior = GaussianMixture(torch.ones(1), MU[None], S[None], schedule)
        t, eps = torch.zeros(n, dtype=torch.long), normal(2, n, 3, 1, 1, seed=81)
        ranked = rank(SDS(), X.view(1, 3, 1, 1).expand(n, -1, -1, -1), t, eps, context(prior, n=n))
        pairs = psd_gradient(
            zero, *ranked.residuals, omega(ranked.rewards[0] - ranked.rewards[1], "hard"), 1.0
        ).flatten(1)
        C_t = (1 - noise) * S + noise * EYE
        J_t = (1 - noise) ** 0.5 * torch.linalg.solve(C_t, S)
        u = J_t @ V / (J_t @ V).norm()
        assert_mean(pairs, -(2 / math.sqrt(math.pi)) * (1 - noise) ** 0.5 * J_t @ u)
        exact = (
            prior.tilt_linear(V, beta)[0].predict_noise(X[None], t[:1])
            - prior.predict_noise(X[None], t[:1])
        ).norm()
        ratios.append((pairs.mean(0).norm() / exact).item())
        assert pairs.mean(0).norm() == pytest.approx(2 / math.sqrt(math.pi), rel=0.03)
        place = MU + 2 / math.sqrt(math.pi) * (1 - noise) ** 0.5 / sigma * S @ u  # lambda = 1
        assert_mean(pairs, -affine_maps(place, schedule, 0)[0])
        expected = 2 / math.sqrt(math.pi) * beta / V.norm().item()
        assert PSD(preference_weight=3.0).strength(torch.tensor(sigma)).item() * ratios[
            -1
        ] == pytest.approx(3 * expected, rel=0.03)
    assert [ratios[i + 1] / ratios[i] for i in (0, 1)] == pytest.approx([10, 10], rel=0.05)
