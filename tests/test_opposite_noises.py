"""Pairs of opposite noises, eps_2 = -eps_1, which PSD takes unless told otherwise; float64.

What they estimate differs from two independent noises (test_pair_estimator.py).
"""

import math

import pytest
import torch
from gaussian_world import (
    ALPHA,
    GAUSS,
    S_R,
    SIGMA,
    STEP,
    UNIFORM,
    WORLD,
    X,
    context,
    e_sech2,
    normal,
    picture,
)

from psd_mini.psd import PSD, omega

TAU = 0.4


def mirrored_law(prior, reward=None):
    """300 noises and their negatives: h (600, 3), R (600,), R of the negatives, the mean term.

    The mean term is E[omega (h_1 - h_2)] of PSD with opposite noises, a function of omega's name.
    """
    eps = normal(300, 3, seed=53)
    eps, ctx = torch.cat((eps, -eps)), context(prior, reward, 600)
    x0_hat = prior.denoise(ALPHA * X + SIGMA * eps, torch.full((600,), STEP), ctx.embeddings)[0]
    h, r = ALPHA / SIGMA * (X - x0_hat), ctx.reward(x0_hat[..., None, None], ctx.prompts)

    def mean_term(kind):
        run = {
            "x": X.view(1, 3, 1, 1).expand(600, -1, -1, -1),
            "t": torch.full((600,), STEP),
            "eps": picture(eps),
        }
        weights = (1 / SIGMA.item(), 0.0)
        on, off = (
            PSD(**UNIFORM, preference_weight=lam, omega=kind, tau=TAU)(**run, context=ctx)[0]
            for lam in weights
        )
        return (on - off).flatten(1).mean(0)

    return h, r, r.roll(300), mean_term


def independent_term(kind, h, r):
    """E[omega (h_1 - h_2)] for two independent noises: the mean over all 600 x 600 pairs."""
    return (omega(r[:, None] - r[None], kind, TAU)[..., None] * (h[:, None] - h[None])).mean((0, 1))


def bend(images, prompts):
    return torch.sin(3 * images.flatten(1)[:, 0]) + images.flatten(1)[:, 1].square()


def test_opposite_noises_compare_a_noise_with_its_negative():
    """What opposite noises estimate, for any prior and reward; independent noises differ.

    Duel: E[f | win] - E[f | lose] = 4 Cov(p, f), p = sigmoid((R(eps) - R(-eps)) / tau), which is no
    function of R alone. Gap: 4 Cov(R_odd, f) / tau with R_odd = (R(eps) - R(-eps)) / 2.
    """
    h, r, r_negative, mean_term = mirrored_law(WORLD, bend)
    p, odd = torch.special.expit((r - r_negative) / TAU), (r - r_negative) / 2
    given_win, given_lose = ((q[:, None] * h).sum(0) / q.sum() for q in (p, 1 - p))
    covariance = 4 * ((p - 0.5)[:, None] * h).mean(0)
    torch.testing.assert_close(given_win - given_lose, covariance, rtol=1e-11, atol=1e-11)
    for kind, expected in (("bt", covariance), ("gap", 4 / TAU * (odd[:, None] * h).mean(0))):
        torch.testing.assert_close(mean_term(kind), expected, rtol=1e-9, atol=1e-9)
        for factor in (1, math.sqrt(2)):
            assert (factor * independent_term(kind, h, r) - expected).norm() > 0.1 * expected.norm()


def test_factor_between_opposite_and_independent_noises():
    """How much longer the term is than with independent noises.

    Gaussian prior: 2 for the gap, whatever the reward. With a linear reward sqrt 2 for hard, and
    the duel's factor goes from sqrt 2 to 2 as tau grows. In a mixture the gap's differs: 1.9 here.
    """

    def factor(kind, prior, reward=None):
        h, r, _, mean_term = mirrored_law(prior, reward)
        independent = independent_term(kind, h, r)
        return (mean_term(kind) @ independent / independent.square().sum()).item()

    assert factor("gap", GAUSS) == pytest.approx(2, rel=1e-9) == factor("gap", GAUSS, bend)
    assert factor("gap", WORLD) == pytest.approx(1.9, abs=0.05)
    # linear reward: the constants k of test_expectation_of_the_preference_term, which holds them
    # (and hard's) against PSD
    scales = [S_R / tau for tau in (1e-3, 0.1, TAU, 1.0, 10.0)]
    duel = [(2 * e_sech2(k) / e_sech2(k / math.sqrt(2))).item() for k in scales]
    assert duel == sorted(duel) and [duel[0], duel[-1]] == pytest.approx(
        [math.sqrt(2), 2], rel=0.01
    )
    assert math.sqrt(2) + 0.1 < duel[2] < 1.9
