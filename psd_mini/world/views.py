"""Pictures of the toy world's objects: sphere tracing, Lambert shading, recolouring.

A ray o + s d enters the ball that holds the object and then advances by the signed distance itself,

    s <- s + f(o + s d),

which cannot overshoot because f is 1-Lipschitz (Hart 1996, "Sphere tracing", The Visual Computer
12), until it touches (f < EPSILON) or leaves the ball. Two distant lights are fixed in the world,
nothing casts a shadow, the background is white. A surface point with colour c and unit normal n
sends out

    radiance = c * shade,    shade = AMBIENT + sum_k max(0, n . l_k)

in every direction, so it looks the same from everywhere: a radiance field without view dependence
can represent it. And the picture is affine in the main colour c, so it is traced once and
recoloured at no cost:

    image = base + main * c

where base (3 channels) holds the background and the fixed colours, main (1 channel) the shade of
the main parts.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from psd_mini._internal.arguments import at_least, validated
from psd_mini.cameras import Cameras, camera_rays
from psd_mini.world.objects import MAIN, OBJECTS, RADIUS, Sdf, union

AMBIENT = 0.65
# l_k: direction to the light times its intensity. A sun above the front and a weak fill light
# behind, placed such that the top and the four sides of a cube all differ. |l_1|, |l_2| and
# |l_1 + l_2| are at most 1 - AMBIENT, so shade <= 1.
LIGHTS = ((0.21, 0.08, 0.26), (-0.16, -0.05, 0.05))
EPSILON = 1e-4  # world units; a pixel of a 64 x 64 picture is 0.034 wide
MAX_STEPS = 256  # seven on average; only rays that graze a surface need more than 64
SUPERSAMPLE = 2  # rays per pixel along each axis; a mean of affine pictures is affine
RAYS_AT_ONCE = 2**19  # 100 MB per thread; with far fewer, starting the operations dominates

Rays = Float[Tensor, "3 n"]  # a column per ray: its origin o in world units, or its unit vector d
Layers = Float[Tensor, "b 4 h w"]  # base (3 channels) and main (1)


@torch.no_grad()
def trace(sdf: Sdf, origins: Rays, directions: Rays) -> Float[Tensor, " n"]:
    """Where rays hit a solid, by sphere tracing (the equation is in the module's docstring).

    Args:
        sdf: its 1-Lipschitz signed distance; what lies outside the ball of radius RADIUS is not
            seen.
        origins, directions: o in world units and d of unit length, one column per ray.

    Returns:
        s in world units, short of the surface by less than EPSILON over the cosine of incidence;
        infinity for a miss.
    """
    # the ball: |o + s d| = RADIUS at s = middle -+ half_chord
    middle = -(origins * directions).sum(0)
    half_chord = (middle.square() - origins.square().sum(0) + RADIUS**2).clamp_min(0).sqrt()
    s, exits = (middle - half_chord).clamp_min(0), middle + half_chord
    rays = ((half_chord > 0) & (exits > 0)).nonzero().squeeze(-1)
    origins, directions, s, exits = origins[:, rays], directions[:, rays], s[rays], exits[rays]
    depth = torch.full_like(middle, torch.inf)
    for step in range(1, MAX_STEPS + 1):
        # s <- s + f(o + s d)
        distance = sdf(*torch.addcmul(origins, directions, s))
        s = s + distance
        if step % 4 == 0:  # drop the rays that are done
            touched = distance < EPSILON
            depth[rays[touched]] = s[touched]
            going = (~touched & (s < exits)).nonzero().squeeze(-1)
            if len(going) == 0:
                break
            rays, s, exits = rays[going], s[going], exits[going]
            origins, directions = origins[:, going], directions[:, going]
    return depth


@torch.no_grad()
def _radiance(name: str, origins: Rays, directions: Rays) -> Float[Tensor, "4 n"]:
    """Base and main along each of n rays."""
    parts = OBJECTS[name]
    depth = trace(union(*(part.sdf for part in parts)), origins, directions)
    hit = depth.isfinite().nonzero().squeeze(-1)
    points = torch.addcmul(origins[:, hit], directions[:, hit], depth[hit])
    with torch.enable_grad():
        points.requires_grad_()
        distance, nearest = torch.stack([part.sdf(*points) for part in parts]).min(0)
        # n = grad f / |grad f|
        normals = normalize(torch.autograd.grad(distance.sum(), points)[0], dim=0)
    # shade = AMBIENT + sum_k max(0, n . l_k)
    shade = AMBIENT + (normals.new_tensor(LIGHTS) @ normals).clamp_min(0).sum(0)
    palette = [(0, 0, 0, 1) if part.colour is MAIN else (*part.colour, 0) for part in parts]
    layers = shade.new_tensor((1, 1, 1, 0))[:, None].repeat(1, len(depth))
    layers[:, hit] = shade.new_tensor(palette).T[:, nearest] * shade
    return layers


@validated
def render_layers(name: str, cameras: Cameras, resolution: int) -> Layers:
    """Base and main layer of an object's pictures: everything about them but the main colour.

        layers = mean over the pixel's rays of (c_fixed * shade or background, [main part] * shade)

    Args:
        name: a key of `OBJECTS`.
        cameras: B cameras; their dtype and device are those of the result.
        resolution: height and width in pixels, at least 1.

    Returns:
        (B, 4, resolution, resolution): base (3 channels) and main (1); base + main * c is in [0, 1]
        for c in [0, 1].

    Raises:
        ValueError: for an unknown name, or resolution below 1.
    """
    return render_world([name], cameras, resolution)[0]


@validated
def render_world(
    names: Sequence[str], cameras: Cameras, resolution: int
) -> Float[Tensor, "o b 4 h w"]:
    """`render_layers` of several objects, which share their rays: (O, B, 4, H, W)."""
    for name in names:
        if name not in OBJECTS:
            known = ", ".join(OBJECTS)
            raise ValueError(f"name: the toy world has no {name!r}; choose one of {known}")
    at_least("resolution", resolution, 1)
    side = resolution * SUPERSAMPLE
    at_once = max(1, RAYS_AT_ONCE // side**2)
    batches = []
    for first in range(0, len(cameras), at_once):
        origins, directions = camera_rays(cameras[first : first + at_once], side, side)
        # one row per coordinate from here on: x, y and z are contiguous
        rays = origins.T.repeat_interleave(side**2, dim=1), directions.reshape(-1, 3).T.contiguous()

        def draw(name: str, rays: tuple[Rays, Rays] = rays) -> Layers:
            layers = _radiance(name, *rays)
            pixels = layers.reshape(4, -1, resolution, SUPERSAMPLE, resolution, SUPERSAMPLE)
            return pixels.mean((3, 5)).transpose(0, 1)

        # One thread for each object, not several for each operation. Thousands of short operations
        # that wait for all their threads take ten times as long when another process keeps one of
        # the cores busy.
        alone: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
        with ThreadPoolExecutor(torch.get_num_threads(), **alone) as pool:
            batches.append(torch.stack(list(pool.map(draw, names))))
    return torch.cat(batches, dim=1)


def recolour(
    layers: Float[Tensor, "*b 4 h w"], colours: Float[Tensor, "c 3"]
) -> Float[Tensor, "*b c 3 h w"]:
    """Pictures of one object in C main colours.

        image = base + main * c

    Args:
        layers: (..., 4, H, W) from `render_layers`.
        colours: (C, 3), rgb in [0, 1].

    Returns:
        (..., C, 3, H, W) in [0, 1].
    """
    base, main = layers.unsqueeze(-4).split((3, 1), dim=-3)
    # image = base + main * c, the large tensor being made once
    return (main * colours[:, :, None, None]).add_(base)
