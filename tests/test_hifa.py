"""HiFA's target, denoised in k steps, in float64."""

import copy

import pytest
import torch
from loop_world import Fog, run
from plain_mixture import SCHEDULE, close
from worlds import normal, small_world

from psd_mini import PSD, SDS, Context, GaussianMixture, cfg
from psd_mini.methods import HiFA
from psd_mini.rendering import depth_variance, opacity_entropy
from psd_mini.rewards import LinearReward

pytestmark = pytest.mark.algebra
S, MU = 2.0, 0.7
GAUSS = GaussianMixture([1.0], torch.full((1, 3), MU, dtype=torch.float64), S, SCHEDULE)
TWO = GaussianMixture([0.4, 0.6], normal(2, 3, seed=7), 0.3, SCHEDULE)


def case(n=3, noises=2):
    x = normal(n, 3, 1, 1, seed=1)
    return x, torch.tensor([250, 500, 900][:n]), normal(noises, n, 3, 1, 1, seed=2)


def context(prior=TWO):
    embeddings = torch.zeros(2, len(prior.means), dtype=torch.float64)
    embeddings[0, -1] = 1.0
    return Context(prior, embeddings, None, [""] * 3, LinearReward(torch.ones(3).double()))


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_one_step_is_sds_with_another_weight(guidance):
    """G = w (sigma_t / alpha_t) (eps_cfg - eps), for every weighting and any number of noises."""
    x, t, eps = case()
    a, s = SCHEDULE.alpha_sigma(t, x)
    for weighting in ("uniform", "sds", "fantasia3d"):
        got = HiFA(guidance, weighting, 2, denoise_steps=1)(x, t, eps, context())[0]
        close(got, s / a * SDS(guidance, weighting, 2)(x, t, eps, context())[0], 1e-10)
    more = HiFA(guidance, "uniform", 2, denoise_steps=2)(x, t, eps, context())[0]
    assert (more - HiFA(guidance, "uniform", 2, 1)(x, t, eps, context())[0]).abs().max() > 1e-3


def test_steps_are_guided_ddim_written_out():
    """t, 2t/3, t/3 rounded down: x_t' = alpha_t' x0_hat + sigma_t' eps_hat; G = x - x0_hat."""
    x, t, eps = case(noises=1)
    seen, g = context(), 3.0
    x_t, now = SCHEDULE.add_noise(x, eps[0], t), t
    for following in (t * 2 // 3, t // 3, None):
        y, n = TWO.predict_noise(x_t, now, seen.embeddings)
        eps_hat = cfg(y, n, g)
        x0_hat = SCHEDULE.x0_from_eps(x_t, eps_hat, now)
        if following is not None:
            x_t, now = SCHEDULE.add_noise(x0_hat, eps_hat, following), following
    got, _ = HiFA(g, denoise_steps=3)(x, t, eps, seen)
    close(got, x - x0_hat, 1e-10)
    assert seen.cost.prior_evaluations == 2 * 3 * len(x)
    assert seen.predictions.x_t.shape == eps.shape


@pytest.mark.parametrize("many", [False, True])
def test_pull_and_spread_for_a_gaussian_prior(many):
    """k = 1: x0_hat - mu = (alpha_t S / C)(x_t - alpha_t mu); k = 500: sqrt(S / C) of it, within
    the error of 500 steps, which halves with twice as many."""
    x, t, eps = case(noises=1)
    a, s = SCHEDULE.alpha_sigma(t, x)
    c = a**2 * S + s**2
    share = (S / c) ** 0.5 if many else a * S / c
    expected = MU + share * (SCHEDULE.add_noise(x, eps[0], t) - a * MU)

    def error(steps):
        target = x - HiFA(denoise_steps=steps)(x, t, eps, context(GAUSS))[0]
        return (target - expected).abs().max().item()

    if many:
        # the schedule ends at t = 0, where a little noise is left
        assert error(250) < 0.02 and error(20) > 2 * error(250)
    else:
        assert error(1) < 1e-10 and error(250) > 0.05


def test_each_noise_of_each_view_goes_its_own_way():
    """In the toy world, with cameras: N noises at once are the noises one by one."""
    prior = small_world()
    cameras = prior.draw_cameras(2, torch.Generator().manual_seed(0))
    x, t = torch.rand(2, 3, 8, 8), torch.tensor([300, 600])
    eps = torch.randn(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    seen = Context(prior, prior.embed(["a red ball", ""]), cameras)
    together = HiFA(2.0, n_noises=3)(x, t, eps, seen)[0]
    alone = torch.stack([HiFA(2.0)(x, t, e[None], seen)[0] for e in eps]).mean(0)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_psd_on_hifa_ranks_the_pictures_of_k_steps():
    """Its reward is that of x0_hat_k, its base eps_k - eps on the pair's noises."""
    x, t, eps = case(noises=1)
    pair = torch.cat((eps, -eps))
    base = HiFA(2.0, "sds", denoise_steps=3)
    got, metrics = PSD(base, 0.0, over_views=False)(x, t, eps, context())
    residual = base.residual(base.predict(x, t, pair, context()), pair).mean(0)
    close(got, SCHEDULE.weight(t, "sds", x) * residual, 1e-10)
    targets = [x - HiFA(2.0, denoise_steps=3)(x, t, e[None], context())[0] for e in pair]
    assert metrics["reward"] == pytest.approx(
        torch.stack(targets).sum((2, 3, 4)).mean().item(), rel=1e-9
    )


# its options of the loop


def ray(weights, z):
    return depth_variance(torch.tensor(weights).double(), torch.tensor(z).double()).item()


def test_depth_variance_is_that_of_the_normalised_weights():
    """1/2 sum_ij wn_i wn_j (z_i - z_j)^2: zero for one sample, whatever z = 0 and the opacity are.

    Without the division a one-hot ray of weight 0.6 at z = 3 would have (1 - 0.6)^2 3^2 0.6 = 0.86.
    """
    weights = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)).double() + 0.2
    z = normal(2, 3, 5, seed=1)
    share = weights / weights.sum(-1, keepdim=True)
    pairs = (z[..., :, None] - z[..., None, :]) ** 2
    expected = 0.5 * torch.einsum("...i,...j,...ij->...", share, share, pairs).mean()
    close(depth_variance(weights, z), expected, 1e-10)
    close(depth_variance(2 * weights, z + 7), expected, 1e-10)
    assert abs(ray([0.0, 0.6, 0.0], [1.0, 3.0, 4.0])) < 1e-12
    assert ray([0.4, 0.4], [1.0, 3.0]) == pytest.approx(1.0)


