"""Volume rendering: what a camera sees of a field.

Light along a ray r(z) = o + z d, for density (extinction) rho and colour c, in front of a
background b:

    rgb = integral_near^far T(z) rho(z) c(z) dz + T(far) b,        T(z) = exp(-integral_near^z rho)

T is the transmittance: the share of light that gets through. Cut the ray into S bins of width
delta_i. With rho and c constant in each bin the integral is a weighted sum, without an error:

    T_i = exp(-sum_{j<i} rho_j delta_j),    w_i = T_i (1 - exp(-rho_i delta_i)) = T_i - T_{i+1}
    rgb = sum_i w_i c_i + (1 - opacity) b,  opacity = sum_i w_i = 1 - T_{S+1}

The weights are probabilities: w_i is the chance that a photon from this pixel is stopped in bin i,
1 - opacity that it reaches the background. Together they sum to one, because the T_i telescope.

References: Max 1995, "Optical models for direct volume rendering"; Mildenhall et al. 2020 (arXiv
2003.08934), eq. 3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import at_least, in_words, validated
from psd_mini.cameras import Cameras, camera_rays

PerRay = Float[Tensor, " n"]  # one number for each of N rays
PerSample = Float[Tensor, "n s"]  # one number for each of S samples on each of N rays
Field = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (N, 3) -> density (N,), colour (N, C)


class Rendering(NamedTuple):
    """What `render` returns, for B cameras and H x W pixels with S samples each.

    rgb: (B, C, H, W), in [0, 1].
    opacity: (B, 1, H, W), in [0, 1].
    depth: (B, 1, H, W), mean distance from the camera at which light is stopped, world units; 0
        where nothing stops it.
    weights: (B, H, W, S), the w_i.
    z: (B, H, W, S), distance of the samples from the camera, world units.

    Pixels whose ray misses the field have weights, opacity, depth and z of 0.
    """

    rgb: Float[Tensor, "b c h w"]
    opacity: Float[Tensor, "b 1 h w"]
    depth: Float[Tensor, "b 1 h w"]
    weights: Float[Tensor, "b h w s"]
    z: Float[Tensor, "b h w s"]


def ball_interval(
    origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], radius: float
) -> tuple[PerRay, PerRay]:
    """Where rays enter and leave the ball of this radius around the origin.

        |o + z d|^2 = R^2   =>   z = m -+ sqrt(R^2 - |o + m d|^2),    m = -o.d

    Returns:
        near, far (N,): world units; near = far where the ray misses.
    """
    middle = -(origins * directions).sum(-1)
    # |o + m d|^2 and not |o|^2 - m^2, which loses all float32 digits for a camera far away
    closest = ((origins + middle[..., None] * directions) ** 2).sum(-1)
    half = (radius**2 - closest).clamp(min=0).sqrt()
    return middle - half, middle + half


def sample_depths(
    near: PerRay, far: PerRay, n_samples: int, generator: torch.Generator | None
) -> tuple[PerSample, PerSample]:
    """One sample in each of S equal bins between near and far.

        delta = (far - near) / S,    z_i = near + (i + u_i) delta,    i = 0, ..., S-1

    u_i is uniform on [0, 1) (stratified sampling), or 1/2 where generator is None.

    Returns:
        z and delta, both (N, S), world units.
    """
    shape = (len(near), n_samples)
    u = torch.full(shape, 0.5)
    if generator is not None:
        u = torch.rand(shape, generator=generator, device=generator.device)
    widths = ((far - near) / n_samples)[:, None].expand(shape)
    return near[:, None] + widths * (torch.arange(n_samples).to(near) + u.to(near)), widths


def as_field(field: Any, values: Tensor) -> Tensor:
    """Values in the precision and on the device of a field's parameters, if it has any."""
    return values.to(next(getattr(field, "parameters", lambda: iter(()))(), values))


def evaluate(field: Field, points: Float[Tensor, "n 3"]) -> tuple[PerRay, Float[Tensor, "n c"]]:
    """field(points); ValueError where that is not density (N,) and colour (N, C)."""
    answer, n = field(points), len(points)
    parts = answer if isinstance(answer, tuple | list) else ()
    shapes = [tuple(getattr(part, "shape", ())) for part in parts]
    if len(shapes) != 2 or shapes[0] != (n,) or len(shapes[1]) != 2 or shapes[1][0] != n:
        came = shapes or in_words(answer)
        raise ValueError(f"field: expected density ({n},) and colour ({n}, C), got {came}")
    return answer[0], answer[1]


def compositing_weights(density: PerSample, widths: PerSample) -> tuple[PerSample, PerRay]:
    """Weights w_i of the samples along each ray, and the opacity.

        T_i = exp(-sum_{j<i} rho_j delta_j),    w_i = T_i - T_{i+1},    opacity = 1 - T_{S+1}

    Args:
        density: rho_i >= 0 in 1 / world units.
        widths: delta_i >= 0, world units.

    Returns:
        weights (N, S) and opacity (N,), both in [0, 1].
    """
    optical_depth = torch.cumsum(density * widths, dim=-1)
    # 1 - T_{i+1}; expm1 keeps the digits of thin fog, where 1 - exp(-tiny) would lose them
    stopped = -torch.expm1(-optical_depth)
    weights = torch.diff(stopped, dim=-1, prepend=torch.zeros_like(stopped[:, :1]))
    return weights, stopped[:, -1]


