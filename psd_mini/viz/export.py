"""For other programs: a mesh as a file, a camera as a matrix.

Both live in the world of `cameras`: right-handed, z up, the front of an object at +x.
"""

import json
import struct
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import one_of, validated
from psd_mini._internal.files import write_atomically
from psd_mini.cameras import Cameras
from psd_mini.viz.mesh import Mesh

# numbers that glTF gives to these words
FLOAT32, UINT32, VERTEX_BUFFER, INDEX_BUFFER = 5126, 5125, 34962, 34963
# signs of a camera's own axes x, y, z along right, up and forward
CONVENTIONS = {"opencv": (1, -1, 1), "opengl": (1, 1, -1)}


@validated
def camera_to_world(cameras: Cameras, convention: str = "opencv") -> Float[Tensor, "b 4 4"]:
    """Matrices that take points from a camera's own coordinates to the world's.

        p_world = R p_camera + position,    columns of R: the camera's axes x, y, z in the world

        opencv    x right, y down, z forward     (COLMAP, OpenCV)
        opengl    x right, y up,   z backward    (OpenGL, Blender, nerfstudio)

    Args:
        cameras: B cameras.
        convention: "opencv" or "opengl".

    Returns:
        (B, 4, 4): R and the position, and the row (0, 0, 0, 1).

    Raises:
        ValueError: an unknown convention.
    """
    one_of("convention", convention, CONVENTIONS)
    axes = torch.stack(cameras.axes(), dim=-1)
    matrices = torch.eye(4).to(axes).repeat(len(cameras), 1, 1)
    matrices[:, :3, :3] = axes * torch.tensor(CONVENTIONS[convention]).to(axes)
    matrices[:, :3, 3] = cameras.positions()
    return matrices


@validated
def write_ply(mesh: Mesh, path: str | Path) -> None:
    """Write a mesh as a binary PLY file, whole or not at all; MeshLab, Blender and Open3D read it.

    Positions are world units, unchanged; colours are what a screen shows, a byte each.

    Args:
        mesh: from `extract_mesh`.
        path: the file, usually named .ply.

    Raises:
        OSError: the file cannot be written.

    Source: Turk 1994, "The PLY polygon file format".
    """
    rgb = np.round(255 * mesh.colours.clip(0, 1))
    vertices = np.zeros(len(mesh.vertices), [("position", "<f4", 3), ("rgb", "u1", 3)])
    vertices["position"], vertices["rgb"] = mesh.vertices, rgb
    faces = np.zeros(len(mesh.faces), [("corners", "u1"), ("indices", "<i4", 3)])
    faces["corners"], faces["indices"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    text = "\n".join([*header, "end_header", ""])
    write_atomically(path, text.encode() + vertices.tobytes() + faces.tobytes())


def srgb_to_linear(colours: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Intensity of light from the value that a screen is given, both in [0, 1] (IEC 61966-2-1).

    linear = c / 12.92 if c <= 0.04045, else ((c + 0.055) / 1.055)^2.4
    """
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def write_glb(mesh: Mesh, path: str | Path) -> None:
    """Write a mesh as a binary glTF 2.0 file (.glb), whole or not at all.

    glTF has y up and the front of an object at +z; here z is up and the front at +x. One rotation
    about the diagonal, which moves the axes round in a cycle, does both:

        (x, y, z)_glTF = (y, z, x)

    glTF's vertex colours are linear light, so the screen values are converted. They already hold
    the light of the pictures that the field was trained on, so the material is to be shown unlit
    (extension KHR_materials_unlit); a viewer that does not know the extension shows a matt surface.

    Args:
        mesh: from `extract_mesh`.
        path: the file, usually named .glb.

    Raises:
        OSError: the file cannot be written.
    """
    vertices = mesh.vertices[:, [1, 2, 0]].astype("<f4")
    colours = srgb_to_linear(mesh.colours).astype("<f4")
    faces = mesh.faces.astype("<u4").ravel()
    arrays = (
        (vertices, FLOAT32, "VEC3", VERTEX_BUFFER),
        (colours, FLOAT32, "VEC3", VERTEX_BUFFER),
        (faces, UINT32, "SCALAR", INDEX_BUFFER),
    )
    binary, views, accessors = b"", list[dict](), list[dict]()
    for values, component, kind, target in arrays:
        form = {"componentType": component, "type": kind, "count": len(values)}
        accessors.append({"bufferView": len(views), **form})
        place = {"byteOffset": len(binary), "byteLength": values.nbytes}
        views.append({"buffer": 0, "target": target, **place})
        binary += values.tobytes()
    accessors[0] |= {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
    surface = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}
    matt = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    document = {
        "asset": {"version": "2.0", "generator": "psd-mini"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [surface]}],
        "materials": [{"pbrMetallicRoughness": matt, "extensions": {"KHR_materials_unlit": {}}}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document).encode()
    # lengths of chunks are multiples of four, and json is filled up with blanks
    text += b" " * (-len(text) % 4)
    # a chunk is its length, its kind and its bytes
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    write_atomically(path, struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
