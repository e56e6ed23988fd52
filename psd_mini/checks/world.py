"""The exact world that submissions are run in: latents of Stable Diffusion's shape, a prediction
that is known.

    p_0(x | e) = sum_k pi_k N(x; mu_k + M e, diag(s(e))),    log s(e) = log s_0 + V e
    eps_hat    = E[eps | x_t, e] = -sigma_t grad log p_t(x_t | e)

e is a prompt's embedding, averaged over its tokens. Variances differ from pixel to pixel and from
prompt to prompt, so that the denoiser's Jacobian is no multiple of the identity, and the
predictions for two prompts differ by another vector at every
x_t: all noise predictions, the noises and x are linearly independent, and a gradient made of them
can be taken apart."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini.schedule import scaled_linear_schedule

SHAPE = (4, 64, 64)  # a latent of Stable Diffusion: means over its elements divide by 16384
TOKENS, WIDTH = 77, 16  # of an embedding
SCALING = 0.18215  # latents are the autoencoder's output times this
SCHEDULE = scaled_linear_schedule()
T = SCHEDULE.num_timesteps
KINDS = ("cond", "uncond", "negative")


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64 that depend on the seed only."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Law(NamedTuple):
    """The mixture at e = 0: means mu_k (2, d), variances s_0 (d,); what an embedding changes: M
    and V (WIDTH, d)."""

    means: Tensor
    variances: Tensor
    shift: Tensor
    spread: Tensor


LOG_WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64).log()


@lru_cache
def law(size: int, q: bool = False) -> Law:
    """The prior on R^size, or q, the law of the renders: one Gaussian that knows no prompt."""
    centre, bump, spread = normal(3, size, seed=11 + q)
    bump = bump * (0 if q else 2 / size**0.5)
    variances = 0.3 + spread.abs()
    shift, width = (0 if q else 1) * normal(2, WIDTH, size, seed=13)
    return Law(torch.stack((0.6 * centre - bump, 0.6 * centre + bump)), variances, 2 * shift, width)


def predict(
    x_t: Float[Tensor, "b *event"],
    t: Int[Tensor, " b"],
    embeddings: Float[Tensor, "b tokens width"] | None,
    q: bool = False,
) -> Float[Tensor, "b *event"]:
    """Exact noise prediction, one embedding per sample; differentiable in x_t and in the
    embeddings, float64.

    NaN answers NaN, as a network would.
    """
    means, variances, shift, spread = law(x_t[0].numel(), q)
    e = (
        embeddings.double().mean(1)[:, None]
        if embeddings is not None
        else torch.zeros(1, 1, WIDTH).double()
    )
    abar = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1)
    # C = alpha_t^2 s(e) + sigma_t^2, z_k = x_t - alpha_t (mu_k + M e), eps_hat = sigma_t sum_k g_k
    # z_k / C
    c = abar * variances * torch.exp(e @ spread) + 1 - abar
    z = x_t.double().flatten(1)[:, None] - abar.sqrt() * (means + e @ shift)
    g = torch.softmax(LOG_WEIGHTS - 0.5 * (z**2 / c).sum(-1), -1)
    return ((1 - abar).sqrt() * (g[..., None] * z / c).sum(1, keepdim=True)).reshape(x_t.shape)


def embedding(kind: str, batch: int) -> Float[Tensor, "b tokens width"]:
    """Embedding of the prompt ("cond"), the empty prompt ("uncond") or a negative prompt, one
    copy per picture."""
    return (
        normal(1, TOKENS, WIDTH, seed=21 + KINDS.index(kind)).float().expand(batch, -1, -1).clone()
    )


def picture(batch: int, seed: int, shape: tuple[int, ...] = SHAPE) -> Float[Tensor, "b c h w"]:
    """Renders in latent space, to be distilled; away from the prior's mean."""
    return normal(batch, *shape, seed=31 + seed) + 0.5


def alpha_sigma(t: int) -> tuple[float, float]:
    """alpha_t and sigma_t of one timestep as numbers; t is clamped to the grid."""
    abar = SCHEDULE.alphas_cumprod[min(max(t, 0), T - 1)].item()
    return abar**0.5, (1 - abar) ** 0.5
