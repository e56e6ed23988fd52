"""CSD, reward gradients and exact alignment against closed forms, in float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from gaussian_world import QuadraticReward
from plain_mixture import plain_covariance, plain_posterior, tilt_quadratic

from psd_mini import SDS, Context, GaussianMixture, ToyWorldPrior, scaled_linear_schedule
from psd_mini.methods import KINDS, Exact, Regression, RewardGradient, reward_gradient
from psd_mini.mixture import implicit_reward
from psd_mini.psd import PSD
from psd_mini.rewards import LinearReward, black_box, make_reward
from psd_mini.schedule import NoiseSchedule
from psd_mini.sds import CSD, csd_gradient
from psd_mini.world.pool import make_views, pool_cameras
from psd_mini.world.text import components

pytestmark = pytest.mark.algebra

SCHEDULE = scaled_linear_schedule()
EYE = torch.eye(3, dtype=torch.float64)
S = torch.tensor([[0.8, 0.3, 0.0], [0.3, 0.6, -0.1], [0.0, -0.1, 0.5]], dtype=torch.float64)
MU = torch.tensor([0.4, -1.0, 0.7], dtype=torch.float64)
V = torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64)
GAUSS = GaussianMixture(torch.ones(1), MU[None], S[None], SCHEDULE)
PAIR = GaussianMixture(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.stack((MU, -MU)),
    torch.stack((S, S)),
    SCHEDULE,
)
VIEWS = pool_cameras(3)
ONLY = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]], dtype=torch.float64)
UNIFORM = SDS(weighting="uniform")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(step):
    abar = SCHEDULE.alphas_cumprod[step]
    return abar.sqrt(), (1 - abar).sqrt(), abar * S + (1 - abar) * EYE


def context(prior, reward=None, embeddings=None, n=1):
    embeddings = (
        torch.zeros(2, len(prior.means), dtype=torch.float64) if embeddings is None else embeddings
    )
    return Context(prior, embeddings, None, [""] * n, reward)


def points(n, seed=0):
    return normal(n, 3, 1, 1, seed=seed)


# identities 9 and 13
def test_csd_is_the_slope_of_sds_in_g():
    """d G_SDS / d g = w (eps_cond - eps_neg) = G_CSD, and G_SDS(g) - G_SDS(1) = (g - 1) G_CSD."""
    x, t, eps = points(5), torch.tensor([20, 200, 400, 700, 950]), normal(1, 5, 3, 1, 1, seed=3)
    csd, _ = CSD()(x, t, eps, context(PAIR, None, ONLY))
    at = {g: SDS(g)(x, t, eps, context(PAIR, None, ONLY))[0] for g in (1.0, 4.0, 9.0)}
    torch.testing.assert_close((at[9.0] - at[4.0]) / 5, csd, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(at[4.0] - at[1.0], 3 * csd, rtol=1e-10, atol=1e-10)


def test_csd_is_the_implicit_classifier():
    """null = the whole mixture: eps_y - eps_null = -sigma grad log p(y | x_t).

    The posterior is plain algebra and autograd.
    """
    x_t, step = normal(6, 3, seed=5).requires_grad_(), 500
    alpha, sigma, C = levels(step)
    log_joint = [
        math.log(w) - 0.5 * ((x_t - alpha * m) @ torch.linalg.inv(C) * (x_t - alpha * m)).sum(-1)
        for w, m in ((0.4, MU), (0.6, -MU))
    ]
    log_posterior = log_joint[0] - torch.logsumexp(torch.stack(log_joint), 0)
    (gradient,) = torch.autograd.grad(log_posterior.sum(), x_t)
    embeddings = torch.stack((ONLY[0], torch.zeros(2).double()))
    eps_y, eps_null = PAIR.predict_noise(x_t.detach(), torch.full((6,), step), embeddings)
    torch.testing.assert_close(
        csd_gradient(eps_y, eps_null), -sigma * gradient, rtol=1e-9, atol=1e-9
    )


# identity 15
def test_csd_drifts_for_ever_between_equal_gaussians():
    """Equal covariances: eps_cond - eps_neg = -sigma alpha C^-1 (mu_y - mu_n) at every x_t."""
    for step in (50, 500, 950):
        alpha, sigma, C = levels(step)
        x_t = 5 * normal(4, 3, seed=step)
        eps_y, eps_n = PAIR.predict_noise(x_t, torch.full((4,), step), ONLY)
        expected = -sigma * alpha * torch.linalg.solve(C, 2 * MU)
        torch.testing.assert_close(
            csd_gradient(eps_y, eps_n), expected.expand(4, -1), rtol=1e-9, atol=1e-9
        )


def test_csd_rests_where_two_widths_balance():
    """E[eps_y - eps_0] = 0 at x = (C^-1 - C_0^-1)^-1 (C^-1 mu_y - C_0^-1 mu_0), at every t.

    The covariances S and S_0 differ. It is an attractor where C < C_0 in every direction, as here:
    the prompt is narrower than the rest. Source: derived here.
    """
    prior = GaussianMixture(
        torch.ones(2), torch.stack((MU, -MU)), torch.stack((S, S + 0.5 * EYE)), SCHEDULE
    )
    for step in (50, 500, 950):
        _, _, C = levels(step)
        C_0 = C + SCHEDULE.alphas_cumprod[step] * 0.5 * EYE
        precision, precision_0 = torch.linalg.inv(C), torch.linalg.inv(C_0)
        x = torch.linalg.solve(precision - precision_0, precision @ MU - precision_0 @ -MU)
        eps, t = points(4, seed=step), torch.full((8,), step)
        noises = torch.cat((eps, -eps))[None]  # both predictions are affine in eps: it cancels
        for at, rests in ((x, True), (x + 0.3, False)):
            g, _ = CSD(weighting="uniform")(
                at.view(1, 3, 1, 1).expand(8, -1, -1, -1), t, noises, context(prior, None, ONLY)
            )
            assert (g.mean(0).norm() < 1e-9) == rests
        assert (g.mean(0).flatten() @ torch.full((3,), 0.3).double()) > 1e-6  # descent leads back


# identities 2 and 27: which gradient is which
def slopes(kind, prior, reward, x, step, eps):
    t = torch.full((len(x),), step)
    x_t = SCHEDULE.add_noise(x, eps, t)
    return reward_gradient(kind, x, x_t, t, context(prior, reward, n=len(x)), SDS()), x_t, t


def test_linear_reward_of_a_gaussian():
    """pixel-noisy = pixel-clean = v, straight-through = v / alpha, dps = J v = grad V_t."""
    x, eps = points(4), points(4, seed=1)
    for step in (100, 500, 900):
        alpha, _, C = levels(step)
        J = alpha * S @ torch.linalg.inv(C)
        expected = {"pixel-noisy": V, "pixel-clean": V, "straight-through": V / alpha, "dps": J @ V}
        for kind in KINDS:
            got, x_t, t = slopes(kind, GAUSS, LinearReward(V), x, step, eps)
            torch.testing.assert_close(
                got.flatten(1), expected[kind].expand(4, -1), rtol=1e-9, atol=1e-9
            )
        for beta in (0.1, 3.0):
            tilted, log_z = GAUSS.tilt_linear(V, beta)
            leaf = x_t.flatten(1).requires_grad_()
            (grad_v,) = torch.autograd.grad(
                implicit_reward(GAUSS, tilted, log_z, beta, leaf, t).sum(), leaf
            )
            torch.testing.assert_close(grad_v, expected["dps"].expand(4, -1), rtol=1e-8, atol=1e-8)
        for kind in ("pixel-noisy", "straight-through"):
            assert (expected[kind] - expected["dps"]).norm() > 0.1 * V.norm()


def test_pixel_gradients_are_right_only_without_noise():
    """pixel-noisy = dps iff J v = v: I - alpha J = sigma^2 C^-1 vanishes as sigma -> 0 only."""
    for noise in (1e-8, 1e-4):
        prior = GaussianMixture(
            torch.ones(1),
            MU[None],
            S[None],
            NoiseSchedule(torch.tensor([1 - noise], dtype=torch.float64)),
        )
        x, t = points(3), torch.zeros(3, dtype=torch.int64)
        dps, noisy = (
            reward_gradient(k, x, x, t, context(prior, LinearReward(V), n=3), SDS())
            for k in ("dps", "pixel-noisy")
        )
        assert 0.1 * noise < (dps - noisy).abs().amax() < 20 * noise


# identity 28
@pytest.mark.parametrize("step", [50, 500, 950])
def test_where_reward_gradients_come_to_rest(step):
    """Gaussian prior, r = <v, x>, lambda = 1 / beta: E[G] = 0 at mu + S v / beta for dps.

    At every t, and the same for SDS on the tilted prior. For the pixel gradients it is
    mu + C v / (alpha beta), which contains (sigma^2 / alpha) v / beta also where S = 0.
    """
    beta = 0.6
    # no variance along the third axis
    flat = torch.diag(torch.tensor([0.8, 0.4, 0.0], dtype=torch.float64))
    prior = GaussianMixture(torch.ones(1), MU[None], flat[None], SCHEDULE)
    alpha, sigma = SCHEDULE.alphas_cumprod[step].sqrt(), (1 - SCHEDULE.alphas_cumprod[step]).sqrt()
    on, off = MU + flat @ V / beta, MU + (alpha**2 * flat + sigma**2 * EYE) @ V / (alpha * beta)
    torch.testing.assert_close(
        off[2] - MU[2], sigma**2 / alpha * V[2] / beta, rtol=1e-12, atol=1e-12
    )
    eps, t = points(4, seed=step), torch.full((8,), step)

    def force(method, at, prior=prior):
        x = at.view(1, 3, 1, 1).expand(8, -1, -1, -1)
        return (
            method(x, t, torch.cat((eps, -eps))[None], context(prior, LinearReward(V), n=8))[0]
            .mean(0)
            .norm()
        )

    assert force(RewardGradient("dps", UNIFORM, 1 / beta), on) < 1e-10
    assert force(UNIFORM, on, prior.tilt_linear(V, beta)[0]) < 1e-10
    for kind in ("pixel-noisy", "pixel-clean"):
        assert force(RewardGradient(kind, UNIFORM, 1 / beta), off) < 1e-10
        assert force(RewardGradient(kind, UNIFORM, 1 / beta), on) > 1e-2
    assert force(UNIFORM, on) > 1e-2 < force(RewardGradient("dps", UNIFORM, beta), on)


def test_quadratic_reward_is_not_exact_under_dps():
    """grad V_t = -J^T (I + Q Lam / beta)^-1 Q (m - b).

    dps drops the middle factor and is right only as beta -> infinity.
    """
    Q = torch.diag(torch.tensor([2.0, 0.5, 0.0]).double())
    b = torch.tensor([0.3, 0.3, 0.3]).double()
    x, eps, step = points(4), points(4, seed=1), 400
    alpha, sigma, C = levels(step)
    J, Lam = alpha * S @ torch.linalg.inv(C), sigma**2 * S @ torch.linalg.inv(C)
    got, x_t, t = slopes("dps", GAUSS, QuadraticReward(b, Q), x, step, eps)
    m = MU + (x_t.flatten(1) - alpha * MU) @ J.T
    torch.testing.assert_close(got.flatten(1), -(m - b) @ Q @ J, rtol=1e-9, atol=1e-9)
    for beta, close in ((0.1, False), (1e6, True)):
        tilted, log_z = tilt_quadratic(GAUSS, b, Q, beta)
        leaf = x_t.flatten(1).requires_grad_()
        (grad_v,) = torch.autograd.grad(
            implicit_reward(GAUSS, tilted, log_z, beta, leaf, t).sum(), leaf
        )
        exact = -(m - b) @ Q @ torch.linalg.inv(EYE + Lam @ Q / beta) @ J
        torch.testing.assert_close(grad_v, exact, rtol=1e-7, atol=1e-7)
        assert torch.allclose(grad_v, got.flatten(1), rtol=1e-4, atol=1e-5) == close


@pytest.mark.parametrize("kind", KINDS)
def test_where_each_gradient_is_taken(kind):
    """A curved reward, a mixture, guidance 2: -Q (y - b) at y = x_t, x and x0_hat (over alpha).

    dps is the slope of r(x0_hat(x_t)) by finite differences. The prior is asked with embeddings and
    cameras, the reward with the prompts.
    """
    x, x_t, t, seen = points(3), points(3, seed=1), torch.tensor([100, 500, 900]), []
    Q, b = (
        torch.diag(torch.tensor([2.0, 0.5, 0.3]).double()),
        torch.tensor([0.3, -0.2, 0.1]).double(),
    )

    def denoised(y):
        eps_y, eps_n = PAIR.predict_noise(y, t, ONLY)
        a, s = SCHEDULE.alpha_sigma(t, y)
        return (y - s * (eps_n + 2 * (eps_y - eps_n))) / a

    def asked(x_t, t, embeddings, cameras):
        seen.append((len(embeddings), cameras))
        return PAIR.predict_noise(x_t, t, embeddings)

    def reward(images, prompts):
        seen.append(prompts)
        return QuadraticReward(b, Q)(images)

    prior = SimpleNamespace(schedule=SCHEDULE, decode=PAIR.decode, predict_noise=asked)
    everything = Context(prior, ONLY, VIEWS, ["one", "two", "three"], reward)
    got = reward_gradient(kind, x, x_t, t, everything, SDS(2.0))
    if kind == "dps":
        expected = torch.zeros_like(x_t)
        for i in range(3):
            step = torch.zeros_like(x_t)
            step[:, i] = 1e-5
            above, below = ((denoised(y).flatten(1) - b) for y in (x_t + step, x_t - step))
            expected[:, i, 0, 0] = (
                -0.5 * ((above @ Q * above).sum(-1) - (below @ Q * below).sum(-1)) / 2e-5
            )
    else:
        at = {"pixel-noisy": x_t, "pixel-clean": x, "straight-through": denoised(x_t)}[kind]
        expected = -((at.flatten(1) - b) @ Q).view(x.shape)
        expected = (
            expected / SCHEDULE.alpha_sigma(t, x)[0] if kind == "straight-through" else expected
        )
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)
    assert seen == ([(2, VIEWS)] if kind in ("straight-through", "dps") else []) + [
        everything.prompts
    ]


def test_straight_through_drops_the_jacobian():
    """Mixture: straight-through = v / alpha; dps = J v, J = (alpha / sigma^2) Cov(x_0 | x_t)."""
    x, eps, step = points(5), points(5, seed=1), 500
    alpha, sigma, _ = levels(step)
    through, _, _ = slopes("straight-through", PAIR, LinearReward(V), x, step, eps)
    torch.testing.assert_close(
        through.flatten(1), (V / alpha).expand(5, -1), rtol=1e-10, atol=1e-10
    )
    dps, x_t, t = slopes("dps", PAIR, LinearReward(V), x, step, eps)
    parts = PAIR.log_weights.exp(), PAIR.means, PAIR.covariances
    covariance = plain_covariance(*plain_posterior(x_t.flatten(1), t, *parts))
    torch.testing.assert_close(
        dps.flatten(1), alpha / sigma**2 * covariance @ V, rtol=1e-9, atol=1e-9
    )


def test_prior_is_asked_once_except_by_dps():
    """One evaluation per picture as for SDS, and one more where the denoiser is differentiated."""
    x, t, eps = points(4), torch.tensor([30, 300, 600, 900]), normal(1, 4, 3, 1, 1, seed=2)
    for kind in KINDS:
        asked = context(PAIR, LinearReward(V), ONLY, 4)
        gradient, _ = RewardGradient(kind, SDS(), 5.0)(x, t, eps, asked)
        assert asked.cost.prior_evaluations == (8 if kind == "dps" else 4), kind
        slope = reward_gradient(
            kind,
            x,
            SCHEDULE.add_noise(x, eps[0], t),
            t,
            context(PAIR, LinearReward(V), ONLY, 4),
            SDS(),
        )
        base, _ = SDS()(x, t, eps, context(PAIR, None, ONLY))
        abar = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
        torch.testing.assert_close(
            gradient, base - 5.0 * (1 - abar) ** 1.5 * slope, rtol=1e-12, atol=1e-12
        )


def test_method_puts_the_gradient_into_the_bracket():
    """G = w (h - sigma lambda grad r): by hand for pixel-clean."""
    x, t, eps = points(4), torch.tensor([30, 300, 600, 900]), normal(1, 4, 3, 1, 1, seed=2)
    got, _ = RewardGradient("pixel-clean", SDS(2.0), 5.0)(
        x, t, eps, context(PAIR, LinearReward(V), ONLY, 4)
    )
    base, _ = SDS(2.0)(x, t, eps, context(PAIR, None, ONLY))
    w = (1 - SCHEDULE.alphas_cumprod[t]).view(-1, 1, 1, 1)
    torch.testing.assert_close(
        got, base - w * w.sqrt() * 5.0 * V.view(1, 3, 1, 1), rtol=1e-10, atol=1e-10
    )


def test_black_box_is_refused_by_gradients():
    for kind in KINDS:
        with pytest.raises(
            ValueError,
            match=f"reward: {kind} needs a differentiable reward; a black box works with",
        ):
            slopes(
                kind,
                GAUSS,
                black_box(lambda images, prompts: [0.0]),
                points(1),
                500,
                points(1, seed=1),
            )
    with pytest.raises(
        ValueError, match="kind: 'pixel' is not known; choose from pixel-noisy, pixel-clean, "
    ):
        RewardGradient("pixel")


def test_dps_needs_a_prior_that_keeps_its_graph():
    """keeps_graph = False is refused by dps in one line; straight-through does not care."""
    prior = SimpleNamespace(
        keeps_graph=False, schedule=SCHEDULE, decode=PAIR.decode, predict_noise=PAIR.predict_noise
    )
    x, t, refusing = (
        points(2),
        torch.tensor([100, 500]),
        Context(prior, ONLY, None, ["", ""], LinearReward(V)),
    )
    with pytest.raises(
        ValueError,
        match="^method: no gradient passes through this prior's denoiser, which dps needs",
    ):
        reward_gradient("dps", x, x, t, refusing, SDS())
    assert reward_gradient("straight-through", x, x, t, refusing, SDS()).isfinite().all()


# identities 28, 38, 39 and section "pixel-level reward gradients are incompatible": the thin
# manifold
THIN = torch.diag(torch.tensor([1.0, 1e-4], dtype=torch.float64))
THIN_SCHEDULE = NoiseSchedule(torch.tensor([0.8], dtype=torch.float64))  # one level, abar = 0.8
THIN_V = torch.tensor([1.0, 3.0], dtype=torch.float64)
THIN_PRIOR = GaussianMixture(torch.ones(1), torch.zeros(1, 2).double(), THIN[None], THIN_SCHEDULE)
A, SG = math.sqrt(0.8), math.sqrt(0.2)
THIN_C = 0.8 * THIN + 0.2 * torch.eye(2, dtype=torch.float64)
THIN_J = A * THIN @ torch.linalg.inv(THIN_C)
THIN_U = THIN_J @ THIN_V / (THIN_J @ THIN_V).norm()


def pair(omega):
    """Independent pairs with lambda = 1/2 (beta = 1); the method multiplies by sigma_t."""
    return PSD(UNIFORM, 0.5 / SG, omega, tau=1.0, antithetic=False, over_views=False)


TABLE = {
    "sds": (UNIFORM, torch.zeros(2).double()),
    "pixel-noisy": (RewardGradient("pixel-noisy", UNIFORM, 1.0), THIN_C @ THIN_V / A),
    "dps": (RewardGradient("dps", UNIFORM, 1.0), THIN @ THIN_V),
    "gap": (pair("gap"), 0.8 * THIN @ torch.linalg.inv(THIN_C) @ THIN @ THIN_V),
    "hard": (pair("hard"), (1 / math.sqrt(math.pi)) * (A / SG) * THIN @ THIN_U),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_thin_manifold(name):
    """Prior N(0, diag(1, 1e-4)), r = (1, 3).x, abar = 0.8, beta = 1: where descent ends.

        sds    mu = 0
        naive  C v / (alpha beta) = (1.118, 0.671), off the manifold
        dps    S v / beta = (1, 0.0003)
        gap    2 lambda alpha^2 S C^-1 S v = (0.8, 1e-7)
        hard   (2 lambda / sqrt pi)(alpha / sigma) S u = (1.128, 2e-7)

    64 noises a step, step size 0.1, the mean of the second half of 1,200 iterates against the
    prediction; its error is read off the scatter of the means of 12 blocks.
    """
    method, expected = TABLE[name]
    x = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    t, blocks = torch.zeros(64, dtype=torch.int64), []
    for step in range(1200):
        eps = torch.randn(method.n_noises, 64, 2, 1, 1, generator=generator, dtype=torch.float64)
        gradient, _ = method(
            x.expand(64, -1, -1, -1), t, eps, context(THIN_PRIOR, LinearReward(THIN_V), n=64)
        )
        x = x - 0.1 * gradient.mean(0, keepdim=True)
        if step >= 600:
            blocks.append(x.flatten())
    means = torch.stack(blocks).view(12, 50, 2).mean(1)
    error = means.std(0) / 12**0.5
    assert ((means.mean(0) - expected).abs() <= 4 * error + 1e-9).all(), (
        means.mean(0),
        expected,
        error,
    )
    assert (error < 0.02).all()
    if name == "pixel-noisy":
        # more than 50 standard deviations of the prior off the manifold
        assert means.mean(0)[1] > 50 * 0.01
    elif name != "sds":
        assert means.mean(0)[1].abs() < 0.001 < means.mean(0)[0]


def test_raw_form_moves_away_on_the_thin_manifold():
    """lambda Delta (eps_hat_1 - eps_hat_2) ends in mu - (2 lambda sigma^2 / alpha) J v.

    The pair without its residuals. Exact expectations: eps_hat and R are affine in eps, and
    E[(R_1 - R_2)(f_1 - f_2)] = 2 Cov(R, f).
    """
    expected = -(2 * 0.5 * SG**2 / A) * THIN_J @ THIN_V
    eps = torch.cat((torch.zeros(1, 2), torch.eye(2))).double()
    x_t = A * expected + SG * eps
    eps_hat = THIN_PRIOR.predict_noise(x_t, torch.zeros(3, dtype=torch.int64))[0]
    rewards = ((x_t - SG * eps_hat) / A) @ THIN_V
    slope_e, slope_r = (eps_hat[1:] - eps_hat[:1]).T, rewards[1:] - rewards[:1]
    descent = eps_hat[0] + 0.5 * 2 * slope_e @ slope_r
    torch.testing.assert_close(descent, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-10)
    assert expected @ THIN_V < -0.1


# the exact optimum in the toy world
def test_exact_is_sds_on_the_tilted_weights():
    """pi*_k proportional to exp(r_k / beta), r_k the mean over all cameras."""
    views = make_views(pool_cameras(4), 8)
    prior, reward = ToyWorldPrior(views=views), make_reward("colorfulness")
    x = 2 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    t, eps = (
        torch.tensor([700, 900]),
        torch.randn(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
    )
    embeddings = prior.embed(["a mushroom", ""])
    got, _ = Exact(beta=0.05)(
        x, t, eps, Context(prior, embeddings, views.cameras[:2], ["a mushroom"] * 2, reward)
    )
    rewards = []
    for k in range(len(components())):
        values = [reward(views.pictures(torch.tensor([p]))[:, k]).item() for p in range(4)]
        rewards.append(sum(values) / 4 / 0.05)
    by_hand = ToyWorldPrior(views=views, log_prior=torch.tensor(rewards))
    expected, _ = SDS()(x, t, eps, Context(by_hand, embeddings, views.cameras[:2]))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    # one method may meet several worlds and rewards: each has its own optimum
    method, blue = Exact(beta=0.05), make_reward("color:blue")
    for world, judge in ((prior, reward), (prior, blue), (by_hand, blue), (by_hand, reward)):
        used = Context(world, embeddings, views.cameras[:2], ["a mushroom"] * 2, judge)
        again, _ = method(x, t, eps, used)
        alone, _ = Exact(beta=0.05)(x, t, eps, used)
        assert torch.equal(again, alone)  # exact: the same code on the same numbers
        assert used.predictions.x_t.shape == eps.shape
    plain, _ = SDS()(x, t, eps, Context(prior, embeddings, views.cameras[:2]))
    assert (got - plain).abs().max() > 1e-3
    cold, _ = Exact(beta=1e9)(
        x, t, eps, Context(prior, embeddings, views.cameras[:2], ["a mushroom"] * 2, reward)
    )
    torch.testing.assert_close(cold, plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="beta: expected a positive temperature"):
        prior.tilted(reward, 0.0)


def test_exact_tilts_by_the_first_prompt():
    """The reward that tilts hears the first of the loop's prompts, or "" where there is none."""
    asked, x = [], points(2)
    prior = SimpleNamespace(
        schedule=SCHEDULE,
        predict_noise=PAIR.predict_noise,
        tilted=lambda *a: asked.append(a) or PAIR,
    )
    for prompts in (["a chair", "a chair"], []):
        Exact(beta=0.3)(
            x,
            torch.tensor([5, 5]),
            x[None],
            Context(prior, ONLY, None, prompts, reward := LinearReward(V)),
        )
        assert asked.pop() == (reward, 0.3, prompts[0] if prompts else "")  # exact: handed on


