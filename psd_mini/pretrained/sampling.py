"""Pictures straight from a prior, without any 3D: what does it think of a prompt?

DDIM walks down a grid of timesteps t_1 > t_2 > ... > t_n and ends at the clean picture. It keeps
the predicted noise (Song, Meng & Ermon 2021, arXiv 2010.02502, eq. 12 with eta = 0):

    eps_hat = cfg(x_t)
    x0_hat  = (x_t - sigma_t eps_hat) / alpha_t
    x_t'    = alpha_t' x0_hat + sigma_t' eps_hat

In the limit of many steps this is the probability-flow ODE, so the samples of an exact prior have
its own distribution.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import needs, validated
from psd_mini.cameras import Cameras
from psd_mini.sds import Prior, cfg


@validated
@torch.no_grad()
def ddim_sample(
    prior: Any,
    prompt: str,
    noise: Float[Tensor, "b c h w"],
    *,
    cameras: Cameras | None = None,
    guidance_scale: float = 1.0,
    negative_prompt: str = "",
    steps: int = 25,
) -> Float[Tensor, "b c h w"]:
    """B samples of a prompt, by the equations above.

    Args:
        prior: see `psd_mini.sds.Prior`.
        prompt: what to draw.
        noise: (B, C, h, w) standard normal, x at the highest timestep.
        cameras: B cameras, for priors that know them; a text prior words the prompt for each.
        guidance_scale: g; at 1 the negative prompt is not evaluated.
        negative_prompt: what guidance pushes away from.
        steps: n, timesteps evenly spaced from T - 1 down.

    Returns:
        x of the samples; `prior.decode` makes pictures of them.

    Raises:
        ValueError: steps out of range.
    """
    needs("prior", prior, "schedule", "embed", "predict_noise")
    prior = Prior.of(prior)
    schedule = prior.schedule
    if not 1 <= steps <= schedule.num_timesteps:
        raise ValueError(f"steps: expected 1 to {schedule.num_timesteps}, got {steps}")
    embeddings = prior.embed_views([prompt])
    if guidance_scale != 1:
        embeddings = torch.cat((embeddings, prior.embed_negative(negative_prompt)))
    grid = torch.linspace(schedule.num_timesteps - 1, 0, steps + 1).round().long()[:-1].tolist()
    x = x0_hat = eps_hat = noise
    for step, time in enumerate(grid):
        t = torch.full((len(x),), time)
        if step > 0:
            x = schedule.add_noise(x0_hat, eps_hat, t)  # x_t' = alpha_t' x0_hat + sigma_t' eps_hat
        predictions = prior.predict_noise(x, t, embeddings, cameras)
        eps_hat = cfg(predictions[0], predictions[-1], guidance_scale)
        x0_hat = schedule.x0_from_eps(x, eps_hat, t)
    return x0_hat
