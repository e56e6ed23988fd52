"""Every formula against 50-digit arithmetic (mpmath) over the timestep grid.

float64 must agree to 1e-12 or better. The errors of float32 and float16 are bounded by u, the unit
roundoff, times the factor that the function's docstring names. Tests also show that the errors come
near these bounds, since a bound that is never approached says little.
"""

import mpmath as mp
import pytest
import torch
from mpmath import mpf
from plain_mixture import SCHEDULE, T, levels, normal, tensor, world

from psd_mini import cfg, psd_gradient, sds_gradient, surrogate_loss
from psd_mini.methods.rewardsds import reward_weights
from psd_mini.mixture import GaussianMixture, implicit_reward
from psd_mini.psd import omega
from psd_mini.rendering import compositing_weights
from psd_mini.world.isotropic import isotropic_denoise, isotropic_log_prob

pytestmark = pytest.mark.algebra

mp.mp.dps = 50
ALL = torch.arange(T)
GRID = torch.tensor([*range(0, T, 10), T - 1])
ABAR = [mpf(value) for value in SCHEDULE.alphas_cumprod.tolist()]
ALPHA, SIGMA = [mp.sqrt(abar) for abar in ABAR], [mp.sqrt(1 - abar) for abar in ABAR]
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11}


def numbers(x):
    """A tensor's entries, row after row, as mpf."""
    return [mpf(value) for value in x.flatten().tolist()]


def errors(got, exact, relative=False):
    """|got - exact| of every entry in the shape of got; exact: mpf, row after row."""
    out = [
        float(abs(g - e) / (abs(e) if relative else 1))
        for g, e in zip(numbers(got), exact, strict=True)
    ]
    return torch.tensor(out, dtype=torch.float64).reshape(got.shape)


def rounded(x, dtype):
    """The numbers that this precision can hold, in float64."""
    return x.to(dtype).double()


def test_schedule_from_its_betas():
    """abar_t and sigma_t at all t, from the two decimal numbers of Stable Diffusion's schedule.

    1 - abar_0 = 8.5e-4 loses three digits. float64 has enough of them; a product in float32 is off
    by 1e-5.
    """
    low, high, product, abar = mp.sqrt(mpf("0.00085")), mp.sqrt(mpf("0.012")), mpf(1), []
    for t in range(T):
        product *= 1 - (low + mpf(t) / (T - 1) * (high - low)) ** 2
        abar.append(product)
    sigma = [mp.sqrt(1 - a) for a in abar]
    assert errors(SCHEDULE.alphas_cumprod, abar, relative=True).max() < 1e-14
    assert errors(SCHEDULE.alpha_sigma(ALL, normal(0, T))[1], sigma, relative=True).max() < 1e-13
    single = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, T) ** 2, 0)
    assert errors((1 - single).sqrt(), sigma, relative=True)[0] > 1e-5


@pytest.mark.parametrize("dtype", UNIT)
def test_levels_and_weights_are_rounded_once(dtype):
    """alpha_t, sigma_t and the weights from a known abar, relative error, three precisions."""
    like, u = torch.zeros(T, dtype=dtype), UNIT[dtype]
    for got, exact in zip(SCHEDULE.alpha_sigma(ALL, like), (ALPHA, SIGMA), strict=True):
        assert (
            errors(got, exact, relative=True).max() < (2.01 if dtype == torch.float64 else 1.01) * u
        )
    wanted = {
        "sds": lambda a, s: s**2,
        "uniform": lambda a, s: mpf(1),
        "fantasia3d": lambda a, s: a * s**2,
    }
    for kind, weight in wanted.items():
        exact = list(map(weight, ALPHA, SIGMA))
        # float16 has fewer digits below 6e-5, but sigma_t^2 starts at 8.5e-4
        assert errors(SCHEDULE.weight(ALL, kind, like), exact, relative=True).max() < 5 * u