def test_regression_is_the_difference_to_the_true_picture():
    """G = x - x*, x* the world's picture at each camera, in x = 2 image - 1."""
    views = make_views(pool_cameras(4), 8)
    x = 2 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    at, target = torch.tensor([2, 0]), ("mushroom", "red")
    context = Context(ToyWorldPrior(views=views), torch.zeros(2), views.cameras[at])
    gradient, metrics = Regression(target)(
        x, torch.tensor([5, 5]), torch.zeros(0, 2, 3, 8, 8), context
    )
    difference = x - (2 * views.pictures(at)[:, components().index(target)] - 1)
    torch.testing.assert_close(gradient, difference, rtol=0, atol=1e-6)
    assert metrics == {"gradient_rms": pytest.approx((difference**2).mean().item() ** 0.5)}
    assert Regression(target).n_noises == 0  # the loop draws none
    assert repr(Regression(target)) == "Regression(target=('mushroom', 'red'))"


def test_exact_follows_the_reward_that_it_is_given_now():
    """One method object, two runs: each time the gradient of a new method.

    The second reward has the id of the first, which was freed; the temperature changes too.
    """
    views = make_views(pool_cameras(4), 8)
    prior, x = ToyWorldPrior(views=views), views.pictures(torch.arange(2))[:, 40] * 2 - 1
    t, eps = (
        torch.tensor([950, 950]),
        torch.randn(1, *x.shape, generator=torch.Generator().manual_seed(0)),
    )
    embeddings = prior.embed(["a mushroom", ""])

    def gradient(method, reward):
        return method(
            x, t, eps, Context(prior, embeddings, views.cameras[:2], ["a mushroom"] * 2, reward)
        )[0]

    method, red = Exact(), make_reward("color:red")
    gradient(method, red)
    address = id(red)
    del red
    # one of them lies where the red one lay, unless that is kept
    blues = [make_reward("color:blue") for _ in range(1000)]
    blue = next((reward for reward in blues if id(reward) == address), blues[0])
    torch.testing.assert_close(gradient(method, blue), gradient(Exact(), blue), rtol=0, atol=1e-6)
    method.beta = 10.0
    torch.testing.assert_close(
        gradient(method, blue), gradient(Exact(beta=10.0), blue), rtol=0, atol=1e-6
    )
    assert (gradient(Exact(), blue) - gradient(Exact(beta=10.0), blue)).abs().max() > 1e-2
    assert (
        gradient(Exact(), blue) - gradient(Exact(), make_reward("color:red"))
    ).abs().max() > 1e-2
    assert method == Exact(beta=10.0)  # what it remembers is no setting
