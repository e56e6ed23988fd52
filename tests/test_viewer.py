"""The turnable mesh: what the page holds is the mesh, and its projection is the cameras'."""

import base64
import html
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from psd_mini.cameras import camera_rays, orbit
from psd_mini.viz.mesh import Mesh
from psd_mini.viz.viewer import viewer

MESH = Mesh(
    np.array([[0.5, -0.25, 1.0], [0.0, 0.0, -1.0], [0.1, 0.2, 0.3]], np.float32),
    np.array([[0, 1, 2]], np.int32),
    np.array([[1.0, 0.0, 0.5], [0.2, 0.2, 0.2], [0.0, 1.0, 0.0]], np.float32),
)


def test_the_page_holds_the_mesh_and_a_picture():
    shown = viewer(MESH, torch.zeros(3, 4, 4))._repr_html_()
    page = html.unescape(re.search(r'srcdoc="(.*?)"></iframe>', shown, re.DOTALL).group(1))
    arrays = [base64.b64decode(text) for text in re.findall(r'bytes\("([^"]*)"\)', page)]
    vertices = np.frombuffer(arrays[0], "<i2").reshape(-1, 3) / 32767
    np.testing.assert_allclose(vertices, MESH.vertices, atol=1 / 32767)
    np.testing.assert_allclose(
        np.frombuffer(arrays[1], np.uint8).reshape(-1, 3) / 255, MESH.colours, atol=0.5 / 255
    )
    np.testing.assert_array_equal(np.frombuffer(arrays[2], "<u4").reshape(-1, 3), MESH.faces)
    assert "$" not in shown and "<img" in shown
    assert "http" not in shown


def test_it_is_the_view_of_the_package_s_camera():
    """A point on a pixel's ray lands on that pixel: tan(20 degrees) * 2.7 is 0.98 of a picture
    of 40 degrees."""
    a, e = math.radians(50.0), math.radians(20.0)
    origin, direction = camera_rays(orbit([50.0], 20.0), 5, 5)
    for row, column in ((0, 4), (2, 1), (4, 0)):
        p = (origin[0] + 2.7 * direction[0, row, column]).tolist()
        forward = p[0] * math.cos(a) + p[1] * math.sin(a)
        near = 3.0 - (forward * math.cos(e) + p[2] * math.sin(e))
        right = 2.7 * (p[1] * math.cos(a) - p[0] * math.sin(a)) / near
        up = 2.7 * (p[2] * math.cos(e) - forward * math.sin(e)) / near
        scale = 2.7 * math.tan(math.radians(20.0))
        assert right == pytest.approx(scale * ((2 * column + 1) / 5 - 1), abs=1e-5)
        assert up == pytest.approx(scale * (1 - (2 * row + 1) / 5), abs=1e-5)


def test_large_meshes_are_refused():
    with pytest.raises(ValueError, match="mesh"):
        viewer(MESH._replace(vertices=2 * MESH.vertices))


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--hide-scrollbars",
    ),
    *(
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ),
)
DRAG = """<script>
onload = () => {
  const page = frames[1], canvas = page.document.querySelector("canvas");
  const send = (kind, x, y) => {
    const where = {clientX: x, clientY: y, pointerId: 1};
    canvas.dispatchEvent(new page.PointerEvent(kind, where)); };
  send("pointerdown", 100, 100); send("pointermove", 160, 120);
  send("pointerup", 160, 120); send("pointermove", 0, 0); };
</script>"""


@pytest.mark.notebooks
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here")
def test_a_browser_draws_the_mesh_and_turns_it(tmp_path):
    """Small triangles are seen where the camera of the package has them, one behind another is
    hidden until it is turned."""
    size, azimuth, elevation = 200, 0.52, 0.35
    towards = np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    )
    places = {"red": [0.5, 0.3, 0.2], "green": [-0.4, 0.6, -0.1], "blue": [0.1, -0.5, 0.6]}
    colours = {"red": [1, 0, 0], "green": [0, 1, 0], "blue": [0, 0, 1], "black": [0, 0, 0]}
    eye = 3 * towards
    places["black"] = eye + 1.3 * (np.array(places["red"]) - eye)  # behind the red one
    corners = 0.06 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]]) - 0.02
    near, far = 1.5 * corners, corners  # the red triangle covers the black one
    vertices = np.concatenate(
        [places[name] + (near if name == "red" else far) for name in colours]
    ).astype(np.float32)
    mesh = Mesh(
        vertices,
        np.arange(12, dtype=np.int32).reshape(4, 3),
        np.repeat(list(colours.values()), 3, 0).astype(np.float32),
    )

    shown = viewer(mesh, torch.full((3, 4, 4), 0.5), size)._repr_html_()
    style = (  # Jupyter's pages have the second
        "<style>body { margin: 0; background: #111 } img { display: block }</style>"
    )
    (tmp_path / "page.html").write_text(f"{style}{shown}{shown}{DRAG}")
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=2000",
    ]
    command += [
        f"--screenshot={tmp_path / 'page.png'}",
        f"--window-size={2 * size},{2 * size}",
        str(tmp_path / "page.html"),
    ]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    page = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(float) / 255
    assert abs(page[:, size + 2 :] - 0.5).max() < 0.01  # the still pictures stand beside the frames

    for top, a, e in ((0, azimuth, elevation), (size, azimuth - 60 / 80, elevation + 20 / 80)):
        seen = page[top : top + size, :size]
        camera = orbit(math.degrees(a), math.degrees(e))
        away = (
            torch.tensor(np.array(list(places.values())), dtype=torch.float32) - camera.positions()
        )
        origin, rays = camera_rays(camera, 2, 2)  # the four rays span the picture plane
        forward = torch.nn.functional.normalize(rays[0].mean((0, 1)), dim=0)
        right = torch.nn.functional.normalize(rays[0, 0, 1] - rays[0, 0, 0], dim=0)
        down = torch.nn.functional.normalize(rays[0, 1, 0] - rays[0, 0, 0], dim=0)
        expected = (
            size
            / 2
            * (1 + 2.7 * torch.stack((away @ right, away @ down), 1) / (away @ forward)[:, None])
        )
        for name, where in zip(places, expected.numpy(), strict=True):
            rows, columns = np.nonzero(abs(seen - colours[name]).max(-1) < 0.3)
            if name == "black" and top == 0:
                assert len(rows) == 0
            else:
                np.testing.assert_allclose(
                    [columns.mean() + 0.5, rows.mean() + 0.5], where, atol=2.0, err_msg=name
                )
