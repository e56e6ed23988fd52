"""The mesh is the level set of the density, closed, right side out, right way up, in the colours
of the pictures."""

import json
import math
import struct
import sys
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from psd_mini.cameras import orbit
from psd_mini.fields import VoxelField
from psd_mini.rendering import render
from psd_mini.viz.export import srgb_to_linear, write_glb, write_ply
from psd_mini.viz.mesh import Mesh, extract_mesh, silhouette_level

R, r = 0.6, 0.25  # of the torus, world units
SHARPNESS = 0.02  # its density falls from 40 to 0 within a few of these; it is 20 on the surface


def torus_distance(points):
    """Signed distance of a torus around the x axis, its centre moved to (0.05, 0, -0.1)."""
    x, y, z = (points - points.new_tensor([0.05, 0.0, -0.1])).unbind(-1)
    return torch.hypot(torch.hypot(y, z) - R, x) - r


def with_bound(field):
    """Mark a function as a field that lives in the unit ball."""
    field.bound = 1.0
    return field


@with_bound
def torus(points):
    """Density 20 on the torus; colour = 0.5 + 0.45 p: a colour tells where in the world it was
    picked up."""
    return 40 * torch.sigmoid(-torus_distance(points) / SHARPNESS), 0.5 + 0.45 * points


class Gaussian:
    """Density A exp(-|p|^2 / 2 s^2), grey."""

    bound = 1.0

    def __init__(self, amplitude, s):
        self.amplitude, self.s = amplitude, s

    def __call__(self, points):
        return self.amplitude * torch.exp(-(points**2).sum(-1) / (2 * self.s**2)), torch.full_like(
            points, 0.5
        )


def constant(density, colour=(0.5, 0.5, 0.5)):
    @with_bound
    def field(points):
        return torch.full_like(points[:, 0], density), points.new_tensor(colour).expand(
            len(points), len(colour)
        )

    return field