# (what is converted) -> the equation, and what it divides by
CONVERSIONS = {
    "add_noise": (lambda x, eps, a, s: a * x + s * eps, None),
    "x0_from_eps": (lambda x_t, eps, a, s: (x_t - s * eps) / a, "alpha"),
    "eps_from_x0": (lambda x_t, x0, a, s: (x_t - a * x0) / s, "sigma"),
    "eps_from_v": (lambda x_t, v, a, s: s * x_t + a * v, None),
    "eps_from_score": (lambda _, score, a, s: -score * s, None),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_lose_what_they_divide_by(name):
    """|error| <= 3 u (|first| + |second|) / divisor, where the divisor is alpha_t, sigma_t or 1.

    Where there is a divisor, errors are larger where it is small. The mean of 1 / divisor over the
    five times at that end is twelve times the mean at the other end; the errors' means must differ
    by at least six.
    """
    equation, divisor = CONVERSIONS[name]
    first, second = 0.5 + normal(1, len(GRID), 16).abs(), -0.5 - normal(2, len(GRID), 16).abs()
    a, s = levels(GRID)
    small = {"alpha": a, "sigma": s, None: torch.ones_like(a)}[divisor]
    for dtype, u in UNIT.items():
        x, y = rounded(first, dtype), rounded(second, dtype)
        exact = [
            equation(p, q, ALPHA[t], SIGMA[t])
            for t, row_x, row_y in zip(GRID.tolist(), x, y, strict=True)
            for p, q in zip(numbers(row_x), numbers(row_y), strict=True)
        ]
        inputs = (y.to(dtype),) if "score" in name else (x.to(dtype), y.to(dtype))
        error = errors(getattr(SCHEDULE, name)(*inputs, GRID), exact)
        assert bool((error <= 3 * u * (x.abs() + y.abs()) / small).all())
        assert error.max() > 0.3 * u / small.min()
        if divisor:
            first_times, last_times = error[:5].mean(), error[-5:].mean()
            assert (
                last_times > 6 * first_times if divisor == "alpha" else first_times > 6 * last_times
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_rounded_prediction_is_worst_at_high_noise(dtype):
    """x0_hat of a rounded eps_hat: error <= u |eps_hat| sigma_t / alpha_t, 15 u at T - 1.

    From a rounded v it is <= u |v| sigma_t at every t. (Near 0 the rounding is the spacing of the
    smallest numbers, 6e-8 for float16.)
    """
    x_t, prediction, u = (
        normal(3, len(GRID), 64),
        normal(4, len(GRID), 64).clamp(-4, 4),
        UNIT[dtype],
    )
    a, s = levels(GRID)

    def x0_from_v(x_t, v, t):
        return a * x_t - s * v

    by_eps, by_v = (
        (convert(x_t, rounded(prediction, dtype), GRID) - convert(x_t, prediction, GRID)).abs()
        for convert in (SCHEDULE.x0_from_eps, x0_from_v)
    )
    bound = 1.01 * u * prediction.abs() + 1e-7 * u / UNIT[torch.float16]
    assert bool((by_eps <= bound * s / a).all())
    assert bool((by_v <= bound * s).all())
    assert by_eps[-1].max() > 10 * u > by_v.max() and by_eps[0].max() < 0.5 * u


def test_guidance_amplifies_what_predictions_have_lost():
    """cfg of predictions rounded to float16: error <= u (g |eps_cond| + |g - 1| |eps_neg|).

    That is 3% of the noise (root mean square) at g = 100. The arithmetic of cfg itself adds a few u
    of the same.
    """
    cond, neg = normal(5, 200), normal(6, 200)
    for g in (-3.0, 0.3, 1.0, 7.5, 100.0):
        size = abs(g) * cond.abs() + abs(g - 1) * neg.abs()
        exact = [n + mpf(g) * (c - n) for c, n in zip(numbers(cond), numbers(neg), strict=True)]
        assert bool(
            (
                errors(cfg(cond, neg, g), exact)
                <= 4 * UNIT[torch.float64] * (size + cond.abs() + neg.abs())
            ).all()
        )
        half = errors(cfg(rounded(cond, torch.float16), rounded(neg, torch.float16), g), exact)
        assert bool(
            (half <= 1.01 * UNIT[torch.float16] * size + 1e-7).all()
        )  # 6e-8: below it float16 has no numbers
    assert 0.02 < half.square().mean().sqrt() < 0.04


def test_residual_loses_digits_at_high_noise():
    """h = eps_hat - eps = (alpha_t / sigma_t)(x - x0_hat) gets small beside eps at high noise.

    The relative error of a float16 prediction grows with 1 + sigma_t / alpha_t, from 0.02% at t = 0
    to 0.25% at T - 1.
    """
    x, x0_hat, eps = normal(7, T, 50), normal(8, T, 50), normal(9, T, 50)
    a, s = levels(ALL)
    h = a / s * (x - x0_hat)
    u = UNIT[torch.float16]
    lost = ((rounded(eps + h, torch.float16) - eps) - h).norm(dim=1) / h.norm(dim=1)
    assert 10 * lost[0] < lost[-1]
    assert bool((lost < 0.9 * u * (1 + s / a)[:, 0]).all())
    exact = [p - q for p, q in zip(numbers((eps + h)[::100]), numbers(eps[::100]), strict=True)]
    assert (
        errors(((eps + h)[::100] - eps[::100]), exact, relative=True).max()
        <= 1.01 * UNIT[torch.float64]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_surrogate_loss_rounds_its_gradient_beside_the_picture(dtype):
    """dL/dx = (x - (x - G)) / B: G comes back with an error of u (|x| + 2 |G|).

    So G below u |x| / 2 is lost.
    """
    u, picture = UNIT[dtype], (0.5 + 0.5 * normal(10, 1, 300).abs()).to(dtype)
    for size in (1.0, 1e-3, 3e3 * u, 0.2 * u):
        gradient, x = (size * normal(11, 1, 300)).to(dtype), picture.clone().requires_grad_()
        surrogate_loss(x, gradient).backward()
        error = errors(x.grad, numbers(gradient))
        assert bool((error <= 1.01 * u * (picture.abs() + 2 * gradient.abs()).double()).all())
    assert (
        x.grad.count_nonzero() < 150 < gradient.count_nonzero()
    )  # more than half of the smallest one is gone


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_omega_keeps_its_digits(dtype):
    """gap / tau and tanh(gap / 2 tau) to 4 u, relative, for gaps from 1e-12 to 40 tau."""
    gap, tau = torch.cat((10.0 ** torch.arange(-12, 1), tensor(3.0, 9.0, 40.0))).to(dtype), 0.3
    bound = 4 * UNIT[dtype]
    assert (
        errors(omega(gap, "gap", tau), [g / mpf(tau) for g in numbers(gap)], relative=True).max()
        < bound
    )
    assert (
        errors(
            omega(gap, "bt", tau),
            [mp.tanh(g / (2 * mpf(tau))) for g in numbers(gap)],
            relative=True,
        ).max()
        < bound
    )


WEIGHTS, MEANS, COVARIANCES = world(2)
V, BETA, C = tensor(0.8, -0.6), 0.8, 0.3


def exact_mixture(x, t, weights, means):
    """log p_t(x) and its gradient with explicit inverses, 50 digits."""
    joint, pulls = [], []
    for w, mean, cov in zip(weights, means, COVARIANCES, strict=True):
        precision = (ABAR[t] * mp.matrix(cov.tolist()) + (1 - ABAR[t]) * mp.eye(2)) ** -1
        pulls.append(precision * (x - ALPHA[t] * mean))
        square = ((x - ALPHA[t] * mean).T * pulls[-1])[0]
        joint.append(w * mp.exp(-square / 2) * mp.sqrt(mp.det(precision)) / (2 * mp.pi))
    return mp.log(sum(joint)), sum(
        (-j / sum(joint) * pull for j, pull in zip(joint, pulls, strict=True)), mp.zeros(2, 1)
    )


@pytest.fixture(scope="module")
def on_the_grid():
    """x_t near the noised components at every t of the grid, and the exact answers there."""
    a, s = levels(GRID)
    x_t = rounded(
        a * (MEANS[GRID % 3] + 0.3 * normal(12, len(GRID), 2)) + s * normal(13, len(GRID), 2),
        torch.float32,
    )
    weights, means = numbers(WEIGHTS / WEIGHTS.sum()), [mp.matrix(mean.tolist()) for mean in MEANS]
    v, beta = mp.matrix(V.tolist()), mpf(BETA)
    covs = [mp.matrix(cov.tolist()) for cov in COVARIANCES]
    # log pi*_k + log Z = log pi_k + (v . mu_k + c) / beta + v^T S_k v / (2 beta^2)
    tilted = [
        w * mp.exp(((v.T * mean)[0] + mpf(C)) / beta + (v.T * cov * v)[0] / (2 * beta**2))
        for w, mean, cov in zip(weights, means, covs, strict=True)
    ]
    z = sum(tilted)
    moved = [mean + cov * v / beta for mean, cov in zip(means, covs, strict=True)]
    log_p, eps_hat, x0_hat, value = [], [], [], []
    for x, t in zip(x_t, GRID.tolist(), strict=True):
        x = mp.matrix(x.tolist())
        log_density, score = exact_mixture(x, t, weights, means)
        log_p.append(log_density)
        eps_hat.extend(-SIGMA[t] * score)
        x0_hat.extend((x + SIGMA[t] ** 2 * score) / ALPHA[t])
        value.append(
            beta
            * (exact_mixture(x, t, [w / z for w in tilted], moved)[0] - log_density + mp.log(z))
        )
    return x_t, log_p, eps_hat, x0_hat, value, mp.log(z)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 4e-6)])
