"""Specks: what the regularisers do to half-transparent matter, and how specks are measured."""

import math

import pytest
import specks
import torch

from psd_mini.pipelines.generate import with_defaults
from psd_mini.rendering import opacity_entropy


@pytest.mark.parametrize("opacity_weight", [0.0, 0.01, 0.02])
def test_opacity_moves_the_point_from_which_entropy_fills_matter_up(opacity_weight):
    """d/do { w_e H(o) + w_o o } = w_e log((1 - o) / o) + w_o = 0 at o = sigmoid(w_o / w_e).

    Below it descent takes matter away, above it descent makes it opaque.
    """
    entropy_weight = 0.01
    turn = 1 / (1 + math.exp(-opacity_weight / entropy_weight))
    o = torch.tensor([turn - 0.05, turn, turn + 0.05], dtype=torch.float64, requires_grad=True)
    loss = sum(entropy_weight * opacity_entropy(one) + opacity_weight * one for one in o)
    (slope,) = torch.autograd.grad(loss, o)
    assert slope[0] > 1e-4 and abs(slope[1]) < 1e-12 and slope[2] < -1e-4


def test_the_silhouette_of_a_ball_is_a_disc():
    """Its radius is (H / 2) tan(asin(R / d)) / tan(fov / 2) for a ball of radius R at d."""
    radius = 32 * math.tan(math.asin(0.8 / 3)) / math.tan(math.radians(20))
    areas = specks.silhouette("ball").sum(dim=(1, 2))
    torch.testing.assert_close(areas, torch.full((24,), math.pi * radius**2), rtol=5e-3, atol=0)


def test_the_true_silhouette_has_neither_specks_nor_holes_and_a_wall_has_specks():
    """A wall has a speck in every pixel outside the grown disc; empty space is one hole."""
    alpha = specks.silhouette("ball")
    # exact: sums of zeros
    assert specks.specks_and_holes(alpha, "ball") == (0.0, 0.0)
    found, holes = specks.specks_and_holes(torch.ones_like(alpha), "ball")
    # a square structuring element grows a disc by MARGIN sideways and by up to sqrt(2) MARGIN
    radius = (alpha.sum() / 24 / math.pi).sqrt().item()
    least, most = (
        (64**2 - math.pi * (radius + far) ** 2) / (math.pi * radius**2)
        for far in (math.sqrt(2) * specks.MARGIN + 1, specks.MARGIN - 1)
    )
    assert least < found < most and holes == 0.0  # exact: sums of zeros
    assert specks.specks_and_holes(torch.zeros_like(alpha), "ball")[1] == pytest.approx(1)


def test_voxels_of_the_exact_rung_are_cleaned_by_default():
    """And triplanes, which have no specks, and other priors are not; what is given wins."""

    def weight(prior, field, **given):
        return with_defaults(prior, field, False, False, given).get("opacity_weight")

    # exact: settings as they stand in DEFAULTS, and as they were given
    assert (weight("exact", "voxel"), weight("exact", "triplane")) == (0.01, None)
    # exact: settings as they were given
    assert (weight("learned", "voxel"), weight("exact", "voxel", opacity_weight=0)) == (None, 0)
