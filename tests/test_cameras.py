"""Cameras: where things appear in the picture, against a pinhole projection with rotations.

The package builds rays from cross products. The projection below turns the world until the camera
stands on +x.
"""

import math

import pytest
import torch

from psd_mini.cameras import Cameras, camera_rays, orbit

pytestmark = pytest.mark.algebra

F64 = torch.float64


def cameras64(azimuth, elevation, distance, fov) -> Cameras:
    """Float64 cameras from lists of radians."""
    a, e, d = (torch.tensor(value, dtype=F64) for value in (azimuth, elevation, distance))
    return Cameras(a, e, d, fov)


def random_cameras(count: int, seed: int, fov: float = 0.9) -> Cameras:
    u = torch.rand(3, count, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return Cameras(20 * u[0] - 10, 2.8 * u[1] - 1.4, 1.5 + 4 * u[2], fov)


def pinhole(
    point, azimuth: float, elevation: float, distance: float, fov: float, height: int, width: int
):
    """Column and row, in pixels from the top left corner, at which a camera sees a point.

    Turn by -azimuth around z and by the elevation around y: the camera stands at (distance, 0, 0),
    sees +y on the right and +z up. With the focal length F = H / (2 tan(fov / 2)) in pixels:

        column = W / 2 + F y / (distance - x),    row = H / 2 - F z / (distance - x)
    """
    x, y, z = (float(value) for value in point)
    x, y = (
        math.cos(azimuth) * x + math.sin(azimuth) * y,
        -math.sin(azimuth) * x + math.cos(azimuth) * y,
    )
    x, z = (
        math.cos(elevation) * x + math.sin(elevation) * z,
        -math.sin(elevation) * x + math.cos(elevation) * z,
    )
    focal = height / (2 * math.tan(fov / 2))
    return width / 2 + focal * y / (distance - x), height / 2 - focal * z / (distance - x)


def nearest_pixel(point, origin, directions) -> tuple[int, int]:
    """(row, column) of the ray that passes the point most closely: the least |(p - o) x d|."""
    offset = (torch.as_tensor(point, dtype=origin.dtype) - origin).expand_as(directions)
    gap = torch.linalg.cross(offset, directions).norm(dim=-1)
    return divmod(int(gap.argmin()), directions.shape[1])


X, Y, Z = (0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5)


def minus(point):
    return tuple(-value for value in point)


@pytest.mark.parametrize(
    ("azimuth", "point", "row", "column"),
    [
        # the drawing: azimuth 0 looks from +x, +y on the right, +z up; x lies on the line of sight
        (0, X, "middle", "middle"),
        (0, minus(X), "middle", "middle"),
        (0, Y, "middle", "right"),
        (0, minus(Y), "middle", "left"),
        (0, Z, "top", "middle"),
        (0, minus(Z), "bottom", "middle"),
        # the same world from +y, from behind, and from -y
        (90, Y, "middle", "middle"),
        (90, X, "middle", "left"),
        (90, Z, "top", "middle"),
        (180, Y, "middle", "left"),
        (180, Z, "top", "middle"),
        (270, X, "middle", "right"),
        (-90, X, "middle", "right"),
    ],
)
def test_axes_appear_where_the_drawing_says(azimuth, point, row, column):
    """From azimuth 0, +y is on the right and +z above; walking by 90 degrees turns the picture."""
    size = 21
    origins, directions = camera_rays(orbit(azimuth, 0.0), size, size)
    i, j = nearest_pixel(point, origins[0], directions[0])
    names = [(i, ("top", "middle", "bottom"), row), (j, ("left", "middle", "right"), column)]
    for index, (low, middle, high), expected in names:
        seen = middle if index == size // 2 else low if index < size // 2 else high
        assert seen == expected, (i, j)


def test_raised_camera_looks_down():
    """From above the horizon, what stands nearer to the camera is lower in the picture."""
    origins, directions = camera_rays(orbit(0.0, 40.0), 21, 21)
    assert nearest_pixel(X, origins[0], directions[0])[0] > 10
    assert nearest_pixel(minus(X), origins[0], directions[0])[0] < 10
    assert nearest_pixel(Z, origins[0], directions[0])[0] < 10


@pytest.mark.parametrize(("height", "width"), [(7, 7), (4, 9), (9, 4), (1, 1)])
def test_every_ray_projects_back_to_its_pixel_centre(height, width):
    """pinhole(o + s d_ij) = (j + 1/2, i + 1/2) for every pixel, camera and length s in front."""
    cameras = random_cameras(5, seed=0)
    origins, directions = camera_rays(cameras, height, width)
    lengths = 0.2 + 6 * torch.rand(
        directions.shape[:3], dtype=F64, generator=torch.Generator().manual_seed(1)
    )
    points = origins[:, None, None] + lengths[..., None] * directions
    for b in range(5):
        pose = cameras.azimuth[b].item(), cameras.elevation[b].item(), cameras.distance[b].item()
        for i in range(height):
            for j in range(width):
                column, row = pinhole(points[b, i, j], *pose, cameras.fov, height, width)
                assert column == pytest.approx(j + 0.5, abs=1e-10)
                assert row == pytest.approx(i + 0.5, abs=1e-10)


def test_point_is_seen_in_the_pixel_that_it_projects_to():
    """The pixel whose ray passes a point most closely contains its pinhole projection."""
    cameras = random_cameras(4, seed=2, fov=0.5)
    origins, directions = camera_rays(cameras, 31, 41)
    for b in range(4):
        pose = cameras.azimuth[b].item(), cameras.elevation[b].item(), cameras.distance[b].item()
        for point in (
            (0.25, 0, 0),
            (0, 0.25, 0),
            (0, 0, 0.25),
            (0.1, -0.15, 0.12),
        ):  # inside each of the pictures
            column, row = pinhole(point, *pose, cameras.fov, 31, 41)
            i, j = nearest_pixel(point, origins[b], directions[b])
            assert abs(row - i - 0.5) <= 0.5 + 1e-6
            assert abs(column - j - 0.5) <= 0.5 + 1e-6


def test_directions_are_unit_and_the_centre_ray_passes_the_origin():
    """|d| = 1; in a picture with a middle pixel its ray is -position / |position|."""
    cameras = random_cameras(6, seed=3)
    origins, directions = camera_rays(cameras, 5, 9)
    assert directions.dtype == F64
    assert directions.shape == (6, 5, 9, 3)
    torch.testing.assert_close(
        directions.norm(dim=-1), torch.ones(6, 5, 9, dtype=F64), rtol=0, atol=1e-14
    )
    torch.testing.assert_close(origins.norm(dim=-1), cameras.distance, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        origins + cameras.distance[:, None] * directions[:, 2, 4], 0 * origins, rtol=0, atol=1e-13
    )


def test_field_of_view_at_the_edges():
    """The angle between the middle ray and those half a pixel inside the edge.

    tan(angle) = tan(fov / 2) (1 - 1/H) vertically, tan(fov / 2) (W - 1)/H sideways
    """
    height, width, fov = 5, 11, 1.1
    cameras = cameras64([0.7], [0.4], [3.0], fov)
    _, directions = camera_rays(cameras, height, width)
    forward = directions[0, 2, 5]
    for i, j, expected in [
        (0, 5, math.tan(fov / 2) * (1 - 1 / height)),
        (4, 5, math.tan(fov / 2) * (1 - 1 / height)),
        (2, 0, math.tan(fov / 2) * (width - 1) / height),
        (2, 10, math.tan(fov / 2) * (width - 1) / height),
    ]:
        cosine = (directions[0, i, j] @ forward).item()
        assert math.tan(math.acos(cosine)) == pytest.approx(expected, abs=1e-12)


def test_positions_go_counter_clockwise_seen_from_above():
    """Azimuth 0, 90, 180, 270 stand on +x, +y, -x, -y; elevation 30 lifts by distance sin(30)."""
    positions = orbit([0, 90, 180, 270], 0.0, distance=2.0).positions()
    expected = torch.tensor([[2.0, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]])
    torch.testing.assert_close(positions, expected, rtol=0, atol=1e-6)
    raised = cameras64([0.0], [math.pi / 6], [2.0], 0.7).positions()
    torch.testing.assert_close(
        raised, torch.tensor([[3**0.5, 0, 1]], dtype=F64), rtol=0, atol=1e-14
    )


def test_orbit_repeats_single_numbers_and_converts_degrees():
    """orbit(a degrees) has azimuth pi a / 180, and one elevation serves every azimuth."""
    cameras = orbit([0, 45, 90], 30, distance=2.5, fov_degrees=60)
    assert len(cameras) == 3
    torch.testing.assert_close(cameras.azimuth, torch.tensor([0, math.pi / 4, math.pi / 2]))
    torch.testing.assert_close(cameras.elevation, torch.full((3,), math.pi / 6))
    assert cameras.distance.tolist() == [2.5] * 3  # exact: handed on
    assert cameras.fov == pytest.approx(math.pi / 3)
    assert len(orbit(10, [0, 20])) == 2
    default = orbit(0, 0)
    assert default.distance.tolist() == [3.0]  # exact: handed on
    assert default.fov == pytest.approx(math.radians(40))


@pytest.mark.parametrize(
    "index", [slice(1, 3), torch.tensor([2, 0, 2]), torch.tensor([False, True, True, False])]
)
def test_indexing_picks_whole_cameras(index):
    """positions(cameras[index]) = positions(cameras)[index]: no part of a pose is left behind."""
    cameras = random_cameras(4, seed=4)
    picked = cameras[index]
    assert picked.fov == cameras.fov
    torch.testing.assert_close(picked.positions(), cameras.positions()[index], rtol=0, atol=1e-14)


def test_numbered_cameras_know_their_place():
    """index = 0, ..., B-1, the poses stay, and picked cameras take their place with them."""
    cameras = random_cameras(5, seed=5)
    assert cameras.index is None
    pool = cameras.numbered()
    assert pool.index.tolist() == [0, 1, 2, 3, 4]
    # exact: handed on
    assert torch.equal(pool.positions(), cameras.positions()) and pool.fov == cameras.fov
    assert pool[torch.tensor([3, 0, 3])].index.tolist() == [3, 0, 3]
    assert pool[2:].index.tolist() == [2, 3, 4]
    assert cameras[2:].index is None
    # a part of a pool is numbered anew, as a pool of its own
    assert pool[2:].numbered().index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_side_is_the_nearest_of_n_directions(n):
    """Sector k is centred on azimuth 360 k / n degrees: the loop looks for the nearest centre."""
    degrees = [d + 0.25 for d in range(-800, 800, 7)]  # never half way between two centres
    sides = orbit(degrees, 10.0).side(n)
    assert sides.dtype == torch.int64 and sides.shape == (len(degrees),)
    for angle, side in zip(degrees, sides.tolist(), strict=True):
        distances = []
        for k in range(n):
            apart = (angle - 360 * k / n) % 360
            distances.append(min(apart, 360 - apart))
        assert side == distances.index(min(distances)), angle


def test_four_sides_by_name():
    """Of four sides, 0 is seen from +x, 1 from +y, 2 from -x, 3 from -y."""
    assert orbit([0, 90, 180, 270, 360, -90], 0.0).side(4).tolist() == [0, 1, 2, 3, 0, 3]
    assert orbit([44, 46, -44, -46], 0.0).side(4).tolist() == [0, 1, 0, 3]


def test_steep_cameras_stay_finite():
    """At +-89.9 degrees the picture's right is still defined (z is up), in float32 too."""
    _, directions = camera_rays(orbit([10, 10], [89.9, -89.9]), 4, 4)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, 4, 4))


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: orbit(0, 90), r"elevation: expected angles strictly between -90 and 90 .*use 89"),
        (lambda: orbit([0, 0], [10, -120]), r"elevation: expected angles strictly between"),
        (lambda: orbit(0, 0, distance=0), r"distance: expected positive lengths, got 0"),
        (lambda: orbit(0, 0, distance=-3), r"distance: expected positive lengths, got -3"),
        (lambda: orbit(0, 0, fov_degrees=0), r"fov: expected between 0 and 180 degrees, got 0"),
        (lambda: orbit(0, 0, fov_degrees=180), r"fov: expected between 0 and 180 degrees, got 180"),
        (lambda: orbit(0, 0, fov_degrees=NAN), r"fov_degrees: expected a finite number, got nan"),
        (
            lambda: orbit([0, NAN], 0),
            r"azimuth_degrees: expected a finite number or .*, got \[0, nan\]",
        ),
        (lambda: orbit(0, NAN), r"elevation_degrees: expected a finite number or .*, got nan"),
        (
            lambda: orbit(0, 0, distance=float("inf")),
            r"distance: expected a finite number, got inf",
        ),
        (
            lambda: orbit([0, 1, 2], [0, 1]),
            r"azimuth_degrees, elevation_degrees: .* equally many, got \(3, 2\)",
        ),
        (lambda: orbit(0, []), r"azimuth_degrees, elevation_degrees: .* got \(1, 0\)"),
        (
            lambda: cameras64([0.0, 1.0], [0.0], [3.0, 3.0], 0.7),
            r"elevation: .* got \(1,\) float64 beside azimuth \(2,\)",
        ),
        (lambda: cameras64(0.0, 0.0, 3.0, 0.7), r"azimuth: .* tensor \(b\), got \(\)"),
        (lambda: orbit([0, 90], 0)[torch.tensor(1)], r"index: .*, got \(\) int64"),
        (lambda: orbit(0, 0).side(0), r"n: expected a whole number of at least 1, got 0"),
        (
            lambda: Cameras(*(torch.ones(2),) * 3, 0.7, torch.arange(3)),
            r"index: .* got \(3,\) int64",
        ),
        (
            lambda: camera_rays(orbit(0, 0), 0, 4),
            r"height: expected a whole number of at least 1, got 0",
        ),
        (
            lambda: camera_rays(orbit(0, 0), 4, -1),
            r"width: expected a whole number of at least 1, got -1",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(make, message):
    """A ValueError whose single line names the argument, what was expected and what came."""
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