@validated
def render(
    field: Field,
    cameras: Cameras,
    height: int,
    width: int | None = None,
    *,
    n_samples: int = 32,
    background: float | Float[Tensor, "..."] = 1.0,
    radius: float | None = None,
    generator: torch.Generator | None = None,
) -> Rendering:
    """Picture of a field from B cameras (equations: the module's docstring).

    Args:
        field: points (N, 3) -> density (N,), colour (N, C). Where it has parameters, the picture
            has their dtype and device, whatever the cameras have.
        cameras: B cameras outside the ball.
        height, width: H and W in pixels; width defaults to height.
        n_samples: S, bins per ray, of equal width, from where it enters the ball to where it
            leaves.
        background: b: a number, (C,), or anything that broadcasts to (B, C, H, W), in [0, 1].
        radius: of the ball that holds the field, world units; default `field.bound`.
        generator: places each sample at random in its bin, which avoids banding in the mean over
            many pictures; None takes the middle of the bin.

    Returns:
        `Rendering`.

    Raises:
        ValueError: a camera inside the ball, fewer than one sample or pixel, a background of
            another shape, no radius.
    """
    radius = getattr(field, "bound", None) if radius is None else radius
    if radius is None:
        came = "None and a field without `bound`"
        raise ValueError(f"radius: expected world units, got {came}; pass for example 1.0")
    width = height if width is None else width
    at_least("n_samples", n_samples, 1)
    if (cameras.distance <= radius).any():
        came = f"a camera at {cameras.distance.min().item():g} is inside the field's radius"
        raise ValueError(f"distance: {came} {radius:g}; move it further out, to {3 * radius:g}")

    # one ray per pixel; those that miss the ball see only background, the field is not asked there
    origins, directions = (as_field(field, r) for r in camera_rays(cameras, height, width))
    origins = origins[:, None, None].expand_as(directions).reshape(-1, 3)
    directions = directions.reshape(-1, 3)
    near, far = ball_interval(origins, directions, radius)
    hit = (far > near).nonzero()[:, 0]
    z, widths = sample_depths(near[hit], far[hit], n_samples, generator)
    # r(z) = o + z d
    points = origins[hit, None] + z[..., None] * directions[hit, None]

    density, colour = evaluate(field, points.reshape(-1, 3))
    weights, opacity = compositing_weights(density.view(z.shape), widths)
    # sum_i w_i c_i, and the mean of z under the weights
    foreground = (weights[..., None] * colour.view(*z.shape, colour.shape[-1])).sum(1)
    depth = (weights * z).sum(-1) / opacity.clamp(min=1e-8)

    def to_picture(values: Tensor) -> Tensor:
        """(hits, k) -> (B, H, W, k), with zeros for the rays that missed."""
        full = values.new_zeros(len(origins), values.shape[-1]).index_copy(0, hit, values)
        return full.view(len(cameras), height, width, values.shape[-1])

    layers = to_picture(torch.cat((foreground, opacity[:, None], depth[:, None]), dim=-1))
    layers = layers.permute(0, 3, 1, 2)
    foreground, opacity, depth = layers[:, :-2], layers[:, -2:-1], layers[:, -1:]
    # rgb = sum_i w_i c_i + (1 - opacity) b
    rgb = foreground + (1 - opacity) * _as_background(background, foreground)
    return Rendering(rgb, opacity, depth, to_picture(weights), to_picture(z))


def _as_background(background: float | Tensor, like: Float[Tensor, "b c h w"]) -> Tensor:
    """b in the shape, dtype and place of a picture."""
    background = torch.as_tensor(background, dtype=like.dtype, device=like.device)
    if background.ndim == 1:
        background = background[:, None, None]
    try:
        return background.expand_as(like)
    except RuntimeError:
        expected = f"a number, (C,) or a shape that broadcasts to {tuple(like.shape)}"
        came = tuple(background.shape)
        raise ValueError(f"background: expected {expected}, got {came}") from None


def opacity_entropy(opacity: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean binary entropy of opacities: a loss that turns fog into surfaces and empty space.

        H(o) = -o log o - (1 - o) log(1 - o)

    It is 0 where light surely passes or surely stops, and log 2 = 0.69 at o = 1/2.

    Args:
        opacity: o of every pixel, any shape, in [0, 1]; clamped to [0.001, 0.999], where H has
            finite slopes.

    Returns:
        The mean over all pixels, a scalar in nats.

    Source: the "opaque" loss of threestudio (2023).
    """
    o = opacity.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def depth_variance(weights: Float[Tensor, "*b s"], z: Float[Tensor, "*b s"]) -> Float[Tensor, ""]:
    """How thick surfaces are: the mean over pixels of the variance of depth along the ray.

        wn_i = w_i / sum_j w_j,    mean = sum_i wn_i z_i,    variance = sum_i wn_i (z_i - mean)^2

    Without the division a half-transparent ray is punished too, and how much depends on where z = 0
    is. d variance / d w_k = [(z_k - mean)^2 - variance] / sum_j w_j: samples nearer than one
    standard deviation gain.

    Args:
        weights, z: of a `Rendering`.

    Returns:
        A scalar, world units squared, over pixels with opacity above 1/2; 0 if there are none.

    Source: HiFA's z-variance (Zhu & Zhuang 2023, arXiv 2305.18766).
    """
    share = weights.sum(-1, keepdim=True)
    normalised = weights / share.clamp(min=1e-5)
    mean = (normalised * z).sum(-1, keepdim=True)
    variance = (normalised * (z - mean) ** 2).sum(-1)
    solid = (share[..., 0] > 0.5).to(z)
    return (variance * solid).sum() / solid.sum().clamp(min=1)
