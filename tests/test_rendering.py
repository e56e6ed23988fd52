"""Volume rendering against closed forms (fog, slabs, balls), a slow loop, and finite differences.

Unless a test says otherwise the fields are plain functions and everything is float64.
"""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from psd_mini.cameras import Cameras, camera_rays, orbit
from psd_mini.fields import VoxelField
from psd_mini.rendering import ball_interval, compositing_weights, opacity_entropy, render

pytestmark = pytest.mark.algebra

F64 = torch.float64
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def look(azimuth=0.0, elevation=0.0, distance=3.0, fov=0.6, count=1) -> Cameras:
    """`count` equal float64 cameras, radians."""
    a, e, d = (torch.full((count,), value, dtype=F64) for value in (azimuth, elevation, distance))
    return Cameras(a, e, d, fov)


def random_cameras(count: int, seed: int, fov: float = 0.6) -> Cameras:
    u = torch.rand(3, count, dtype=F64, generator=seeded(seed))
    return Cameras(7 * u[0], 2.4 * u[1] - 1.2, 2.5 + 2 * u[2], fov)


def random_voxels(resolution: int, seed: int, channels: int = 3, bound: float = 1.0) -> VoxelField:
    """Fog of densities around 1 per world unit and colours all over (0, 1)."""
    field = VoxelField(resolution, bound, channels).double()
    with torch.no_grad():
        field.density.copy_(
            torch.randn(field.density.shape, dtype=F64, generator=seeded(seed)) - 2.0
        )
        field.colour.copy_(
            2 * torch.randn(field.colour.shape, dtype=F64, generator=seeded(seed + 1))
        )
    return field


def fog(density, colour=(0.2, 0.5, 0.8)):
    """A field of one colour whose density is a function of the points, or a number."""

    def field(points):
        rho = density(points) if callable(density) else torch.full_like(points[:, 0], density)
        return rho, torch.tensor(colour, dtype=points.dtype).expand(len(points), len(colour))

    return field


def blobs(*parts, radius: float = 0.12):
    """Opaque little balls, (centre, colour) each."""

    def field(points):
        density, colour = torch.zeros_like(points[:, 0]), torch.zeros_like(points)
        for centre, paint in parts:
            inside = (points - torch.tensor(centre, dtype=points.dtype)).norm(dim=-1) < radius
            density = torch.where(inside, 1e4, density)
            colour = torch.where(inside[:, None], torch.tensor(paint, dtype=points.dtype), colour)
        return density, colour

    return field


def chords(cameras: Cameras, height: int, width: int, radius: float):
    """Length of every pixel's ray in the ball, (B, H, W): 2 sqrt(R^2 - |o x d|^2), 0 for a miss."""
    origins, directions = camera_rays(cameras, height, width)
    miss = torch.linalg.cross(origins[:, None, None].expand_as(directions), directions).norm(dim=-1)
    return 2 * (radius**2 - miss**2).clamp(min=0).sqrt()


@pytest.mark.parametrize("n_samples", [1, 7])
def test_constant_density_is_beer_lambert(n_samples):
    """opacity = 1 - exp(-rho L) for any number of bins, and rgb = opacity c + (1 - opacity) b."""
    rho, radius, cameras = 1.7, 0.9, random_cameras(4, seed=0)
    result = render(fog(rho), cameras, 9, 12, n_samples=n_samples, radius=radius, background=0.3)
    expected = 1 - torch.exp(-rho * chords(cameras, 9, 12, radius))
    assert 0.1 < (expected == 0).double().mean() < 0.9  # some rays miss
    torch.testing.assert_close(result.opacity[:, 0], expected, rtol=0, atol=1e-12)
    for c, value in enumerate((0.2, 0.5, 0.8)):
        torch.testing.assert_close(
            result.rgb[:, c], expected * value + (1 - expected) * 0.3, rtol=0, atol=1e-12
        )


def test_ball_interval_ends_on_the_sphere():
    """|o + near d| = |o + far d| = R, or near = far at the ray's closest point to the origin."""
    origins, directions = camera_rays(random_cameras(3, seed=1), 8, 8)
    origins = origins[:, None, None].expand_as(directions).reshape(-1, 3)
    directions = directions.reshape(-1, 3)
    near, far = ball_interval(origins, directions, 0.8)
    closest = torch.linalg.cross(origins, directions).norm(dim=-1)
    for z in (near, far):
        ends = (origins + z[:, None] * directions).norm(dim=-1)
        torch.testing.assert_close(ends, closest.clamp(min=0.8), rtol=0, atol=1e-12)
    hit = closest < 0.8
    assert hit.any()
    assert ((far - near)[hit] > 1e-6).all()
    assert (near[~hit] == far[~hit]).all()  # exact: m - 0 and m + 0