def solid(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@pytest.fixture(scope="module")
def torus_mesh():
    return extract_mesh(torus, resolution=64, level=20.0)


@pytest.fixture
def glb(torus_mesh, tmp_path):
    write_glb(torus_mesh, tmp_path / "torus.glb")
    return tmp_path / "torus.glb"


def glb_parts(path):
    """(json document, binary chunk) of a .glb, read by hand from the specification's layout."""
    data = path.read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    n, kind = struct.unpack("<I4s", data[12:20])
    m, kind_2 = struct.unpack("<I4s", data[20 + n : 28 + n])
    assert (kind, kind_2, n % 4, m % 4, 28 + n + m) == (b"JSON", b"BIN\0", 0, 0, len(data))
    return json.loads(data[20 : 20 + n]), data[28 + n :]


def test_torus_is_closed_and_looks_outwards(torus_mesh):
    """V = 2 pi^2 R r^2 with a plus sign (faces outwards), A = 4 pi^2 R r, one hole: V - E + F =
    0."""
    body = solid(torus_mesh)
    assert body.is_watertight and body.is_winding_consistent
    assert body.volume == pytest.approx(2 * math.pi**2 * R * r**2, rel=0.01)
    assert body.area == pytest.approx(4 * math.pi**2 * R * r, rel=0.01)
    assert body.euler_number == 0


def test_floaters_are_left_out():
    """A ball of radius 0.4 and a floater of radius 0.1 beside it: one closed surface with the
    ball's volume; both of them on request."""

    @with_bound
    def two(points):
        from_ball = (points - points.new_tensor([-0.3, 0.0, 0.0])).norm(dim=1) - 0.4
        from_floater = (points - points.new_tensor([0.7, 0.0, 0.0])).norm(dim=1) - 0.1
        density = 20 - 100 * torch.minimum(from_ball, from_floater)
        return density, torch.full_like(points, 0.5)

    ball, floater = (4 / 3 * math.pi * radius**3 for radius in (0.4, 0.1))
    alone, both = (solid(extract_mesh(two, 64, 20.0, largest=one)) for one in (True, False))
    assert alone.is_watertight and both.is_watertight
    assert (alone.body_count, both.body_count) == (1, 2)
    assert alone.volume == pytest.approx(ball, rel=0.01)
    assert both.volume == pytest.approx(ball + floater, rel=0.01)


def test_types_and_shapes(torus_mesh):
    vertices, faces, colours = torus_mesh
    assert (vertices.dtype, faces.dtype, colours.dtype) == (np.float32, np.int32, np.float32)
    assert vertices.shape == colours.shape and faces.min() == 0 and faces.max() == len(vertices) - 1


def test_vertices_lie_on_the_level_set(torus_mesh):
    """distance(v) = 0: catches a grid that is shifted, scaled, or has its axes exchanged."""
    assert (
        torus_distance(torch.from_numpy(torus_mesh.vertices)).abs().max() < 0.1 * 2 / 61
    )  # a tenth of the spacing


def test_colours_are_picked_up_where_the_vertices_are(torus_mesh):
    """colour(v) = 0.5 + 0.45 v up to the depth in which light is stopped (1 / density = 0.025
    below the surface)."""
    error = torus_mesh.colours - (0.5 + 0.45 * torus_mesh.vertices)
    assert np.abs(error).max() < 0.45 * 0.05


def test_colour_is_what_the_renderer_shows():
    """A thin red skin on a green ball in thin blue air: mesh and picture agree on the mixture,
    at the nearest point."""

    @with_bound
    def onion(points):
        radius = points.norm(dim=-1)
        layer = (radius < 0.55).long() + (radius < 0.6).long()  # 0 air, 1 skin, 2 core
        return torch.tensor([0.05, 12.0, 30.0])[layer], torch.eye(3)[torch.tensor([2, 0, 1])[layer]]

    picture = render(onion, orbit(0.0, 0.0), 3, n_samples=400)
    shown = (picture.rgb - (1 - picture.opacity))[0, :, 1, 1] / picture.opacity[0, 0, 1, 1]
    mesh = extract_mesh(onion, level=6.0)
    front = np.argmax(mesh.vertices @ [1.0, 0.0, 0.0])
    assert (
        0.3 < shown[0] < 0.7 and 0.3 < shown[1] < 0.7
    )  # the test would be empty if one layer hid the other
    np.testing.assert_allclose(mesh.colours[front], shown, atol=0.06)


@pytest.mark.parametrize("level", [1.0, 4.0, 16.0])
def test_level_moves_the_surface(level):
    """A exp(-r^2 / 2 s^2) = level at r = s sqrt(2 log(A / level)): lower levels lie further out."""
    radii = np.linalg.norm(extract_mesh(Gaussian(50.0, 0.3), level=level).vertices, axis=1)
    np.testing.assert_allclose(radii, 0.3 * math.sqrt(2 * math.log(50 / level)), atol=0.003)


@pytest.mark.parametrize("amplitude", [8.0, 40.0, 200.0])
def test_silhouette_level_of_a_gaussian(amplitude):
    """A line with peak density rho through a Gaussian blob stops half of the light at rho s sqrt(2
    pi) = log 2.

    This peak does not depend on A. The level is 0.7 times it, or a little more: pixels sit at least
    slightly inside the silhouette, and 0.5% of them may be missed.
    """
    s = 0.2
    level = silhouette_level(Gaussian(amplitude, s), 1.0) / (
        0.7 * math.log(2) / (s * math.sqrt(2 * math.pi))
    )
    assert 0.99 < level < 1.2


def test_thin_fog_is_kept_by_default():
    """A ball of density 3 and radius 0.5 is opaque (1 - exp(-3) = 0.95): it must not be cut away
    beside a dense one."""

    @with_bound
    def two(points):
        fog = (points - points.new_tensor([0.0, 0.45, 0.0])).norm(dim=-1) < 0.4
        dense = (points - points.new_tensor([0.0, -0.45, 0.0])).norm(dim=-1) < 0.4
        return 3.0 * fog + 80.0 * dense, torch.full_like(points, 0.5)

    assert extract_mesh(two, largest=False).vertices[:, 1].max() == pytest.approx(0.85, abs=0.05)


@pytest.mark.parametrize("bound", [1.0, 0.7])
def test_cap_is_the_ball(bound):
    """A field that is dense everywhere gives the ball itself: V = 4/3 pi bound^3, closed, |v| =
    bound, no staircase."""
    mesh = extract_mesh(constant(60.0), level=5.0, bound=bound)
    assert solid(mesh).is_watertight
    assert solid(mesh).volume == pytest.approx(4 / 3 * math.pi * bound**3, rel=0.01)
    np.testing.assert_allclose(
        np.linalg.norm(mesh.vertices, axis=1), bound, atol=0.1 * 2 * bound / 61
    )


def test_field_is_never_asked_outside_the_ball():
    """No camera sees what lies beyond |p| = bound, so nothing of it may reach the mesh."""
    furthest = []

    def field(points):
        furthest.append(points.norm(dim=-1).max().item())
        return constant(60.0)(points)

    extract_mesh(field, resolution=16, bound=0.9)
    assert max(furthest) <= 0.9 * (1 + 1e-6)


def test_a_trained_field_in_double_precision():
    """10 softplus(raw) = level at raw = log(exp(level / 10) - 1): the package's own field, by
    its own parameters."""
    field = VoxelField(17).double()
    axis = torch.linspace(-1, 1, 17, dtype=torch.float64)
    field.density.data[0, 0] = (
        5 * (0.3 - axis)[:, None, None]
    )  # falls along z, the first axis of the grid
    level = 10 * math.log1p(math.exp(5 * (0.3 - 0.2)))
    vertices = extract_mesh(field, level=level).vertices
    flat = vertices[np.linalg.norm(vertices, axis=1) < 0.9]
    np.testing.assert_allclose(flat[:, 2], 0.2, atol=0.01)


def test_glb_holds_the_mesh_upright(torus_mesh, glb):
    """(x, y, z)_glTF = (y, z, x), read back by trimesh: the front +x faces +z, up +z is +y;
    closed, with the volume."""
    body: Any = trimesh.load(glb, force="mesh", process=False)
    assert body.is_watertight
    assert body.volume == pytest.approx(
        2 * math.pi**2 * R * r**2, rel=0.01
    )  # a reflection would make it negative
    np.testing.assert_array_equal(body.faces, torus_mesh.faces)
    for ours, theirs in ((0, 2), (1, 0), (2, 1)):
        np.testing.assert_array_equal(
            body.vertices[:, theirs], torus_mesh.vertices[:, ours]
        )  # exact: a file holds bits
    low, high = np.array([[-R - r, -R - r - 0.1, 0.05 - r], [R + r, R + r - 0.1, 0.05 + r]])
    np.testing.assert_allclose(body.bounds, [low, high], atol=0.01)


def test_glb_colours_are_linear_light(torus_mesh, glb):
    """COLOR_0 = ((c + 0.055) / 1.055)^2.4, or c / 12.92 below 0.04045, by hand and through
    trimesh."""
    document, binary = glb_parts(glb)
    accessor = document["accessors"][
        document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]
    ]
    view = document["bufferViews"][accessor["bufferView"]]
    stored = np.frombuffer(binary, "<f4", 3 * accessor["count"], view["byteOffset"]).reshape(-1, 3)
    linear = [
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in v]
        for v in torus_mesh.colours.tolist()
    ]
    np.testing.assert_allclose(stored, linear, atol=1e-6)
    scene: Any = trimesh.load(glb, process=False)
    (body,) = scene.geometry.values()
    np.testing.assert_allclose(body.visual.vertex_attributes["color"][:, :3], linear, atol=1e-6)


