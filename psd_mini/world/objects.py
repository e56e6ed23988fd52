"""The objects of the toy world: a few solids, put together from signed distances.

A signed distance function maps a point to its distance from a surface, negative inside. Every
function here keeps two
promises: its zero set is exactly the surface, and it is 1-Lipschitz, |f(p) - f(q)| <= |p - q|, so
outside a solid f(p) never exceeds the true distance and a ray may always advance by f(p) (sphere
tracing, Hart 1996). Both promises survive

    union(f, g) = min(f, g),    intersection(f, g) = max(f, g),    carve(f, g) = max(f, -g)

and every isometry of space, which is why boxes and cones below are plain maxima over their faces.
World: z up, fronts face +x, lengths in world units; everything fits into the ball of radius
`RADIUS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

Sdf = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # coordinates x, y, z (N,) each -> signed distance (N,), world units
Triple = tuple[float, float, float]

RADIUS = 0.95  # of the ball around the origin that holds every object, world units


class Part(NamedTuple):
    """A solid of one colour: a fixed rgb triple in [0, 1], or MAIN for the colour that the
    prompt asks for."""

    sdf: Sdf
    colour: Triple | None


MAIN = None
BLACK, BROWN, CREAM = (0.15, 0.15, 0.18), (0.42, 0.27, 0.17), (0.95, 0.90, 0.78)
CARROT, DOUGH, GLASS, LAMP = (
    (0.95, 0.40, 0.05),
    (0.80, 0.58, 0.33),
    (0.65, 0.82, 0.92),
    (1.00, 0.95, 0.60),
)

COLOURS: dict[str, Triple] = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.95, 0.85, 0.20),
    "green": (0.20, 0.65, 0.25),
    "blue": (0.15, 0.35, 0.85),
    "purple": (0.50, 0.20, 0.70),
    "pink": (0.95, 0.60, 0.80),
    "gray": (0.55, 0.55, 0.55),  # the one nearest to the mean of them all
}


def _length(*components: Tensor) -> Tensor:
    # the 1e-24 moves nothing by more than 1e-12, and makes the gradient at zero length 0 instead of
    # nan
    square = components[0].new_tensor(1e-24)
    for c in components:
        square = torch.addcmul(square, c, c)
    return square.sqrt()


def ball(radius: float) -> Sdf:
    """|p| - radius."""
    return lambda x, y, z: _length(x, y, z) - radius


def box(half_x: float, half_y: float, half_z: float) -> Sdf:
    """max(|x| - half_x, |y| - half_y, |z| - half_z)."""
    return lambda x, y, z: torch.maximum(
        torch.maximum(x.abs() - half_x, y.abs() - half_y), z.abs() - half_z
    )


def torus(radius: float, tube: float) -> Sdf:
    """Ring around the z axis: |(|(x, y)| - radius, z)| - tube."""
    return lambda x, y, z: _length(_length(x, y) - radius, z) - tube


def cone(bottom: float, top: float, half_height: float) -> Sdf:
    """Capped cone around the z axis, of radius `bottom` at z = -half_height and `top` at
    +half_height.

    max(cos(a) (|(x, y)| - r(z)), |z| - half_height), where r is linear in z and tan(a) = dr/dz.
    """
    middle, slope = (bottom + top) / 2, (top - bottom) / (2 * half_height)
    cosine = 1 / math.hypot(1, slope)
    return lambda x, y, z: torch.maximum(
        (torch.sub(_length(x, y), z, alpha=slope) - middle) * cosine, z.abs() - half_height
    )


def gable(half_length: float, half_width: float, height: float) -> Sdf:
    """Prism with its ridge along x: |y| / half_width + z / height <= 1 over the floor z = 0, |x|
    <= half_length."""
    steepness, cosine = height / half_width, half_width / math.hypot(half_width, height)
    return lambda x, y, z: torch.maximum(
        (torch.add(z, y.abs(), alpha=steepness) - height) * cosine,
        torch.maximum(-z, x.abs() - half_length),
    )


def moved(solid: Sdf, x: float, y: float, z: float) -> Sdf:
    """`solid` shifted by (x, y, z)."""
    by = (x, y, z)
    return lambda *point: solid(*(p - b if b else p for p, b in zip(point, by, strict=True)))


def turned(solid: Sdf, axes: str) -> Sdf:
    """`solid` with its x, y and z axis laid along `axes`: "zyx" lays an upright cone down to
    point along x."""
    order = ["xyz".index(axis) for axis in axes]
    return lambda *point: solid(*(point[i] for i in order))


def mirrored(solid: Sdf, axes: str) -> Sdf:
    """`solid`, which must lie where these coordinates are positive, and its mirror images: one
    leg becomes four."""
    return lambda *point: solid(
        *(p.abs() if axis in axes else p for p, axis in zip(point, "xyz", strict=True))
    )


def union(*solids: Sdf) -> Sdf:
    """All `solids` as one: min."""
    return lambda x, y, z: reduce(torch.minimum, (solid(x, y, z) for solid in solids))


def carved(solid: Sdf, tool: Sdf) -> Sdf:
    """`solid` without the inside of `tool`: max(solid, -tool)."""
    return lambda x, y, z: torch.maximum(solid(x, y, z), -tool(x, y, z))


FIN = moved(gable(0.045, 0.63, 0.9), 0, 0, -0.7)

OBJECTS: dict[str, tuple[Part, ...]] = {
    "ball": (Part(ball(0.8), MAIN),),
    "cube": (Part(box(0.53, 0.53, 0.53), MAIN),),
    "donut": (
        Part(carved(torus(0.62, 0.29), moved(box(1, 1, 0.5), 0, 0, -0.52)), MAIN),
        Part(torus(0.62, 0.27), DOUGH),
    ),
    "mushroom": (
        Part(carved(moved(ball(0.85), 0, 0, -0.05), moved(box(1, 1, 0.5), 0, 0, -0.5)), MAIN),
        Part(moved(cone(0.36, 0.26, 0.42), 0, 0, -0.38), CREAM),
    ),
    "snowman": (
        Part(union(moved(ball(0.52), 0, 0, -0.42), moved(ball(0.36), 0, 0, 0.26)), MAIN),
        Part(
            union(moved(cone(0.4, 0.4, 0.035), 0, 0, 0.5), moved(cone(0.25, 0.25, 0.2), 0, 0, 0.7)),
            BLACK,
        ),
        Part(moved(turned(cone(0.1, 0, 0.17), "zyx"), 0.5, 0, 0.22), CARROT),
        Part(
            union(
                mirrored(moved(ball(0.06), 0.3, 0.14, 0.36), "y"), moved(ball(0.07), 0.49, 0, -0.3)
            ),
            BLACK,
        ),
    ),
    "table": (
        Part(moved(box(0.52, 0.66, 0.09), 0, 0, 0.34), MAIN),
        Part(mirrored(moved(box(0.07, 0.07, 0.4), 0.43, 0.57, -0.1), "xy"), BROWN),
    ),
    "house": (
        Part(
            union(moved(box(0.5, 0.5, 0.41), 0, 0, -0.21), moved(gable(0.5, 0.5, 0.43), 0, 0, 0.2)),
            MAIN,
        ),
        Part(
            carved(
                moved(gable(0.58, 0.62, 0.53), 0, 0, 0.2), moved(gable(1, 1, 0.86), 0, 0, -0.23)
            ),
            BROWN,
        ),
        Part(moved(box(0.03, 0.14, 0.25), 0.5, 0, -0.37), BROWN),
        Part(moved(box(0.15, 0.52, 0.13), 0, 0, -0.14), GLASS),
    ),
    "rocket": (
        Part(moved(cone(0.38, 0.38, 0.56), 0, 0, -0.16), MAIN),
        Part(union(moved(cone(0.38, 0, 0.27), 0, 0, 0.67), FIN, turned(FIN, "yxz")), BLACK),
        Part(moved(turned(cone(0.18, 0.18, 0.05), "zyx"), 0.36, 0, 0.1), GLASS),
    ),
    "car": (
        Part(
            union(
                moved(box(0.82, 0.38, 0.15), 0, 0, -0.1),
                moved(box(0.42, 0.33, 0.04), -0.15, 0, 0.36),
            ),
            MAIN,
        ),
        Part(moved(box(0.45, 0.34, 0.15), -0.15, 0, 0.18), GLASS),
        Part(mirrored(moved(turned(cone(0.2, 0.2, 0.08), "xzy"), 0.48, 0.36, -0.25), "xy"), BLACK),
        Part(mirrored(moved(box(0.03, 0.08, 0.06), 0.81, 0.25, -0.08), "y"), LAMP),
    ),
    "mug": (
        Part(
            union(
                carved(
                    moved(cone(0.52, 0.52, 0.6), 0, -0.2, 0),
                    moved(cone(0.44, 0.44, 0.6), 0, -0.2, 0.1),
                ),
                moved(turned(torus(0.3, 0.08), "zyx"), 0, 0.38, 0),
            ),
            MAIN,
        ),
        Part(moved(cone(0.45, 0.45, 0.5), 0, -0.2, 0), BROWN),
        Part(moved(turned(cone(0.22, 0.22, 0.25), "zyx"), 0.28, -0.2, 0), CREAM),
    ),
    "chair": (
        Part(
            union(
                moved(box(0.4, 0.38, 0.07), 0, 0, -0.1),
                moved(box(0.07, 0.38, 0.43), -0.33, 0, 0.33),
            ),
            MAIN,
        ),
        Part(mirrored(moved(box(0.06, 0.06, 0.3), 0.34, 0.32, -0.47), "xy"), BROWN),
    ),
    "tree": (
        Part(union(cone(0.65, 0, 0.44), moved(cone(0.5, 0, 0.42), 0, 0, 0.51)), MAIN),
        Part(moved(cone(0.16, 0.16, 0.25), 0, 0, -0.68), BROWN),
    ),
}