def test_distant_camera_in_float32():
    """A float32 picture from 300 world units agrees with float64: no cancellation."""
    cameras = look(0.4, 0.3, 300.0, 2 * math.atan(0.9 / 300))
    single = Cameras(
        cameras.azimuth.float(), cameras.elevation.float(), cameras.distance.float(), cameras.fov
    )
    opacity = render(fog(1.0), single, 16, radius=1.0).opacity
    assert opacity.dtype == torch.float32
    torch.testing.assert_close(
        opacity.double(), render(fog(1.0), cameras, 16, radius=1.0).opacity, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("n_samples", [16, 64, 256, 1024])
def test_slab_transmits_exp_of_its_slant_thickness(n_samples):
    """A slab |x| < w seen by a distant camera: -log(1 - opacity) = rho 2 w / |d_x|.

    The bins' midpoints count the slab to half a bin at either face: the error is at most rho times
    one bin width, and falls as 1 / n_samples.
    """
    rho, w, cameras = 2.3, 0.237, look(math.radians(25), 0.1, 50.0, 0.016)
    result = render(
        fog(lambda p: rho * (p[:, 0].abs() < w)), cameras, 6, n_samples=n_samples, radius=1.0
    )
    _, directions = camera_rays(cameras, 6, 6)
    expected = rho * 2 * w / directions[..., 0].abs()
    bin_width = chords(cameras, 6, 6, 1.0) / n_samples
    error = (-torch.log1p(-result.opacity[:, 0]) - expected).abs()
    assert (error <= rho * bin_width * (1 + 1e-9)).all()


def test_smooth_fog_converges_with_the_square_of_the_bin_width():
    """rho = exp(a x) in closed form: with twice the bins, opacity has a quarter of the error."""
    a, radius, cameras = 2.0, 1.0, random_cameras(2, seed=2, fov=0.4)
    origins, directions = camera_rays(cameras, 5, 5)
    middle = -(origins[:, None, None] * directions).sum(-1)
    half = chords(cameras, 5, 5, radius) / 2
    x, slope = origins[:, None, None, 0], a * directions[..., 0]
    depth = (
        torch.exp(a * x + slope * (middle + half)) - torch.exp(a * x + slope * (middle - half))
    ) / slope
    errors = []
    for n_samples in (64, 128):
        rendered = render(
            fog(lambda p: torch.exp(a * p[:, 0])), cameras, 5, n_samples=n_samples, radius=radius
        )
        errors.append((rendered.opacity[:, 0] - (1 - torch.exp(-depth))).abs().max().item())
    assert errors[1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.02)


def test_colour_gradient_in_fog_converges_with_the_square_of_the_bin_width():
    """rho constant, c = (1 + s/L)/2 at path length s, and k = rho L.

    rgb = (1 - e^-k)/2 + ((1 - e^-k)/k - e^-k)/2
    """
    k = 1.5 * 2.0  # the middle ray of a ball of radius 1, from azimuth 0: s = 1 - x, L = 2

    def field(points):
        return torch.full_like(points[:, 0], 1.5), 0.5 + 0.25 * (1 - points[:, :1])

    expected = (1 - math.exp(-k)) / 2 + ((1 - math.exp(-k)) / k - math.exp(-k)) / 2
    error = [
        abs(render(field, look(), 1, n_samples=n, radius=1.0, background=0.0).rgb.item() - expected)
        for n in (50, 100)
    ]
    assert error[1] < 1e-4
    assert error[0] / error[1] == pytest.approx(4, abs=0.02)


@pytest.mark.parametrize(
    ("azimuth", "front", "back"),
    [(0.0, (2.0, RED), (3.0, BLUE)), (math.pi, (3.0, BLUE), (2.0, RED))],
)
def test_two_layers_composite_in_the_order_of_sight(azimuth, front, back):
    """Layer 1 is the nearer one; aligned bins are exact.

    rgb = (1 - e^-k1) c1 + e^-k1 (1 - e^-k2) c2 + e^-(k1 + k2) b
    """

    def field(points):
        x = points[:, 0]
        red, blue = (x > 0) & (x < 0.3), (x < 0) & (x > -0.5)
        return 2.0 * red + 3.0 * blue, torch.stack((red, torch.zeros_like(red), blue), dim=-1).to(x)

    background = torch.tensor([0.1, 0.7, 0.4], dtype=F64)
    rgb = render(field, look(azimuth), 1, n_samples=20, radius=1.0, background=background).rgb[
        0, :, 0, 0
    ]
    thickness = {RED: 0.3, BLUE: 0.5}
    (rho_1, paint_1), (rho_2, paint_2) = front, back
    t_1, t_2 = math.exp(-rho_1 * thickness[paint_1]), math.exp(-rho_2 * thickness[paint_2])
    c_1, c_2 = (torch.tensor(paint, dtype=F64) for paint in (paint_1, paint_2))
    expected = (1 - t_1) * c_1 + t_1 * (1 - t_2) * c_2 + t_1 * t_2 * background
    torch.testing.assert_close(rgb, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (F64, 1e-14)])
