"""The objects of the toy world: a few solids, put together from signed distances.

A signed distance function maps a point to its distance from a surface, negative inside. Every
function here keeps two promises: its zero set is exactly the surface, and it is 1-Lipschitz,
|f(p) - f(q)| <= |p - q|. So outside a solid f(p) never exceeds the true distance, and a ray may
always advance by f(p) (sphere tracing, Hart 1996). Both promises survive

    union(f, g) = min(f, g),    intersection(f, g) = max(f, g),    carve(f, g) = max(f, -g)

and every isometry of space, which is why boxes and cones below are plain maxima over their faces.

World: z up, fronts face +x, lengths in world units. Everything fits into the ball of radius
`RADIUS`.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

# coordinates x, y and z, (N,) each -> signed distance (N,), all in world units
Sdf = Callable[[Tensor, Tensor, Tensor], Tensor]
Triple = tuple[float, float, float]

RADIUS = 0.95  # of the ball around the origin that holds every object, world units

MAIN = None  # the colour that the prompt asks for
BLACK, BROWN, CREAM = (0.15, 0.15, 0.18), (0.42, 0.27, 0.17), (0.95, 0.90, 0.78)
CARROT, DOUGH = (0.95, 0.40, 0.05), (0.80, 0.58, 0.33)
GLASS, LAMP = (0.65, 0.82, 0.92), (1.00, 0.95, 0.60)

COLOURS: dict[str, Triple] = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.95, 0.85, 0.20),
    "green": (0.20, 0.65, 0.25),
    "blue": (0.15, 0.35, 0.85),
    "purple": (0.50, 0.20, 0.70),
    "pink": (0.95, 0.60, 0.80),
    "gray": (0.55, 0.55, 0.55),  # the nearest to the mean of all
}


class Part(NamedTuple):
    """A solid of one colour: a fixed rgb triple in [0, 1], or `MAIN`."""

    sdf: Sdf
    colour: Triple | None


def _length(*components: Tensor) -> Tensor:
    # 1e-24 changes no length by more than 1e-12; it makes the gradient at length 0 zero, not NaN
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
    """Capped cone around the z axis: its radius is `bottom` at -half_height, `top` at +half_height.

    max(cos(a) (|(x, y)| - r(z)), |z| - half_height), where r is linear in z and tan(a) = dr/dz.
    """
    middle, slope = (bottom + top) / 2, (top - bottom) / (2 * half_height)
    cosine = 1 / math.hypot(1, slope)
    return lambda x, y, z: torch.maximum(
        (torch.sub(_length(x, y), z, alpha=slope) - middle) * cosine, z.abs() - half_height
    )


def cylinder(radius: float, half_height: float) -> Sdf:
    """Capped cylinder around the z axis: max(|(x, y)| - radius, |z| - half_height)."""
    return cone(radius, radius, half_height)


def gable(half_length: float, half_width: float, height: float) -> Sdf:
    """Prism with its ridge along x and its floor at z = 0.

    |y| / half_width + z / height <= 1,  z >= 0,  |x| <= half_length
    """
    steepness, cosine = height / half_width, half_width / math.hypot(half_width, height)
    return lambda x, y, z: torch.maximum(
        (torch.add(z, y.abs(), alpha=steepness) - height) * cosine,
        torch.maximum(-z, x.abs() - half_length),
    )


def moved(solid: Sdf, x: float = 0, y: float = 0, z: float = 0) -> Sdf:
    """`solid` shifted by (x, y, z)."""
    by = (x, y, z)
    return lambda *point: solid(*(p - b if b else p for p, b in zip(point, by, strict=True)))


def turned(solid: Sdf, axes: str) -> Sdf:
    """`solid` with its x, y and z axis laid along `axes`: "zyx" makes a cone point along x."""
    order = ["xyz".index(axis) for axis in axes]
    return lambda *point: solid(*(point[i] for i in order))


def mirrored(solid: Sdf, axes: str) -> Sdf:
    """`solid`, on the positive side of these axes, and its mirror images: one leg becomes four."""
    return lambda *point: solid(
        *(p.abs() if axis in axes else p for p, axis in zip(point, "xyz", strict=True))
    )


def union(*solids: Sdf) -> Sdf:
    """All `solids` as one: min."""
    return lambda x, y, z: reduce(torch.minimum, (solid(x, y, z) for solid in solids))


def carved(solid: Sdf, tool: Sdf) -> Sdf:
    """`solid` without the inside of `tool`: max(solid, -tool)."""
    return lambda x, y, z: torch.maximum(solid(x, y, z), -tool(x, y, z))


def part(colour: Triple | None, *solids: Sdf) -> Part:
    """Solids of one colour."""
    return Part(union(*solids), colour)


EYES, MOUTH = mirrored(moved(ball(0.06), 0.3, 0.14, 0.36), "y"), moved(ball(0.07), 0.49, z=-0.3)
ROOF = carved(moved(gable(0.58, 0.62, 0.53), z=0.2), moved(gable(1, 1, 0.86), z=-0.23))
FIN = moved(gable(0.045, 0.63, 0.9), z=-0.7)
CABIN_ROOF = moved(box(0.42, 0.33, 0.04), x=-0.15, z=0.36)
BACKREST = moved(box(0.07, 0.38, 0.43), x=-0.33, z=0.33)
CUP = carved(moved(cylinder(0.52, 0.6), y=-0.2), moved(cylinder(0.44, 0.6), y=-0.2, z=0.1))

OBJECTS: dict[str, tuple[Part, ...]] = {
    "ball": (part(MAIN, ball(0.8)),),
    "cube": (part(MAIN, box(0.53, 0.53, 0.53)),),
    "donut": (
        part(MAIN, carved(torus(0.62, 0.29), moved(box(1, 1, 0.5), z=-0.52))),
        part(DOUGH, torus(0.62, 0.27)),
    ),
    "mushroom": (
        part(MAIN, carved(moved(ball(0.85), z=-0.05), moved(box(1, 1, 0.5), z=-0.5))),
        part(CREAM, moved(cone(0.36, 0.26, 0.42), z=-0.38)),
    ),
    "snowman": (
        part(MAIN, moved(ball(0.52), z=-0.42), moved(ball(0.36), z=0.26)),
        part(BLACK, moved(cylinder(0.4, 0.035), z=0.5), moved(cylinder(0.25, 0.2), z=0.7)),
        part(CARROT, moved(turned(cone(0.1, 0, 0.17), "zyx"), x=0.5, z=0.22)),
        part(BLACK, EYES, MOUTH),
    ),
    "table": (
        part(MAIN, moved(box(0.52, 0.66, 0.09), z=0.34)),
        part(BROWN, mirrored(moved(box(0.07, 0.07, 0.4), 0.43, 0.57, -0.1), "xy")),
    ),
    "house": (
        part(MAIN, moved(box(0.5, 0.5, 0.41), z=-0.21), moved(gable(0.5, 0.5, 0.43), z=0.2)),
        part(BROWN, ROOF),
        part(BROWN, moved(box(0.03, 0.14, 0.25), x=0.5, z=-0.37)),  # the door
        part(GLASS, moved(box(0.15, 0.52, 0.13), z=-0.14)),
    ),
    "rocket": (
        part(MAIN, moved(cylinder(0.38, 0.56), z=-0.16)),
        part(BLACK, moved(cone(0.38, 0, 0.27), z=0.67), FIN, turned(FIN, "yxz")),
        part(GLASS, moved(turned(cylinder(0.18, 0.05), "zyx"), x=0.36, z=0.1)),
    ),
    "car": (
        part(MAIN, moved(box(0.82, 0.38, 0.15), z=-0.1), CABIN_ROOF),
        part(GLASS, moved(box(0.45, 0.34, 0.15), x=-0.15, z=0.18)),
        part(BLACK, mirrored(moved(turned(cylinder(0.2, 0.08), "xzy"), 0.48, 0.36, -0.25), "xy")),
        part(LAMP, mirrored(moved(box(0.03, 0.08, 0.06), 0.81, 0.25, -0.08), "y")),
    ),
    "mug": (
        part(MAIN, CUP, moved(turned(torus(0.3, 0.08), "zyx"), y=0.38)),
        part(BROWN, moved(cylinder(0.45, 0.5), y=-0.2)),
        part(CREAM, moved(turned(cylinder(0.22, 0.25), "zyx"), 0.28, -0.2)),
    ),
    "chair": (
        part(MAIN, moved(box(0.4, 0.38, 0.07), z=-0.1), BACKREST),
        part(BROWN, mirrored(moved(box(0.06, 0.06, 0.3), 0.34, 0.32, -0.47), "xy")),
    ),
    "tree": (
        part(MAIN, cone(0.65, 0, 0.44), moved(cone(0.5, 0, 0.42), z=0.51)),
        part(BROWN, moved(cylinder(0.16, 0.25), z=-0.68)),
    ),
}
