"""Volume rendering: what a camera sees of a field.

Light along a ray r(z) = o + z d, for density (extinction) rho and colour c, in front of a
background b:

    rgb = integral_near^far T(z) rho(z) c(z) dz + T(far) b,        T(z) = exp(-integral_near^z rho)

T is the transmittance: the share of light that gets through. With S samples, rho and c constant in
bins of width delta_i, the integral is exact and becomes a weighted sum (Max 1995; Mildenhall et al.
2020, arXiv 2003.08934, eq. 3):

    T_i = exp(-sum_{j<i} rho_j delta_j),    w_i = T_i (1 - exp(-rho_i delta_i)) = T_i - T_{i+1}
    rgb = sum_i w_i c_i + (1 - opacity) b,  opacity = sum_i w_i = 1 - T_{S+1}

The weights are probabilities: w_i is the chance that a photon from this pixel is stopped in bin i,
1 - opacity that it reaches the background. Together they sum to one, because the T_i telescope.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import at_least, in_words, validated
from psd_mini.cameras import Cameras, camera_rays


class Rendering(NamedTuple):
    """What `render` returns, for B cameras and H x W pixels with S samples each.

    rgb (B, C, H, W) in [0, 1]; opacity (B, 1, H, W) in [0, 1]; depth (B, 1, H, W): mean distance
    from the camera at which light is stopped, world units, 0 where nothing stops it; weights (B, H,
    W, S): w_i; z (B, H, W, S): where along the ray the samples are, world units from the camera.
    Pixels whose ray misses the field have weights, opacity, depth and z of 0.
    """

    rgb: Float[Tensor, "b c h w"]
    opacity: Float[Tensor, "b 1 h w"]
    depth: Float[Tensor, "b 1 h w"]
    weights: Float[Tensor, "b h w s"]
    z: Float[Tensor, "b h w s"]


def compositing_weights(
    density: Float[Tensor, "n s"], widths: Float[Tensor, "n s"]
) -> tuple[Float[Tensor, "n s"], Float[Tensor, " n"]]:
    """Weights w_i of the samples along each ray, and the opacity.

        T_i = exp(-sum_{j<i} rho_j delta_j),    w_i = T_i - T_{i+1},    opacity = 1 - T_{S+1}

    Args:
        density: rho_i >= 0 in 1 / world units.
        widths: delta_i >= 0, world units.

    Returns:
        weights (N, S) and opacity (N,), both in [0, 1].
    """
    optical_depth = torch.cumsum(density * widths, dim=-1)
    # expm1 keeps the digits of thin fog, where 1 - exp(-tiny) would lose them
    stopped = -torch.expm1(-optical_depth)  # 1 - T_{i+1}
    weights = torch.diff(stopped, dim=-1, prepend=torch.zeros_like(stopped[:, :1]))
    return weights, stopped[:, -1]


def ball_interval(
    origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], radius: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Where rays enter and leave the ball of this radius around the origin.

        |o + z d|^2 = R^2   =>   z = m -+ sqrt(R^2 - |o + m d|^2),    m = -o.d

    Returns:
        near, far (N,): world units; near = far where the ray misses.
    """
    middle = -(origins * directions).sum(-1)
    # |o + m d|^2 and not |o|^2 - m^2, which loses all float32 digits for a camera far away
    half = (
        (radius**2 - ((origins + middle[..., None] * directions) ** 2).sum(-1)).clamp(min=0).sqrt()
    )
    return middle - half, middle + half