def test_weights_and_what_gets_through_sum_to_one(dtype, tolerance):
    """sum_i w_i + exp(-sum_i rho_i delta_i) = 1 and every w_i >= 0, from thin fog to stone."""
    scale = 10 ** torch.linspace(-6, 6, 200, dtype=dtype)[:, None]
    density = scale * torch.rand(200, 40, dtype=dtype, generator=seeded(3))
    widths = 0.1 * torch.rand(200, 40, dtype=dtype, generator=seeded(4))
    weights, opacity = compositing_weights(density, widths)
    transmitted = torch.exp(-(density * widths).sum(-1))
    torch.testing.assert_close(
        weights.sum(-1) + transmitted, torch.ones(200, dtype=dtype), rtol=0, atol=tolerance
    )
    torch.testing.assert_close(weights.sum(-1), opacity, rtol=0, atol=tolerance)
    assert (weights >= -tolerance).all()
    assert (opacity <= 1 + tolerance).all()


def test_thin_fog_keeps_its_digits():
    """For rho delta -> 0, w_i = rho_i delta_i: in float32 1 - exp(-1e-9) would be 0."""
    optical = 1e-9 * torch.arange(1.0, 9.0)[None]
    weights, opacity = compositing_weights(optical, torch.ones(1, 8))
    torch.testing.assert_close(weights, optical, rtol=1e-5, atol=0)
    torch.testing.assert_close(opacity, optical.sum(-1), rtol=1e-5, atol=0)


def slow_render(field, azimuth, elevation, distance, fov, height, width, n_samples, background):
    """One picture with python loops: rotations for the camera, T a running product of 1 - alpha."""
    rgb, opacity, depth, weights, places = {}, {}, {}, {}, {}
    for i in range(height):
        for j in range(width):
            # in front of a camera at (distance, 0, 0): right is +y, up is +z, forward is -x; then
            # lift, then turn
            y, z = (j + 0.5 - width / 2), (height / 2 - i - 0.5)
            d = [-height / (2 * math.tan(fov / 2)), y, z]
            ray = []
            for x, y, z in (d, (distance, 0.0, 0.0)):
                x, z = (
                    math.cos(elevation) * x - math.sin(elevation) * z,
                    math.sin(elevation) * x + math.cos(elevation) * z,
                )
                x, y = (
                    math.cos(azimuth) * x - math.sin(azimuth) * y,
                    math.sin(azimuth) * x + math.cos(azimuth) * y,
                )
                ray.append((x, y, z))
            length = math.hypot(*ray[0])
            d, o = [v / length for v in ray[0]], ray[1]
            # z^2 + 2 (o.d) z + |o|^2 - R^2 = 0
            od = sum(a * b for a, b in zip(o, d, strict=True))
            root = od * od - sum(v * v for v in o) + field.bound**2
            T, colour, mean, w, zs = 1.0, [0.0] * 3, 0.0, [0.0] * n_samples, [0.0] * n_samples
            if root > 0:
                step = 2 * math.sqrt(root) / n_samples
                for s in range(n_samples):
                    zs[s] = -od - math.sqrt(root) + (s + 0.5) * step
                    point = torch.tensor(
                        [[a + zs[s] * b for a, b in zip(o, d, strict=True)]], dtype=F64
                    )
                    rho, c = (value[0].tolist() for value in field(point))
                    alpha = 1 - math.exp(-rho * step)
                    w[s] = T * alpha
                    colour = [total + w[s] * value for total, value in zip(colour, c, strict=True)]
                    mean += w[s] * zs[s]
                    T *= 1 - alpha
            rgb[i, j] = [total + T * b for total, b in zip(colour, background, strict=True)]
            opacity[i, j], depth[i, j] = 1 - T, mean / (1 - T) if T < 1 else 0.0
            weights[i, j], places[i, j] = w, zs
    return rgb, opacity, depth, weights, places