def test_mixture_on_the_grid(on_the_grid, dtype, bound):
    """log p_t, eps_hat, x0_hat and V_t of order one (measured errors: 4e-15 and 1e-6).

    x0_hat from eps_hat has at most sigma_t / alpha_t times that error, eps_hat from x0_hat at most
    alpha_t / sigma_t times.
    """
    x_t, log_p, eps_hat, x0_hat, value, log_z = on_the_grid
    x = x_t.to(dtype)
    prior = GaussianMixture(WEIGHTS.to(dtype), MEANS.to(dtype), COVARIANCES.to(dtype), SCHEDULE)
    tilted, got_z = prior.tilt_linear(V.to(dtype), BETA, C)
    predicted, denoised = prior.predict_noise(x, GRID)[0], prior.denoise(x, GRID)[0]
    for got, exact in (
        (prior.log_prob(x, GRID)[0], log_p),
        (predicted, eps_hat),
        (denoised, x0_hat),
        (implicit_reward(prior, tilted, got_z, BETA, x, GRID), value),
        (got_z[None], [log_z]),
    ):
        assert errors(got, exact).max() < bound
    a, s = levels(GRID)
    assert (errors(SCHEDULE.x0_from_eps(x, predicted, GRID), x0_hat) / (1 + s / a)).max() < bound
    assert (errors(SCHEDULE.eps_from_x0(x, denoised, GRID), eps_hat) / (1 + a / s)).max() < bound


