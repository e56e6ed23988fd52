"""Rewards in closed form: colourfulness, a named colour, linear and quadratic functions, sums, and anybody's function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini.checkpoint import identity
from psd_mini.world.views import AMBIENT

Images = Float[Tensor, "b 3 h w"]


@dataclass
class Colorfulness:
    """How colourful people find a picture (Hasler & Suesstrunk 2003).

        rg = R - G,   yb = (R + G) / 2 - B
        M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2)

    variances and means over the pixels. On images in [0, 1]: the published value divided by 255. The formula was fitted to
    ratings by people; it knows nothing of objects, which is what makes it easy to cheat.

    Called with images (B, 3, H, W) in [0, 1], returns (B,); 0 for grey pictures. Differentiable (a tiny constant under the
    roots keeps the gradient finite at grey).

    Source: Hasler & Suesstrunk, "Measuring colourfulness in natural images", SPIE 5007 (2003), M^(3).
    """

    differentiable = True

    def __call__(self, images: Images, prompts: Sequence[str] = ()) -> Float[Tensor, " b"]:
        red, green, blue = images.flatten(2).unbind(1)
        rg, yb = red - green, (red + green) / 2 - blue
        tiny = 1e-12
        spread = (rg.var(-1, unbiased=False) + yb.var(-1, unbiased=False) + tiny).sqrt()
        offset = (rg.mean(-1).square() + yb.mean(-1).square() + tiny).sqrt()
        return spread + 0.3 * offset


@dataclass
class NamedColor:
    """How much of the picture has one colour, at any shade.

        r = mean over pixels of exp( -min_s ||pixel - s c||^2 / (2 width^2) ),   s in [0.65, 1]

    the minimum is at s = <pixel, c> / <c, c>, clamped: surfaces in shadow count too.

    Args:
        colour: c, rgb in [0, 1].
        width: how far from the colour still counts, in [0, 1] units.

    Called with images (B, 3, H, W) in [0, 1], returns (B,) in (0, 1]. Differentiable.
    """

    colour: tuple[float, float, float]
    width: float = 0.2
    differentiable = True

    def __call__(self, images: Images, prompts: Sequence[str] = ()) -> Float[Tensor, " b"]:
        c = torch.tensor(self.colour, dtype=images.dtype, device=images.device)[:, None, None]
        s = ((images * c).sum(1, keepdim=True) / c.square().sum()).clamp(AMBIENT, 1.0)
        squared = (images - s * c).square().sum(1)
        return torch.exp(-squared / (2 * self.width**2)).mean(dim=(1, 2))


@dataclass
class LinearReward:
    """r(x) = <v, x> + c, for the mixture worlds, where everything about it is known in closed form. v has x's shape."""

    v: Tensor
    c: float = 0.0
    differentiable = True

    def __call__(self, images: Float[Tensor, "b *event"], prompts: Sequence[str] = ()) -> Float[Tensor, " b"]:
        return images.flatten(1) @ self.v.flatten().to(images) + self.c


@dataclass
class QuadraticReward:
    """r(x) = -(1/2) (x - b)^T Q (x - b), for the mixture worlds; Q (d, d) positive semidefinite, b (d,)."""

    b: Tensor
    Q: Tensor
    differentiable = True

    def __call__(self, images: Float[Tensor, "b *event"], prompts: Sequence[str] = ()) -> Float[Tensor, " b"]:
        away = images.flatten(1) - self.b.to(images)
        return -0.5 * torch.einsum("bi,ij,bj->b", away, self.Q.to(images), away)


class WeightedSum:
    """r = sum_i weight_i r_i; differentiable if all its parts are.

    Raises:
        ValueError: no parts, or a weight that is not a finite number (negative ones are allowed: they punish).
    """

    def __init__(self, parts: Sequence[tuple[float, Callable]]):
        if not parts:
            raise ValueError("parts: expected at least one (weight, reward)")
        for weight, _ in parts:
            if not isinstance(weight, int | float) or not abs(weight) < float("inf"):
                raise ValueError(f"parts: expected finite weights, got {weight!r}")
        self.parts = list(parts)
        self.differentiable = all(getattr(reward, "differentiable", True) for _, reward in parts)

    def __repr__(self) -> str:
        return f"WeightedSum({', '.join(f'{weight!r} {identity(reward)}' for weight, reward in self.parts)})"

    def __call__(self, images: Images, prompts: Sequence[str] = ()) -> Float[Tensor, " b"]:
        return torch.stack([weight * reward(images, prompts) for weight, reward in self.parts]).sum(0)


def black_box(function: Callable[[Images, Sequence[str]], Sequence[float]]) -> Callable:
    """Any function of pictures as a reward without gradients: it is called with detached pictures and may leave torch.

    A preference needs no more than this: pair methods only compare values.
    """

    def reward(images: Images, prompts: Sequence[str] = ()) -> Float[Tensor, " b"]:
        with torch.no_grad():
            return torch.as_tensor(function(images.detach(), prompts), dtype=images.dtype, device=images.device)

    reward.differentiable = False  # type: ignore[attr-defined]
    reward.__name__ = getattr(function, "__name__", "function")
    return reward