@torch.no_grad()
def test_agrees_with_a_slow_loop():
    """rgb, opacity, depth, weights and z of a random VoxelField equal the loop's to 1e-12."""
    field, cameras, background = (
        random_voxels(5, seed=5, bound=0.8),
        random_cameras(2, seed=6, fov=0.7),
        (0.9, 0.2, 0.4),
    )
    height, width, n_samples = 5, 7, 6
    result = render(
        field,
        cameras,
        height,
        width,
        n_samples=n_samples,
        background=torch.tensor(background, dtype=F64),
    )
    misses = 0
    for b in range(2):
        pose = cameras.azimuth[b].item(), cameras.elevation[b].item(), cameras.distance[b].item()
        slow = slow_render(field, *pose, cameras.fov, height, width, n_samples, background)
        for i in range(height):
            for j in range(width):
                rgb, opacity, depth, weights, places = (part[i, j] for part in slow)
                misses += opacity == 0
                assert result.rgb[b, :, i, j].tolist() == pytest.approx(rgb, abs=1e-12)
                assert result.opacity[b, 0, i, j].item() == pytest.approx(opacity, abs=1e-12)
                assert result.depth[b, 0, i, j].item() == pytest.approx(depth, abs=1e-12)
                assert result.weights[b, i, j].tolist() == pytest.approx(weights, abs=1e-12)
                assert result.z[b, i, j].tolist() == pytest.approx(places, abs=1e-12)
    assert 0 < misses < 2 * height * width  # exact: a count


def test_gradients_with_respect_to_density_and_colour():
    """d rgb, d opacity, d depth / d (density, colour) equal central differences."""
    field, cameras = random_voxels(3, seed=7), random_cameras(1, seed=8, fov=0.8)

    def pictures(density, colour):
        class Bound:  # render asks a field for its radius
            bound = 1.0

            def __call__(self, points):
                return functional_call(field, {"density": density, "colour": colour}, (points,))

        result = render(Bound(), cameras, 3, n_samples=4, background=0.6)
        # one tensor: gradcheck passes over an output that has lost its graph, but not over a part
        # of one
        return torch.cat((result.rgb, result.opacity, result.depth), dim=1)

    parameters = (
        field.density.detach().clone().requires_grad_(),
        field.colour.detach().clone().requires_grad_(),
    )
    assert gradcheck(pictures, parameters, eps=1e-6, atol=1e-8, rtol=1e-6)


def test_compositing_gradients():
    """d (weights, opacity) / d (rho, delta) equal central differences, empty bins included."""
    density = 3 * torch.rand(4, 6, dtype=F64, generator=seeded(9))
    density[0, 2] = density[1] = 0.0
    widths = 0.1 + torch.rand(4, 6, dtype=F64, generator=seeded(10))
    inputs = (density.requires_grad_(), widths.requires_grad_())

    def values(density, widths):
        weights, opacity = compositing_weights(density, widths)
        return torch.cat((weights, opacity[:, None]), dim=1)

    assert gradcheck(values, inputs, eps=1e-6, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (3, 1, 1), (1, 3, 5, 6), (2, 3, 5, 6), (2, 1, 1, 1)])
