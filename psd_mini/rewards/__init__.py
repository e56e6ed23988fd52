"""Rewards: what people (or a stand-in for them) like about a picture.

A reward is anything that can be called as

    reward(images (B, 3, H, W) in [0, 1], prompts: B strings) -> scores (B,)

higher is better. A function of the pictures written in torch is differentiable as it is. One that is not is a black box:
`black_box(function)` marks it so (its attribute `differentiable` is False), and PSD, which only compares scores, takes both.
`score` is the one place where a reward is asked: it checks what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini.arguments import validated
from psd_mini.rewards.closed_form import Colorfulness, LinearReward, NamedColor, QuadraticReward, WeightedSum, black_box

__all__ = ["Colorfulness", "LinearReward", "NamedColor", "QuadraticReward", "WeightedSum", "black_box", "make_reward", "score"]


@validated
def make_reward(reward: str | Callable, device: str | None = None) -> Callable:
    """A reward by name: "colorfulness", "color:NAME" with one of the toy world's colours, "image-reward" from the hub, or
    "image-reward:FILE" from a file; a function of your own is returned as it is.

    `device` is where a network runs; None is what there is.

    Raises:
        ValueError: unknown (lists what there is), or it cannot be loaded.
    """
    from psd_mini.world.objects import COLOURS

    if not isinstance(reward, str):
        return reward
    kind, _, colour = reward.partition(":")
    if kind == "colorfulness" and not colour:
        return Colorfulness()
    if kind == "image-reward":
        from psd_mini.rewards.image_reward import ImageReward

        return ImageReward.from_pretrained(colour or None, device=device)
    colour = {"grey": "gray"}.get(colour, colour)
    if kind == "color" and colour in COLOURS:
        return NamedColor(COLOURS[colour])
    raise ValueError(
        f"reward: {reward!r} is not known; choose colorfulness, image-reward or color:NAME with NAME in {', '.join(COLOURS)}"
    )


def score(
    reward: Callable[[Tensor, Sequence[str]], Any] | None, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
) -> Float[Tensor, " b"]:
    """Ask a reward, and refuse answers that would poison a run.

    Args:
        reward: images, prompts -> scores.
        images: (B, 3, H, W) in [0, 1].
        prompts: B strings.

    Returns:
        (B,) scores in the images' dtype and on their device, whatever the reward answered in (a list, integers, another
        device); differentiable if the reward is and gradients are on.

    Raises:
        ValueError: there is no reward, or it raised (its own exception is the cause), returned another shape than (B,), no
            real numbers, or NaN or infinity (in the images' dtype).
    """
    if reward is None:
        raise ValueError("reward: this method needs one, for example reward='colorfulness'")
    name = getattr(reward, "__name__", type(reward).__name__)
    try:
        scores = reward(images, prompts)
    except Exception as error:
        raise ValueError(f"reward: {name} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(scores, Tensor):
        try:
            scores = torch.as_tensor(scores, dtype=images.dtype)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"reward: {name} returned {type(scores).__name__}, expected ({len(images)},) numbers") from None
    if scores.shape != (len(images),):
        raise ValueError(f"reward: {name} returned shape {tuple(scores.shape)}, expected ({len(images)},), one per image")
    if scores.is_complex():
        raise ValueError(f"reward: {name} returned complex numbers, expected ({len(images)},) real ones")
    try:
        scores = scores.to(images)
        finite = torch.isfinite(scores).tolist()
    except (RuntimeError, NotImplementedError) as error:
        where = f"device {scores.device}, and moving it to {images.device} failed"
        raise ValueError(f"reward: {name} answered on {where}") from error
    if not all(finite):
        raise ValueError(f"reward: {name} returned NaN or infinity for image {finite.index(False)}")
    return scores
