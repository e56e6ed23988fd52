"""Rewards: what people (or a stand-in for them) like about a picture.

A reward is anything that can be called as

    reward(images (B, 3, H, W) in [0, 1], prompts: B strings) -> scores (B,)

higher is better. A function of the pictures written in torch is differentiable as it is. One that
is not is a black box: `black_box(function)` marks it so (its attribute `differentiable` is False),
and PSD, which only compares scores, takes both. `score` is the one place where a reward is asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import in_words, validated

Images = Float[Tensor, "b 3 h w"]


def check_pictures(images: Tensor) -> None:
    """Refuse what is no batch of pictures (B, 3, H, W) in [0, 1], up to rounding."""
    float_rgb = images.is_floating_point() and images.ndim == 4 and images.shape[1] == 3
    low, high = (images.min().item(), images.max().item()) if images.numel() else (0, 1)
    if not float_rgb or low < -1e-4 or high > 1 + 1e-4:
        came = f"{in_words(images)} from {low:g} to {high:g}"
        raise ValueError(f"images: expected floating-point (B, 3, H, W) in [0, 1], got {came}")


@dataclass
class Colorfulness:
    """How colourful people find a picture (Hasler & Suesstrunk 2003).

        rg = R - G,   yb = (R + G) / 2 - B
        M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2)

    variances and means over the pixels. On images in [0, 1]: the published value divided by 255.
    The formula was fitted to ratings by people; it knows nothing of objects, which is what makes it
    easy to cheat.

    Called with images (B, 3, H, W) in [0, 1], returns (B,); 0 for grey pictures. Differentiable (a
    tiny constant under the roots keeps the gradient finite at grey).

    Source: Hasler & Suesstrunk, "Measuring colourfulness in natural images", SPIE 5007 (2003).
    """

    differentiable = True

    def __call__(self, images: Images, prompts: Sequence[str] = ()) -> Float[Tensor, " b"]:
        check_pictures(images)
        red, green, blue = images.flatten(2).unbind(1)
        rg, yb = red - green, (red + green) / 2 - blue
        tiny = 1e-12
        spread = (rg.var(-1, unbiased=False) + yb.var(-1, unbiased=False) + tiny).sqrt()
        offset = (rg.mean(-1).square() + yb.mean(-1).square() + tiny).sqrt()
        return spread + 0.3 * offset


@dataclass
class NamedColor:
    """How much of the picture has one colour, at any shade.

        r = mean over pixels of exp( -min_s ||pixel - s c||^2 / (2 width^2) ),   s in [darkest, 1]

    the minimum is at s = <pixel, c> / <c, c>, clamped: surfaces in shadow count too.

    Args:
        colour: c, rgb in [0, 1].
        width: how far from the colour still counts, in [0, 1] units.
        darkest: shade of a surface in full shadow; the toy world's ambient light.

    Called with images (B, 3, H, W) in [0, 1], returns (B,) in (0, 1]. Differentiable.
    """

    colour: tuple[float, float, float]
    width: float = 0.2
    darkest: float = 0.65
    differentiable = True

    def __call__(self, images: Images, prompts: Sequence[str] = ()) -> Float[Tensor, " b"]:
        check_pictures(images)
        c = torch.tensor(self.colour, dtype=images.dtype, device=images.device)[:, None, None]
        s = ((images * c).sum(1, keepdim=True) / c.square().sum()).clamp(self.darkest, 1.0)
        squared = (images - s * c).square().sum(1)
        return torch.exp(-squared / (2 * self.width**2)).mean(dim=(1, 2))


@dataclass
class LinearReward:
    """r(x) = <v, x> + c, for worlds of points, where it has closed forms. v has x's shape."""

    v: Tensor
    c: float = 0.0
    differentiable = True

    def __call__(
        self, images: Float[Tensor, "b *event"], prompts: Sequence[str] = ()
    ) -> Float[Tensor, " b"]:
        return images.flatten(1) @ self.v.flatten().to(images) + self.c


