"""The exact world that submissions are run in: latents of Stable Diffusion, known predictions.

    p_0(x | e) = sum_k pi_k N(x; mu_k + M e, diag(s(e))),    log s(e) = log s_0 + V e
    eps_hat    = E[eps | x_t, e] = -sigma_t grad log p_t(x_t | e)

e is a prompt's embedding, averaged over its tokens. Variances differ from pixel to pixel and from
prompt to prompt. So the denoiser's Jacobian is no multiple of the identity, and the predictions for
two prompts differ by another vector at every x_t. All noise predictions, the noises and x are
linearly independent, and a gradient made of them can be taken apart.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini.schedule import scaled_linear_schedule

Event = Float[Tensor, "b *event"]
Embeddings = Float[Tensor, "b tokens width"]

SHAPE = (4, 64, 64)  # a latent of Stable Diffusion: means over its elements divide by 16384
PROMPT_TOKENS, WIDTH = 77, 16  # of an embedding
SCALING = 0.18215  # latents are the autoencoder's output times this
SCHEDULE = scaled_linear_schedule()
T = SCHEDULE.num_timesteps
PROMPTS = ("cond", "uncond", "negative")


@lru_cache(maxsize=16)
def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64 that depend on the seed only; not to be changed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Law(NamedTuple):
    """A mixture of two Gaussians on R^d, as a function of the embedding.

    means: mu_k (2, d) at e = 0; variances: s_0 (d,); shift, spread: M and V, both (WIDTH, d).
    """

    means: Tensor
    variances: Tensor
    shift: Tensor
    spread: Tensor


LOG_WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64).log()


@lru_cache
def law(d: int, q: bool = False) -> Law:
    """The prior on R^d, or q, the law of the renders: one Gaussian that knows no prompt."""
    centre, bump, spread = normal(3, d, seed=11 + q)
    bump = bump * (0 if q else 2 / d**0.5)
    variances = 0.3 + spread.abs()
    shift, width = (0 if q else 1) * normal(2, WIDTH, d, seed=13)
    means = torch.stack((0.6 * centre - bump, 0.6 * centre + bump))
    return Law(means, variances, 2 * shift, width)


def _posterior(
    x_t: Event, alpha: Tensor, sigma: Tensor, e: Embeddings | None, q: bool
) -> tuple[Tensor, ...]:
    """Of x_t = alpha x + sigma eps: each component's share g, mean m, variance s, and z / C.

    C = alpha^2 s + sigma^2,    z = x_t - alpha m,    all of them (b, components, d)
    """
    means, variances, shift, spread = law(x_t[0].numel(), q)
    e = torch.zeros(1, 1, WIDTH).double() if e is None else e.double().mean(1)[:, None]
    m, s = means + e @ shift, variances * torch.exp(e @ spread)
    c, z = alpha**2 * s + sigma**2, x_t.double().flatten(1)[:, None] - alpha * m
    g = torch.softmax(LOG_WEIGHTS - 0.5 * (z**2 / c).sum(-1), -1)
    return g[..., None], m, s, z / c


def exact_eps(x_t: Event, t: Int[Tensor, " b"], e: Embeddings | None, q: bool = False) -> Event:
    """Exact noise prediction in float64, differentiable in x_t and in the embeddings e.

    NaN answers NaN, as a network would.
    """
    abar = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1)
    sigma = (1 - abar).sqrt()
    g, _, _, pull = _posterior(x_t, abar.sqrt(), sigma, e, q)
    # eps_hat = sigma_t sum_k g_k z_k / C
    return (sigma * (g * pull).sum(1, keepdim=True)).reshape(x_t.shape)


def exact_velocity(x_t: Event, t: Float[Tensor, " b"], e: Embeddings | None) -> Event:
    """Exact velocity of rectified flow, E[eps - x | x_t], at x_t = (1 - t) x + t eps, 0 <= t <= 1.

    Liu et al. 2022, arXiv 2209.03003, with time as in Stable Diffusion 3: t = 1 is noise.
    """
    t = t.double().reshape(-1, 1, 1)
    g, m, s, pull = _posterior(x_t, 1 - t, t, e, False)
    # E[eps | x_t, k] = t z_k / C,    E[x | x_t, k] = m_k + (1 - t) s z_k / C
    return (g * ((t - (1 - t) * s) * pull - m)).sum(1, keepdim=True).reshape(x_t.shape)


def embedding(prompt: str, batch: int) -> Embeddings:
    """Embedding of one of PROMPTS, one copy per picture."""
    e = normal(1, PROMPT_TOKENS, WIDTH, seed=21 + PROMPTS.index(prompt))
    return e.float().expand(batch, -1, -1).clone()


def picture(batch: int, seed: int, shape: tuple[int, ...] = SHAPE) -> Event:
    """Renders in latent space, to be distilled; away from the prior's mean."""
    return normal(batch, *shape, seed=31 + seed) + 0.5


def neighbour(x: Event) -> Event:
    """A picture that is like x: its rows are blurred."""
    return (x + x.roll(1, -1)) / 2


@lru_cache
def alpha_sigma(t: int) -> tuple[float, float]:
    """alpha_t and sigma_t of one timestep as numbers; t is clamped to the grid."""
    abar = SCHEDULE.alphas_cumprod[min(max(t, 0), T - 1)].item()
    return abar**0.5, (1 - abar) ** 0.5


def alpha_at(t: int) -> float:
    """alpha_t of one timestep."""
    return alpha_sigma(t)[0]


def sigma_at(t: int) -> float:
    """sigma_t of one timestep."""
    return alpha_sigma(t)[1]
