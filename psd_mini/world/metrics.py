"""What a finished object is worth: measured against the true world seen by the same cameras.

At each of 24 fixed cameras outside the training pool the world is drawn in every (object, colour)
and compared with the result's picture, both in [0, 1] and 64 x 64. The choice of (object, colour)
is made once, for the whole object:

    d_k = mean over cameras of RMS over pixels and channels of (picture - picture of k)
    recognised = argmin_k d_k,    true_view_distance = min_k d_k

    log_density_gap = mean over cameras of
        (log p(true picture of the recognised k) - log p(picture)) / D    [nats]

with p the mixture of that camera's pictures with kernel width tau = KERNEL_WIDTH and equal weights.
Where one component dominates, the gap is the mean over cameras of RMS^2 / (2 tau^2): with one
isotropic kernel it is the distance in other units and NOT independent evidence. It is reported
because it is what a prior with a density calls "off the manifold".

Comparing at the same cameras matters: against the nearest view of a pool even a perfect object
keeps a distance that measures the pool's density.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini._internal.runs import plain_torch
from psd_mini.world.objects import COLOURS, OBJECTS
from psd_mini.world.pool import WorldViews, fresh_cameras, make_views
from psd_mini.world.text import components
from psd_mini.world.views import recolour

KERNEL_WIDTH = 0.05  # tau: standard deviation of the kernel around each true picture, in [0, 1]
JUDGE_RESOLUTION = 64  # pixels per side of the pictures that are judged


@dataclass(frozen=True)
class Judgement:
    """What the judge found.

    recognised: (object, colour) with the smallest distance; true_view_distance: that distance, in
    [0, 1] units; log_density_gap: nats per dimension; distances: (M,) of all components, in the
    order of `text.components`.
    """

    recognised: tuple[str, str]
    true_view_distance: float
    log_density_gap: float
    distances: Float[Tensor, " m"]


@functools.cache
@plain_torch()
def judge_views() -> WorldViews:
    """The world from the 24 judging cameras at 64 x 64 pixels."""
    return make_views(fresh_cameras(), JUDGE_RESOLUTION)


def squared_distances(images: Float[Tensor, "p 3 h w"], views: WorldViews) -> Float[Tensor, "p m"]:
    """Mean squared difference to every component at each camera, (P, M), in float64.

    A true picture is base_o + main_o c, so with r_o = picture - base_o nothing needs to be drawn:

        || picture - base_o - main_o c ||^2
            = ||r_o||^2 - 2 sum_ch c_ch <r_o,ch, main_o> + ||c||^2 ||main_o||^2
    """
    layers = views.layers.transpose(0, 1).double()  # (P, O, 4, H, W)
    main = layers[:, :, 3:]
    residual = images.double()[:, None] - layers[:, :, :3]
    colours = views.colours.double()
    overlap = (residual * main).sum(dim=(3, 4))  # (P, O, 3)
    squared = (
        residual.square().sum(dim=(2, 3, 4))[..., None]
        - 2 * overlap @ colours.T
        + main.square().sum(dim=(2, 3, 4))[..., None] * colours.square().sum(dim=1)
    )
    return squared.clamp(min=0).flatten(1) / images[0].numel()


def log_density(squared: Float[Tensor, "p m"], views: WorldViews) -> Float[Tensor, " p"]:
    """log p(picture) / D from `squared_distances`, without the terms that all pictures share.

    log p = logsumexp_k( -D d_k^2 / (2 tau^2) ) - log M - (D / 2) log(2 pi tau^2)
    """
    dimension = views.layers[0, 0, :3].numel()
    return torch.logsumexp(-dimension * squared / (2 * KERNEL_WIDTH**2), dim=1) / dimension


@validated
def judge(images: Float[Tensor, "p 3 h w"], views: WorldViews | None = None) -> Judgement:
    """Judge a finished object by its pictures at the judging cameras.

    Args:
        images: (P, 3, H, W) in [0, 1], the object seen by `views.cameras` in their order.
        views: the world at those cameras; default the 24 fixed ones at 64 x 64.

    Raises:
        ValueError: pictures that do not fit the views in number or resolution.
    """
    views = views or judge_views()
    expected, came = (len(views.cameras), 3, *views.layers.shape[-2:]), tuple(images.shape)
    if came != expected:
        raise ValueError(f"images: expected {expected}, one per camera of views; got {came}")
    squared = squared_distances(images, views)
    distances = squared.sqrt().mean(dim=0)
    best = int(distances.argmin())
    name, colour = components()[best]
    own = views.colours[best % len(COLOURS)]
    true_pictures = recolour(views.layers[best // len(COLOURS)], own[None])[:, 0]
    gap = log_density(squared_distances(true_pictures, views), views) - log_density(squared, views)
    return Judgement((name, colour), float(distances[best]), float(gap.mean()), distances)


@validated
def shown_vividness(
    images: Float[Tensor, "p 3 h w"], wanted: tuple[str, str], views: WorldViews | None = None
) -> float:
    """How vivid an object's main colour is, along the way from gray to the colour that is wanted.

        c = sum <picture - base, main> / sum main^2           the colour that fits all views best
        vividness = <c - gray, c* - gray> / ||c* - gray||^2   0 is gray, 1 the wanted colour c*

    Args:
        images: (P, 3, H, W) in [0, 1], the object seen by `views.cameras` in their order.
        wanted: (object, colour), a colour that is not gray.
        views: the world at those cameras; default the 24 fixed ones at 64 x 64.
    """
    name, colour = wanted
    layers = (views or judge_views()).layers[list(OBJECTS).index(name)].double()  # (P, 4, H, W)
    base, main = layers[:, :3], layers[:, 3:]
    shown = ((images.double() - base) * main).sum(dim=(0, 2, 3)) / main.square().sum()
    gray, full = (torch.tensor(COLOURS[which], dtype=torch.float64) for which in ("gray", colour))
    return float((shown - gray) @ (full - gray) / (full - gray).square().sum())
