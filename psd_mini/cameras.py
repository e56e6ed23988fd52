"""Orbit cameras and the rays through their pixels.

The world is right-handed with z up. A camera sits on a sphere around the origin, looks at the
origin and keeps z up:

        seen from above                          the picture at azimuth 0
                                                 +---------------------+
            +y  azimuth 90                       |         +z          |   row 0 is the top row
             |                                   |          |          |
             |                                   |    -y ---o--- +y    |   +y is on the right,
             o------- +x  azimuth 0              |          |          |   +x points out of the picture
            /                                    |         -z          |   towards you
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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_mini._internal.arguments import at_least, validated


@validated
@dataclass(frozen=True)
class Cameras:
    """A batch of B cameras on orbits around the origin, all with the same field of view.

    Args:
        azimuth: (B,) angle around z in radians; 0 looks from +x, pi/2 from +y.
        elevation: (B,) angle above the horizon in radians, strictly between -pi/2 and pi/2 (z is
            the up direction).
        distance: (B,) distance from the origin in world units, positive.
        fov: full vertical field of view in radians, in (0, pi).
        index: (B,) place of each camera in the pool that it was drawn from, or None.

    Raises:
        ValueError: naming the argument that is out of range or not of shape (B,).
    """

    azimuth: Float[Tensor, " b"]
    elevation: Float[Tensor, " b"]
    distance: Float[Tensor, " b"]
    fov: float
    index: Int[Tensor, " b"] | None = None

    def __post_init__(self) -> None:
        if (self.elevation.abs() >= math.pi / 2).any():
            raise ValueError(
                "elevation: expected angles strictly between -90 and 90 degrees (z is up); use 89"
                " instead"
            )
        if (self.distance <= 0).any():
            raise ValueError(
                f"distance: expected positive world units, got {self.distance.min().item():g}"
            )
        if not 0 < self.fov < math.pi:
            raise ValueError(
                f"fov: expected between 0 and 180 degrees, got {math.degrees(self.fov):g}"
            )

    def __len__(self) -> int:
        return self.azimuth.shape[0]

    def __getitem__(self, index: Int[Tensor, " n"] | Bool[Tensor, " b"] | slice) -> Cameras:
        """The cameras picked by a LongTensor, a boolean mask or a slice, in that order."""
        numbers = None if self.index is None else self.index[index]
        angles = self.azimuth[index], self.elevation[index], self.distance[index]
        return Cameras(*angles, self.fov, numbers)

    def numbered(self) -> Cameras:
        """The same cameras as a pool, in which each knows its place."""
        return replace(self, index=torch.arange(len(self)))

    def side(self, n: int) -> Int[Tensor, " b"]:
        """Which of n equal sectors around z each camera stands in; sector 0 has azimuth 0 in its
        middle."""
        return torch.round(self.azimuth * n / (2 * math.pi)).long() % n

    def positions(self) -> Float[Tensor, "b 3"]:
        """Where the cameras stand, in world units (the equation is in the module's docstring)."""
        horizontal = self.distance * torch.cos(self.elevation)
        return torch.stack(
            (
                horizontal * torch.cos(self.azimuth),
                horizontal * torch.sin(self.azimuth),
                self.distance * torch.sin(self.elevation),
            ),
            dim=-1,
        )


Angles = float | Sequence[float] | Float[Tensor, " b"]


@validated
def orbit(
    azimuth_degrees: Angles,
    elevation_degrees: Angles,
    distance: float = 3.0,
    fov_degrees: float = 40.0,
) -> Cameras:
    """Cameras from angles in degrees.

    Args:
        azimuth_degrees, elevation_degrees: numbers or sequences, degrees; a single number is
            repeated.
        distance: world units from the origin, the same for all.
        fov_degrees: full field of view, degrees.

    Returns:
        `Cameras`, float32.

    Raises:
        ValueError: sequences of unequal length, or an argument out of range (see `Cameras`).
    """
    azimuth = torch.atleast_1d(torch.as_tensor(azimuth_degrees, dtype=torch.float32))
    elevation = torch.atleast_1d(torch.as_tensor(elevation_degrees, dtype=torch.float32))
    counts = len(azimuth), len(elevation)
    if counts[0] != counts[1] and 1 not in counts:
        raise ValueError(
            f"azimuth_degrees, elevation_degrees: expected one number or equally many, got {counts}"
        )
    azimuth, elevation = torch.broadcast_tensors(azimuth, elevation)
    return Cameras(
        azimuth.deg2rad(),
        elevation.deg2rad(),
        torch.full_like(azimuth, float(distance)),
        math.radians(fov_degrees),
    )


@validated
def camera_rays(
    cameras: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b h w 3"]]:
    """One ray through the centre of every pixel.

    With forward f = -position / |position|, right r = f x z / |f x z| and up u = r x f, the ray
    through row i, column j is

        d = f + tan(fov / 2) * (s_x r + s_y u),    s_y = 1 - (2 i + 1) / H,    s_x = ((2 j + 1) / W - 1) * W / H

    normalised to unit length, so that distances along a ray are world units.

    Args:
        cameras: B cameras.
        height, width: picture size in pixels, at least 1.

    Returns:
        origins (B, 3): the camera positions, and directions (B, height, width, 3): unit vectors.
    """
    at_least("height", height, 1)
    at_least("width", width, 1)
    origins = cameras.positions()
    forward = -origins / origins.norm(dim=-1, keepdim=True)
    z_axis = torch.tensor([0.0, 0.0, 1.0], dtype=origins.dtype, device=origins.device).expand_as(
        forward
    )
    right = torch.linalg.cross(forward, z_axis)
    right = right / right.norm(dim=-1, keepdim=True)
    up = torch.linalg.cross(right, forward)

    rows = torch.arange(height, dtype=origins.dtype, device=origins.device)
    columns = torch.arange(width, dtype=origins.dtype, device=origins.device)
    s_y = 1 - (2 * rows + 1) / height
    s_x = ((2 * columns + 1) / width - 1) * (width / height)
    # d = f + tan(fov / 2) (s_x r + s_y u)
    directions = forward[:, None, None] + math.tan(cameras.fov / 2) * (
        s_x[None, None, :, None] * right[:, None, None]
        + s_y[None, :, None, None] * up[:, None, None]
    )
    return origins, directions / directions.norm(dim=-1, keepdim=True)
