"""The toy world's geometry and pictures against closed forms (a ball) and exact identities."""

from __future__ import annotations

import math

import pytest
import torch

from psd_mini.cameras import Cameras, camera_rays, orbit
from psd_mini.world import objects, views
from psd_mini.world.objects import CARROT, COLOURS, MAIN, OBJECTS, RADIUS, Part, union
from psd_mini.world.views import AMBIENT, EPSILON, LIGHTS, recolour, render_layers, trace

pytestmark = pytest.mark.algebra

BALL = 0.8  # radius of the ball, world units
EVERY_OBJECT = pytest.mark.parametrize("name", OBJECTS)


@pytest.fixture(autouse=True)
def one_thread():
    """These many small operations are quicker without waiting for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def exact(monkeypatch):
    """Tracing down to rounding error, for identities in float64."""
    monkeypatch.setattr(views, "EPSILON", 1e-12)
    monkeypatch.setattr(views, "MAX_STEPS", 300)


def orbit64(azimuth, elevation, distance=3.0):
    cameras = orbit(azimuth, elevation, distance)
    return Cameras(
        cameras.azimuth.double(), cameras.elevation.double(), cameras.distance.double(), cameras.fov
    )


def solid(name):
    return union(*(part.sdf for part in OBJECTS[name]))


def rays64(azimuth, elevation, size):
    """Rows of coordinates, as `trace` takes them: origins and directions (3, B * size^2)."""
    origins, directions = camera_rays(orbit64(azimuth, elevation), size, size)
    return (
        origins[:, None, None].expand_as(directions).reshape(-1, 3).T,
        directions.reshape(-1, 3).T,
    )


def ball_depth(origins, directions):
    """|o + s d|^2 = r^2: s = -b - sqrt(b^2 - (|o|^2 - r^2)) with b = o . d; nan for a miss."""
    b = (origins * directions).sum(0)
    return -b - (b**2 - (origins**2).sum(0) + BALL**2).sqrt()


def random_points(n, half_width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(3, n, generator=generator, dtype=torch.float64) - 1) * half_width


@pytest.mark.parametrize("distance", [2.5, 4.0])
def test_ball_covers_the_area_of_its_projection(distance):
    """A ball at D is a disc of radius tan(asin(r / D)); half the picture is tan(fov / 2)."""
    cameras = orbit64(35.0, 20.0, distance)
    # the ball is all main colour, so base is 1 - coverage
    coverage = 1 - render_layers("ball", cameras, 160)[0, 0]
    expected = (
        math.pi * math.tan(math.asin(BALL / distance)) ** 2 / (2 * math.tan(cameras.fov / 2)) ** 2
    )
    assert coverage.mean().item() == pytest.approx(expected, rel=1e-3)
    # centred: symmetric up to a subpixel
    torch.testing.assert_close(coverage, coverage.flip(0), atol=0.26, rtol=0)
    torch.testing.assert_close(coverage, coverage.flip(1), atol=0.26, rtol=0)


def test_depth_is_the_ray_sphere_intersection():
    """s <= s_exact <= s + EPSILON / cos(incidence).

    Only rays that pass within EPSILON of the ball may be mistaken.
    """
    origins, directions = rays64([0.0, 100.0, 230.0], [0.0, 30.0, 60.0], 64)
    depth, expected = trace(solid("ball"), origins, directions), ball_depth(origins, directions)
    # distance of the ray's line from the centre
    closest = torch.linalg.cross(origins, directions, dim=0).norm(dim=0)
    mistaken = closest[depth.isfinite() != (closest < BALL)]
    assert ((mistaken >= BALL - 1e-9) & (mistaken <= BALL + 1.01 * EPSILON)).all()
    hit = closest < 0.99 * BALL
    cosine = (1 - (closest[hit] / BALL) ** 2).sqrt()
    gap = expected[hit] - depth[hit]
    assert (gap >= -1e-9).all() and (gap <= 1.01 * EPSILON / cosine).all() and hit.sum() > 3000


def test_ball_shading_is_lambert(exact, monkeypatch):
    """main = AMBIENT + sum_k max(0, n . l_k), n = p / r at the hit, for every camera."""
    azimuth, elevation = [0.0, 90.0, 200.0], [0.0, 45.0, -30.0]
    monkeypatch.setattr(views, "SUPERSAMPLE", 1)
    main = render_layers("ball", orbit64(azimuth, elevation), 32)[:, 3].flatten()
    origins, directions = rays64(azimuth, elevation, 32)
    normals = (origins + ball_depth(origins, directions) * directions) / BALL
    expected = torch.full_like(main, AMBIENT)
    for light in LIGHTS:
        expected += sum(
            n * component for n, component in zip(normals, light, strict=True)
        ).clamp_min(0)
    torch.testing.assert_close(main, expected.nan_to_num(0.0), atol=1e-10, rtol=0)
    assert main.max() - main[main > 0].min() > 0.25  # the lights are on


def inside_cone(x, y, z):
    return (z.abs() < 0.5) & ((x**2 + y**2).sqrt() < 0.6 + (0.2 - 0.6) * (z + 0.5))


@pytest.mark.parametrize(
    "sdf, inside",
    [
        (objects.ball(0.7), lambda x, y, z: x**2 + y**2 + z**2 < 0.49),
        (
            objects.box(0.3, 0.5, 0.7),
            lambda x, y, z: (x.abs() < 0.3) & (y.abs() < 0.5) & (z.abs() < 0.7),
        ),
        (objects.torus(0.6, 0.2), lambda x, y, z: ((x**2 + y**2).sqrt() - 0.6) ** 2 + z**2 < 0.04),
        (objects.cone(0.6, 0.2, 0.5), inside_cone),
        (objects.turned(objects.cone(0.6, 0.2, 0.5), "zyx"), lambda x, y, z: inside_cone(z, y, x)),
        (
            objects.gable(0.4, 0.5, 0.8),
            lambda x, y, z: (x.abs() < 0.4) & (z > 0) & (y.abs() / 0.5 + z / 0.8 < 1),
        ),
        (
            objects.moved(objects.ball(0.3), 0.2, 0.0, -0.4),
            lambda x, y, z: (x - 0.2) ** 2 + y**2 + (z + 0.4) ** 2 < 0.09,
        ),
        (
            objects.mirrored(objects.moved(objects.ball(0.2), 0.5, 0.4, 0.3), "xy"),
            lambda x, y, z: (x.abs() - 0.5) ** 2 + (y.abs() - 0.4) ** 2 + (z - 0.3) ** 2 < 0.04,
        ),
        (
            objects.carved(
                objects.union(objects.ball(0.5), objects.box(0.9, 0.1, 0.1)), objects.ball(0.3)
            ),
            lambda x, y, z: (
                (
                    (x**2 + y**2 + z**2 < 0.25)
                    | ((x.abs() < 0.9) & (y.abs() < 0.1) & (z.abs() < 0.1))
                )
                & (x**2 + y**2 + z**2 > 0.09)
            ),
        ),
    ],
)
def test_solids_are_the_sets_they_claim(sdf, inside):
    """f(p) < 0 exactly for the points p of the solid, written as inequalities."""
    p = random_points(50_000, 1.0)
    p = p[:, sdf(*p).abs() > 1e-9]  # not on the surface
    assert torch.equal(sdf(*p) < 0, inside(*p)) and inside(*p).any() and p.shape[1] > 49_000


@EVERY_OBJECT
def test_distances_are_1_lipschitz(name):
    """|grad f| <= 1 and |f(p) - f(q)| <= |p - q|: tracing cannot step through a surface.

    The second also sees jumps.
    """
    p = random_points(20_000, 1.2).requires_grad_()
    q = p.detach() + random_points(20_000, 0.2, seed=1)
    for part in OBJECTS[name]:
        distance = part.sdf(*p)
        (gradient,) = torch.autograd.grad(distance.sum(), p)
        assert gradient.norm(dim=0).max() <= 1 + 1e-9
        assert ((distance - part.sdf(*q)).abs() <= (p - q).norm(dim=0) + 1e-9).all()


@EVERY_OBJECT
def test_gradients_are_finite_where_lengths_vanish(name):
    """On the axes and at the centre |p| has no derivative; f gives a subgradient there, not NaN."""
    p = torch.cat([torch.zeros(3, 1), torch.eye(3), -torch.eye(3)], dim=1).double().requires_grad_()
    (gradient,) = torch.autograd.grad(solid(name)(*p).sum(), p)
    assert gradient.isfinite().all()


@EVERY_OBJECT
def test_objects_fill_the_ball_and_stay_inside(name):
    """f > 0 wherever |p| > RADIUS, and |p| > 0.7 somewhere inside.

    The bounding box is centred, and no part is buried.
    """
    p = random_points(100_000, 1.0)
    radius, distance = p.norm(dim=0), solid(name)(*p)
    assert (distance[radius > RADIUS] > 1e-4).all()
    inside = p[:, distance < 0]
    assert inside.norm(dim=0).max() > 0.7
    assert ((inside.amax(1) + inside.amin(1)) / 2).abs().max() < 0.1
    nearest = torch.stack([part.sdf(*p) for part in OBJECTS[name]]).argmin(0)[distance.abs() < 0.02]
    assert nearest.unique().tolist() == list(range(len(OBJECTS[name])))


@EVERY_OBJECT
def test_tracing_agrees_with_small_steps(name):
    """depth = the first sign change of f in steps of 4e-3 from the camera.

    This catches overshooting and a wrong bounding ball.
    """
    origins, directions = rays64([20.0, 140.0, 260.0], [5.0, 25.0, 45.0], 20)
    s = torch.arange(2.0, 4.0, 4e-3, dtype=torch.float64)
    p = origins[:, :, None] + directions[:, :, None] * s
    inside = solid(name)(*p) <= 0
    expected = torch.where(inside.any(1), s[inside.int().argmax(1)], torch.inf)
    depth = trace(solid(name), origins, directions)
    agree = (depth == expected) | ((depth - expected).abs() < 6e-3)
    # the rest graze an edge, where a step of 4e-3 may miss what EPSILON catches
    assert agree.double().mean() > 0.985
    assert depth.isfinite().double().mean() > 0.15


@EVERY_OBJECT
def test_picture_is_affine_in_the_main_colour(name, monkeypatch):
    """base + main c = the picture of the object with c painted on its main parts.

    The painted object's main layer is empty.
    """
    cameras, colour = orbit64([10.0, 190.0], [15.0, 40.0]), (0.3, 0.9, 0.05)
    recoloured = recolour(
        render_layers(name, cameras, 16), torch.tensor([colour], dtype=torch.float64)
    )[:, 0]
    painted = tuple(
        Part(part.sdf, colour if part.colour is MAIN else part.colour) for part in OBJECTS[name]
    )
    monkeypatch.setitem(OBJECTS, name, painted)
    direct = render_layers(name, cameras, 16)
    assert (direct[:, 3] == 0).all()  # exact: nothing is in the main colour
    torch.testing.assert_close(recoloured, direct[:, :3], atol=1e-12, rtol=0)


def test_recolour_broadcasts_over_views_and_colours():
    """image[v, c] = base[v] + main[v] colour[c], written as a loop."""
    generator = torch.Generator().manual_seed(0)
    layers = torch.rand(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    colours = torch.rand(7, 3, generator=generator, dtype=torch.float64)
    images = recolour(layers, colours)
    assert images.shape == (2, 3, 7, 3, 5, 6)
    for c in range(7):
        for channel in range(3):
            expected = layers[:, :, channel] + layers[:, :, 3] * colours[c, channel]
            torch.testing.assert_close(images[:, :, c, channel], expected, atol=1e-15, rtol=0)


def test_supersampling_is_the_mean_of_the_finer_picture(monkeypatch):
    """n x n pixels with 2 x 2 rays each shoot the rays of 2n x 2n pixels with one each."""
    cameras = orbit64([30.0, 200.0], [20.0, 35.0])
    coarse = render_layers("house", cameras, 16)
    monkeypatch.setattr(views, "SUPERSAMPLE", 1)
    fine = torch.nn.functional.avg_pool2d(render_layers("house", cameras, 32), 2)
    torch.testing.assert_close(coarse, fine, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["snowman", "car", "mug"])
def test_surface_points_look_the_same_from_everywhere(name, exact):
    """radiance(p) is the same for a second camera, which looks at what the first one sees."""
    origins, directions = rays64(20.0, 25.0, 28)
    depth = trace(solid(name), origins, directions)
    seen = depth.isfinite()
    points = (origins + depth * directions)[:, seen]
    second = orbit64(65.0, 40.0).positions().T
    towards = points - second
    distance = towards.norm(dim=0)
    from_second = trace(solid(name), second.expand_as(points), towards / distance)
    visible = (from_second - distance).abs() < 1e-6
    first = views._radiance(name, origins[:, seen], directions[:, seen])[:, visible]
    again = views._radiance(
        name, second.expand_as(points)[:, visible], (towards / distance)[:, visible]
    )
    same = (first - again).abs().amax(0) < 1e-6
    # edges between faces may go either way
    assert visible.double().mean() > 0.5 and same.double().mean() > 0.995


def looks_like(base, colour):
    """Pixels whose base layer is a shade of one fixed colour: parallel to it as vectors."""
    direction = torch.tensor(colour, dtype=base.dtype)
    return torch.cosine_similarity(base, direction[None, :, None, None], dim=1) > 1 - 1e-6


def test_fronts_face_plus_x(monkeypatch):
    """Nose and door show from azimuth 0, not from 180; from azimuth 90, +x is on the left."""
    monkeypatch.setattr(views, "SUPERSAMPLE", 1)
    cameras = orbit64([0.0, 90.0, 180.0, 270.0], 10.0)
    nose = looks_like(render_layers("snowman", cameras, 64)[:, :3], CARROT)
    count = nose.sum((1, 2))
    assert count[0] > 10 and count[2] == 0
    # exact: pixels are counted, here and below
    assert nose[1, :, :32].sum() == count[1] > 10 and nose[3, :, 32:].sum() == count[3] > 10
    house = render_layers("house", cameras, 64)[:, :3]
    # the roof is brown too, but above
    brown = looks_like(house, OBJECTS["house"][2].colour)[:, 34:]
    assert brown[0].sum() > 50 and brown[2].sum() == 0  # exact: a count
    lamps = looks_like(render_layers("car", cameras, 64)[:, :3], OBJECTS["car"][3].colour)
    assert lamps[0].sum() > 10 and lamps[2].sum() == 0  # exact: a count
    mug = render_layers("mug", cameras, 64)[:, 3] > 0
    # exact: a count; seen from the front, the handle is on the right
    assert mug[0, :, 45:].sum() > 40 and mug[0, :, :6].sum() == 0


@EVERY_OBJECT
def test_pictures_are_framed_and_in_range(name):
    """The border is background, values are in [0, 1], a good part is in the main colour."""
    layers = render_layers(name, orbit([0, 60, 120, 180, 240, 300], [0, 10, 20, 30, 40, 45]), 32)
    images = recolour(layers, torch.tensor(list(COLOURS.values())))
    assert images.shape == (6, 8, 3, 32, 32)
    assert images.min() >= -1e-6 and images.max() <= 1 + 1e-6
    for border in (images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]):
        assert (border == 1).all()  # exact: the mean of four ones
    assert ((layers[:, 3] > 0.3).float().mean((1, 2)) > 0.06).all()


def test_each_camera_has_its_own_picture(monkeypatch):
    """A batch equals its cameras one by one, also in several goes and with two threads.

    With one thread it equals itself bit for bit.
    """
    cameras = orbit64([0.0, 50.0, 100.0], [0.0, 20.0, 40.0])
    batch = render_layers("chair", cameras, 24)
    # exact: the same code, one machine and thread count
    assert torch.equal(batch, render_layers("chair", cameras, 24))
    single = torch.cat([render_layers("chair", cameras[i : i + 1], 24) for i in range(3)])
    monkeypatch.setattr(views, "RAYS_AT_ONCE", 2 * 48**2)
    in_two_goes = render_layers("chair", cameras, 24)
    for other in (single, in_two_goes):
        torch.testing.assert_close(batch, other, atol=1e-9, rtol=0)
    torch.set_num_threads(2)
    torch.testing.assert_close(in_two_goes, render_layers("chair", cameras, 24), atol=1e-9, rtol=0)
    assert torch.get_num_threads() == 2


def test_objects_that_share_their_rays_are_as_if_drawn_alone(monkeypatch):
    """In several goes of cameras too."""
    cameras = orbit64([0.0, 50.0, 100.0], [0.0, 20.0, 40.0])
    alone = [render_layers(name, cameras, 16) for name in OBJECTS]
    for rays_at_once in (2 * 32**2, 2**19):
        monkeypatch.setattr(views, "RAYS_AT_ONCE", rays_at_once)
        together = views.render_world(list(OBJECTS), cameras, 16)
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-9, rtol=0)


def test_colours_are_distinct_and_gray_is_their_middle():
    """Gray has equal channels and is the nearest to the mean of all; any two are 0.3 apart."""
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.float64)
    gray = list(COLOURS).index("gray")
    assert colours[gray].unique().numel() == 1
    assert (colours - colours.mean(0)).norm(dim=1).argmin() == gray
    assert torch.pdist(colours).min() > 0.3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("dog", 8), "name: the toy world has no 'dog'; choose one of ball, cube"),
        (("ball", 0), "resolution: expected a whole number of at least 1, got 0"),
        (("ball", 2.5), "resolution: expected a whole number, got 2.5"),
    ],
)
def test_bad_input_is_named(arguments, message):
    """One line that names the argument, what came and what is possible."""
    name, resolution = arguments
    with pytest.raises(ValueError) as error:
        render_layers(name, orbit(0.0, 0.0), resolution)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
