"""What users bring: precisions and devices of their own, gradients switched off, long prompts, odd
words. What is meant is done, or one line says what is wrong and how to put it right."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from worlds import quick_results, same, small_world

import psd_mini as pm
from psd_mini.methods.negative_words import NegativeWords
from psd_mini.pretrained.published import PIXEL_MEAN, PIXEL_STD, preprocess
from psd_mini.schedule import draw_noises
from psd_mini.viz.mesh import extract_mesh
from psd_mini.world import text

OPTIONS = {"steps": 2, "resolution": 8, "cameras_per_step": 2, "n_samples": 4, "progress": False}
SMALL = {"steps": 1, "resolution": 8, "progress": False}
FIELDS = (pm.VoxelField, pm.TriplaneField)


@pytest.fixture
def quick(monkeypatch):
    quick_results(monkeypatch)


def trained(field=None, prior=None):
    field = field or pm.VoxelField(8)
    pm.distill(field, prior or small_world(), pm.SDS(), "a ball", **OPTIONS)
    return field


@contextmanager
def default(switch, value, before):
    """torch.set_default_dtype or torch.set_default_device for a block."""
    switch(value)
    try:
        yield
    finally:
        switch(before)


@pytest.mark.parametrize("kind", FIELDS)
def test_a_picture_has_the_precision_of_its_field(kind):
    """In double precision it is the one in single precision, up to that one's rounding. Wrong: the
    rays of float32 cameras, which the field cannot look up."""
    single, cameras = kind(8), pm.orbit([0.0, 100.0], 20.0)
    double = kind(8).double()
    double.load_state_dict(single.state_dict())
    seen = pm.render(double, cameras, 8)
    assert {part.dtype for part in seen} == {torch.float64}
    torch.testing.assert_close(
        seen.rgb, pm.render(single, cameras, 8).rgb.double(), rtol=0, atol=1e-5
    )
    assert pm.render_views(double, cameras, 8).dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in trained(double).parameters())
    assert len(extract_mesh(double, 16).faces) > 0


def test_double_precision_as_torchs_default(quick):
    with default(torch.set_default_dtype, torch.float64, torch.float32):
        field = trained()
        made = pm.generate("a ball", **SMALL)
    assert field.density.dtype == made.field.density.dtype == torch.float64


def test_every_random_draw_names_its_device(quick):
    """A generator on the CPU draws there, whatever device torch makes its tensors on. "meta" stands
    for a GPU: a draw that does not name its device is refused by torch."""
    g, prior, x = torch.Generator(), small_world(), torch.zeros(2, 3, 8, 8)
    words = NegativeWords(["red"], prior.embed(["red", ""]), 2.0)
    with default(torch.set_default_device, "meta", None):
        draws = [
            draw_noises(2, x, g),
            pm.schedule.sample_timesteps(3, 1, 9, g),
            prior.draw_cameras(2, g).azimuth,
        ]
        words.step(0.0, x, pm.Context(prior, prior.embed([""])), g)
        parameters = list(pm.TriplaneField(8, generator=g).parameters())
    assert {p.device.type for p in parameters} == {"meta"}
    assert {draw.device.type for draw in draws} == {"cpu"}


def test_another_default_device_changes_nothing(quick):
    """The toy world lives on the CPU: pictures, words and field of a run, bit for bit."""
    usual, field = pm.generate("a ball", **SMALL), pm.VoxelField(8)
    with default(torch.set_default_device, "meta", None):
        moved = pm.generate("a ball", **SMALL)
        trained(field, pm.ToyWorldPrior(8))
    assert same(usual.field, moved.field) and field.density.device.type == "cpu"


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_switched_off(quick, off):
    """The loop switches on what it needs: the same bits as with gradients on."""
    usual, made, field = trained(), pm.generate("a ball", **SMALL), pm.VoxelField(8)
    with off():
        assert same(trained(field), usual)
        assert same(pm.generate("a ball", **SMALL).field, made.field)
        assert not torch.is_grad_enabled()


def test_a_field_that_cannot_be_trained_is_named():
    with torch.inference_mode():
        field = pm.VoxelField(8)
    with pytest.raises(ValueError, match=r"^radiance_field: made inside torch.inference_mode\(\)"):
        trained(field)


def test_a_negative_prompt_that_changes_nothing_is_refused(quick):
    """At guidance 1, as for negative=True: by prompt and by words, for all that is built on SDS.
    CSD hears the negative prompt at every scale."""
    for method in ("sds", "psd", "rewardsds", pm.SDS(), pm.PSD()):
        with pytest.raises(ValueError, match="^guidance_scale: at 1 the negative prompt has no"):
            pm.generate("a ball", method=method, negative_prompt="red", **SMALL)
    with pytest.raises(ValueError, match="^guidance_scale: at 1 a negative word has no effect"):
        pm.generate("a ball", negative="bandit", **SMALL)
    for method in ("csd", pm.SDS(2.0)):
        pm.generate("a ball", method=method, negative_prompt="red", **SMALL)


NO_PICTURES = {
    "above 1": torch.full((2, 3, 8, 8), 1.5),
    "below 0": torch.full((2, 3, 8, 8), -1.0),
    "channels last": torch.rand(2, 8, 8, 3),
    "RGBA": torch.rand(2, 4, 8, 8),
    "bytes": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    "one picture": torch.rand(3, 8, 8),
}


@pytest.mark.parametrize("what", NO_PICTURES)
def test_what_is_no_picture_is_refused_by_every_reward(what):
    """By name, and not clamped or read the wrong way round."""
    rewards = [pm.make_reward(name) for name in ("colorfulness", "color:red", "proxy:smooth")]
    for ask in (*rewards, lambda images, prompts: preprocess(images, 8)):
        with pytest.raises(ValueError, match=r"^images: expected floating-point \(B, 3, H, W\) in"):
            ask(NO_PICTURES[what], ["a ball"] * 2)
        ask(torch.rand(2, 3, 8, 8), ["a ball"] * 2)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (97, 211), (512, 512)])
def test_the_long_side_is_truncated_as_torchvision_does(height, width):
    """torchvision's Resize(224) makes the long side int(224 long / short): 298 of 300 x 400, where
    rounding gives 299. A vertical edge tells the two apart: it comes to lie elsewhere."""
    short, long = sorted((height, width))
    resized = {short: 224, long: int(224 * long / short)}
    ramp = torch.linspace(0, 1, width)[None, None, None].expand(1, 3, height, width)
    whole = torch.nn.functional.interpolate(
        ramp, (resized[height], resized[width]), mode="bicubic", antialias=True
    )
    left = int(round((resized[width] - 224) / 2.0))
    top = int(round((resized[height] - 224) / 2.0))
    seen = preprocess(ramp, 224)[0, 0] * PIXEL_STD[0] + PIXEL_MEAN[0]
    expected = whole[0, 0, top : top + 224, left : left + 224]
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("a grey ball", ["gray", "ball"]),
        ("A Violet BALL!", ["purple", "ball"]),
        ("red mushrooms", ["red", "mushroom"]),
        ("a red-house, seen from behind", ["red", "house", "back"]),
        ("an automobile", ["car"]),
        ("boxes", ["cube"]),
    ],
)
def test_words_that_people_type(typed, meant):
    assert text.words(typed) == meant


@pytest.mark.parametrize(
    ("typed", "near"), [("mushrom", "mushroom"), ("purpel", "purple"), ("snowmen", "snowman")]
)
def test_an_unknown_word_is_answered_with_the_nearest(typed, near):
    with pytest.raises(ValueError, match=f"does not know '{typed}' .did you mean {near}?"):
        text.words(f"a {typed}")
    with pytest.raises(ValueError, match="does not know 'zzz'; objects: ball"):
        text.words("zzz")


def test_two_objects_or_colours_are_said_to_make_one(quick):
    """And a prompt that names one of each makes no noise."""
    for prompt, names in (
        ("a ball in a box", "ball and cube"),
        ("a red blue ball", "red and blue"),
    ):
        with pytest.warns(UserWarning, match=f"^prompt: names {names}; .* makes one object in one"):
            pm.generate(prompt, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pm.generate("a red ball", **SMALL)
