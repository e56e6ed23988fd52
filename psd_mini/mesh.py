"""From a density to a coloured triangle mesh, and to a file that browsers show.

A radiance field has no surface; one is chosen. The mesh is the set

    { p : density(p) = level } inside the ball that the renderer looks at,  |p| <= bound

found by marching cubes (Lorensen & Cline 1987; the topologically consistent variant of Lewiner et al. 2003, from
scikit-image). It is closed: where the density still exceeds the level on the ball, the ball is the surface.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini.rendering import compositing_weights
from psd_mini.viz import write_atomically

HALF_OPAQUE = 10 * math.log(2)  # density at which 0.1 world units let half of the light through: exp(-0.1 level) = 1/2
COLOUR_DEPTH = 0.2  # world units below the surface in which a vertex's colour is gathered
COLOUR_SAMPLES = 8


class Mesh(NamedTuple):
    """Triangles in world units: counter-clockwise seen from outside, V vertices, F faces.

    vertices (V, 3) float32; faces (F, 3) int32, indices into the vertices; colours (V, 3) float32 in [0, 1], for display
    (sRGB), like the pictures that the field was trained on.
    """

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    colours: Float[np.ndarray, "v 3"]


def _evaluate(field: Callable, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c"]]:
    """field(points) on the field's own device and in its own precision, a block at a time to bound the memory."""
    parameter = next(getattr(field, "parameters", lambda: iter(()))(), torch.empty(0))
    density, colour = zip(*(field(block.to(parameter)) for block in points.split(2**17)), strict=True)
    return torch.cat(density).cpu(), torch.cat(colour).cpu()


@torch.no_grad()
def extract_mesh(field: Callable, resolution: int = 64, level: float | None = None, bound: float | None = None) -> Mesh:
    """The surface of a field, with its colours.

    The density is sampled on a grid that reaches one spacing h beyond the ball, and capped by a slope that falls through
    the level exactly on the ball: the surface is closed and round there, not a staircase of cut cubes.

        capped(p) = min(density(p), level max(0, 1 + (bound - |p|) / h)),    h = 2 bound / (resolution - 3)

    A vertex gets the colour that light arriving from inside has: the field's colours below it, along the normal, composited
    as the renderer does (the colour right on the surface is half untrained: little of any picture comes from there).

        colour = sum_i w_i c_i / sum_i w_i

    Args:
        field: points (N, 3) -> density (N,), colour (N, 3).
        resolution: nodes of the grid along each axis, at least 8; the work grows with its third power.
        level: density of the surface, 1 / world units. The default is 10 ln 2 = 6.9, at which a layer 0.1 world units
            thick is half opaque; less includes fainter fog and moves the surface outwards.
        bound: radius of the ball, world units; default `field.bound`.

    Returns:
        `Mesh`.

    Raises:
        ValueError: an argument out of range, colours that are not rgb, or no density above the level.
        ImportError: scikit-image is missing.
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError:
        raise ImportError("extract_mesh needs scikit-image; install it with: pip install scikit-image") from None

    level = HALF_OPAQUE if level is None else level
    bound = field.bound if bound is None else bound  # type: ignore[attr-defined]
    if resolution < 8:
        raise ValueError(f"resolution: expected at least 8 nodes along each axis, got {resolution}")
    if not (level > 0 and bound > 0):
        raise ValueError(f"level, bound: expected positive numbers, got {level:g} and {bound:g}")

    # h = 2 bound / (resolution - 3): the outermost nodes lie one spacing outside the ball
    spacing = 2 * bound / (resolution - 3)
    axis = torch.linspace(-bound - spacing, bound + spacing, resolution)
    nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    radius = nodes.norm(dim=-1)
    near = radius < bound + spacing
    # beyond the ball the field was never seen by a camera: the nearest point on the ball stands in
    inside = nodes[near] * (bound / radius[near]).clamp(max=1)[:, None]
    density, colour = _evaluate(field, inside)
    if colour.shape[-1] != 3:
        raise ValueError(
            f"field: expected rgb colours, got {colour.shape[-1]} channels; a latent field has no mesh colours"
        )
    if not density.max() > level:
        raise ValueError(
            f"level: the density reaches only {density.max():.3g} and the surface is wanted at {level:.3g}; "
            "pass a lower level or train longer"
        )
    # capped = min(density, level max(0, 1 + (bound - |p|) / h))
    capped = torch.zeros(len(nodes))
    capped[near] = torch.minimum(density.float(), level * (1 + (bound - radius[near]) / spacing))
    vertices, faces, normals, _ = marching_cubes(
        # "ascent": the density grows inwards, and the faces shall look outwards
        capped.view(3 * (resolution,)).numpy(),
        level,
        spacing=3 * (spacing,),
        gradient_direction="ascent",
    )
    vertices = torch.from_numpy(vertices).float() - (bound + spacing)

    # points below each vertex, at the middles of equal bins of depth
    width = COLOUR_DEPTH / COLOUR_SAMPLES
    depths = width * (torch.arange(COLOUR_SAMPLES) + 0.5)
    points = vertices[:, None] - depths[:, None] * torch.from_numpy(normals.copy())[:, None]
    density, colour = _evaluate(field, points.reshape(-1, 3))
    density = density.view(-1, COLOUR_SAMPLES)
    weights, opacity = compositing_weights(density, torch.full_like(density, width))
    # colour = sum_i w_i c_i / sum_i w_i
    colours = torch.einsum("vs,vsc->vc", weights, colour.view(*density.shape, 3)) / opacity.clamp(min=1e-8)[:, None]
    return Mesh(vertices.numpy(), faces.astype(np.int32), colours.clamp(0, 1).float().numpy())


def srgb_to_linear(colours: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Light intensity of a display value, both in [0, 1] (IEC 61966-2-1).

    linear = c / 12.92 for c <= 0.04045, else ((c + 0.055) / 1.055)^2.4
    """
    return np.where(colours <= 0.04045, colours / 12.92, ((np.maximum(colours, 0.04045) + 0.055) / 1.055) ** 2.4)


