"""Pictures show what they were given: every cell in its place, every frame in its colours, every
number on a curve."""

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from psd_mini.cameras import orbit
from psd_mini.fields import VoxelField
from psd_mini.rendering import render
from psd_mini.viz import pictures as viz
from psd_mini.viz.curves import curves, overoptimisation, running_mean
from psd_mini.viz.film import Film
from psd_mini.viz.pictures import (
    Gif,
    contact_sheet,
    gif,
    render_views,
    save_png,
    to_uint8,
    turntable_cameras,
)

COLOURS = [(255, 0, 0), (0, 160, 0), (0, 0, 255), (255, 128, 0), (128, 0, 255), (0, 200, 200)]


def plain(colour, height, width):
    """(1, 3, H, W) of one colour given in bytes."""
    return (torch.tensor(colour) / 255.0).view(1, 3, 1, 1).expand(1, 3, height, width)


def shaded_balls(n, size=64):
    """n frames of a smoothly shaded red ball with a small yellow dot on white: the colours of a
    turntable."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, size),) * 2, indexing="ij")
    frames = []
    for k in range(n):
        z = (0.7 - x**2 - y**2).clamp(min=0).sqrt()
        shade = 0.4 + 0.7 * (z * 0.7 + x * math.cos(k) * 0.5 - y * 0.4).clamp(min=0)
        colour = torch.tensor([0.9, 0.2, 0.15]).view(3, 1, 1) * shade
        dot = torch.hypot(x - 0.3 * math.cos(k), y) < 0.1
        colour = torch.where(dot, torch.tensor([0.95, 0.85, 0.1]).view(3, 1, 1), colour)
        frames.append(torch.where(z > 0, colour, torch.ones(3, 1, 1)))
    return torch.stack(frames).clamp(0, 1)


def read_gif(data):
    picture = Image.open(io.BytesIO(data))
    frames = [
        np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(picture)
    ]
    durations = [frame.info["duration"] for frame in ImageSequence.Iterator(picture)]
    return np.stack(frames), durations, picture.info


def ink(picture):
    """Which pixels are dark: text and lines, none of COLOURS."""
    return np.all(np.asarray(picture) < 100, axis=-1)


def box(sheet, colour):
    """(top, left, height, width) of the pixels of one colour, which must fill a rectangle."""
    places = np.argwhere((np.asarray(sheet) == colour).all(-1))
    low, high = places.min(0), places.max(0) + 1
    assert len(places) == np.prod(high - low)
    return (*low.tolist(), *(high - low).tolist())


def test_to_uint8():
    """byte = floor(255 c + 0.5) for c in [0, 1], clamped outside, channels last: against a loop
    over pixels."""
    image = (
        torch.tensor([-0.5, 0.0, 0.0019, 0.002, 0.5, 0.9981, 1.0, 3.0])
        .view(1, 1, 2, 4)
        .repeat(2, 3, 1, 1)
    )
    image = image * torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    bytes_ = to_uint8(image.requires_grad_())
    assert bytes_.shape == (2, 2, 4, 3) and bytes_.dtype == np.uint8
    for b, c, i, j in np.ndindex(2, 3, 2, 4):
        assert bytes_[b, i, j, c] == math.floor(
            255 * min(max(image[b, c, i, j].item(), 0), 1) + 0.5
        )
    np.testing.assert_array_equal(to_uint8(image[1]), bytes_[1])
    with pytest.raises(
        ValueError, match=r"image: expected \(3, H, W\).*got \(2, 4, 8, 8\); decode latents first"
    ):
        to_uint8(torch.zeros(2, 4, 8, 8))


def test_save_png(tmp_path):
    """The file holds to_uint8(image), not enlarged."""
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    save_png(image, tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), to_uint8(image))


@pytest.mark.parametrize("labels", [False, True])
def test_contact_sheet_geometry(labels):
    """Rows of 2 and 3 pictures of 10 x 20: cells of 50 x 100 (the smallest whole factor to 96),
    in order, with gaps."""
    rows = [
        torch.cat([plain(c, 10, 20) for c in COLOURS[:2]]),
        torch.cat([plain(c, 10, 20) for c in COLOURS[2:5]]),
    ]
    texts: dict[str, Any] = (
        {"row_labels": ["one", "two"], "column_labels": ["a", "b", "c"], "title": "all"}
        if labels
        else {}
    )
    sheet = contact_sheet(rows, **texts)
    boxes = [[box(sheet, c) for c in COLOURS[:2]], [box(sheet, c) for c in COLOURS[2:5]]]
    assert all(b[2:] == (50, 100) for row in boxes for b in row)
    top, left = boxes[0][0][:2]
    step_y, step_x = boxes[1][0][0] - top, boxes[0][1][1] - left
    assert 50 < step_y <= 58 and 100 < step_x <= 108
    for i, row in enumerate(boxes):
        for j, (y, x, _, _) in enumerate(row):
            assert (y, x) == (top + i * step_y, left + j * step_x)
    dark = ink(sheet)
    assert dark[:top].any() == dark[:, :left].any() == labels
    for y in (top, top + step_y) if labels else ():  # a text beside each row, at its height
        assert dark[y : y + 50, : left - 1].any()
    if labels:  # the title, left of the cells, ends above the columns' labels
        title, names = (
            np.flatnonzero(dark[:top, :left].any(1)),
            np.flatnonzero(dark[:top, left:].any(1)),
        )
        assert title.max() < names.min()  # exact: rows of pixels
    for j in range(3) if labels else ():  # and above each column, at its middle
        x = left + j * step_x
        columns = np.flatnonzero(dark[top - 20 : top, x : x + 100].any(0))
        assert abs(columns.mean() - 50) < 3


def test_contact_sheet_keeps_pixels():
    """Pictures of 96 pixels and more are neither enlarged nor turned: the cell is
    to_uint8(image), bit for bit."""
    images = torch.rand(2, 3, 96, 100, generator=torch.Generator().manual_seed(0))
    sheet = np.asarray(contact_sheet(images))
    top, left = np.argwhere((sheet != 255).any(-1)).min(0)
    np.testing.assert_array_equal(sheet[top : top + 96, left : left + 100], to_uint8(images[0]))


def test_wide_labels_are_not_cut():
    """Labels wider than their cells widen the step and stay apart; texts and title end inside
    the sheet."""
    pictures = torch.cat([plain(c, 96, 96) for c in COLOURS[:2]])
    sheet = contact_sheet(pictures, ["a long label of a row"], ["x" * 30, "y" * 30], "t" * 120)
    dark = ink(sheet)
    assert not dark[:, -1].any() and not dark[:, 0].any() and not dark[0].any()
    (top, left), (_, right) = (box(sheet, c)[:2] for c in COLOURS[:2])
    words = np.flatnonzero(
        dark[top - 18 : top].any(0)
    )  # columns of the sheet with ink of the two labels
    gap = int(np.diff(words).argmax())
    assert (
        words[gap] < right and words[gap + 1] - words[gap] >= 8
    )  # exact: columns of pixels; one ends, paper, the other begins
    assert (
        abs(words[: gap + 1].mean() - left - 48) < 3
        and abs(words[gap + 1 :].mean() - right - 48) < 3
    )


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "rows: expected pictures of one size, got none"),
        (torch.zeros(0, 3, 8, 8), {}, "rows: expected numbers, got an empty tensor"),
        (
            [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9)],
            {},
            r"rows: .* got \[\(3, 8, 8\), \(3, 8, 9\)\]; resize",
        ),
        (
            torch.zeros(2, 3, 8, 8),
            {"column_labels": ["a"]},
            "column_labels: expected 2 texts, .* got 1",
        ),
        (
            torch.zeros(2, 3, 8, 8),
            {"row_labels": ["a", "b"]},
            "row_labels: expected 1 texts, .* got 2",
        ),
    ],
)
def test_contact_sheet_errors(rows, options, message):
    """One line that names the argument and what came."""
    with pytest.raises(ValueError, match=message):
        contact_sheet(rows, **options)


def test_render_views_is_render(monkeypatch):
    """render_views = clamp(render(...).rgb, 0, 1) up to rounding, however few cameras go at a
    time; no gradients."""
    field, cameras = VoxelField(8), orbit([0.0, 70.0, 140.0, 210.0, 280.0], 15.0)
    expected = render(field, cameras, 12, n_samples=16, background=0.25).rgb.clamp(0, 1)
    for points_at_once in (1, 2 * 12 * 12 * 16, 2**19):
        monkeypatch.setattr(viz, "POINTS_AT_ONCE", points_at_once)
        views = render_views(field, cameras, 12, n_samples=16, background=0.25)
        torch.testing.assert_close(views, expected, rtol=0, atol=1e-6)
        assert not views.requires_grad


def test_turntable_cameras():
    """position_k = d (cos e cos a_k, cos e sin a_k, sin e), a_k = 2 pi k / n: equal steps, no
    frame shown twice. d = 3 is `orbit`'s."""
    n, e, d = 5, math.radians(20), 3.0
    positions = turntable_cameras(n).positions()
    for k in range(n):
        a = 2 * math.pi * k / n
        expected = [d * math.cos(e) * math.cos(a), d * math.cos(e) * math.sin(a), d * math.sin(e)]
        assert positions[k].tolist() == pytest.approx(expected, abs=1e-5)


