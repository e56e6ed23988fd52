"""PSD's gradient and its relatives: identities in float64, expectations by Monte Carlo within 4 standard errors.

World: a Gaussian prior N(mu, S) in three dimensions and a linear reward r = <v, x>, where everything has a closed form:
C = alpha^2 S + sigma^2 I, J = alpha S C^-1 the denoiser's Jacobian, s_R = sigma ||J v|| the deviation of R, u = J v / ||J v||.
"""

import math

import pytest
import torch

from psd_mini import SDS, Context, GaussianMixture, scaled_linear_schedule
from psd_mini.formulas import omega
from psd_mini.methods import CSD, PSD, DreamDPO, RewardSDS, psd_gradient, reward_weights
from psd_mini.rewards import LinearReward, black_box

SCHEDULE = scaled_linear_schedule()
EYE = torch.eye(3, dtype=torch.float64)
S = torch.tensor([[0.8, 0.3, 0.0], [0.3, 0.6, -0.1], [0.0, -0.1, 0.5]], dtype=torch.float64)
MU = torch.tensor([0.4, -1.0, 0.7], dtype=torch.float64)
V = torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64)
X = torch.tensor([1.1, -0.3, 0.2], dtype=torch.float64)
STEP = 450
ABAR = SCHEDULE.alphas_cumprod[STEP]
ALPHA, SIGMA = ABAR.sqrt(), (1 - ABAR).sqrt()
C = ABAR * S + (1 - ABAR) * EYE
J = ALPHA * S @ torch.linalg.inv(C)
S_R, U = SIGMA * (J @ V).norm(), J @ V / (J @ V).norm()
GAUSS = GaussianMixture(torch.ones(1), MU[None], S[None], SCHEDULE)
WORLD = GaussianMixture(torch.tensor([0.4, 0.6], dtype=torch.float64), torch.stack((MU, -MU)), torch.stack((S, S)), SCHEDULE)
N = 300_000
UNIFORM = {"base": SDS(weighting="uniform"), "over_views": False}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(prior=GAUSS, reward=None, n=1):
    embeddings = torch.zeros(2, len(prior.means), dtype=torch.float64)
    if prior is WORLD:
        embeddings[0, 1] = embeddings[1, 0] = -2.0
    reward = LinearReward(V) if reward is None else reward
    return Context(prior, embeddings, None, [""] * n, reward)


def batch(n, seed=0, noises=2):
    """n renders at random places and times with their noises."""
    x = normal(n, 3, 1, 1, seed=seed)
    t = torch.randint(20, 980, (n,), generator=torch.Generator().manual_seed(seed))
    return x, t, normal(noises, n, 3, 1, 1, seed=seed + 1)


def weight(t):
    return (1 - SCHEDULE.alphas_cumprod[t]).view(-1, 1, 1, 1)


def expected_pair(method, seed=0, reward=None):
    """Samples (n, 3) of lambda omega (h_1 - h_2), that is PSD minus its base, at X and STEP, w = 1, lambda = 1."""
    x = X.view(1, 3, 1, 1).expand(N, -1, -1, -1)
    t = torch.full((N,), STEP)
    eps = normal(method.n_noises, *x.shape, seed=seed)
    method.preference_weight = 1.0 / SIGMA.item()  # the method multiplies sigma_t
    with_pair, _ = method(x, t, eps, context(reward=reward, n=N))
    method.preference_weight = 0.0
    without, _ = method(x, t, eps, context(reward=reward, n=N))
    return (with_pair - without).flatten(1)


def assert_mean(samples, expected):
    """The mean is within 4 standard errors (at most 1% of it), and flipped, doubled or halved it is not."""
    mean, error = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    assert error.max() < 0.01 * expected.norm()

    def consistent(candidate):
        return bool(((mean - candidate).abs() < 4 * error).all())

    assert consistent(expected), (mean, expected, error)
    for wrong in (-expected, 2 * expected, 0.5 * expected):
        assert not consistent(wrong)


def e_sech2(scale):
    """E_z sech^2(scale z), z ~ N(0, 1), by the trapezoidal rule."""
    z = torch.linspace(-10, 10, 40_001, dtype=torch.float64)
    return (torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) / torch.cosh(scale * z) ** 2).sum() * (z[1] - z[0])