def test_densities_of_far_points_are_right_to_single_precision_only():
    """float32 at |x_t| of 1e4: log p is right to 1e-6 of itself, which is 50 nats and more.

    V_t, a difference of two, is then wrong by more than 1%. eps_hat keeps five digits of its size.
    """
    x_t = rounded(1e4 * normal(14, len(GRID), 2), torch.float32)
    rows = []
    for dtype in (torch.float64, torch.float32):
        prior = GaussianMixture(WEIGHTS.to(dtype), MEANS.to(dtype), COVARIANCES.to(dtype), SCHEDULE)
        tilted, log_z = prior.tilt_linear(V.to(dtype), BETA, C)
        x = x_t.to(dtype)
        value = implicit_reward(prior, tilted, log_z, BETA, x, GRID)
        rows.append(
            [
                row.double()
                for row in (
                    prior.log_prob(x, GRID)[0],
                    value,
                    prior.predict_noise(x, GRID)[0].norm(dim=1),
                )
            ]
        )
    log_p, value, size = (
        (single - double).abs() / double.abs() for double, single in zip(*rows, strict=True)
    )
    assert log_p.max() < 1e-6 and (rows[1][0] - rows[0][0]).abs().max() > 50
    assert value.max() > 0.01
    assert size.max() < 1e-5


def test_isotropic_mixture_on_the_grid():
    """x0_hat and log p_t of 4 pictures of 12 numbers, by the plain sum over components.

    The expanded square costs no more digits than float64 can spare.
    """
    d, variance, means = 12, 0.01, normal(15, 1, 4, 12)
    a, s = levels(GRID)
    x_t = a * (means[0, GRID % 4] + 0.1 * normal(16, len(GRID), d)) + s * normal(17, len(GRID), d)
    log_weights = normal(18, 1, 1, 4)
    x0_hat, log_p = [], []
    pictures, weights = (
        [numbers(mean) for mean in means[0]],
        [mp.exp(value) for value in numbers(log_weights)],
    )
    for x, t in zip(x_t, GRID.tolist(), strict=True):
        x, c = numbers(x), ABAR[t] * mpf(variance) + 1 - ABAR[t]
        joint = [
            w
            / sum(weights)
            * mp.exp(-sum((p - ALPHA[t] * m) ** 2 for p, m in zip(x, mean, strict=True)) / (2 * c))
            for w, mean in zip(weights, pictures, strict=True)
        ]
        log_p.append(mp.log(sum(joint)) - mpf(d) / 2 * mp.log(2 * mp.pi * c))
        for i in range(d):
            mean = sum(j * picture[i] for j, picture in zip(joint, pictures, strict=True)) / sum(
                joint
            )
            x0_hat.append(mean + ALPHA[t] * mpf(variance) / c * (x[i] - ALPHA[t] * mean))
    args = x_t, means, log_weights.expand(1, len(GRID), 4), variance, a, s
    assert errors(isotropic_denoise(*args)[0], x0_hat).max() < 1e-12
    assert errors(isotropic_log_prob(*args)[0], log_p).max() < 1e-12