def write_glb(mesh: Mesh, path: str | Path) -> None:
    """Write a mesh as a binary glTF 2.0 file (.glb), whole or not at all.

    glTF has y up and the front of an object facing +z, the package z up and the front facing +x. A cyclic change of axes is
    a rotation and does both:

        (x, y, z)_glTF = (y, z, x)

    glTF wants vertex colours as linear light, so the display colours are converted. They already contain the light that the
    field was trained under, so the material asks to be shown unlit (KHR_materials_unlit); a viewer that cannot lights it as
    a matt surface.

    Args:
        mesh: from `extract_mesh`.
        path: the file, usually ending in .glb.
    """
    vertices = mesh.vertices[:, [1, 2, 0]].astype("<f4")
    colours = srgb_to_linear(mesh.colours).astype("<f4")
    arrays = (vertices, colours, mesh.faces.reshape(-1).astype("<u4"))
    blobs = [array.tobytes() for array in arrays]  # every one a multiple of four bytes, as the format wants
    offsets = np.cumsum([0, *map(len, blobs)]).tolist()
    float32, uint32, vertex_buffer, index_buffer, triangles = 5126, 5125, 34962, 34963, 4
    document = {
        "asset": {"version": "2.0", "generator": "psd-mini"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {
                "primitives": [
                    {"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0, "mode": triangles}
                ]
            }
        ],
        "materials": [
            {
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "buffers": [{"byteLength": offsets[-1]}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": offset, "byteLength": len(blob), "target": target}
            for offset, blob, target in zip(offsets, blobs, (vertex_buffer, vertex_buffer, index_buffer), strict=False)
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": float32,
                "count": len(vertices),
                "type": "VEC3",
                "min": vertices.min(0).tolist(),
                "max": vertices.max(0).tolist(),
            },
            {"bufferView": 1, "componentType": float32, "count": len(vertices), "type": "VEC3"},
            {"bufferView": 2, "componentType": uint32, "count": mesh.faces.size, "type": "SCALAR"},
        ],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary = b"".join(blobs)
    # header: magic, version, total length; then two chunks, each with its length and kind in front
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary))
    json_chunk = struct.pack("<I4s", len(text), b"JSON") + text
    binary_chunk = struct.pack("<I4s", len(binary), b"BIN\0") + binary
    write_atomically(path, header + json_chunk + binary_chunk)
