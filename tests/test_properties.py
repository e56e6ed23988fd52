"""What must hold at the edges of the input range.

Extreme t and guidance, degenerate cameras, empty and solid fields, weights of zero, covariances
that are nearly singular. Each test names the wrong implementation that it catches. Examples are
drawn by hypothesis from a fixed seed.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_mixture import SCHEDULE, T, levels, normal

from psd_mini import (
    CSD,
    SDS,
    Cameras,
    Context,
    GaussianMixture,
    NoiseSchedule,
    VoxelField,
    cfg,
    omega,
    render,
    surrogate_loss,
)
from psd_mini.cameras import camera_rays
from psd_mini.negative import NegativeEmbedding
from psd_mini.world.isotropic import isotropic_denoise, isotropic_log_prob

pytestmark = pytest.mark.algebra

F64 = torch.float64
examples = settings(max_examples=50, derandomize=True, deadline=None, database=None)

seeds = st.integers(0, 2**31)
steps = st.sampled_from([0, 1, 2, 500, T - 2, T - 1]) | st.integers(0, T - 1)
times = st.lists(steps, min_size=3, max_size=3).map(torch.tensor)
sizes = st.sampled_from([0.0, 1e-6, 1.0, 1e3])  # of what stands beside numbers of size 1
guidance = st.sampled_from([0.0, 1.0, -1e6, 1e6]) | st.floats(-200, 200)


@st.composite
def mixtures(draw, d=3):
    """Three components; weights may be tiny or zero, covariances thin, singular or huge."""
    tiny = st.sampled_from([0.0, 1e-300, 1e-30, 1e-6, 1.0])
    weights = torch.tensor([1.0, draw(tiny), draw(tiny)], dtype=F64)
    roots = torch.linalg.qr(normal(draw(seeds), 3, d, d))[0]
    spread = st.sampled_from([0.0, 1e-12, 1e-4, 1.0, 1e2])
    eigenvalues = torch.tensor([[draw(spread) for _ in range(d)] for _ in range(3)], dtype=F64)
    means = draw(st.sampled_from([1e-3, 1.0, 30.0])) * normal(draw(seeds), 3, d)
    return GaussianMixture(weights, means, roots * eigenvalues[:, None] @ roots.mT, SCHEDULE)


def finite(*tensors):
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


@examples
@given(mixtures(), times, seeds, sizes)
def test_mixture(prior, t, seed, size):
    """Responsibilities sum to 1, and noise and denoised sample fit together.

        eps_hat = -sigma_t grad log p_t,    x0_hat = (x_t - sigma_t eps_hat) / alpha_t

    Catches densities multiplied instead of their logarithms added (0/0 far away), an inverse of S_k
    instead of C_k.
    """
    x_t = (size * normal(seed, 3, 3)).requires_grad_()
    alpha_t, sigma_t = levels(t)
    g, log_p = prior.responsibilities(x_t, t), prior.log_prob(x_t, t)
    eps_hat, x0_hat = prior.predict_noise(x_t, t)[0], prior.denoise(x_t, t)[0]
    (gradient,) = torch.autograd.grad(log_p.sum(), x_t)
    finite(g, log_p, eps_hat, x0_hat, gradient)
    torch.testing.assert_close(g.sum(-1), torch.ones(1, 3, dtype=F64), rtol=1e-12, atol=0)
    assert bool((g >= 0).all())  # exact: exponentials over their sum
    scale = 1 + x_t.detach().abs().max() + prior.means.abs().max()
    assert (eps_hat + sigma_t * gradient).abs().max() < 1e-10 * eps_hat.abs().max().clamp(min=1)
    assert (
        x0_hat - (x_t - sigma_t * eps_hat) / alpha_t
    ).abs().max() < 1e-10 * scale / alpha_t.min() ** 2


@examples
@given(mixtures(), times, seeds, st.sampled_from([1e-3, 1.0, 1e3]))
def test_tilted_mixture(prior, t, seed, beta):
    """Weights of the optimum sum to 1, and a weight of 0 stays 0.

    Catches weights that are normalised before they are exponentiated.
    """
    tilted, log_z = prior.tilt_linear(normal(seed, 3), beta)
    weights = tilted.log_weights.exp()
    finite(log_z, tilted.means, tilted.predict_noise(tilted.means, t))
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    # exact: exp(-inf) is 0
    assert torch.equal(
        weights[prior.log_weights == -math.inf], 0 * weights[prior.log_weights == -math.inf]
    )


@examples
@given(
    seeds,
    times,
    st.sampled_from([0.0, 1e-12, 1e-4, 1.0, 1e2]),
    st.sampled_from([0.0, 1e-300, 1e-6, 1.0]),
    sizes,
)
def test_pictures_and_points_are_one_mixture(seed, t, variance, weight, size):
    """The two codes for an isotropic mixture agree, with expanded squares and without.

    A component that is switched off by -inf is not there.

    Catches c = alpha_t^2 variance without sigma_t^2, and -inf - (-inf).
    """
    means, x_t = normal(seed, 3, 4), size * normal(seed + 1, 3, 4)
    weights = torch.tensor([1.0, weight, 0.5], dtype=F64)
    prior = GaussianMixture(weights, means, variance, SCHEDULE)
    arguments = (x_t, means[None], weights.log()[None, None].expand(1, 3, 3), variance, *levels(t))
    x0_hat, log_p = isotropic_denoise(*arguments), isotropic_log_prob(*arguments)
    finite(x0_hat, log_p)
    # the expanded squares lose digits where x_t is large and c small
    slack = 1e-14 * (1 + size) ** 2 / levels(t)[1].min().item() ** 2
    torch.testing.assert_close(log_p, prior.log_prob(x_t, t), rtol=1e-9, atol=10 * slack)
    torch.testing.assert_close(x0_hat, prior.denoise(x_t, t), rtol=1e-9, atol=1e-9 + 100 * slack)


@examples
@given(st.lists(st.floats(1e-9, 0.9), min_size=2, max_size=30), seeds, st.data())
def test_schedule(betas, seed, data):
    """alpha_t^2 + sigma_t^2 = 1, and x0, v and score give back eps, for any betas and every t.

    Catches alpha_t and sigma_t swapped in any of them, abar_t for alpha_t, the score without its
    sign.
    """
    schedule = NoiseSchedule.from_betas(torch.tensor(betas, dtype=F64))
    t = torch.tensor(data.draw(st.lists(st.integers(0, len(betas) - 1), min_size=2, max_size=2)))
    x, eps = normal(seed, 2, 5), normal(seed + 1, 2, 5)
    alpha_t, sigma_t = schedule.alpha_sigma(t, x)
    torch.testing.assert_close(
        alpha_t**2 + sigma_t**2, torch.ones(2, 1, dtype=F64), rtol=1e-14, atol=0
    )
    x_t = schedule.add_noise(x, eps, t)
    torch.testing.assert_close(x_t, alpha_t * x + sigma_t * eps, rtol=1e-14, atol=1e-14)
    v = alpha_t * eps - sigma_t * x
    slack = 1e-14 / alpha_t.min().item() ** 2
    for back, true in (
        (schedule.x0_from_eps(x_t, eps, t), x),
        (schedule.eps_from_v(x_t, v, t), eps),
        (
            sigma_t * schedule.eps_from_x0(x_t, x, t),
            sigma_t * eps,
        ),  # which at sigma_t = 0 nobody knows
        (schedule.eps_from_score(-eps / sigma_t, t), eps),
    ):
        torch.testing.assert_close(back, true, rtol=1e-12, atol=10 * slack)


@examples
@given(guidance, seeds, times)
def test_guidance(g, seed, t):
    """cfg is a line in g: at 1 the conditional prediction, at 0 the negative one.

    Equal prompts make it constant. SDS at g is SDS at 1 plus g - 1 times CSD.

    Catches cond + g (cond - neg), a negative prompt that is not asked although g is not 1.
    """
    cond, neg = normal(seed, 2, 3, 4)
    # exact: neg + 0 is neg
    assert torch.equal(cfg(cond, neg, 0.0), neg) and torch.equal(cfg(cond, cond, g), cond)
    torch.testing.assert_close(cfg(cond, neg, 1.0), cond, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        cfg(cond, neg, g), (1 - g) * neg + g * cond, rtol=0, atol=1e-14 * (1 + abs(g))
    )
    prior = GaussianMixture([1.0, 1e-6], normal(seed + 1, 2, 3), 1e-4, SCHEDULE)
    x, eps = normal(seed + 2, 3, 3, 1, 1), normal(seed + 3, 1, 3, 3, 1, 1)
    asked = x, t, eps, Context(prior, torch.tensor([[5.0, -5.0], [0.0, 20.0]], dtype=F64))
    guided, plain, csd = (method(*asked)[0] for method in (SDS(g), SDS(1.0), CSD(g)))
    finite(guided)
    size = plain.abs().max() + abs(g) * csd.abs().max()
    assert (guided - plain - (g - 1) * csd).abs().max() <= 1e-12 * size


@examples
@given(st.floats(-1e300, 1e300), st.floats(1e-300, 1e300), st.sampled_from(["hard", "bt", "gated"]))
def test_omega(gap, tau, kind):
    """Odd, between -1 and 1, of the gap's sign or zero, never NaN, whatever the rewards' unit.

    Catches a sigmoid for the tanh, and exp(R_1) / (exp(R_1) + exp(R_2)), which overflows.
    """
    there, back = omega(torch.tensor([gap, -gap], dtype=F64), kind, tau)
    assert (
        there.item() == pytest.approx(-back.item(), rel=1e-12, abs=1e-300)
        and abs(there) <= 1 + 1e-12
    )
    assert there * math.copysign(1, gap) >= 0  # exact: rounding keeps the sign of a tanh


@examples
@given(seeds, sizes, st.sampled_from([1e-9, 1.0, 1e9]))
def test_surrogate(seed, size, scale):
    """d surrogate / d x = G / B, no matter how large x and G are.

    Where their sizes differ, G keeps the digits that float64 can hold.

    Catches a mean over the elements, and a target that is not detached.
    """
    x, gradient = (size * normal(seed, 4, 3)).requires_grad_(), scale * normal(seed + 1, 4, 3)
    (got,) = torch.autograd.grad(surrogate_loss(x, gradient), x)
    torch.testing.assert_close(got, gradient / 4, rtol=1e-12, atol=1e-15 * (size + scale))


angles = st.floats(-10, 10)
# beside the poles, near the ball and far away, and with lenses from a needle's to all that is in
# front
elevations = st.sampled_from([math.pi / 2 - 1e-12, -math.pi / 2 + 1e-12]) | st.floats(-1.57, 1.57)
distances = st.sampled_from([1 + 1e-9, 1.5, 1e2, 1e6])
lenses = st.sampled_from([1e-9, 1e-3, 0.7, 3.1, math.pi - 1e-9])


def camera(azimuth, elevation, distance, fov):
    return Cameras(
        *(torch.tensor([value], dtype=F64) for value in (azimuth, elevation, distance)), fov
    )


@examples
@given(angles, elevations, distances, lenses, st.integers(1, 4), st.integers(1, 4))
def test_rays(azimuth, elevation, distance, fov, height, width):
    """Directions have unit length, and mirrored pixels the same angle to the line of sight.

    Mirrored columns have the same height z.

    Catches an up vector that is not orthogonal to forward, rows or columns counted from the pixels'
    corners.
    """
    origins, directions = camera_rays(camera(azimuth, elevation, distance, fov), height, width)
    finite(origins, directions)
    torch.testing.assert_close(
        directions.norm(dim=-1), torch.ones(1, height, width, dtype=F64), rtol=1e-12, atol=0
    )
    cosine = (directions * -origins / distance).sum(-1)
    assert bool((cosine > 1e-11).all())  # the widest lens: 1.7e-10
    for mirrored in (cosine.flip(1), cosine.flip(2)):
        torch.testing.assert_close(cosine, mirrored, rtol=0, atol=1e-12)
    torch.testing.assert_close(directions[..., 2], directions[..., 2].flip(-1), rtol=0, atol=1e-12)


@st.composite
def voxels(draw):
    """A field of random voxels in float64: empty, thin, solid, or all of these side by side."""
    field, seed = VoxelField(4).double(), draw(seeds)
    shift = draw(st.sampled_from([-1e3, -30.0, 0.0, 1e8]))
    contrast = draw(st.sampled_from([0.0, 1.0, 1e3]))
    with torch.no_grad():
        field.density.copy_(shift + contrast * normal(seed, *field.density.shape))
        field.colour.copy_(3 * normal(seed + 1, *field.colour.shape))
    return field


@examples
@given(voxels(), angles, elevations, distances, lenses, st.floats(0, 1))
def test_rendering(field, azimuth, elevation, distance, fov, background):
    """Weights are never negative and sum to the opacity, at most 1; colours stay in [0, 1].

    What is seen lies in the ball, and the gradients are finite.

    Catches rho delta for 1 - exp(-rho delta), weights that do not shadow each other, depth divided
    by an opacity of 0.
    """
    picture = render(
        field, camera(azimuth, elevation, distance, fov), 3, n_samples=5, background=background
    )
    finite(*picture)
    assert bool((picture.weights >= -1e-12).all())
    torch.testing.assert_close(picture.weights.sum(-1), picture.opacity[:, 0], rtol=0, atol=1e-12)
    for values in (picture.opacity, picture.rgb):
        assert values.min() >= -1e-12 and values.max() <= 1 + 1e-12
    seen = picture.depth[picture.opacity > 1e-8]
    assert bool(((seen - distance).abs() <= 1 + 1e-9 * distance).all())
    if field.density.max() <= -900:  # softplus is zero: there is nothing
        # exact: exp(-900) is 0, and b + 0 is b
        assert (
            torch.equal(picture.rgb, torch.full_like(picture.rgb, background))
            and not picture.opacity.any()
        )
    gradients = torch.autograd.grad((picture.rgb.sum() + picture.opacity.sum()), field.parameters())
    finite(*gradients)


@examples
@given(voxels(), angles, elevations, distances, st.sampled_from([1e-3, 0.7, 3.0]))
def test_turning_field_and_camera_together(field, azimuth, elevation, distance, fov):
    """A quarter turn of the voxels about z, and of the camera, leaves the picture as it was.

    Catches axes in another order, x for y, columns that run the other way, nodes in the middle of
    cells for nodes on the faces.
    """
    turned = VoxelField(4).double()
    with torch.no_grad():  # [z, y, x]: (x, y) goes to (-y, x)
        for name in ("density", "colour"):
            getattr(turned, name).copy_(torch.rot90(getattr(field, name), 1, (4, 3)))
    before = render(field, camera(azimuth, elevation, distance, fov), 3, n_samples=5)
    after = render(turned, camera(azimuth + math.pi / 2, elevation, distance, fov), 3, n_samples=5)
    # a point that is off by the rounding of its distance meets another density
    contrast = (field.density.max() - field.density.min()).item()
    torch.testing.assert_close(
        after.rgb, before.rgb, rtol=0, atol=1e-10 + 1e-14 * distance * contrast
    )


@examples
@given(
    seeds,
    st.sampled_from([0.0, 1e-9, 1.0, 1e3]),
    st.sampled_from([1e-6, 1.0, 1e6]),
    guidance.filter(lambda g: g != 1),
)
def test_the_trust_region_holds(seed, radius, lr, g):
    """||n - n_0|| <= radius after every step, and n stays finite.

    Catches a projection of n instead of n - n_0, and 0 / 0 before the first step or at radius 0.
    """
    prior = GaussianMixture([0.5, 0.5], normal(seed, 2, 3), 0.1, SCHEDULE)
    start = normal(seed + 1, 2)
    negative = NegativeEmbedding(start, g, "inversion", lr=lr, radius=radius)
    context = Context(
        prior,
        torch.stack((start, start)),
        None,
        [""] * 2,
        lambda images, prompts: images.sum((1, 2, 3)),
    )
    for _ in range(2):
        negative.step(
            0.5, normal(seed + 2, 2, 3, 1, 1), context, torch.Generator().manual_seed(seed)
        )
        finite(negative.embedding)
        assert (negative.embedding - start).norm() <= radius * (1 + 1e-9) + 1e-12
