"""A world for the relatives of SDS and PSD: six renders, three prompts, predictions by plain
algebra."""

import torch
from plain_mixture import SCHEDULE, levels, normal, plain_posterior, tensor, world

from psd_mini import Context, GaussianMixture

WEIGHTS, MEANS, COVARIANCES = world(3)
PRIOR = GaussianMixture(WEIGHTS, MEANS, COVARIANCES, SCHEDULE)
Y, NULL, NEG = (
    tensor(1.5, -1.0, 0.3),
    tensor(0.0, 0.0, 0.0),
    tensor(-2.0, 0.5, 1.0),
)  # log-weights: three prompts
G = 7.5
TOLERANCE = 1e-10


def case():
    """Six renders with their timesteps and noises."""
    return 1.3 * normal(1, 6, 3), torch.tensor([60, 199, 200, 450, 700, 950]), normal(2, 6, 3)


def noised(x, t, eps):
    a, s = levels(t)
    return a * x + s * eps


def plain_noise(x_t, t, prompt):
    """eps_hat = (x_t - alpha_t E[x_0 | x_t, prompt]) / sigma_t, with explicit inverses."""
    a, s = levels(t)
    g, m, _ = plain_posterior(x_t, t, WEIGHTS * prompt.exp(), MEANS, COVARIANCES)
    return (x_t - a * (g[..., None] * m).sum(1)) / s


def picture(x):
    return x[..., None, None]


def package(method, x, t, eps, prompt=Y, negative=NEG):
    """The package's gradient, with w(t) = 1 where the method was made so."""
    context = Context(PRIOR, torch.stack((prompt, negative)))
    return method(picture(x), t, picture(eps)[None], context)[0].flatten(1)


def differs(got, expected):
    """A wrong implementation is off by much more than rounding. Not at every picture: at small t,
    x_t may name its component so clearly that the prompt does not matter."""
    assert (got - expected).abs().max() > 1e-3
