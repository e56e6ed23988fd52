"""Noises that are fixed for each camera, or found by inverting the render. float64."""

import pytest
import torch
from plain_mixture import SCHEDULE, close
from worlds import normal, small_world

from psd_mini import CSD, SDS, Context, GaussianMixture
from psd_mini.methods import NoiseRule

pytestmark = pytest.mark.algebra
S, MU = 0.6, 0.8
GAUSS = GaussianMixture([1.0], torch.full((1, 3), MU, dtype=torch.float64), S, SCHEDULE)


def context():
    return Context(GAUSS, torch.zeros(2, 1).double())


def case(t=500):
    return normal(2, 3, 1, 1, seed=1), torch.full((2,), t), normal(1, 2, 3, 1, 1, seed=2)


def test_a_fixed_noise_has_a_place_of_rest_of_its_own():
    """Descent at one t ends at mu + (alpha_t S / sigma_t) eps, whatever the loop draws."""
    x, t, _ = case()
    method = NoiseRule(SDS(weighting="uniform"), "fixed")
    for seed in range(400):
        x = x - 0.5 * method(x, t, normal(1, *x.shape, seed=seed), context())[0]
    a, s = SCHEDULE.alpha_sigma(t, x)
    eps = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    close(x, MU + a * S / s * eps, 1e-6)
    fresh, _ = SDS(weighting="uniform")(x, t, normal(1, *x.shape), context())
    assert fresh.abs().max() > 0.1


def test_a_camera_keeps_its_noise():
    prior = small_world()
    x, t = torch.rand(3, 3, 8, 8), torch.tensor([300, 500, 700])
    eps = torch.randn(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    cameras = prior.views.cameras[torch.tensor([4, 0, 2])]
    embeddings = prior.embed(["a ball", ""])
    seen = Context(prior, embeddings, cameras)
    NoiseRule(SDS(), "fixed")(x, t, eps, seen)
    used = seen.predictions.x_t - prior.schedule.add_noise(x, 0 * x, t)
    order = torch.tensor([2, 0, 1])
    again = Context(prior, embeddings, cameras[order])
    NoiseRule(SDS(), "fixed")(x, t[order], eps + 1, again)
    other = again.predictions.x_t - prior.schedule.add_noise(x, 0 * x, t[order])
    torch.testing.assert_close(other[0], used[0][order], rtol=1e-5, atol=1e-5)
    assert (used[0, 0] - used[0, 1]).abs().max() > 0.5


def test_inverting_a_gaussian():
    """kappa is that of the flow from level 0 to level t; the error is O(1 / k)."""
    x, t, _ = case()
    zero = torch.zeros_like(t)
    (a_0, s_0), (a, s) = SCHEDULE.alpha_sigma(zero, x), SCHEDULE.alpha_sigma(t, x)
    ratio = ((a**2 * S + s**2) / (a_0**2 * S + s_0**2)) ** 0.5
    x_t = a * MU + ratio * a_0 * (x - MU)  # the walk begins at alpha_0 x, without noise
    exact = (x_t - a * x) / s

    def error(k):
        rule = NoiseRule(SDS(), inversion_steps=k, above=0.0, fresh=0.0)
        return (rule._inverted(x, t, context()) - exact).abs().max().item()

    # G = w (alpha_t / sigma_t) (1 - alpha_t sqrt(S / C)) (x - mu), within 3%
    rule = NoiseRule(SDS(weighting="uniform"), inversion_steps=250, above=0.0, fresh=0.0)
    pull = a / s * (1 - a * (S / (a**2 * S + s**2)) ** 0.5) * (x - MU)
    got = rule(x, t, 0 * x[None], context())[0]
    assert (got - pull).abs().max() < 0.03 * pull.abs().max()
    errors = [error(k) for k in (20, 40, 250)]
    assert errors[0] > 1.5 * errors[1] and errors[2] < 0.02 * exact.abs().max()


def test_inverted_noise_is_no_draw_but_for_its_fresh_share():
    """sqrt(1 - f^2) kappa + f eps goes to the base; f = 1 is the base itself."""
    x, t, eps = case()
    base = SDS(weighting="uniform")

    def gradient(fresh, noise):
        return NoiseRule(base, fresh=fresh)(x, t, noise, context())[0]

    close(gradient(0.0, eps), gradient(0.0, -eps), 1e-10)
    close(gradient(1.0, eps), base(x, t, eps, context())[0], 1e-10)
    kappa = NoiseRule(base)._inverted(x, t, context())
    mixed = (1 - 0.3**2) ** 0.5 * kappa + 0.3 * eps
    close(gradient(0.3, eps), base(x, t, mixed, context())[0], 1e-10)


def test_the_same_noise_is_found_a_little_above():
    """above = 0 finds kappa at t; the last levels stay within the schedule."""
    x, t, _ = case(990)
    for above in (0.0, 0.5):
        rule = NoiseRule(SDS(), above=above)
        assert rule._inverted(x, t, context()).isfinite().all()
    low, high = (NoiseRule(SDS(), above=a)._inverted(*case(300)[:2], context()) for a in (0.0, 0.2))
    again = NoiseRule(SDS(), above=0.0)._inverted(x, torch.tensor([500, 500]), context())
    close(high, again, 1e-10)
    assert (low - high).abs().max() > 0.01


def test_cost_and_bases():
    """k pictures more, twice as many with guidance; any base, with as many noises as it wants."""
    x, t, eps = case()
    for guidance, price in ((1.0, 10), (-7.5, 20)):
        seen = context()
        NoiseRule(SDS(), inversion_guidance=guidance)(x, t, eps, seen)
        assert seen.cost.prior_evaluations == (price + 1) * len(x)
    rule = NoiseRule(CSD(n_noises=2), "fixed")
    assert rule.n_noises == 2
    gradient, _ = rule(x, t, eps.repeat(2, 1, 1, 1, 1), context())
    assert gradient.shape == x.shape
