"""What all methods with a reward on noises share: several noises of one render, denoised in one step and scored.

    x_t^i = alpha_t x + sigma_t eps^i,    h_i = eps_cfg(x_t^i) - eps^i,    R_i = r( decode( x0_hat^i ) ),    i = 1..N
    x0_hat^i = (x_t^i - sigma_t eps_cfg(x_t^i)) / alpha_t

The reward sees denoised images, which is what it was made for; it is only compared, never differentiated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini.formulas import sds_residual
from psd_mini.methods.context import Context, Predictions
from psd_mini.methods.sds import SDS
from psd_mini.rewards import score


class Ranked(NamedTuple):
    """N noises of each of B renders: the base method's residuals, the noise residuals h_i, (N, B, C, h, w), the rewards
    R_i (N, B) of the denoised images, and the predictions they were made of."""

    base: Float[Tensor, "n b c h w"]
    residuals: Float[Tensor, "n b c h w"]
    rewards: Float[Tensor, "n b"]
    predictions: Predictions


def rank(
    base: SDS, x: Tensor, t: Tensor, eps: Float[Tensor, "n b c h w"], context: Context, over_views: bool = False
) -> Ranked:
    """Ask the prior once about all noises, denoise, and let the reward score every denoised image.

    Args:
        base: SDS, CSD or anything with `predict`, `noise` and `residual`.
        x: (B, C, h, w) render; t: (B,) timesteps; eps: (N, B, C, h, w).
        context: must have a reward.
        over_views: the B pictures are views of one object: all get the mean reward of their noise, so that noise i wins or
            loses for the whole object. Needs one t for all views, as rewards at different noise levels do not compare.

    Returns:
        `Ranked`.

    Raises:
        ValueError: no reward, a reward that answers badly, or several t with `over_views`.
    """
    if over_views and len(set(t.tolist())) > 1:
        raise ValueError("t: ranking over views needs one timestep for all views of a step")
    predictions = base.predict(x, t, eps, context)
    with torch.no_grad():
        noise = base.noise(predictions)
        x0_hat = context.prior.schedule.x0_from_eps(predictions.x_t.transpose(0, 1), noise.transpose(0, 1), t)
        images = context.prior.decode(x0_hat.transpose(0, 1).flatten(0, 1))
        rewards = score(context.reward, images, context.prompts * len(eps)).view(len(eps), len(x))
    if over_views:
        rewards = rewards.mean(dim=1, keepdim=True).expand_as(rewards)
    return Ranked(base.residual(predictions, eps), sds_residual(noise, eps), rewards, predictions)