def test_ply_read_by_another_program(torus_mesh, tmp_path):
    """Positions are the bits of the mesh, faces its corners in their order, colours its bytes."""
    write_ply(torus_mesh, tmp_path / "torus.ply")
    body: Any = trimesh.load(tmp_path / "torus.ply", process=False)
    np.testing.assert_array_equal(body.vertices, torus_mesh.vertices)  # exact: a file holds bits
    np.testing.assert_array_equal(body.faces, torus_mesh.faces)  # exact: whole numbers
    shown = body.visual.vertex_colors[:, :3] / 255
    np.testing.assert_allclose(shown, torus_mesh.colours, atol=0.5 / 255 + 1e-6)
    assert body.is_watertight and body.is_winding_consistent


def test_srgb_to_linear_joins():
    """0 -> 0, 1 -> 1, the two branches meet at 0.04045, and mid grey 0.5 is 0.2140 of full
    light."""
    assert srgb_to_linear(np.array([0.0, 1.0])) == pytest.approx([0.0, 1.0], abs=1e-15)
    assert srgb_to_linear(np.array([0.04045]))[0] == pytest.approx(
        srgb_to_linear(np.array([0.0404501]))[0], abs=1e-6
    )
    assert srgb_to_linear(np.array([0.5]))[0] == pytest.approx(0.21404, abs=1e-5)