def test_gif_frames_time_and_loop(tmp_path):
    """24 frames in 3 s: 24 frames that end at round(12.5 (k + 1)) hundredths, 3 s in all,
    looping for ever."""
    animation = gif(shaded_balls(24, 16), tmp_path / "a.gif", seconds=3.0)
    frames, durations, info = read_gif((tmp_path / "a.gif").read_bytes())
    assert frames.shape == (24, 192, 192, 3) and info["loop"] == 0
    assert sum(durations) == 3000
    assert np.cumsum(durations) == pytest.approx(125 * np.arange(1, 25), abs=5)
    assert (tmp_path / "a.gif").read_bytes() == animation.data


def test_gif_colours():
    """Smooth shading and a small dot survive 256 colours: rms below 1.2 of 255, none off by 25 or
    more, white is white.

    Pillow's default leaves an rms of 2.3 and errors of 66 here.
    """
    balls = shaded_balls(3)
    frames, _, _ = read_gif(gif(balls).data)
    assert frames.shape == (3, 192, 192, 3)  # three times 64, the smallest whole factor to 192
    resized = [
        Image.fromarray(array).resize((192, 192), Image.Resampling.LANCZOS)
        for array in to_uint8(balls)
    ]
    error = frames - np.stack([np.asarray(picture) for picture in resized]).astype(int)
    assert np.sqrt((error**2).mean()) < 1.2 and np.abs(error).max() < 25
    assert (frames[:, 0, 0] == 255).all()


