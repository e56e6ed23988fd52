"""Rewards against plain algebra, and what happens to rewards that misbehave."""

import functools
import math

import numpy as np
import pytest
import torch
from gaussian_world import QuadraticReward

from psd_mini.rewards import Colorfulness, LinearReward, NamedColor, black_box, make_reward, score
from psd_mini.world.objects import COLOURS
from psd_mini.world.views import AMBIENT

pytestmark = pytest.mark.algebra


def pictures(n=2, size=4, seed=0):
    return torch.rand(
        n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_colorfulness_is_the_published_formula_over_255():
    """M = sqrt(var_rg + var_yb) + 0.3 sqrt(mean_rg^2 + mean_yb^2) on 0..255 values, over 255,
    pixel by pixel in python."""
    images = pictures()
    for image, value in zip(images, Colorfulness()(images), strict=True):
        rg, yb = [], []
        for row in range(4):
            for column in range(4):
                red, green, blue = (255 * channel for channel in image[:, row, column].tolist())
                rg.append(red - green)
                yb.append(0.5 * (red + green) - blue)
        mean = [sum(v) / 16 for v in (rg, yb)]
        var = [sum((a - m) ** 2 for a in v) / 16 for v, m in zip((rg, yb), mean, strict=True)]
        published = sum(var) ** 0.5 + 0.3 * (mean[0] ** 2 + mean[1] ** 2) ** 0.5
        assert value.item() == pytest.approx(published / 255, rel=1e-9)


def test_grey_is_not_colourful_and_its_gradient_is_finite():
    """M(grey) = 0 (up to the constant under the roots, 1.3e-6), with a finite gradient."""
    image = torch.full((1, 3, 4, 4), 0.4, dtype=torch.float64, requires_grad=True)
    value = Colorfulness()(image)
    (gradient,) = torch.autograd.grad(value.sum(), image)
    assert value.item() < 2e-6 and torch.isfinite(gradient).all()


def test_colorfulness_scales_with_contrast():
    """M(k image) = k M(image): homogeneous of degree one."""
    images = pictures()
    torch.testing.assert_close(
        Colorfulness()(0.3 * images), 0.3 * Colorfulness()(images), rtol=1e-9, atol=1e-9
    )


def test_named_colour_counts_pixels_at_any_shade():
    """A third of the pixels in c, a third in 0.7 c, the rest far away: r = 2/3; in black:
    exp(-(0.65 |c|)^2 / 2 w^2)."""
    c = torch.tensor(COLOURS["red"], dtype=torch.float64)
    image = (
        torch.ones(1, 3, 3, 3, dtype=torch.float64)
        * torch.tensor([0.0, 1.0, 1.0]).double()[None, :, None, None]
    )
    image[0, :, 0], image[0, :, 1] = c[:, None], 0.7 * c[:, None]
    assert NamedColor(COLOURS["red"])(image).item() == pytest.approx(2 / 3, abs=1e-3)
    black = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    expected = torch.exp(-((0.65 * c.norm()) ** 2) / (2 * 0.2**2))
    torch.testing.assert_close(
        NamedColor(COLOURS["red"])(black)[0], expected, rtol=1e-9, atol=1e-12
    )
    assert (
        NamedColor.darkest == AMBIENT
    )  # the toy world's shadows are the darkest shade that counts


def test_what_is_brighter_than_the_colour_is_not_the_colour():
    """White beside grey (1/2, 1/2, 1/2), s at most 1: r = exp(-3 / 4 / (2 w^2))."""
    grey, white = NamedColor((0.5, 0.5, 0.5), width=0.7), torch.ones(1, 3, 2, 2).double()
    assert grey(white).item() == pytest.approx(math.exp(-0.75 / (2 * 0.49)), rel=1e-12)


def test_a_black_box_is_given_plain_pictures_and_answers_like_a_reward():
    """It sees pictures without gradients, and its list becomes scores beside the pictures."""
    seen, images = [], pictures().requires_grad_()

    def judge(images, prompts):
        seen.append((images.requires_grad, torch.is_grad_enabled(), prompts))
        return [0.1, 0.2]

    reward = black_box(judge)
    assert reward.differentiable is False and reward.__name__ == "judge"
    scores = reward(images, ["a", "b"])
    assert seen == [(False, False, ["a", "b"])] and not scores.requires_grad
    # exact: 0.1 and 0.2 in double precision, handed on
    assert scores.dtype == torch.float64 and scores.tolist() == [0.1, 0.2]
    assert black_box(functools.partial(judge)).__name__ == "function"  # it has no name of its own


def test_linear_and_quadratic():
    """r = <v, x> + c and r = -(x - b)^T Q (x - b) / 2, sums in python."""
    x, v, b = (
        pictures(3, 1).flatten(1),
        torch.tensor([1.0, -2.0, 0.5]).double(),
        torch.tensor([0.1, 0.2, 0.3]).double(),
    )
    Q = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]]).double()
    linear, quadratic = LinearReward(v, 0.7)(x), QuadraticReward(b, Q)(x)
    assert LinearReward(v).differentiable and LinearReward(v).c == 0
    for i in range(3):
        away = (x[i] - b).tolist()
        assert linear[i].item() == pytest.approx(
            sum(a * w for a, w in zip(x[i].tolist(), v.tolist(), strict=True)) + 0.7
        )
        expected = -0.5 * sum(
            away[j] * Q[j, k].item() * away[k] for j in range(3) for k in range(3)
        )
        assert quadratic[i].item() == pytest.approx(expected)


