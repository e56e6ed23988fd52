"""A mixture of pictures: isotropic Gaussians of one variance, in a few matrix products.

    p_0(x)   = sum_k w_k N(x; mu_k, tau^2 I)
    p_t(x_t) = sum_k w_k N(x_t; alpha_t mu_k, c I),    c = alpha_t^2 tau^2 + sigma_t^2

These are GaussianMixture's formulas with S_k = tau^2 I. They are written again because a component
is now a picture of thousands of numbers, which are read, never copied, and because every sample of
the batch may have components of its own (the pictures that its camera sees). With tau -> 0 this is
the exact denoiser of a finite data set (Karras et al. 2022, arXiv 2206.00364, appendix B.3).

Shapes: B samples, E prompts, M components, D numbers per picture.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "b d"]
Means = Float[Tensor, "b_or_1 m d"]  # own components per sample, or the same for all
Weights = Float[Tensor, "e b m"]
Level = Float[Tensor, "b 1"]


def isotropic_denoise(
    x_t: Points, means: Means, log_weights: Weights, variance: float, alpha_t: Level, sigma_t: Level
) -> Float[Tensor, "e b d"]:
    """One-step denoised pictures, x0_hat = E[x_0 | x_t].

        g_k    = softmax_k( log w_k - |x_t - alpha_t mu_k|^2 / (2 c) )
        m_k    = mu_k + (alpha_t tau^2 / c) (x_t - alpha_t mu_k)
        x0_hat = sum_k g_k m_k = (sigma_t^2 / c) sum_k g_k mu_k + (alpha_t tau^2 / c) x_t

    because 1 - alpha_t^2 tau^2 / c = sigma_t^2 / c.

    Args:
        x_t: noised pictures, flattened, shape (B, D).
        means: mu_k, shape (B, M, D) when every sample has its own components, (1, M, D) when they
            are shared.
        log_weights: log w_k of each prompt at each sample, shape (E, B, M), up to a constant per
            row; -inf is allowed.
        variance: tau^2, in squared units of x.
        alpha_t, sigma_t: noise level of each sample, shape (B, 1).

    Returns:
        Shape (E, B, D). Differentiable in x_t and log_weights.
    """
    c = alpha_t**2 * variance + sigma_t**2
    g = torch.softmax(_log_joint(x_t, means, log_weights, c, alpha_t), -1)
    e, b, m = g.shape
    # sum_k g_k mu_k; rows of g that share their components meet them in one product
    mean = (g.transpose(0, 1).reshape(len(means), -1, m) @ means).reshape(b, e, -1).transpose(0, 1)
    return (sigma_t**2 / c) * mean + (alpha_t * variance / c) * x_t


def isotropic_log_prob(
    x_t: Points, means: Means, log_weights: Weights, variance: float, alpha_t: Level, sigma_t: Level
) -> Float[Tensor, "e b"]:
    """Log-density of the noised pictures in nats.

        log p_t(x_t) = log sum_k w_k N(x_t; alpha_t mu_k, c I)

    alpha_t = 1 and sigma_t = 0 give the clean density. Arguments as in isotropic_denoise; the
    weights of a row are normalised to sum to one.

    Returns:
        Shape (E, B).
    """
    c = alpha_t**2 * variance + sigma_t**2
    joint = _log_joint(x_t, means, torch.log_softmax(log_weights, -1), c, alpha_t)
    return torch.logsumexp(joint, -1) - 0.5 * x_t.shape[1] * torch.log(2 * math.pi * c)[:, 0]


def isotropic_given(
    x_t: Points, means: Means, log_views: Weights, variance: float, alpha_t: Level, sigma_t: Level
) -> Float[Tensor, "e b k"]:
    """Log-density in nats of the noised pictures given the component, which has P pictures:

        log p_t(x_t | k) = log sum_p w_p N(x_t; alpha_t mu_pk, c I)

    Args:
        means: mu_pk, (B or 1, P K, D), k in front of d.
        log_views: log w_p, (E, B, P); each row is normalised to sum to one.

    The others are as in isotropic_denoise.
    """
    c = alpha_t**2 * variance + sigma_t**2
    n_components = means.shape[1] // log_views.shape[2]
    log_w = torch.log_softmax(log_views, -1).repeat_interleave(n_components, -1)
    joint = _log_joint(x_t, means, log_w, c, alpha_t).unflatten(-1, (-1, n_components))
    return torch.logsumexp(joint, 2) - 0.5 * x_t.shape[1] * torch.log(2 * math.pi * c)


def _log_joint(
    x_t: Points, means: Means, log_weights: Weights, c: Level, alpha_t: Level
) -> Weights:
    """The joint log-density without its constant: log w_k - |x_t - alpha_t mu_k|^2 / (2 c).

    The square is expanded, |x_t|^2 - 2 alpha_t x_t . mu_k + alpha_t^2 |mu_k|^2, which makes it a
    matrix product. The three terms cancel: for D = 3072, pixels in [-1, 1] and tau = 0.1 float32
    leaves errors of 0.1 nats in the clean density, 0.03 at sigma_t = 0.14 and 0.003 at sigma_t =
    0.5, and x0_hat is right to 0.002 between two pictures.
    """
    # shared components meet the whole batch in one product and are not copied for each sample
    inner = (x_t.reshape(len(means), -1, x_t.shape[1]) @ means.mT).reshape(len(x_t), -1)
    means_squared = torch.linalg.vector_norm(means, dim=-1) ** 2
    squares = (x_t**2).sum(-1, keepdim=True) - 2 * alpha_t * inner + alpha_t**2 * means_squared
    return log_weights - squares / (2 * c)