@pytest.mark.parametrize("n_colours", [1, 2, 255, 256])
def test_gif_is_exact_up_to_256_colours(n_colours):
    """A frame of at most 256 colours comes back bit for bit; 192 pixels are not enlarged."""
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(1))[:n_colours]
    values = 4097 * order.repeat(256)[:256].repeat(192)
    rgb = torch.stack([values // 65536, values // 256 % 256, values % 256])
    image = rgb.view(1, 3, 256, 192) / 255.0
    frames, _, _ = read_gif(gif(image, seconds=1.0).data)
    np.testing.assert_array_equal(frames, to_uint8(image))


def test_gif_of_equal_frames_keeps_its_time():
    """A turn of something that looks the same from everywhere: one frame that lasts the whole
    turn."""
    frames, durations, _ = read_gif(
        gif(plain(COLOURS[0], 8, 8).repeat(7, 1, 1, 1), seconds=2.0).data
    )
    assert sum(durations) == 2000 and (frames == COLOURS[0]).all()


def test_gif_shows_itself_in_a_notebook():
    """The html holds the very bytes of the file."""
    animation = gif(plain(COLOURS[0], 8, 8))
    assert isinstance(animation, Gif)
    head, data = animation._repr_html_().split("base64,")
    assert (
        head.endswith("data:image/gif;") and base64.b64decode(data.split('"')[0]) == animation.data
    )


def test_gif_errors():
    """No frames, or frames too short for a browser."""
    with pytest.raises(ValueError, match=r"seconds: .* got 0 frames in 3 s"):
        gif(torch.zeros(0, 3, 8, 8))
    with pytest.raises(
        ValueError,
        match=r"seconds: expected frames, and 0\.02 s or more for each, got 24 frames in 0\.1 s",
    ):
        gif(torch.zeros(24, 3, 8, 8), seconds=0.1)


def test_running_mean():
    """m_k = mean(v_{k-h} .. v_{k+h}), h = min(n // 30, k, n - 1 - k), by a loop; straight lines
    stay as they are."""
    values = np.random.default_rng(0).normal(size=100)
    for k, mean in enumerate(running_mean(values)):
        h = min(3, k, 99 - k)
        assert mean == pytest.approx(sum(values[k - h : k + h + 1]) / (2 * h + 1), abs=1e-12)
    line = 3.0 - 0.25 * np.arange(200)
    np.testing.assert_allclose(running_mean(line), line, atol=1e-11)
    assert running_mean(np.array([5.0])).tolist() == pytest.approx([5.0], abs=1e-12)


@pytest.mark.parametrize(
    "history",
    [
        [{"step": 0, "loss": 0.5}],
        [{"step": k, "loss": 2.0} for k in range(40)],
        [{"step": k, "loss": 0.0} for k in range(2)],
        [{"step": k, "loss": float(k), **({"rare": 1e9} if k == 7 else {})} for k in range(20)],
        [
            {"step": 0, "loss": math.nan},
            {"step": 1, "loss": 1.0, "note": "text"},
            {"step": 2, "loss": math.inf},
        ],
        [{"loss": np.float32(k)} for k in range(3)],
        [{"step": 1, **{f"metric_{i}": i for i in range(7)}}],
    ],
    ids=["one step", "constant", "zeros", "missing keys", "not finite", "no step", "seven metrics"],
)
def test_curves_of_degenerate_histories(history, recwarn):
    """Drawn without a warning, one panel per metric that has numbers, at most three beside each
    other."""
    picture = curves(history)
    names = {k for record in history for k, v in record.items() if k not in ("step", "note")}
    panel = curves([{"step": 0, "loss": 1.0}]).size
    assert picture.size == (min(3, len(names)) * panel[0], math.ceil(len(names) / 3) * panel[1])
    assert ink(picture).mean() > 0.003  # there is ink
    assert not recwarn.list


def test_curves_draws_the_numbers(tmp_path):
    """The line of a falling metric falls: ink is higher on the left than on the right; the file
    holds the picture."""
    picture = curves([{"step": k, "loss": 1 - k / 50} for k in range(51)], tmp_path / "c.png")
    pixels = np.asarray(picture).astype(int)
    rows, columns = np.nonzero((pixels[..., 2] - pixels[..., 0]) > 60)  # blue ink
    middle = (columns.min() + columns.max()) / 2
    assert rows[columns < middle].mean() < rows[columns > middle].mean() - 20
    # exact: pixels are whole numbers
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "c.png")), pixels)