def evaluate(
    field: Callable[[Tensor], tuple[Tensor, Tensor]], points: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c"]]:
    """field(points), after a look at the shapes; ValueError where they are not density (N,) and
    colour (N, C)."""
    answer = field(points)
    shapes: list[tuple[int, ...]] = (
        [getattr(part, "shape", ()) for part in answer] if isinstance(answer, tuple | list) else []
    )
    if (
        len(shapes) != 2
        or shapes[0] != (len(points),)
        or len(shapes[1]) != 2
        or shapes[1][0] != len(points)
    ):
        came = [tuple(shape) for shape in shapes] or in_words(answer)
        raise ValueError(
            f"field: expected density ({len(points)},) and colour ({len(points)}, C), got {came}"
        )
    return answer[0], answer[1]


def opacity_entropy(opacity: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean binary entropy of the pixels' opacities, in nats: 0 where each pixel is decided.

        H(o) = -o log o - (1 - o) log(1 - o)

    Pulls fog apart into surface and empty space (threestudio calls it the opaque loss).
    """
    o = opacity.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


@validated
def render(
    field: Callable[[Tensor], tuple[Tensor, Tensor]],
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
        field: points (N, 3) -> density (N,), colour (N, C).
        cameras: B cameras outside the ball.
        height, width: pixels; width defaults to height.
        n_samples: S, bins per ray; a ray is cut into S equal bins between its entry into and its
            exit from the ball.
        background: b: a number, (C,), or anything that broadcasts to (B, C, H, W), in [0, 1].
        radius: of the ball that holds the field, world units; default `field.bound`.
        generator: places each sample at random in its bin (stratified sampling: no banding in the
            mean); None takes the middle of the bin.

    Returns:
        `Rendering`.

    Raises:
        ValueError: a camera inside the ball, fewer than one sample or pixel, a background of
            another shape, no radius.
    """
    radius = getattr(field, "bound", None) if radius is None else radius
    if radius is None:
        raise ValueError(
            "radius: expected world units, got None and a field without `bound`; pass for"
            " example 1.0"
        )
    width = height if width is None else width
    at_least("n_samples", n_samples, 1)
    if (cameras.distance <= radius).any():
        raise ValueError(
            f"distance: a camera at {cameras.distance.min().item():g} is inside the field's"
            f" bounding radius {radius:g}; move it further out, for example to {3 * radius:g}"
        )
    origins, directions = camera_rays(cameras, height, width)
    origins = origins[:, None, None].expand_as(directions).reshape(-1, 3)
    directions = directions.reshape(-1, 3)
    near, far = ball_interval(origins, directions, radius)

    hit = (far > near).nonzero()[
        :, 0
    ]  # rays that miss the ball see only background: no field evaluation for them
    near, far = near[hit], far[hit]
    shape = (len(hit), n_samples)
    offsets = (
        torch.full(shape, 0.5, dtype=near.dtype)
        if generator is None
        else torch.rand(shape, generator=generator)
    )
    offsets = offsets.to(near)
    widths = ((far - near) / n_samples)[:, None].expand(shape)
    z = near[:, None] + widths * (torch.arange(n_samples).to(near) + offsets)
    points = origins[hit, None] + z[..., None] * directions[hit, None]

    density, colour = evaluate(field, points.reshape(-1, 3))
    weights, opacity = compositing_weights(density.view(shape), widths)
    # sum_i w_i c_i, and the mean of z under the weights
    foreground = (weights[..., None] * colour.view(*shape, colour.shape[-1])).sum(1)
    depth = (weights * z).sum(-1) / opacity.clamp(min=1e-8)

    def to_picture(values: Tensor) -> Tensor:
        full = values.new_zeros(len(origins), values.shape[-1]).index_copy(0, hit, values)
        return full.view(len(cameras), height, width, values.shape[-1])

    flat = to_picture(torch.cat((foreground, opacity[:, None], depth[:, None]), dim=-1)).permute(
        0, 3, 1, 2
    )
    foreground, opacity, depth = flat[:, :-2], flat[:, -2:-1], flat[:, -1:]
    background = torch.as_tensor(background, dtype=flat.dtype, device=flat.device)
    if background.ndim == 1:
        background = background[:, None, None]
    try:
        background = background.expand_as(foreground)
    except RuntimeError:
        raise ValueError(
            "background: expected a number, (C,) or a shape that broadcasts to"
            f" {tuple(foreground.shape)}, got {tuple(background.shape)}"
        ) from None
    # rgb = sum_i w_i c_i + (1 - opacity) b
    rgb = foreground + (1 - opacity) * background
    return Rendering(rgb, opacity, depth, to_picture(weights), to_picture(z))
