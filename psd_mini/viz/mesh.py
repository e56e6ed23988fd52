"""From a density to a coloured triangle mesh.

A radiance field has no surface; one is chosen. The mesh is the boundary of the set

    { p : density(p) >= level, |p| <= bound }

inside the ball that the renderer looks at, found by marching cubes (Lorensen & Cline 1987, in the
topologically consistent form of Lewiner et al. 2003; the code is scikit-image's). It is closed:
what the ball cuts gets a cap.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini.cameras import camera_rays, orbit
from psd_mini.rendering import as_field, ball_interval, compositing_weights

# world units below the surface at which a vertex's colour is gathered
COLOUR_DEPTHS = torch.linspace(-0.05, 0.2, 11)


class Mesh(NamedTuple):
    """Triangles in world units, counter-clockwise seen from outside; V vertices, F faces.

    vertices (V, 3) float32; faces (F, 3) int32: indices of vertices; colours (V, 3) float32 in [0,
    1]: what a screen shows (sRGB), like the pictures that the field was trained on.
    """

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    colours: Float[np.ndarray, "v 3"]


def _evaluate(
    field: Callable, points: Float[Tensor, "n 3"], bound: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
    """Density and colour at points, a block at a time, on the field's device and in its precision.

    No camera ever saw what the field says outside the ball: there the nearest point on the ball
    stands in.
    """
    points = points * (bound / points.norm(dim=-1, keepdim=True)).clamp(max=1)
    blocks = (as_field(field, block) for block in points.split(2**17))
    density, colour = zip(*map(field, blocks), strict=True)
    if (channels := colour[0].shape[-1]) != 3:
        expected = "expected 3 colour channels (rgb)"
        raise ValueError(f"field: {expected}, got {channels}; decode latents first")
    return torch.cat(density).float().cpu(), torch.cat(colour).float().cpu()


@torch.no_grad()
def silhouette_level(field: Callable, bound: float, n_samples: int = 64) -> float:
    """A density level whose surface covers what the pictures show as solid.

    A picture is solid along a ray that loses half of its light, a mesh where the density somewhere
    exceeds the level. Over the rays of eight cameras around the object,

        level = 0.7 quantile_0.5%{ max_i rho_i : sum_i rho_i delta > log 2 }

    so 99.5% of the solid rays meet the surface, and the factor closes the holes that a surface
    which is barely met has. No fixed level does this: where an object is thick, training is content
    with thin fog, which a high level would cut away, and a low level fattens an object that is
    sharp.

    Args:
        field: points (N, 3) -> density (N,), colour (N, 3).
        bound: radius of the ball, world units.
        n_samples: points per ray.

    Returns:
        level, 1 / world units.

    Raises:
        ValueError: no ray loses half of its light.
    """
    cameras = orbit([45.0 * k for k in range(8)], [10.0, 30.0] * 4, distance=3 * bound)
    origins, directions = camera_rays(cameras, 32, 32)
    origins = origins[:, None, None].expand_as(directions).reshape(-1, 3)
    directions = directions.reshape(-1, 3)
    near, far = ball_interval(origins, directions, bound)
    hit, delta = far > near, (far - near) / n_samples
    z = near[:, None] + delta[:, None] * (torch.arange(n_samples) + 0.5)
    points = (origins[:, None] + z[..., None] * directions[:, None])[hit]
    density = _evaluate(field, points.view(-1, 3), bound)[0].view(-1, n_samples)

    peak, solid = density.amax(dim=1), density.sum(dim=1) * delta[hit] > math.log(2)
    if not solid.any():
        found = f"nowhere half opaque, its density reaches {peak.max():.3g}"
        raise ValueError(f"field: {found}; train longer or give a level")
    # level = 0.7 quantile_0.5%{ max_i rho_i : sum_i rho_i delta > log 2 }
    return 0.7 * peak[solid].quantile(0.005).item()


@torch.no_grad()
def extract_mesh(
    field: Callable,
    resolution: int = 64,
    level: float | None = None,
    bound: float | None = None,
    largest: bool = True,
) -> Mesh:
    """The surface of a field with its colours.

    The density is sampled on a grid that reaches one spacing h beyond the ball, and held below a
    slope that falls through the level exactly on the ball, so that the cap there is round and not a
    staircase:

        capped(p) = min(density(p), level max(0, 1 + (bound - |p|) / h))
        h = 2 bound / (resolution - 3)

    A vertex has the colour that the renderer gives to a ray which arrives along the normal: with
    the weights w_i of `compositing_weights` at depths from 0.05 above to 0.2 world units below the
    surface,

        colour = sum_i w_i c_i / sum_i w_i

    which is nearer to what the pictures show than the field's colour on the surface itself, because
    half of the light comes from below.

    Args:
        field: points (N, 3) -> density (N,), colour (N, 3).
        resolution: nodes of the grid along each axis, at least 8; time and memory grow with its
            third power.
        level: density of the surface, 1 / world units; default `silhouette_level`. (Half of the
            light is stopped by 0.1 world units of density 10 log 2 = 6.9.) Lower levels include
            fainter fog and move the surface outwards.
        bound: radius of the ball, world units; default `field.bound`.
        largest: keep only the component with the most nodes; others are mostly floaters.

    Returns:
        `Mesh`.

    Raises:
        ValueError: an argument out of range, a field without rgb, or one whose density is below the
            level everywhere.
        ImportError: scikit-image is missing.
    """
    try:
        from scipy.ndimage import label  # a part of scikit-image that is there early
        from skimage.measure import marching_cubes
    except ImportError:
        how = "install it with: pip install scikit-image"
        raise ImportError(f"a mesh needs scikit-image; {how}") from None

    bound = field.bound if bound is None else bound  # type: ignore[attr-defined]
    if resolution < 8:
        raise ValueError(f"resolution: expected at least 8 nodes along each axis, got {resolution}")
    if not (bound > 0 and (level is None or level > 0)):
        raise ValueError(f"level, bound: expected positive numbers, got {level} and {bound}")
    level = silhouette_level(field, bound) if level is None else level

    spacing = 2 * bound / (resolution - 3)
    axis = torch.linspace(-bound - spacing, bound + spacing, resolution)
    nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    # capped = min(density, level max(0, 1 + (bound - |p|) / h)); where the slope is zero, the
    # density does not matter
    capped = level * (1 + (bound - nodes.norm(dim=-1)) / spacing).clamp(min=0)
    near = capped > 0
    density, _ = _evaluate(field, nodes[near], bound)
    capped[near] = torch.minimum(density, capped[near])
    if not capped.max() > level:
        found = (
            f"the density reaches only {density.max():.3g}, the surface is wanted at {level:.3g}"
        )
        raise ValueError(f"level: {found}; lower the level or train longer")
    volume = capped.view(resolution, resolution, resolution).numpy()
    if largest:
        # touching, also at a corner; 0 outside
        components, _ = label(volume > level, np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())[1:]
        volume[(components > 0) & (components != 1 + sizes.argmax())] = 0
    # the density grows inwards ("ascent"), and faces look outwards
    grid = {"spacing": (spacing,) * 3, "gradient_direction": "ascent"}
    vertices, faces, normals, _ = marching_cubes(volume, level, **grid)
    vertices = torch.from_numpy(vertices).float() - (bound + spacing)

    points = vertices[:, None] - COLOUR_DEPTHS[:, None] * torch.from_numpy(normals.copy())[:, None]
    density, colour = _evaluate(field, points.view(-1, 3), bound)
    density, colour = density.view(points.shape[:2]), colour.view(points.shape)
    weights, opacity = compositing_weights(density, COLOUR_DEPTHS.diff()[:1].expand_as(density))
    # colour = sum_i w_i c_i / sum_i w_i
    colours = torch.einsum("vs,vsc->vc", weights, colour) / opacity.clamp(min=1e-8)[:, None]
    return Mesh(vertices.numpy(), faces.astype(np.int32), colours.clamp(0, 1).numpy())