@pytest.mark.parametrize("history", [[], [{"step": 3}], [{"step": 0, "loss": math.nan}]])
def test_curves_errors(history):
    """A history without numbers is an error, not an empty picture."""
    with pytest.raises(
        ValueError,
        match="history: expected records with finite numbers, got none; run at least one step",
    ):
        curves(history)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_png(torch.zeros(3, 4, 4), path),
        lambda path: gif(torch.zeros(2, 3, 4, 4), path),
        lambda path: curves([{"step": 0, "loss": 1.0}], path),
    ],
    ids=["png", "gif", "curves"],
)
def test_failing_write_keeps_the_old_file(write, tmp_path, monkeypatch):
    """An error in the last step leaves the file that was there, byte for byte, and no litter
    beside it."""
    path = tmp_path / "picture"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_overoptimisation_rings_the_weight_of_the_highest_proxy():
    """Two methods, two panels; moving the highest proxy to another weight moves the ring."""
    rising = [(1.0, 0.2, 0.3), (10.0, 0.5, 0.6), (100.0, 0.9, 0.1)]
    falling = [(1.0, 0.9, 0.3), (10.0, 0.5, 0.6), (100.0, 0.2, 0.1)]
    two = overoptimisation({"pixel-clean": rising, "psd": rising})
    one = np.asarray(overoptimisation({"psd": rising}), dtype=float)
    assert two.width == 2 * one.shape[1]
    other = np.asarray(overoptimisation({"psd": falling}), dtype=float)
    changed = np.abs(one - other).sum(axis=(0, 2)) > 0
    assert changed[: len(changed) // 2].any() and changed[len(changed) // 2 :].any()


def test_a_film_has_a_frame_every_few_steps_of_the_field_as_it_was(tmp_path):
    """A wrong film shows the finished field in every frame, or the wrong steps."""
    field, film = VoxelField(8), Film(every=2, resolution=16)
    with pytest.raises(ValueError, match="film: holds no frames"):
        film.gif()
    for step in range(5):
        with torch.no_grad():
            field.density.fill_(float(step))
        film({"step": step, "field": field})
    assert len(film.frames) == 3
    for k, frame in enumerate(film.frames):
        with torch.no_grad():
            field.density.fill_(2.0 * k)
        seen = render_views(field, orbit([30.0 + 4.0 * k], 20.0), 16)[0]
        torch.testing.assert_close(frame, seen)
    assert not torch.allclose(film.frames[0], film.frames[2], atol=1e-3)
    film.gif(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as picture:
        assert picture.n_frames == 3
