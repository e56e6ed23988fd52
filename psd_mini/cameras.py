"""Orbit cameras and the rays through their pixels.

The world is right-handed with z up. A camera sits on a sphere around the origin, looks at the
origin and keeps z up:

        seen from above                          the picture at azimuth 0
                                                 +---------------------+
            +y  azimuth 90                       |         +z          |   row 0 is the top row
             |                                   |          |          |
             |                                   |    -y ---o--- +y    |   +y is on the right,
             o------- +x  azimuth 0              |          |          |   +x points out of
            /                                    |         -z          |   the picture, to you
          +z (towards you)                       +---------------------+

    position = distance * (cos(elevation) cos(azimuth), cos(elevation) sin(azimuth), sin(elevation))

Azimuth grows counter-clockwise seen from above; elevation is the angle above the horizon. Angles
are radians in code and degrees where a person types them (`orbit`). Lengths are world units: every
object of the toy world fits into the ball of radius 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_mini._internal.arguments import at_least, validated

PerCamera = Float[Tensor, " b"]
Angles = float | Sequence[float] | Float[Tensor, " b"]


@validated
@dataclass(frozen=True)
class Cameras:
    """A batch of B cameras on orbits around the origin, all with the same field of view.

    Args:
        azimuth: (B,) angle around z in radians; 0 looks from +x, pi/2 from +y.
        elevation: (B,) angle above the horizon in radians, strictly between -pi/2 and pi/2, since
            z is the up direction.
        distance: (B,) distance from the origin in world units, positive.
        fov: full vertical field of view in radians, in (0, pi).
        index: (B,) place of each camera in the pool that it was drawn from; None: in no pool.

    Raises:
        ValueError: naming the argument that is out of range or not of shape (B,).
    """

    azimuth: PerCamera
    elevation: PerCamera
    distance: PerCamera
    fov: float
    index: Int[Tensor, " b"] | None = None

    def __post_init__(self) -> None:
        if (self.elevation.abs() >= math.pi / 2).any():
            expected = "angles strictly between -90 and 90 degrees (z is up)"
            raise ValueError(f"elevation: expected {expected}; use 89 instead")
        if (self.distance <= 0).any():
            raise ValueError(f"distance: expected positive lengths, got {self.distance.min():g}")
        if not 0 < self.fov < math.pi:
            fov = math.degrees(self.fov)
            raise ValueError(f"fov: expected between 0 and 180 degrees, got {fov:g}")

    def __len__(self) -> int:
        return self.azimuth.shape[0]

    def __getitem__(self, index: Int[Tensor, " n"] | Bool[Tensor, " b"] | slice) -> Cameras:
        """The cameras picked by integers, a boolean mask or a slice, in that order."""
        places = None if self.index is None else self.index[index]
        angles = self.azimuth[index], self.elevation[index], self.distance[index]
        return Cameras(*angles, self.fov, places)

    def numbered(self) -> Cameras:
        """The same cameras as a pool of their own: each gets its place 0, ..., B-1 as `index`."""
        return replace(self, index=torch.arange(len(self)))

    def side(self, n: int) -> Int[Tensor, " b"]:
        """Which of n equal sectors around z each camera stands in, (B,), counted from azimuth 0.

            side = round(n azimuth / (2 pi)) mod n

        Sector k is centred on azimuth 2 pi k / n. For n = 4: 0 is +x, 1 is +y, 2 is -x, 3 is -y.
        """
        at_least("n", n, 1)
        return torch.round(self.azimuth * n / (2 * math.pi)).long() % n

    def positions(self) -> Float[Tensor, "b 3"]:
        """Where the cameras stand, in world units (equation: the module's docstring)."""
        horizontal = self.distance * torch.cos(self.elevation)
        x, y = horizontal * torch.cos(self.azimuth), horizontal * torch.sin(self.azimuth)
        return torch.stack((x, y, self.distance * torch.sin(self.elevation)), dim=-1)

    def axes(self) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b 3"], Float[Tensor, "b 3"]]:
        """Right, up and forward of each camera's picture, unit vectors in the world.

        f = -position / |position|,    r = f x z / |f x z|,    u = r x f
        """
        forward = F.normalize(-self.positions(), dim=-1)
        z_axis = torch.tensor([0.0, 0.0, 1.0]).to(forward).expand_as(forward)
        right = F.normalize(torch.linalg.cross(forward, z_axis), dim=-1)
        return right, torch.linalg.cross(right, forward), forward


@validated
def orbit(
    azimuth_degrees: Angles,
    elevation_degrees: Angles,
    distance: float = 3.0,
    fov_degrees: float = 40.0,
) -> Cameras:
    """Cameras from angles in degrees.

    Args:
        azimuth_degrees, elevation_degrees: numbers or sequences; a single number is repeated.
        distance: world units from the origin, the same for all.
        fov_degrees: full vertical field of view.

    Returns:
        `Cameras`, float32.

    Raises:
        ValueError: sequences of unequal length, or an argument out of range (see `Cameras`).
    """
    azimuth = torch.atleast_1d(torch.as_tensor(azimuth_degrees, dtype=torch.float32))
    elevation = torch.atleast_1d(torch.as_tensor(elevation_degrees, dtype=torch.float32))
    counts = len(azimuth), len(elevation)
    if 0 in counts or (counts[0] != counts[1] and 1 not in counts):
        raise ValueError(f"azimuth_degrees, elevation_degrees: expected equally many, got {counts}")
    azimuth, elevation = torch.broadcast_tensors(azimuth, elevation)
    distances = torch.full_like(azimuth, float(distance))
    return Cameras(azimuth.deg2rad(), elevation.deg2rad(), distances, math.radians(fov_degrees))


@validated
def camera_rays(
    cameras: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b h w 3"]]:
    """One ray through the centre of every pixel.

    With right r, up u and forward f of `Cameras.axes`, the ray through row i and column j is

        d = f + tan(fov / 2) (s_x r + s_y u)
        s_x = ((2 j + 1) / W - 1) W / H,    s_y = 1 - (2 i + 1) / H

    divided by its length, so that distances along a ray are world units.

    Args:
        cameras: B cameras.
        height, width: H and W, picture size in pixels, at least 1.

    Returns:
        origins (B, 3): the camera positions; directions (B, H, W, 3): unit vectors.
    """
    at_least("height", height, 1)
    at_least("width", width, 1)
    origins, (right, up, forward) = cameras.positions(), cameras.axes()
    rows, columns = torch.arange(height).to(origins), torch.arange(width).to(origins)
    s_x = ((2 * columns + 1) / width - 1) * (width / height)
    s_y = 1 - (2 * rows + 1) / height
    # d = f + tan(fov / 2) (s_x r + s_y u)
    sideways = s_x[None, None, :, None] * right[:, None, None]
    upwards = s_y[None, :, None, None] * up[:, None, None]
    directions = forward[:, None, None] + math.tan(cameras.fov / 2) * (sideways + upwards)
    return origins, F.normalize(directions, dim=-1)
