"""The turnable mesh: what the page holds is the mesh, and its projection is the cameras'."""

import base64
import html
import math
import re

import numpy as np
import pytest
import torch

from psd_mini.cameras import camera_rays, orbit
from psd_mini.mesh import Mesh
from psd_mini.viewer import viewer

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
    np.testing.assert_allclose(np.frombuffer(arrays[1], np.uint8).reshape(-1, 3) / 255, MESH.colours, atol=0.5 / 255)
    np.testing.assert_array_equal(np.frombuffer(arrays[2], "<u4").reshape(-1, 3), MESH.faces)
    assert "@" not in re.sub(r"base64,[^\"]*", "", shown.replace("@keyframes", "")) and "<img" in shown
    assert "http" not in shown


def test_it_is_the_view_of_the_package_s_camera():
    """A point on a pixel's ray lands on that pixel: tan(20 degrees) * 2.7 is 0.98 of a picture of 40 degrees."""
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
