"""camera_to_world against pinhole cameras written down from their focal length."""

import math

import pytest
import torch

from psd_mini.cameras import Cameras, camera_rays
from psd_mini.viz.export import camera_to_world

H, W = 6, 9  # pixels


def some_cameras():
    azimuth = torch.tensor([0.0, 1.1, -2.4], dtype=torch.float64)
    elevation = torch.tensor([0.0, 0.6, -1.2], dtype=torch.float64)
    distance = torch.tensor([3.0, 2.2, 4.5], dtype=torch.float64)
    return Cameras(azimuth, elevation, distance, math.radians(50))


@pytest.mark.algebra
@pytest.mark.parametrize("convention", ["opencv", "opengl"])
def test_pixels_of_a_pinhole_camera_are_the_rays(convention):
    """d = R K^-1 (j + 1/2, i + 1/2, 1), with K from the focal length H / (2 tan(fov / 2)).

    OpenCV's picture plane is at z = 1 with y down; OpenGL's at z = -1 with y up.
    """
    cameras = some_cameras()
    focal = H / 2 / math.tan(cameras.fov / 2)
    matrices = camera_to_world(cameras, convention)
    origins, directions = camera_rays(cameras, H, W)
    torch.testing.assert_close(matrices[:, :3, 3], origins, rtol=1e-12, atol=1e-12)
    for i in range(H):
        for j in range(W):
            x, down = (j + 0.5 - W / 2) / focal, (i + 0.5 - H / 2) / focal
            local = [x, down, 1.0] if convention == "opencv" else [x, -down, -1.0]
            local = torch.tensor(local, dtype=torch.float64)
            expected = matrices[:, :3, :3] @ (local / local.norm())
            torch.testing.assert_close(directions[:, i, j], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.algebra
@pytest.mark.parametrize("convention", ["opencv", "opengl"])
def test_matrices_are_rigid(convention):
    """R^T R = 1 and det R = 1, and the last row is (0, 0, 0, 1)."""
    matrices = camera_to_world(some_cameras(), convention)
    rotation = matrices[:, :3, :3]
    assert matrices.dtype == torch.float64
    unit = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    torch.testing.assert_close(rotation.mT @ rotation, unit, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rotation.det(), torch.ones(3).double(), rtol=1e-12, atol=1e-12)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.equal(matrices[:, 3], last.expand(3, 4))  # exact: never computed


def test_an_unknown_convention_is_named():
    with pytest.raises(ValueError, match=r"convention: 'blender'.*opencv, opengl"):
        camera_to_world(some_cameras(), "blender")
