"""The toy world's language, pool and judge."""

import io
import math

import numpy as np
import pytest
import torch

from psd_mini.cameras import orbit
from psd_mini.world import metrics, text
from psd_mini.world.metrics import judge, judge_views
from psd_mini.world.objects import COLOURS, OBJECTS
from psd_mini.world.pool import fresh_cameras, make_views, pool_cameras
from psd_mini.world.views import render_layers


def test_the_world_is_large_enough():
    """At least 10 objects and 8 colours, about a hundred components, 128 cameras."""
    assert len(OBJECTS) >= 10 and len(COLOURS) >= 8
    assert len(text.components()) == len(OBJECTS) * len(COLOURS) <= 110
    assert len(pool_cameras()) == 128 and len(fresh_cameras()) == 24


def test_fresh_cameras_are_outside_the_pool():
    """Every judging camera is more than one degree away from every training camera."""
    fresh, pool = fresh_cameras().positions(), pool_cameras().positions()
    cosine = (fresh / fresh.norm(dim=1, keepdim=True)) @ (pool / pool.norm(dim=1, keepdim=True)).T
    assert math.degrees(torch.arccos(cosine.max()).item()) > 1.01


def test_captions_are_read_back():
    """words(caption(object, colour, view)) = [colour, object, view], for all of them."""
    for name, colour in text.components():
        for view in (None, *text.VIEWS):
            assert set(text.words(text.caption(name, colour, view))) == {name, colour, view} - {
                None
            }
    assert text.words("A grey doughnut, seen from the left.") == ["gray", "donut", "left"]


def test_unknown_word_lists_what_the_world_knows():
    with pytest.raises(ValueError, match=r"does not know 'hamburger'.*mushroom.*purple.*left"):
        text.words("a red hamburger")
    with pytest.raises(ValueError, match="prompt: expected a string, got 3"):
        text.words(3)  # type: ignore[arg-type]


def test_null_prompt_is_zero_and_words_add():
    """e("") = 0;  e("a red mushroom") = e("red") + e("mushroom")."""
    empty, both, red, mushroom = text.embed(["", "a red mushroom", "red", "mushroom"])
    assert empty.abs().max() == 0  # exact: nothing is added
    # exact: whole numbers
    assert torch.equal(both, red + mushroom) and not torch.equal(red, mushroom)


def test_inner_product_counts_the_words_that_fit():
    """<e, key(object, colour)> = WORD_STRENGTH x number of words that describe the component."""
    scores = text.embed(["a red mushroom"]) @ text.component_keys().T / text.WORD_STRENGTH
    for score, (name, colour) in zip(scores[0], text.components(), strict=True):
        assert score.item() == pytest.approx((name == "mushroom") + (colour == "red"), abs=1e-5)


def test_view_words():
    """0, 90, 180, 270 degrees: front, right, back, left; a word reaches 45 to either side."""
    words = {0: "front", 44: "front", -44: "front", 90: "right", 134: "right"}
    words |= {180: "back", 271: "left"}
    cameras = orbit(list(words), 10.0)
    assert text.view_words(cameras) == list(words.values())
    for key, word in zip(text.view_keys(cameras), words.values(), strict=True):
        # exact: one 1 among zeros
        assert text.VOCABULARY[int(key.argmax())] == word and key.sum() == 1
    corners = text.view_words(orbit([22.0, 23.0, 200.0, 338.0], 10.0), text.DIRECTIONS)
    assert corners == ["front", "front right", "back", "front"]


def test_pictures_are_the_tracer_in_the_named_colour(tmp_path, monkeypatch):
    """pictures = base + main * colour of a fresh trace; the cache returns the same bits."""
    monkeypatch.setenv("PSD_MINI_CACHE", str(tmp_path))
    cameras = orbit([0.0, 130.0], 20.0)
    drawn, cached = make_views(cameras, 16), make_views(cameras, 16)
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(drawn.layers, cached.layers)  # exact: a file holds bits
    pictures = drawn.pictures(torch.tensor([1]))[0]
    for name, colour in (("house", "blue"), ("mug", "red")):
        layers = render_layers(name, cameras[1:], 16)[0]
        expected = layers[:3] + layers[3:] * torch.tensor(COLOURS[colour])[:, None, None]
        torch.testing.assert_close(
            pictures[text.components().index((name, colour))], expected, rtol=0, atol=1e-6
        )


