"""The exact world that submissions are run in: latents of Stable Diffusion's shape, a prediction that is known.

    p_0(x | e) = sum_k pi_k N(x; mu_k + M e, diag(s)),     eps_hat = E[eps | x_t, e] = -sigma_t grad log p_t(x_t | e)

e is a prompt's embedding, averaged over its tokens. The variances s differ from pixel to pixel, so that the denoiser's
Jacobian is no multiple of the identity, and M e moves every pixel, so that prompts differ in direction: each noise
prediction, the noise and x are linearly independent, and a gradient made of them can be taken apart.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini.priors.mixture import GaussianMixture
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


@lru_cache
def _mixture(size: int, q: bool) -> tuple[GaussianMixture, Tensor]:
    """The mixture on R^size and M (WIDTH, size); with q, the Gaussian law of the renders, which knows no prompt."""
    centre, bump, spread = normal(3, size, seed=11 + q)
    variances = 0.3 + spread.abs()
    if q:
        return GaussianMixture(torch.ones(1), centre[None], variances[None] / 4, SCHEDULE), torch.zeros(WIDTH, size).double()
    means = torch.stack((0.6 * centre - 2 * bump / size**0.5, 0.6 * centre + 2 * bump / size**0.5))
    return GaussianMixture(torch.tensor([0.4, 0.6]), means, variances.expand(2, -1), SCHEDULE), 2 * normal(WIDTH, size, seed=13)


def predict(
    x_t: Float[Tensor, "b *event"], t: Int[Tensor, " b"], embeddings: Float[Tensor, "b tokens width"] | None, q: bool = False
) -> Float[Tensor, "b *event"]:
    """Exact noise prediction, one embedding per sample; differentiable in x_t and in the embeddings, float64.

    A mixture shifted by M e is the same mixture seen from x_t - alpha_t M e. NaN answers NaN, as a network would.
    """
    x_t = x_t.double()
    if not bool(x_t.isfinite().all()):
        return x_t * torch.nan
    mixture, lift = _mixture(x_t[0].numel(), q)
    if embeddings is not None and not q:
        shift = (embeddings.double().mean(1) @ lift).reshape(x_t.shape)
        x_t = x_t - SCHEDULE.alpha_sigma(t, x_t)[0] * shift
    return mixture.predict_noise(x_t, t)[0]


def embedding(kind: str, batch: int) -> Float[Tensor, "b tokens width"]:
    """Embedding of the prompt ("cond"), the empty prompt ("uncond") or a negative prompt, one copy per picture."""
    return normal(1, TOKENS, WIDTH, seed=21 + KINDS.index(kind)).float().expand(batch, -1, -1).clone()


def picture(batch: int, seed: int, shape: tuple[int, ...] = SHAPE) -> Float[Tensor, "b c h w"]:
    """Renders in latent space, to be distilled; away from the prior's mean."""
    return normal(batch, *shape, seed=31 + seed) + 0.5


def alpha_sigma(t: int) -> tuple[float, float]:
    """alpha_t and sigma_t of one timestep as numbers; t is clamped to the grid."""
    abar = SCHEDULE.alphas_cumprod[min(max(t, 0), T - 1)].item()
    return abar**0.5, (1 - abar) ** 0.5
