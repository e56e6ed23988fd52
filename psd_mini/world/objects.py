"""The objects of the toy world: a few solids, put together from signed distances.

A signed distance function maps a point to its distance from a surface, negative inside. Every function here keeps two
promises: its zero set is exactly the surface, and it is 1-Lipschitz, |f(p) - f(q)| <= |p - q|, so outside a solid f(p)
never exceeds the true distance and a ray may always advance by f(p) (sphere tracing, Hart 1996). Both promises survive

    union(f, g) = min(f, g),    intersection(f, g) = max(f, g),    carve(f, g) = max(f, -g)

and every isometry of space, which is why boxes and cones below are plain maxima over their faces. World: z up, the front
of an object faces +x, its own left hand points to +y; everything fits into the ball of radius `RADIUS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Sdf = Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]]
Colour = tuple[float, float, float]
Point = tuple[float, float, float]

RADIUS = 0.95  # of the ball around the origin that holds every object, world units
ORIGIN: Point = (0.0, 0.0, 0.0)


class Part(NamedTuple):
    """A solid in one colour: `colour` is MAIN (the colour that the prompt asks for) or a fixed rgb triple in [0, 1]."""

    sdf: Sdf
    colour: Colour | None


MAIN = None
BLACK, BROWN, CREAM, GLASS = (0.15, 0.15, 0.18), (0.42, 0.27, 0.17), (0.95, 0.90, 0.78), (0.65, 0.82, 0.92)
CARROT, DOUGH, LAMP = (0.95, 0.40, 0.05), (0.80, 0.58, 0.33), (1.00, 0.95, 0.60)

COLOURS: dict[str, Colour] = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.95, 0.85, 0.20),
    "green": (0.20, 0.65, 0.25),
    "blue": (0.15, 0.35, 0.85),
    "purple": (0.50, 0.20, 0.70),
    "pink": (0.95, 0.60, 0.80),
    "gray": (0.55, 0.55, 0.55),
}


def _shifted(points: Float[Tensor, "n 3"], at: Point) -> tuple[Tensor, ...]:
    return tuple(c - a if a else c for c, a in zip(points.unbind(-1), at, strict=True))


def _length(*components: Tensor) -> Tensor:
    # the floor keeps the gradient at zero length finite (0, a valid subgradient) and moves no surface by more than 1e-12
    return reduce(torch.add, (c * c for c in components)).clamp_min(1e-24).sqrt()


def ball(radius: float, at: Point = ORIGIN) -> Sdf:
    """|p - at| - radius."""
    return lambda points: _length(*_shifted(points, at)) - radius


def box(half: Point, at: Point = ORIGIN) -> Sdf:
    """max_i(|p_i - at_i| - half_i): exact towards the faces, a lower bound near edges."""

    def sdf(points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        return reduce(torch.maximum, (c.abs() - h for c, h in zip(_shifted(points, at), half, strict=True)))

    return sdf


def torus(radius: float, tube: float, at: Point = ORIGIN) -> Sdf:
    """Ring around the z axis: |(|(x, y)| - radius, z)| - tube."""

    def sdf(points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        x, y, z = _shifted(points, at)
        return _length(_length(x, y) - radius, z) - tube

    return sdf


def cone(bottom: float, top: float, half_height: float, at: Point = ORIGIN) -> Sdf:
    """Capped cone around the z axis with radius `bottom` at z = -half_height and `top` at +half_height; equal: a cylinder.

    max((|(x, y)| - r(z)) cos a, |z| - half_height), where r is linear in z and tan a = dr/dz.
    """
    slope = (top - bottom) / (2 * half_height)
    cosine = 1 / math.hypot(1, slope)

    def sdf(points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        x, y, z = _shifted(points, at)
        side = (_length(x, y) - (bottom + top) / 2 - slope * z) * cosine
        return torch.maximum(side, z.abs() - half_height)

    return sdf


def gable(half_length: float, half_width: float, height: float, at: Point = ORIGIN) -> Sdf:
    """Roof with its ridge along x: two slopes |y| / half_width + z / height = 1 over the floor z = 0."""
    scale = half_width * height / math.hypot(half_width, height)

    def sdf(points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        x, y, z = _shifted(points, at)
        slopes = (y.abs() / half_width + z / height - 1) * scale
        return reduce(torch.maximum, (slopes, -z, x.abs() - half_length))

    return sdf


def carved(solid: Sdf, tool: Sdf) -> Sdf:
    """`solid` without the inside of `tool`."""
    return lambda points: torch.maximum(solid(points), -tool(points))


def union(*solids: Sdf) -> Sdf:
    """All `solids` as one."""
    return lambda points: reduce(torch.minimum, (solid(points) for solid in solids))


def turned(solid: Sdf, axes: tuple[int, int, int]) -> Sdf:
    """`solid` with its coordinates permuted: (2, 1, 0) lays what stood along z down along x, (0, 2, 1) along y."""
    return lambda points: solid(torch.stack([points[:, i] for i in axes]).T)


def mirrored(solid: Sdf, axes: str = "xy") -> Sdf:
    """`solid` and its mirror images in the planes across `axes`: one leg becomes four. It must lie on their + sides."""

    def sdf(points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        return solid(torch.stack([c.abs() if axis in axes else c for c, axis in zip(points.unbind(-1), "xyz")]).T)

    return sdf


ALONG_X, ALONG_Y = (2, 1, 0), (0, 2, 1)

FINS = gable(0.045, 0.63, 0.9, (0, 0, -0.7))

OBJECTS: dict[str, tuple[Part, ...]] = {
    "ball": (Part(ball(0.8), MAIN),),
    "cube": (Part(box((0.53, 0.53, 0.53)), MAIN),),
    "donut": (
        Part(carved(torus(0.62, 0.29), box((1, 1, 0.5), (0, 0, -0.52))), MAIN),
        Part(torus(0.62, 0.27), DOUGH),
    ),
    "mushroom": (
        Part(carved(ball(0.85, (0, 0, -0.05)), box((1, 1, 0.5), (0, 0, -0.5))), MAIN),
        Part(cone(0.36, 0.26, 0.42, (0, 0, -0.38)), CREAM),
    ),
    "snowman": (
        Part(union(ball(0.52, (0, 0, -0.42)), ball(0.36, (0, 0, 0.26))), MAIN),
        Part(union(cone(0.4, 0.4, 0.035, (0, 0, 0.5)), cone(0.25, 0.25, 0.2, (0, 0, 0.7))), BLACK),
        Part(turned(cone(0.1, 0.0, 0.17, (0.22, 0, 0.5)), ALONG_X), CARROT),
        Part(union(mirrored(ball(0.06, (0.3, 0.14, 0.36)), "y"), ball(0.07, (0.49, 0, -0.3))), BLACK),
    ),
    "table": (
        Part(box((0.52, 0.66, 0.09), (0, 0, 0.34)), MAIN),
        Part(mirrored(box((0.07, 0.07, 0.4), (0.43, 0.57, -0.1))), BROWN),
    ),
    "house": (
        Part(union(box((0.48, 0.48, 0.38), (0, 0, -0.26)), gable(0.48, 0.56, 0.49, (0, 0, 0.12))), MAIN),
        Part(carved(gable(0.58, 0.67, 0.58, (0, 0, 0.12)), gable(1, 1.12, 0.98, (0, 0, -0.38))), BROWN),
        Part(box((0.03, 0.14, 0.25), (0.48, 0, -0.39)), BROWN),
        Part(box((0.15, 0.5, 0.12), (0, 0, -0.18)), GLASS),
    ),
    "rocket": (
        Part(cone(0.37, 0.37, 0.5, (0, 0, -0.22)), MAIN),
        Part(cone(0.37, 0.0, 0.32, (0, 0, 0.6)), BLACK),
        Part(union(FINS, turned(FINS, (1, 0, 2))), BLACK),
        Part(turned(cone(0.18, 0.18, 0.05, (0.05, 0, 0.36)), ALONG_X), GLASS),
    ),
    "car": (
        Part(union(box((0.82, 0.38, 0.15), (0, 0, -0.1)), box((0.42, 0.33, 0.04), (-0.15, 0, 0.36))), MAIN),
        Part(box((0.45, 0.34, 0.15), (-0.15, 0, 0.18)), GLASS),
        Part(mirrored(turned(cone(0.2, 0.2, 0.08, (0.48, -0.25, 0.36)), ALONG_Y)), BLACK),
        Part(mirrored(box((0.03, 0.08, 0.06), (0.81, 0.25, -0.08)), "y"), LAMP),
    ),
    "mug": (
        Part(
            union(
                carved(cone(0.52, 0.52, 0.6, (0, -0.2, 0)), cone(0.44, 0.44, 0.6, (0, -0.2, 0.1))),
                turned(torus(0.3, 0.08, (0, 0.38, 0)), ALONG_X),
            ),
            MAIN,
        ),
        Part(cone(0.45, 0.45, 0.5, (0, -0.2, 0)), BROWN),
        Part(turned(cone(0.22, 0.22, 0.25, (0, -0.2, 0.28)), ALONG_X), CREAM),
    ),
    "chair": (
        Part(union(box((0.4, 0.38, 0.07), (0, 0, -0.1)), box((0.07, 0.38, 0.43), (-0.33, 0, 0.33))), MAIN),
        Part(mirrored(box((0.06, 0.06, 0.3), (0.34, 0.32, -0.47))), BROWN),
    ),
    "tree": (
        Part(union(cone(0.65, 0.0, 0.44, (0, 0, 0)), cone(0.5, 0.0, 0.42, (0, 0, 0.51))), MAIN),
        Part(cone(0.16, 0.16, 0.25, (0, 0, -0.68)), BROWN),
    ),
}