def sds_equation(W, cond, neg, eps):
    return W * (neg + mpf(7.5) * (cond - neg) - eps)


def psd_equation(W, L, sign, base, h_1, h_2):
    return W * (base + L * sign * (h_1 - h_2))


def test_gradients_of_the_methods_over_the_grid():
    """SDS at g = 7.5, and PSD: within five u of the sum of what is added, at every t.

    Five operations round: difference, product, sum, sum (for PSD the product lambda omega), product
    with w.
    """
    _, s = levels(GRID)
    sign = torch.where(torch.arange(len(GRID)) % 3 == 0, -1.0, 1.0)
    for dtype, u in UNIT.items():
        cond, neg, eps, base, h_1, h_2 = parts = [
            rounded(normal(20 + i, len(GRID), 4), dtype) for i in range(6)
        ]
        w, lam = rounded(s**2, dtype), rounded(0.7 * s, dtype)
        inputs = [part.to(dtype) for part in parts]
        got = (
            sds_gradient(*inputs[:3], 7.5, w.to(dtype)),
            psd_gradient(*inputs[3:], sign.to(dtype), lam.to(dtype), w.to(dtype)),
        )
        W, L, signs = (
            numbers(column.expand_as(cond)) for column in (w, lam, sign.double()[:, None])
        )
        exact = (
            list(map(sds_equation, W, *map(numbers, parts[:3]))),
            list(map(psd_equation, W, L, signs, *map(numbers, parts[3:]))),
        )
        size = (
            neg.abs() + 7.5 * (cond.abs() + neg.abs()) + eps.abs(),
            base.abs() + lam * (h_1.abs() + h_2.abs()),
        )
        for answer, wanted, added in zip(got, exact, size, strict=True):
            assert bool((errors(answer, wanted) <= 5.02 * u * w * added).all()), dtype


def test_weights_of_a_ray_from_thin_fog_to_a_wall():
    """w_i = T_i (1 - exp(-rho_i delta_i)), relative to itself: float64 is right to 1e-13.

    float32 keeps the digits of fog as thin as 1e-9, where 1 - exp(-x) would lose them all. Behind a
    wall weights are only right relative to 1.
    """
    density = torch.cat(
        (torch.logspace(-9, 3, 13, dtype=torch.float64)[None], torch.full((1, 13), 1e-9).double())
    )
    widths = torch.full_like(density, 0.125)
    exact, opacity = [], []
    for row in density:
        before = mpf(0)
        for rho in numbers(row):
            exact.append(mp.exp(-before) * -mp.expm1(-rho / 8))
            before += rho / 8
        opacity.append(-mp.expm1(-before))
    for dtype, u in ((torch.float64, UNIT[torch.float64]), (torch.float32, UNIT[torch.float32])):
        rounded_density = density.to(dtype)
        weights, alpha = compositing_weights(rounded_density, widths.to(dtype))
        assert errors(weights, exact).max() < 30 * u
        assert errors(weights[1], exact[13:], relative=True).max() < 200 * u
        assert errors(alpha, opacity, relative=True).max() < 30 * u
    lost = 1 - torch.exp(-density[1].float() * 0.125)
    assert errors(lost, exact[13:], relative=True).min() > 0.9  # what expm1 is there for


def test_weights_of_rewards_far_apart():
    """exp(R_i) / sum exp(R_j) for rewards up to 300 apart, relative: float64 is right to 1e-13."""
    rewards = normal(30, 6, 5) * torch.tensor([0.01, 1.0, 10.0, 30.0, 100.0])
    exact = []
    for row in rewards:
        for j, reward in enumerate(numbers(row)):
            exact.append(mp.exp(reward) / sum(mp.exp(other) for other in numbers(rewards[:, j])))
    assert errors(reward_weights(rewards, "softmax"), exact, relative=True).max() < 1e-13