def test_damaged_cache_is_drawn_again(tmp_path, monkeypatch):
    """A cache file that is cut off, foreign, of a huge shape or full of NaN is replaced."""
    monkeypatch.setenv("PSD_MINI_CACHE", str(tmp_path))
    first = make_views(orbit(10.0, 20.0), 8)
    (file,) = tmp_path.iterdir()
    good, archive, nan = file.read_bytes(), io.BytesIO(), io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    np.save(nan, np.full(first.layers.shape, np.nan, dtype=np.float32))
    huge = good.replace(b"(12, 1, 4, 8, 8), }          ", b"(12, 1, 4, 8, 8000000000), }")
    assert huge != good
    for data in (good[:100], b"PK\x03\x04 not a zip", archive.getvalue(), nan.getvalue(), huge):
        file.write_bytes(data)
        # exact: the same code, one machine
        assert torch.equal(make_views(orbit(10.0, 20.0), 8).layers, first.layers)
        assert file.read_bytes() == good and list(tmp_path.iterdir()) == [file]


def test_cache_that_cannot_be_written_only_warns(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PSD_MINI_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="PSD_MINI_CACHE"):
        make_views(orbit(10.0, 20.0), 16)


def test_cameras_of_the_pool_are_found_and_others_refused():
    views = make_views(orbit([0.0, 90.0, 200.0], 20.0), 16)
    assert views.index_of(views.cameras[torch.tensor([2, 0])]).tolist() == [2, 0]
    with pytest.raises(ValueError, match="camera 1 is not one of the 3 cameras"):
        views.index_of(orbit([90.0, 91.0], 20.0))
    with pytest.raises(
        ValueError, match="resolution: expected a whole number of at least 8, got 4"
    ):
        make_views(orbit(0.0, 0.0), 4)


@pytest.mark.slow
def test_the_judge_recognises_every_true_object_at_every_camera():
    """True pictures have distance 0 and gap 0, and they win at each of the 24 cameras alone."""
    views = judge_views()
    all_pictures = views.pictures(torch.arange(24))
    for k, component in enumerate(text.components()):
        pictures = all_pictures[:, k]
        if (
            k % 8 == 0
        ):  # the whole verdict for one colour of each object; single cameras below for all
            verdict = judge(pictures)
            assert verdict.recognised == component
            assert verdict.true_view_distance < 1e-6 and abs(verdict.log_density_gap) < 1e-9
        squared = metrics.squared_distances(pictures, views)
        assert squared.argmin(dim=1).tolist() == [k] * 24
        runner_up = squared.sqrt().topk(2, dim=1, largest=False).values[:, 1]
        assert runner_up.min() > 0.02


def test_distance_is_the_rms_of_a_known_change():
    """Pictures + constant c (no clamping in the judge): true_view_distance = |c|."""
    views = judge_views()
    k = text.components().index(("car", "green"))
    verdict = judge(views.pictures(torch.arange(24))[:, k] + 0.03)
    assert verdict.recognised == ("car", "green")
    assert verdict.true_view_distance == pytest.approx(0.03, abs=1e-6)


def test_distance_is_a_mean_over_cameras_not_a_pooled_rms():
    """One camera of 24 with RMS 0.24 gives 0.24 / 24 = 0.01; a pooled RMS would give 0.049."""
    views = judge_views()
    pictures = views.pictures(torch.arange(24))[:, text.components().index(("ball", "red"))].clone()
    pictures[5] += 0.24
    assert judge(pictures).true_view_distance == pytest.approx(0.01, abs=1e-6)


def test_gap_is_the_distance_in_other_units():
    """One dominant component: log_density_gap = mean over cameras of RMS^2 / (2 tau^2)."""
    views = judge_views()
    offsets = torch.linspace(0.005, 0.03, 24).view(-1, 1, 1, 1)
    pictures = (
        views.pictures(torch.arange(24))[:, text.components().index(("table", "blue"))] + offsets
    )
    expected = (offsets.double().square() / (2 * metrics.KERNEL_WIDTH**2)).mean().item()
    assert judge(pictures).log_density_gap == pytest.approx(expected, rel=1e-4)


def test_one_choice_for_the_whole_object():
    """Half the cameras see a red ball, half a blue one: it names one, the rest count as errors."""
    views = judge_views()
    pictures = views.pictures(torch.arange(24))
    red, blue = (
        pictures[:, text.components().index(("ball", colour))] for colour in ("red", "blue")
    )
    mixed = torch.where(torch.arange(24).view(-1, 1, 1, 1) < 14, red, blue)
    verdict = judge(mixed)
    assert verdict.recognised == ("ball", "red")
    expected = (red - blue)[14:].double().square().mean(dim=(1, 2, 3)).sqrt().sum().item() / 24
    assert verdict.true_view_distance == pytest.approx(expected, rel=1e-6)


def test_pictures_of_another_resolution_are_refused():
    with pytest.raises(
        ValueError, match=r"images: expected \(24, 3, 64, 64\).*got \(24, 3, 32, 32\)"
    ):
        judge(torch.zeros(24, 3, 32, 32))