def black_box(function: Callable[[Images, Sequence[str]], Sequence[float]]) -> Callable:
    """Any function of pictures as a reward without gradients.

    It is called with detached pictures and may leave torch. A preference needs no more than this:
    pair methods only compare values.
    """

    def reward(images: Images, prompts: Sequence[str] = ()) -> Float[Tensor, " b"]:
        with torch.no_grad():
            scores = function(images.detach(), prompts)
            return torch.as_tensor(scores, dtype=images.dtype, device=images.device)

    reward.differentiable = False  # type: ignore[attr-defined]
    reward.__name__ = getattr(function, "__name__", "function")
    return reward


@validated
def make_reward(reward: str | Callable, device: str | None = None) -> Callable:
    """A reward by name; a function of your own is returned as it is.

    Args:
        reward: "colorfulness", "color:NAME" with one of the toy world's colours, "proxy:smooth" or
            "proxy:rugged" (small networks fitted to comparisons; `pretrained.proxy` lists more),
            "image-reward", "hpsv2" or "pickscore" from the hub, "image-reward:FILE", "hpsv2:FILE"
            or "pickscore:FOLDER" from the disk, or a function.
        device: where a network runs; None is what there is.

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
        from psd_mini.pretrained.image_reward import ImageReward

        return ImageReward.from_pretrained(colour or None, device=device)
    if kind == "proxy":
        from psd_mini.pretrained.proxy import ProxyReward

        return ProxyReward.load(colour)
    if kind in ("hpsv2", "pickscore"):
        from psd_mini.pretrained.clip_rewards import LOADERS

        return LOADERS[kind](colour or None, device=device)
    colour = {"grey": "gray"}.get(colour, colour)
    if kind == "color" and colour in COLOURS:
        return NamedColor(COLOURS[colour])
    known = "colorfulness, proxy:smooth, proxy:rugged, image-reward, hpsv2, pickscore"
    known += f" or color:NAME with NAME in {', '.join(COLOURS)}"
    raise ValueError(f"reward: {reward!r} is not known; choose {known}")


def score(
    reward: Callable[[Tensor, Sequence[str]], Any] | None,
    images: Float[Tensor, "b 3 h w"],
    prompts: Sequence[str],
) -> Float[Tensor, " b"]:
    """Ask a reward, and refuse answers that would poison a run.

    Args:
        reward: images, prompts -> scores.
        images: (B, 3, H, W) in [0, 1].
        prompts: B strings.

    Returns:
        (B,) scores in the images' dtype and on their device, whatever the reward answered in (a
        list, integers, another device); differentiable if the reward is and gradients are on.

    Raises:
        ValueError: there is no reward, or it raised (its own exception is the cause), returned
            another shape than (B,), no real numbers, or NaN or infinity (in the images' dtype).
    """
    if reward is None:
        raise ValueError("reward: this method needs one, for example reward='colorfulness'")
    name, n = getattr(reward, "__name__", type(reward).__name__), len(images)
    try:
        scores = reward(images, prompts)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"reward: {name} raised {type(error).__name__}: {reason}") from error
    if not isinstance(scores, Tensor):
        try:
            scores = torch.as_tensor(scores, dtype=images.dtype)
        except (TypeError, ValueError, RuntimeError):
            came = type(scores).__name__
            raise ValueError(f"reward: {name} returned {came}, expected ({n},) numbers") from None
    if scores.shape != (n,):
        came = str(tuple(scores.shape))
        raise ValueError(f"reward: {name} returned shape {came}, expected ({n},), one per image")
    if scores.is_complex():
        raise ValueError(f"reward: {name} returned complex numbers, expected ({n},) real ones")
    try:
        scores = scores.to(images)
        finite = torch.isfinite(scores).tolist()
    except (RuntimeError, NotImplementedError) as error:
        where = f"device {scores.device}, and moving it to {images.device} failed"
        raise ValueError(f"reward: {name} answered on {where}") from error
    if not all(finite):
        first = finite.index(False)
        raise ValueError(f"reward: {name} returned NaN or infinity for image {first}")
    return scores
