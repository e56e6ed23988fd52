"""The mixture of pictures: against one GaussianMixture per sample, and in single precision."""

import math

import pytest
import torch
from plain_mixture import SCHEDULE, T, Tensor, close, levels, normal

from psd_mini.mixture import GaussianMixture
from psd_mini.world.isotropic import isotropic_denoise, isotropic_log_prob

pytestmark = pytest.mark.algebra


def isotropic_case(own_components: bool):
    """x_t, means, log-weights, variance, levels and t of a batch of four with two prompts.

    One of the log-weights is -inf.
    """
    b, m, d, e = 4, 5, 12, 2
    means = normal(31, b if own_components else 1, m, d)
    log_weights = normal(32, e, b, m)
    log_weights[0, :, 2] = -math.inf
    t = torch.tensor([0, 30, 500, T - 1])
    a, s = levels(t)
    x_t = a * (means[:, 0] + 0.1 * normal(33, b, d)) + s * normal(34, b, d)
    return x_t, means, log_weights, 0.04, a, s, t


@pytest.mark.parametrize("own_components", [True, False])
def test_isotropic_functions_are_the_gaussian_mixture(own_components):
    """x0_hat, log p and their gradients in x_t and log-weights = one GaussianMixture per sample."""
    x_t, means, log_weights, variance, a, s, t = isotropic_case(own_components)
    x_t.requires_grad_()
    log_weights.requires_grad_()
    x0_hat = isotropic_denoise(x_t, means, log_weights, variance, a, s)
    log_p = isotropic_log_prob(x_t, means, log_weights, variance, a, s)
    clean = isotropic_log_prob(x_t, means, log_weights, variance, a**0, 0 * s)
    expected: list[list[Tensor]] = [[], [], []]
    for i in range(len(t)):
        prior = GaussianMixture(torch.ones(5), means[i % len(means)], variance, SCHEDULE)
        args = x_t[[i]], t[[i]], log_weights[:, i]
        for row, value in zip(
            expected,
            (prior.denoise(*args), prior.log_prob(*args), prior.log_prob(args[0], None, args[2])),
            strict=True,
        ):
            row.append(value)
    for got, row in zip((x0_hat, log_p, clean), expected, strict=True):
        value = torch.cat(row, 1)
        close(got, value, 1e-10)
        probe = normal(35, *got.shape)
        for mine, theirs in zip(
            torch.autograd.grad((probe * got).sum(), (x_t, log_weights), retain_graph=True),
            torch.autograd.grad((probe * value).sum(), (x_t, log_weights), retain_graph=True),
            strict=True,
        ):
            close(mine, theirs, 1e-9)


def test_isotropic_functions_in_single_precision():
    """Expanded squares cancel in float32.

    At 32 x 32 pixels the error is below 0.1 nats of thousands.
    """
    d, m = 3072, 20
    means = (normal(41, 1, m, d) / 10 + normal(42, 1, 1, d)).clamp(-1, 1)
    t = torch.tensor([0, 20, 300, T - 1])
    a, s = levels(t)
    x_t = a * means[0, :4] + s * normal(43, 4, d)
    log_weights = torch.zeros(1, 4, m).double()
    double = [x_t, means, log_weights, 0.01, a, s]
    single = [x_t.float(), means.float(), log_weights.float(), 0.01, a.float(), s.float()]
    close(isotropic_denoise(*single).double(), isotropic_denoise(*double), 1e-4)  # type: ignore[arg-type]
    error = isotropic_log_prob(*single).double() - isotropic_log_prob(*double)  # type: ignore[arg-type]
    assert float(error.abs().max()) < 0.1