def test_background_shows_through_what_is_not_stopped(shape):
    """rgb(b) - rgb(0) = (1 - opacity) b for every shape of b, and so is d rgb / d b."""
    field, cameras = random_voxels(4, seed=11), random_cameras(2, seed=12)
    background = torch.rand(shape, dtype=F64, generator=seeded(13)).requires_grad_()
    black = render(field, cameras, 5, 6, background=0.0)
    result = render(field, cameras, 5, 6, background=background)
    full = background[:, None, None] if background.ndim == 1 else background
    through = ((1 - black.opacity) * full).expand(2, 3, 5, 6)
    torch.testing.assert_close(result.rgb - black.rgb, through, rtol=0, atol=1e-14)
    assert torch.equal(result.opacity, black.opacity)  # exact: the same code on the same numbers
    (gradient,) = torch.autograd.grad(result.rgb.sum(), background)
    (expected,) = torch.autograd.grad(through.sum(), background)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
    if not shape:
        number = render(field, cameras, 5, 6, background=background.item())
        assert torch.equal(number.rgb, result.rgb)  # exact: the same code on the same numbers


def test_default_background_is_white_and_default_radius_is_the_fields():
    """render(field) = render(field, background=1, radius=field.bound)."""
    field, cameras = random_voxels(4, seed=14, bound=0.7), random_cameras(2, seed=15)
    default = render(field, cameras, 6)
    explicit = render(field, cameras, 6, 6, background=torch.ones(3, dtype=F64), radius=0.7)
    assert torch.equal(default.rgb, explicit.rgb)  # exact: the same code on the same numbers
    assert default.weights.shape == (2, 6, 6, 32)
    assert (default.rgb - render(field, cameras, 6, radius=0.6).rgb).abs().max() > 1e-3


def test_depth_of_an_opaque_ball_is_where_the_ray_meets_it():
    """0 <= depth - z_hit <= one bin, for rays that are inside the ball for two bins.

    z_hit = -o.d - sqrt((o.d)^2 - |o|^2 + r^2)
    """
    r, n_samples, cameras = 0.6, 200, random_cameras(3, seed=16, fov=0.5)
    ball = fog(lambda p: 1e5 * (p.norm(dim=-1) < r))
    result = render(ball, cameras, 9, n_samples=n_samples, radius=1.0)
    origins, directions = camera_rays(cameras, 9, 9)
    middle = -(origins[:, None, None] * directions).sum(-1)
    chord, bin_width = chords(cameras, 9, 9, r), chords(cameras, 9, 9, 1.0) / n_samples
    solid = chord > 2 * bin_width
    assert (
        0.1 < solid.double().mean() < 0.99
    )  # the furthest camera, at 4.5, has 0.2 of its picture in the ball
    late = (result.depth[:, 0] - (middle - chord / 2))[solid]
    assert (late >= -1e-9).all()
    assert (late <= bin_width[solid] + 1e-9).all()
    torch.testing.assert_close(
        result.opacity[:, 0][solid], torch.ones_like(late), rtol=0, atol=1e-12
    )
    assert (result.depth[:, 0][chord == 0] == 0).all()  # exact: no sample has a density


def test_samples_are_the_middles_of_equal_bins():
    """z_i = near + (i + 1/2) L / S where a ray meets the ball; the field is asked nowhere else."""
    asked, cameras = [], random_cameras(2, seed=17, fov=0.9)

    def field(points):
        asked.append(points)
        return points[:, 0] ** 2, points.abs()

    result = render(field, cameras, 6, 8, n_samples=5, radius=0.9)
    origins, directions = camera_rays(cameras, 6, 8)
    length = chords(cameras, 6, 8, 0.9)
    near = -(origins[:, None, None] * directions).sum(-1) - length / 2
    expected = near[..., None] + length[..., None] / 5 * (torch.arange(5) + 0.5)
    hit = length > 0
    torch.testing.assert_close(result.z[hit], expected[hit], rtol=0, atol=1e-12)
    assert (~hit).any()
    assert (result.z[~hit] == 0).all()  # exact: written, not computed
    assert len(torch.cat(asked)) == 5 * hit.sum()
    assert (torch.cat(asked).norm(dim=-1) < 0.9).all()


N_JITTERED, BINS = 4000, 8


def standard_error(values):
    return values.std(0) / len(values) ** 0.5