@pytest.mark.parametrize("reward", [Colorfulness(), NamedColor(COLOURS["blue"])])
def test_gradients_by_finite_differences(reward):
    assert reward.differentiable
    assert torch.autograd.gradcheck(
        lambda images: reward(images, []), pictures(1, 3).requires_grad_()
    )


def test_rewards_by_name():
    assert isinstance(make_reward("colorfulness"), Colorfulness)
    assert make_reward("color:grey").colour == COLOURS["gray"]
    known = "choose colorfulness, proxy:smooth, proxy:rugged, image-reward, hpsv2, pickscore or"
    for name in ("colorful", "color:", "color:mauve", "colorfulness:red"):
        with pytest.raises(ValueError, match=f"reward: '{name}' is not known; {known}"):
            make_reward(name)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda i, p: torch.full((len(i),), torch.nan), "returned NaN or infinity for image 0"),
        (lambda i, p: torch.tensor([0.0, -torch.inf]), "returned NaN or infinity for image 1"),
        (lambda i, p: [0.0, float("inf")], "returned NaN or infinity for image 1"),
        (lambda i, p: torch.zeros(len(i), 1), r"returned shape \(2, 1\), expected \(2,\)"),
        (
            lambda i, p: torch.zeros(len(i) + 1),
            r"returned shape \(3,\), expected \(2,\), one per image",
        ),
        (lambda i, p: torch.zeros(()), r"returned shape \(\), expected \(2,\)"),
        (lambda i, p: 1.0, r"returned shape \(\), expected \(2,\)"),
        (lambda i, p: "good", r"returned str, expected \(2,\) numbers"),
        (lambda i, p: None, r"returned NoneType, expected \(2,\) numbers"),
        (lambda i, p: torch.zeros(2) * 1j, r"returned complex numbers, expected \(2,\) real ones"),
        (
            lambda i, p: torch.zeros(2, device="meta"),
            "answered on device meta, and moving it to cpu failed",
        ),
        (lambda i, p: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda i, p: i @ p, "raised TypeError: "),
    ],
)
def test_misbehaving_rewards_are_named(answer, message):
    with pytest.raises(ValueError, match=f"reward: <lambda> {message}") as error:
        score(answer, pictures(), ["a", "b"])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="reward: this method needs one"):
        score(None, pictures(), ["a", "b"])


@pytest.mark.parametrize(
    "answer",
    [
        [1.0, 2.0],
        (1, 2),
        torch.tensor([1, 2]),
        torch.tensor([1.0, 2.0]),
        np.array([1, 2], dtype=np.uint8),
    ],
)
def test_lists_and_integers_are_scores_too(answer):
    """Anything that holds one number per image becomes scores in the images' dtype."""
    scores = score(lambda i, p: answer, pictures(), ["a", "b"])
    assert scores.tolist() == [1.0, 2.0] and scores.dtype == torch.float64  # exact: handed on


def test_a_score_that_overflows_in_the_images_precision_is_infinite():
    """1e300 is a float64 but not a float32: a difference of two such rewards would be NaN."""
    answer = torch.tensor([0.0, 1e300], dtype=torch.float64)
    assert score(lambda i, p: answer, pictures(), ["a", "b"])[1] == 1e300  # exact: handed on
    with pytest.raises(ValueError, match="returned NaN or infinity for image 1"):
        score(lambda i, p: answer, pictures().float(), ["a", "b"])


def test_exception_of_a_reward_is_kept_as_the_cause():
    """The error says which reward raised and what, in one short line; the reward's own exception
    and its trace stay."""

    def fragile(images, prompts):
        raise RuntimeError("out of\nmemory " + 1000 * "!")

    with pytest.raises(
        ValueError, match="^reward: fragile raised RuntimeError: out of memory !"
    ) as error:
        score(fragile, pictures(), ["a", "b"])
    assert (
        isinstance(error.value.__cause__, RuntimeError)
        and error.value.__cause__.__traceback__ is not None
    )
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    with pytest.raises(
        ValueError, match="^reward: fragile raised RuntimeError"
    ):  # named through the wrapper too
        score(black_box(fragile), pictures(), ["a", "b"])