def test_glb_document(torus_mesh, glb):
    """What the format demands: bounds of POSITION, views that fill the buffer, aligned; and an
    unlit, matt material."""
    document, binary = glb_parts(glb)
    position = document["accessors"][0]
    # exact: a smallest number is one of the numbers, and JSON holds it whole
    np.testing.assert_array_equal(
        position["min"], torus_mesh.vertices.min(0)[[1, 2, 0]].astype(float)
    )
    np.testing.assert_array_equal(
        position["max"], torus_mesh.vertices.max(0)[[1, 2, 0]].astype(float)
    )  # exact: as above
    end = 0
    for view in document["bufferViews"]:
        assert view["byteOffset"] == end and end % 4 == 0
        end += view["byteLength"]
    assert end == len(binary) == document["buffers"][0]["byteLength"]
    (material,) = document["materials"]
    assert material["pbrMetallicRoughness"] == {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    assert (
        "KHR_materials_unlit" in material["extensions"]
        and "KHR_materials_unlit" in document["extensionsUsed"]
    )
    assert document["accessors"][2]["count"] == 3 * len(torus_mesh.faces)


def test_failing_write_keeps_the_old_file(torus_mesh, glb, monkeypatch):
    """An error in the last step leaves the file that was there, byte for byte, and no litter
    beside it."""
    before = glb.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"No space left.*torus\.glb"):
        write_glb(Mesh(torus_mesh.vertices, torus_mesh.faces[:10], torus_mesh.colours), glb)
    assert glb.read_bytes() == before and list(glb.parent.iterdir()) == [glb]


@pytest.mark.parametrize(
    ("field", "options", "message"),
    [
        (constant(0.0), {}, r"field: nowhere half opaque, its density reaches 0; train longer"),
        (
            constant(5.0),
            {"level": 9.0},
            r"level: the density reaches only 5, the surface is wanted at 9; lower",
        ),
        (constant(math.nan), {"level": 9.0}, r"level: the density reaches only nan"),
        (
            constant(60.0, (0.1, 0.2, 0.3, 0.4)),
            {},
            r"field: expected 3 colour channels \(rgb\), got 4",
        ),
        (constant(60.0), {"resolution": 4}, r"resolution: expected at least 8 .* got 4"),
        (
            constant(60.0),
            {"level": -1.0},
            r"level, bound: expected positive numbers, got -1\.0 and 1\.0",
        ),
        (constant(60.0), {"bound": 0.0}, r"level, bound: expected positive numbers"),
    ],
)
def test_errors_are_one_line(field, options, message):
    """Each names the argument, what came, and what to do."""
    with pytest.raises(ValueError, match=message) as caught:
        extract_mesh(field, **options)
    assert "\n" not in str(caught.value)


def test_missing_scikit_image(monkeypatch):
    """A one-line error names the command that installs it."""
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(
        ImportError, match=r"^a mesh needs scikit-image; install it with: pip install scikit-image$"
    ):
        extract_mesh(constant(60.0))