def test_jitter_places_samples_uniformly_and_independently_in_their_bins():
    """(z_i - near) / delta - i: mean 1/2, variance 1/12, no correlation between bins."""
    z = render(
        fog(1.0), look(count=N_JITTERED), 1, n_samples=BINS, radius=1.0, generator=seeded(18)
    ).z[:, 0, 0]
    u = (z - 2.0) / (2.0 / BINS) - torch.arange(
        BINS
    )  # the middle ray enters the unit ball at distance 3 - 1
    assert ((u > -1e-9) & (u < 1 + 1e-9)).all()
    assert ((u.mean(0) - 0.5).abs() < 4 * standard_error(u)).all()
    squares = (u - 0.5) ** 2
    assert ((squares.mean(0) - 1 / 12).abs() < 4 * standard_error(squares)).all()
    products = (u[:, :-1] - 0.5) * (u[:, 1:] - 0.5)
    assert (products.mean(0).abs() < 4 * standard_error(products)).all()


def test_jitter_is_unbiased():
    """E[sum_i rho(z_i) delta] = integral rho and, in thin fog, E[rgb] = integral rho c.

    On the middle ray rho = e^(a x) k and c = (1 + x) / 2, with x from 1 to -1:

        integral rho   = 2 k sinh(a) / a
        integral rho c = k [sinh(a) / a + cosh(a) / a - sinh(a) / a^2]

    The mean agrees within 4 standard errors.
    """
    a = 1.5

    def field(k):
        return lambda p: (k * torch.exp(a * p[:, 0]), (1 + p[:, :1]) / 2)

    cameras = look(count=N_JITTERED)
    opacity = render(
        field(1.0), cameras, 1, n_samples=BINS, radius=1.0, generator=seeded(19)
    ).opacity[:, 0, 0, 0]
    optical_depth = -torch.log1p(-opacity)
    expected = 2 * math.sinh(a) / a
    assert standard_error(optical_depth) < 0.01 * expected
    assert (optical_depth.mean() - expected).abs() < 4 * standard_error(optical_depth)

    k = 1e-6  # so thin that nothing is hidden: rgb / k is the integral, up to a factor 1 + O(k)
    thin = render(
        field(k), cameras, 1, n_samples=BINS, radius=1.0, background=0.0, generator=seeded(20)
    )
    rgb = thin.rgb[:, 0, 0, 0] / k
    expected = math.sinh(a) / a + math.cosh(a) / a - math.sinh(a) / a**2
    assert standard_error(rgb) < 0.01 * expected
    assert (rgb.mean() - expected).abs() < 4 * standard_error(rgb)


def test_jitter_follows_its_generator():
    """Equal seeds give equal pictures, others do not; torch's global state is untouched."""
    field, cameras = random_voxels(6, seed=21), random_cameras(2, seed=22)
    state = torch.get_rng_state()
    first, again, other = (render(field, cameras, 5, generator=seeded(s)).rgb for s in (1, 1, 2))
    assert torch.equal(first, again)  # exact: one seed, one machine
    assert (first - other).abs().max() > 1e-4
    assert (first - render(field, cameras, 5).rgb).abs().max() > 1e-4
    assert torch.equal(torch.get_rng_state(), state)
    assert (first - render(field, cameras, 5, n_samples=1000).rgb).abs().max() < 0.05


def test_rays_that_miss_see_exactly_the_background():
    """Outside the ball rgb = b bit for bit, all else is 0, and so are the parameters' gradients."""
    field, cameras = random_voxels(4, seed=23), random_cameras(2, seed=24, fov=1.2)
    background = torch.rand(2, 3, 8, 8, dtype=F64, generator=seeded(25))
    result = render(field, cameras, 8, background=background, n_samples=4)
    missed = chords(cameras, 8, 8, 1.0) == 0
    assert missed.any() and not missed.all()
    # exact: 0 + (1 - 0) b
    assert torch.equal(
        result.rgb.permute(0, 2, 3, 1)[missed], background.permute(0, 2, 3, 1)[missed]
    )
    for values in (result.opacity[:, 0], result.depth[:, 0], result.weights, result.z):
        assert (values[missed] == 0).all()  # exact: written, not computed
    loss = (result.rgb.sum(1) + result.opacity[:, 0] + result.depth[:, 0])[missed].sum()
    for gradient in torch.autograd.grad(loss, list(field.parameters())):
        assert (gradient == 0).all()  # exact: no parameter was used


def test_picture_that_misses_altogether():
    """A ball between the rays gives background, zeros and zero gradients, not an error."""
    field = random_voxels(4, seed=26)
    result = render(field, look(), 2, radius=0.01, background=0.25)
    assert torch.equal(
        result.rgb, torch.full((1, 3, 2, 2), 0.25, dtype=F64)
    )  # exact: 0 + (1 - 0) b
    assert result.weights.shape == (1, 2, 2, 32)
    # exact: no parameter was used
    assert all(
        (g == 0).all() for g in torch.autograd.grad(result.rgb.sum(), list(field.parameters()))
    )