# identity 31
def test_pair_difference_points_from_loser_to_winner():
    """h_w - h_l = (alpha / sigma)(x0_hat_l - x0_hat_w);  h_w = mean + delta/2, h_l = mean - delta/2."""
    from psd_mini.methods import rank

    x, t, eps = batch(6)
    ranked = rank(SDS(2.0), x, t, eps, context(WORLD, n=6))
    x_t = SCHEDULE.add_noise(x, eps, t)
    eps_cfg = ranked.residuals + eps
    a = SCHEDULE.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    s = (1 - SCHEDULE.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    x0_hat = (x_t - s * eps_cfg) / a
    h = ranked.residuals
    torch.testing.assert_close(h[0] - h[1], a / s * (x0_hat[1] - x0_hat[0]), rtol=1e-9, atol=1e-9)
    rewards = (x0_hat.flatten(2) * V).sum(-1)
    torch.testing.assert_close(ranked.rewards, rewards, rtol=1e-9, atol=1e-9)
    mean, delta = h.mean(0), h[0] - h[1]
    torch.testing.assert_close(torch.stack((mean + delta / 2, mean - delta / 2)), h, rtol=1e-12, atol=1e-12)


# identity 32
@pytest.mark.parametrize("base", [SDS(2.0), SDS(1.0, "uniform"), CSD(3.0)])
@pytest.mark.parametrize("case", ["weight zero", "constant reward"])
def test_without_preference_it_is_the_base_bit_for_bit(base, case):
    """lambda = 0, or a constant reward: G_PSD = G_base on the same two noises, equal in every bit."""
    x, t, eps = batch(5)
    reward = LinearReward(V if case == "weight zero" else 0 * V)
    psd = PSD(base, preference_weight=0.0 if case == "weight zero" else 3.0, antithetic=False, over_views=False)
    got, _ = psd(x, t, eps, context(WORLD, reward, 5))
    two = type(base)(base.guidance_scale, base.weighting, 2)
    expected, _ = two(x, t, eps, context(WORLD, reward, 5))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", ["hard", "gap", "bt", "gated"])
def test_order_of_the_noises_does_not_matter(kind):
    """G(eps_1, eps_2) = G(eps_2, eps_1): omega is odd and so is h_1 - h_2. Turning the reward round flips the term's sign."""
    x, t, eps = batch(5)
    method = PSD(SDS(2.0), 2.0, kind, tau=0.5, antithetic=False, over_views=False)
    got, _ = method(x, t, eps, context(WORLD, n=5))
    swapped, _ = method(x, t, eps.flip(0), context(WORLD, n=5))
    torch.testing.assert_close(got, swapped, rtol=1e-12, atol=1e-12)
    turned, _ = method(x, t, eps, context(WORLD, LinearReward(-V), 5))
    base, _ = SDS(2.0, n_noises=2)(x, t, eps, context(WORLD, n=5))
    torch.testing.assert_close(got - base, base - turned, rtol=1e-10, atol=1e-10)
    assert (got - base).abs().max() > 1e-3


# identity 33
def test_winner_base_is_mean_base_with_half_more():
    """hard omega: h_w + lambda delta = mean + (lambda + 1/2) delta."""
    x, t, eps = batch(6)
    sigma = weight(t).sqrt()
    winner, _ = PSD(SDS(2.0), 0.0, pair_base="winner", antithetic=False, over_views=False)(x, t, eps, context(WORLD, n=6))
    # lambda(t) = preference_weight sigma_t, so one half at every t is read off picture by picture
    for b in range(6):
        half = PSD(SDS(2.0), 0.5 / sigma[b].item(), antithetic=False, over_views=False)
        mean, _ = half(x[b : b + 1], t[b : b + 1], eps[:, b : b + 1], context(WORLD))
        # WORLD's context is the same for every picture
        torch.testing.assert_close(winner[b : b + 1], mean, rtol=1e-9, atol=1e-9)


def test_fresh_base_uses_the_third_noise():
    """base = h(eps_3), pair from eps_1 and eps_2: by hand."""
    x, t, eps = batch(4, noises=3)
    got, _ = PSD(SDS(2.0), 1.5, pair_base="fresh", antithetic=False, over_views=False)(x, t, eps, context(WORLD, n=4))
    third, _ = SDS(2.0)(x, t, eps[2:], context(WORLD, n=4))
    mean, _ = SDS(2.0, n_noises=2)(x, t, eps[:2], context(WORLD, n=4))
    pair, _ = PSD(SDS(2.0), 1.5, antithetic=False, over_views=False)(x, t, eps[:2], context(WORLD, n=4))
    torch.testing.assert_close(got, third + pair - mean, rtol=1e-10, atol=1e-10)


def test_antithetic_is_a_pair_of_opposite_noises():
    """antithetic with eps = independent with (eps, -eps); for a Gaussian prior the base has no noise left."""
    x, t, eps = batch(4, noises=1)
    anti, _ = PSD(SDS(2.0), 1.5, over_views=False)(x, t, eps, context(WORLD, n=4))
    pair, _ = PSD(SDS(2.0), 1.5, antithetic=False, over_views=False)(x, t, torch.cat((eps, -eps)), context(WORLD, n=4))
    assert torch.equal(anti, pair)
    base, _ = PSD(**UNIFORM, preference_weight=0.0)(x, t, eps, context(n=4))
    a, s = (1 - weight(t)).sqrt(), weight(t).sqrt()
    for b in range(4):
        C_b = a[b].squeeze() ** 2 * S + s[b].squeeze() ** 2 * EYE
        expected = a[b].squeeze() * s[b].squeeze() * torch.linalg.solve(C_b, x[b].flatten() - MU)
        torch.testing.assert_close(base[b].flatten(), expected, rtol=1e-9, atol=1e-9)


# identities 35, 36, 50 and the antithetic constants: E[omega (h_1 - h_2)] for a Gaussian prior and a linear reward
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
    """hard -(2/sqrt pi) alpha J u;  gap -2 alpha sigma J J v / tau; bt -alpha k J u, k = (s_R/tau) E sech^2(s_R z / sqrt2 tau).

    Antithetic pairs: hard times sqrt 2, gap times 2, k = 2 (s_R/tau) E sech^2(s_R z / tau).
    """
    method = PSD(**UNIFORM, omega=kind, tau=TAU, antithetic=antithetic)
    assert_mean(expected_pair(method, seed=11), CONSTANTS[kind, antithetic])


def test_the_term_raises_the_reward():
    """Descent along the preference term raises a linear reward: <v, -E[term]> > 0 for every omega."""
    for expected in CONSTANTS.values():
        assert V @ expected < 0


# identities 34 and 35: any reward, independent pairs
def test_preference_is_a_covariance():
    """E[sign(R_1 - R_2)(h_1 - h_2)] = 4 Cov(F_R(R), h) for a reward that is neither linear nor differentiable."""

    def steps(images, prompts):
        return torch.floor(3 * images.flatten(1)[:, 0]) + images.flatten(1)[:, 1].abs()

    samples = expected_pair(PSD(**UNIFORM, antithetic=False), seed=21, reward=black_box(steps))
    eps = normal(2_000_000, 3, seed=22)
    root = torch.linalg.cholesky(C)  # plain algebra: h is affine in eps, x0_hat too
    assert torch.allclose(root @ root.T, C)
    x_t = ALPHA * X + SIGMA * eps
    x0_hat = MU + (x_t - ALPHA * MU) @ J.T
    h = ALPHA / SIGMA * (X - x0_hat)
    rewards = torch.floor(3 * x0_hat[:, 0]) + x0_hat[:, 1].abs()
    rank = torch.empty_like(rewards)
    rank[rewards.argsort()] = torch.arange(len(rewards), dtype=torch.float64) / len(rewards)
    covariance = 4 * ((rank - 0.5)[:, None] * (h - h.mean(0))).mean(0)
    error = samples.std(0) / len(samples) ** 0.5 + 4 * h.std(0) * 0.29 / len(h) ** 0.5
    assert ((samples.mean(0) - covariance).abs() < 4 * error).all()
    assert (samples.mean(0) + covariance).abs().max() > 20 * error.max()


# identity 37
def test_stein_form_estimates_the_reward_gradient():
    """E[Delta (eps_1 - eps_2)] = 2 sigma E[grad_{x_t} r(x0_hat(x_t))] for a mixture and a smooth reward (autograd)."""
    n = 400_000
    x = X.expand(n, -1)
    eps = normal(2, n, 3, seed=31)

    def reward_of(x_t):
        x0_hat = WORLD.denoise(x_t, torch.full((len(x_t),), STEP))[0]
        return torch.sin(2 * x0_hat[:, 0]) + x0_hat[:, 1] * x0_hat[:, 2]

    x_t = [ALPHA * x + SIGMA * e for e in eps]
    gap = reward_of(x_t[0]) - reward_of(x_t[1])
    samples = gap[:, None] * (eps[0] - eps[1])
    leaf = x_t[0][:100_000].requires_grad_()
    (gradient,) = torch.autograd.grad(reward_of(leaf).sum(), leaf)
    expected = 2 * SIGMA * gradient.mean(0)
    error = samples.std(0) / n**0.5 + 2 * SIGMA * gradient.std(0) / len(gradient) ** 0.5
    assert ((samples.mean(0) - expected).abs() < 4 * error).all()
    assert (samples.mean(0) - expected).norm() < 0.05 * expected.norm()
    assert ((samples.mean(0) + expected).abs() > 10 * error).any()


# identity 38
def test_without_subtracting_the_noise_the_sign_is_wrong():
    """f = eps_hat: E[Delta (eps_hat_1 - eps_hat_2)] = +2 sigma^3 C^-1 J^T v: away; raw = delta + (eps_w - eps_l)."""
    x = X.view(1, 3, 1, 1).expand(N, -1, -1, -1)
    t, eps = torch.full((N,), STEP), normal(2, N, 3, 1, 1, seed=41)
    from psd_mini.methods import rank

    ranked = rank(SDS(), x, t, eps, context(n=N))
    gap = (ranked.rewards[0] - ranked.rewards[1]).view(-1, 1, 1, 1)
    raw = ranked.residuals + eps  # eps_hat
    zero = torch.zeros_like(x)
    wrong = psd_gradient(zero, raw[0], raw[1], gap.flatten(), 1.0).flatten(1)
    assert_mean(wrong, 2 * SIGMA**3 * torch.linalg.solve(C, J.T @ V))
    right = psd_gradient(zero, ranked.residuals[0], ranked.residuals[1], gap.flatten(), 1.0).flatten(1)
    assert V @ right.mean(0) < 0 < V @ wrong.mean(0)
    torch.testing.assert_close(wrong, right + (gap * (eps[0] - eps[1])).flatten(1), rtol=1e-10, atol=1e-10)


# identity 40
def test_invariances_of_omega():
    """hard: any increasing map of the reward; gap, bt: shifts; bt: (r, tau) -> (k r, k tau)."""
    r_1, r_2 = normal(50, seed=1), normal(50, seed=2)
    for f in (torch.exp, lambda r: r**3 + r, lambda r: 5 * r - 2):
        assert torch.equal(omega(r_1 - r_2, "hard"), omega(f(r_1) - f(r_2), "hard"))
    assert not torch.equal(omega(r_1 - r_2, "gap"), omega(r_1.exp() - r_2.exp(), "gap"))
    torch.testing.assert_close(omega(3.0 * (r_1 - r_2), "bt", 3.0 * 0.2), omega(r_1 - r_2, "bt", 0.2), rtol=1e-12, atol=1e-12)


# identity 50
def test_limits_of_omega():
    """bt -> hard as tau -> 0; tau bt -> gap / 2 as tau -> infinity; gated is hard beyond tau and 0 below; all odd."""
    gap = normal(50, seed=3)
    torch.testing.assert_close(omega(gap, "bt", 1e-8), torch.sign(gap))
    torch.testing.assert_close(1e6 * omega(gap, "bt", 1e6), gap / 2, rtol=1e-9, atol=1e-12)
    gated = omega(gap, "gated", 0.5)
    assert torch.equal(gated, torch.where(gap.abs() >= 0.5, torch.sign(gap), torch.zeros_like(gap)))
    for kind in ("hard", "gap", "bt", "gated"):
        torch.testing.assert_close(omega(-gap, kind, 0.3), -omega(gap, kind, 0.3))
        assert omega(torch.zeros(1), kind, 0.3).item() == 0
    torch.testing.assert_close(omega(gap, "bt", 0.7), 2 / (1 + torch.exp(-gap / 0.7)) - 1, rtol=1e-12, atol=1e-12)


# identity 39
@pytest.mark.parametrize("step", [60, 450])
def test_equilibrium_of_gap_psd(step):
    """E[G] = 0 at x = mu + 2 lambda alpha^2 S C^-1 S v (independent pairs, tau = 1): the beta = 1/(2 lambda) tilt as t -> 0.

    Exact expectation: h and R are affine in eps, so E over eps of their product needs only unit noises.
    """
    abar = SCHEDULE.alphas_cumprod[step]
    C_t = abar * S + (1 - abar) * EYE
    lam = 0.7
    x = MU + 2 * lam * abar * S @ torch.linalg.solve(C_t, S @ V)
    # the package's h at eps = 0 and at unit noises gives the affine maps
    eps = torch.cat((torch.zeros(1, 3), torch.eye(3))).double()
    xs = x.view(1, 3, 1, 1).expand(4, -1, -1, -1)
    from psd_mini.methods import rank

    ranked = rank(SDS(), xs, torch.full((4,), step), eps.view(1, 4, 3, 1, 1), context(n=4))
    h, r = ranked.residuals[0].flatten(1), ranked.rewards[0]
    slope_h, slope_r = (h[1:] - h[:1]).T, r[1:] - r[:1]
    expectation = h[0] + lam * 2 * slope_h @ slope_r  # E[(R_1 - R_2)(h_1 - h_2)] = 2 Cov(R, h)
    torch.testing.assert_close(expectation, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)
    if step == 60:
        tilted, _ = GAUSS.tilt_linear(V, 1 / (2 * lam))
        assert (x - tilted.means[0]).norm() < 0.1 * (tilted.means[0] - MU).norm()


# identity 41
def test_rewardsds_rows():
    """N = 2: best = mean + delta/2; softmax = mean + tanh(gap/2)(h_1 - h_2)/2; min-max = 0.8 (mean + 0.625 delta)."""
    from psd_mini.methods import rank

    x, t, eps = batch(6)
    ranked = rank(SDS(2.0), x, t, eps, context(WORLD, n=6))
    h, gap = ranked.residuals, ranked.rewards[0] - ranked.rewards[1]
    mean = h.mean(0)
    delta = torch.sign(gap).view(-1, 1, 1, 1) * (h[0] - h[1])
    soft = torch.tanh(gap / 2).view(-1, 1, 1, 1) * (h[0] - h[1])
    rows = {"best": mean + delta / 2, "softmax": mean + soft / 2, "min-max": 0.8 * (mean + 0.625 * delta)}
    for strategy, expected in rows.items():
        got, _ = RewardSDS(SDS(2.0), strategy, 2)(x, t, eps, context(WORLD, n=6))
        torch.testing.assert_close(got, weight(t) * expected, rtol=1e-10, atol=1e-10)


def test_reward_weights_of_four():
    """min-max of four: 0.45 on the two best, -0.05 on the two worst; equal rewards under softmax are the mean."""
    rewards = torch.tensor([[0.3], [0.9], [-1.0], [0.5]])
    assert torch.allclose(reward_weights(rewards, "min-max").flatten(), torch.tensor([-0.05, 0.45, -0.05, 0.45]))
    assert reward_weights(rewards, "best").flatten().tolist() == [0, 1, 0, 0]
    assert torch.allclose(reward_weights(torch.ones(5, 2), "softmax"), torch.full((5, 2), 0.2))


# identity 42
def test_dreamdpo_published_code():
    """published code = w [ delta_cond + (g - 1)(eps_cond - eps_neg)(x_t^w) ]; with g = 1 it is the formula."""
    x, t, eps = batch(6)
    g = 7.5
    got, _ = DreamDPO(SDS(g), tau=0.0, published_code=True)(x, t, eps, context(WORLD, n=6))
    ctx = context(WORLD, n=6)
    h_cond, extra, rewards = [], [], []
    for e in eps:
        x_t = SCHEDULE.add_noise(x, e, t)
        cond, neg = WORLD.predict_noise(x_t, t, ctx.embeddings)
        h_cond.append(cond - e)
        extra.append((g - 1) * (cond - neg))
        x0_hat = SCHEDULE.x0_from_eps(x_t, neg + g * (cond - neg), t)
        rewards.append((x0_hat.flatten(1) * V).sum(-1))
    first = (rewards[0] >= rewards[1]).view(-1, 1, 1, 1)
    sign = torch.where(first, 1.0, -1.0).double()
    expected = weight(t) * (sign * (h_cond[0] - h_cond[1]) + torch.where(first, extra[0], extra[1]))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    plain, _ = DreamDPO(SDS(1.0), tau=0.0)(x, t, eps, context(WORLD, n=6))
    code, _ = DreamDPO(SDS(1.0), tau=0.0, published_code=True)(x, t, eps, context(WORLD, n=6))
    torch.testing.assert_close(plain, code, rtol=1e-12, atol=1e-12)


def test_dreamdpo_has_no_pull_to_the_prior():
    """Formula with a clear gap: G = w delta, the base-free row of PSD; below the gate the winner's SDS alone."""
    x, t, eps = batch(6)
    got, _ = DreamDPO(SDS(2.0), tau=0.0)(x, t, eps, context(WORLD, n=6))
    both, _ = PSD(SDS(2.0), 1.0, antithetic=False, over_views=False)(x, t, eps, context(WORLD, n=6))
    base, _ = SDS(2.0, n_noises=2)(x, t, eps, context(WORLD, n=6))
    torch.testing.assert_close(got, (both - base) / weight(t).sqrt(), rtol=1e-9, atol=1e-9)  # lambda(t) = sigma_t there
    gated, _ = DreamDPO(SDS(2.0), tau=1e9)(x, t, eps, context(WORLD, n=6))
    winner, _ = PSD(SDS(2.0), 0.0, pair_base="winner", antithetic=False, over_views=False)(x, t, eps, context(WORLD, n=6))
    torch.testing.assert_close(gated, winner, rtol=1e-12, atol=1e-12)


# identity 43
def test_black_box_reward_gives_the_same_gradient():
    """Equal values, no gradient: a reward that leaves torch altogether gives PSD's gradient bit for bit."""
    x, t, eps = batch(5, noises=1)
    through_python = black_box(
        lambda images, prompts: [
            float(sum(a * b for a, b in zip(i.flatten().tolist(), V.tolist(), strict=True))) for i in images
        ]
    )
    kept = LinearReward(V)
    for kind in ("hard", "bt"):
        settings = {"omega": kind, "tau": 0.5, "over_views": False}
        a, _ = PSD(SDS(2.0), 2.0, **settings)(x, t, eps, context(WORLD, kept, 5))
        b, _ = PSD(SDS(2.0), 2.0, **settings)(x, t, eps, context(WORLD, through_python, 5))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_ranking_over_views_uses_the_mean_reward_of_the_object():
    """over_views: one winner for all pictures, the noise whose mean reward is higher; needs one t."""
    x, _, eps = batch(4)
    t = torch.full((4,), 500)
    got, _ = PSD(SDS(2.0), 1.0, antithetic=False)(x, t, eps, context(WORLD, n=4))
    from psd_mini.methods import rank

    ranked = rank(SDS(2.0), x, t, eps, context(WORLD, n=4))
    sign = torch.sign(ranked.rewards[0].mean() - ranked.rewards[1].mean())
    h = ranked.residuals
    expected = weight(t) * (h.mean(0) + weight(t).sqrt() * sign * (h[0] - h[1]))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert len(set(torch.sign(ranked.rewards[0] - ranked.rewards[1]).tolist())) == 2  # per view it would differ
    with pytest.raises(ValueError, match="t: ranking over views needs one timestep"):
        PSD(antithetic=False)(x, torch.tensor([1, 2, 3, 4]), eps, context(WORLD, n=4))


def test_running_median_is_state():
    """tau = None: a running estimate of the median gap, between runs in state_dict, never in repr (the checkpoint's key)."""
    x, t, eps = batch(30)
    method = PSD(SDS(), omega="bt", antithetic=False, over_views=False)
    for _ in range(3):
        method(x, t, eps, context(WORLD, n=30))
    from psd_mini.methods import rank

    ranked = rank(SDS(), x, t, eps, context(WORLD, n=30))
    median = (ranked.rewards[0] - ranked.rewards[1]).abs().median().item()
    assert 0.9 * median < method.state_dict()["median_gap"] < 1.11 * median
    other = PSD(SDS(), omega="bt", antithetic=False, over_views=False)
    other.load_state_dict(method.state_dict())
    assert other.median_gap == method.median_gap and "median_gap" not in repr(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"omega": "soft"}, "omega: 'soft' is not known; choose from hard, gap, bt, gated"),
        ({"pair_base": "loser"}, "pair_base: 'loser' is not known"),
        ({"tau": 0.0, "omega": "bt"}, "tau: expected a positive reward difference"),
        ({"preference_weight": float("nan")}, "preference_weight: expected a finite number of at least 0, got nan"),
        ({"preference_weight": -1.0}, "preference_weight: expected a finite number of at least 0, got -1.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PSD(**settings)


def test_missing_reward_is_named():
    x, t, eps = batch(2, noises=1)
    ctx = context(WORLD, n=2)
    ctx.reward = None
    with pytest.raises(ValueError, match="reward: this method needs one"):
        PSD(over_views=False)(x, t, eps, ctx)