def test_depth_variance_looks_at_solid_pixels_only():
    solid, thin = [0.4, 0.4], [0.2, 0.2]
    assert ray([solid, thin], [[1.0, 3.0], [0.0, 9.0]]) == pytest.approx(1.0)
    assert ray([thin, thin], [[1.0, 3.0], [0.0, 9.0]]) == pytest.approx(0.0)


def test_its_slope_gains_samples_within_one_standard_deviation():
    """d variance / d w_k = [(z_k - mean)^2 - variance] / sum w, by autograd."""
    weights = torch.tensor([0.2, 0.3, 0.3], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    slope = torch.autograd.grad(depth_variance(weights, z), weights)[0]
    mean = (weights * z).sum() / 0.8
    variance = (weights * z**2).sum() / 0.8 - mean**2
    close(slope, (((z - mean) ** 2 - variance) / 0.8).detach(), 1e-10)


def test_the_loop_adds_the_variance_with_a_warm_up():
    """loss - loss without = weight C h w min(1, 2 progress) Var(depth), at the same field."""
    field = Fog()
    field.density.data += 2.0  # solid enough for opacity above 1/2
    seen = run(field=copy.deepcopy(field), steps=3, variance_weight=0.5)[2]
    plain = run(field=copy.deepcopy(field), steps=3)[2]
    assert seen[0]["loss"].item() == pytest.approx(plain[0]["loss"].item(), rel=1e-9)
    for info, progress in zip(seen, (0.0, 0.5, 1.0), strict=True):
        rendering = info["rendering"]
        spread = depth_variance(rendering.weights, rendering.z).item()
        entropy = 0.01 * 8 * opacity_entropy(rendering.opacity).item()
        assert spread > 1e-3
        added = 0.5 * 8 * min(1, 2 * progress) * spread
        assert info["loss"].item() == pytest.approx(entropy + added, rel=1e-6)


def test_the_loop_anneals_as_the_square_root():
    """A quarter of the way is half of the range: t is drawn below that bound, and reaches it."""
    options = {"t_min": (0.0, 0.0), "t_max": (1.0, 0.0), "steps": 5, "cameras_per_step": 3}
    bounds = {"sqrt": [399, 200, 117, 53, 0], "linear": [399, 299, 200, 100, 0]}
    for annealing, highest in bounds.items():
        one = {**options, "t_min": (1.0, 0.0), "annealing": annealing}
        times = [int(info["t"][0]) for info in run(**one)[2]]
        assert times == highest
        for info, bound in zip(run(**options, annealing=annealing)[2], highest, strict=True):
            assert info["t"].max() <= bound
