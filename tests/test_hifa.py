"""HiFA's target, denoised in k steps, in float64."""

import pytest
import torch
from plain_mixture import SCHEDULE, close
from worlds import normal, small_world

from psd_mini import PSD, SDS, Context, GaussianMixture, cfg
from psd_mini.methods import HiFA
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