def test_cameras_do_not_influence_each_other():
    """Three cameras at once give what each gives alone."""
    field, cameras = random_voxels(5, seed=27), random_cameras(3, seed=28)
    together = render(field, cameras, 6, 4, n_samples=8)
    for b in range(3):
        alone = render(field, cameras[b : b + 1], 6, 4, n_samples=8)
        for all_values, values in zip(together, alone, strict=True):
            torch.testing.assert_close(all_values[b : b + 1], values, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("raw", [1e5, -1e5])
def test_extreme_densities_stay_finite(raw, dtype):
    """density 1e6 shows the first sample's colour, density 0 the background; gradients finite."""
    field = VoxelField(4).to(dtype)
    with torch.no_grad():
        field.density.fill_(raw)
        field.colour.fill_(1.0)
    cameras = orbit([10.0, 200.0], 20.0)
    cameras = Cameras(
        cameras.azimuth.to(dtype),
        cameras.elevation.to(dtype),
        cameras.distance.to(dtype),
        cameras.fov,
    )
    result = render(field, cameras, 8, background=0.0)
    hit = result.z[..., 0] > 0
    expected = (
        torch.sigmoid(torch.ones((), dtype=dtype)) if raw > 0 else torch.zeros((), dtype=dtype)
    )
    seen = result.rgb.permute(0, 2, 3, 1)[hit]
    torch.testing.assert_close(seen, expected.expand_as(seen))
    torch.testing.assert_close(
        result.depth[:, 0][hit], result.z[..., 0][hit] if raw > 0 else 0 * result.z[..., 0][hit]
    )
    (result.rgb.square().sum() + result.opacity.sum() + result.depth.sum()).backward()
    for parameter in field.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_a_wall_of_stone_in_front_of_air():
    """A density that jumps from 0 to 1e6 within a ray stays finite, and hides what is behind."""
    density = torch.tensor([[0.0, 0.0, 1e6, 1.0, 1e6, 0.0]], requires_grad=True)
    weights, opacity = compositing_weights(density, torch.full((1, 6), 0.1))
    assert weights[0].tolist() == pytest.approx([0, 0, 1, 0, 0, 0], abs=1e-6)
    assert opacity.item() == pytest.approx(1, abs=1e-6)
    (gradient,) = torch.autograd.grad((weights * torch.arange(6)).sum(), density)
    assert torch.isfinite(gradient).all()


def test_opacity_entropy():
    """Mean of -o log o - (1 - o) log(1 - o) by a loop; finite slopes where o is 0 or 1."""
    values = [0.0, 0.1, 0.5, 0.8, 0.9995, 1.0]
    opacity = torch.tensor(values, dtype=F64).reshape(1, 2, 3).requires_grad_()
    total = 0.0
    for o in values:
        o = min(max(o, 0.001), 0.999)
        total -= o * math.log(o) + (1 - o) * math.log(1 - o)
    entropy = opacity_entropy(opacity)
    assert entropy.item() == pytest.approx(total / 6, rel=1e-12)
    (slope,) = torch.autograd.grad(entropy, opacity)
    torch.testing.assert_close(
        slope.flatten()[1:4],  # dH/do = log((1 - o) / o)
        torch.tensor([math.log((1 - o) / o) / 6 for o in values[1:4]], dtype=F64),
    )
    assert slope.isfinite().all()


def test_four_channels():
    """A latent-space field gives (B, 4, H, W), each channel composited like any other."""
    field, cameras = random_voxels(4, seed=29, channels=4), random_cameras(2, seed=30)
    background = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    result = render(field, cameras, 5, 3, background=background)
    assert result.rgb.shape == (2, 4, 5, 3)
    swapped = render(
        lambda p: (field(p)[0], field(p)[1].flip(-1)),
        cameras,
        5,
        3,
        radius=1.0,
        background=background.flip(-1),
    )
    torch.testing.assert_close(swapped.rgb, result.rgb.flip(1), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("azimuth", "centre", "rows", "columns"),
    [
        (
            0.0,
            (0.0, 0.5, 0.0),
            slice(None),
            slice(16, None),
        ),  # +y is on the right seen from azimuth 0
        (0.0, (0.0, -0.5, 0.0), slice(None), slice(0, 16)),
        (0.0, (0.0, 0.0, 0.5), slice(0, 16), slice(None)),  # +z is up
        (90.0, (0.5, 0.0, 0.0), slice(None), slice(0, 16)),  # from +y, +x is on the left
        (180.0, (0.0, 0.5, 0.0), slice(None), slice(0, 16)),
    ],
)
def test_blob_appears_on_its_side(azimuth, centre, rows, columns):
    """A small opaque ball is seen in its half of the picture, and not in the other half."""
    opacity = render(
        blobs((centre, RED)), orbit(azimuth, 0.0), 32, n_samples=128, radius=1.0
    ).opacity[0, 0]
    half = torch.zeros_like(opacity, dtype=torch.bool)
    half[rows, columns] = True
    assert opacity[half].max() > 0.99
    assert opacity[~half].max() == 0  # exact: no sample has a density


def test_near_blob_hides_far_blob():
    """Red at +x and blue at -x: red fills the centre from azimuth 0, blue from 180."""
    pair = blobs(((0.5, 0.0, 0.0), RED), ((-0.5, 0.0, 0.0), BLUE))
    pictures = render(pair, orbit([0.0, 180.0], 0.0), 33, n_samples=128, radius=1.0).rgb
    torch.testing.assert_close(pictures[:, :, 16, 16], torch.tensor([RED, BLUE]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f: render(f, orbit(0, 0, 0.9), 4),
            r"distance: a camera at 0.9 is inside .* radius 1; move it further out",
        ),
        (
            lambda f: render(f, orbit(0, 0, 1.0), 4),
            r"distance: a camera at 1 is inside .* radius 1; move it further out",
        ),
        (
            lambda f: render(f, orbit(0, 0), 4, radius=3.5),
            r"distance: a camera at 3 is inside .* radius 3.5; .* to 10.5",
        ),
        (
            lambda f: render(f, orbit(0, 0), 4, n_samples=0),
            r"n_samples: expected a whole number of at least 1, got 0",
        ),
        (
            lambda f: render(f, orbit(0, 0), 0),
            r"height: expected a whole number of at least 1, got 0",
        ),
        (
            lambda f: render(f, orbit(0, 0), 4, 0),
            r"width: expected a whole number of at least 1, got 0",
        ),
        (
            lambda f: render(f.forward, orbit(0, 0), 4),
            r"radius: expected world units, got None .* `bound`",
        ),
        (
            lambda f: render(f, orbit(0, 0), 4, background=torch.ones(5)),
            r"background: .* \(1, 3, 4, 4\), got \(5, 1, 1\)",
        ),
        (
            lambda f: render(f, orbit(0, 0), 4, background=torch.ones(2, 3, 4, 4)),
            r"background: .* got \(2, 3, 4, 4\)",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    """A ValueError whose single line names the argument and what came."""
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        call(VoxelField(4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (lambda rho, c: c, r"\(\d+, 3\) float32"),
        (lambda rho, c: (rho, c, c), r"\[\((\d+),\), \(\1, 3\), \(\1, 3\)\]"),
        (lambda rho, c: (rho[:, None], c), r"\[\((\d+), 1\), \(\1, 3\)\]"),
        (lambda rho, c: (rho, rho), r"\[\((\d+),\), \(\1,\)\]"),
        (lambda rho, c: (rho, c[:1]), r"\[\(\d+,\), \(1, 3\)\]"),
        (lambda rho, c: (1.0, c), r"\[\(\), \(\d+, 3\)\]"),
    ],
)
def test_a_field_answers_with_density_and_colour(answer, came):
    """Anything but density (N,) and colour (N, C) is refused; a list of the two will do."""
    with pytest.raises(
        ValueError, match=rf"^field: expected density \(\d+,\) and colour \(\d+, C\), got {came}$"
    ):
        render(lambda points: answer(*fog(1.0)(points)), orbit(0, 0), 4, radius=1.0)
    listed = render(lambda points: list(fog(1.0)(points)), orbit(0, 0), 4, radius=1.0)
    assert torch.equal(
        listed.rgb, render(fog(1.0), orbit(0, 0), 4, radius=1.0).rgb
    )  # exact: the same code on the same numbers
