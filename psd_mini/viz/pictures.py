"""Pictures to look at: contact sheets, turntables and curves.

Everything here takes image tensors (B, 3, H, W) in [0, 1], as `render` makes them, or plain
dictionaries of numbers, and gives `PIL.Image` pictures or files. Pillow and matplotlib are imported
when they are first needed."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from psd_mini._internal.arguments import at_least, validated
from psd_mini._internal.files import write_atomically
from psd_mini.cameras import Cameras, orbit
from psd_mini.rendering import render

if TYPE_CHECKING:
    from PIL import Image

CELL_WIDTH, FRAME_WIDTH = (
    96,
    192,
)  # pictures of a contact sheet and of a gif are enlarged to at least this, pixels
GAP, TEXT_SIZE = 4, 14  # of a contact sheet, pixels
POINTS_AT_ONCE = 2**19  # field evaluations that `render_views` holds in memory together


def to_uint8(image: Float[Tensor, "*b 3 h w"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """Bytes from an image in [0, 1]: byte = round(255 clamp(image, 0, 1)), channels last.

    Args:
        image: (3, H, W) or (B, 3, H, W), on any device.

    Raises:
        ValueError: not three channels, or not three or four axes.
    """
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(
            f"image: expected (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}; decode latents"
            " first"
        )
    return (255 * image.detach().clamp(0, 1)).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def _pictures(images: Float[Tensor, "b 3 h w"], at_least: int) -> list[Image.Image]:
    """PIL pictures, enlarged by the smallest whole factor that makes them so many pixels wide."""
    from PIL import Image

    scale = max(1, math.ceil(at_least / images.shape[-1]))
    pictures = [Image.fromarray(array) for array in to_uint8(images)]
    return [
        p.resize((scale * p.width, scale * p.height), Image.Resampling.LANCZOS) for p in pictures
    ]


def save_png(image: Float[Tensor, "3 h w"] | Image.Image, path: str | Path) -> None:
    """Write one picture, a tensor (3, H, W) in [0, 1] or a `PIL.Image`, as png; whole or not at
    all."""
    buffer = io.BytesIO()
    picture = _pictures(image[None], 1)[0] if isinstance(image, Tensor) else image
    picture.save(buffer, format="png")
    write_atomically(path, buffer.getvalue())


@validated
def contact_sheet(
    rows: Sequence[Float[Tensor, "_ 3 _ _"]] | Float[Tensor, "n 3 h w"],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Image.Image:
    """A labelled grid of pictures on white paper.

    Args:
        rows: a tensor (n, 3, H, W) in [0, 1] for each row, n may differ; or one such tensor, which
            is one row. All pictures have the same size; small ones are enlarged by a whole factor
            to at least 96 pixels.
        row_labels: a text to the left of each row; a newline in a text breaks the line.
        column_labels: a text above each column of the longest row.
        title: a text above everything.

    Raises:
        ValueError: no pictures, pictures of different sizes, or more or fewer labels than rows or
            columns.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = [rows] if isinstance(rows, Tensor) and rows.ndim == 4 else list(rows)
    sizes = {tuple(row.shape[1:]) for row in rows if len(row)}
    if len(sizes) != 1:
        raise ValueError(
            f"rows: expected pictures of one size, got {sorted(sizes) or 'none'}; resize them first"
        )
    n_columns = max(len(row) for row in rows)
    for name, labels, n in (
        ("row_labels", row_labels, len(rows)),
        ("column_labels", column_labels, n_columns),
    ):
        if labels is not None and len(labels) != n:
            raise ValueError(
                f"{name}: expected {n} texts, as rows has so many or so long ones; got"
                f" {len(labels)}"
            )

    cells = [_pictures(row, CELL_WIDTH) for row in rows]
    width, height = next(cell.size for row in cells for cell in row)
    font = ImageFont.load_default(TEXT_SIZE)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def extent(texts: Sequence[str] | None) -> list[int]:
        """Width and height of the largest text, with a margin; zeros without texts."""
        boxes = [ruler.multiline_textbbox((0, 0), text, font) for text in texts or ()]
        return [
            max((math.ceil(box[side]) + 2 * GAP for box in boxes), default=0) for side in (2, 3)
        ]

    title_width, title_height = extent([title] if title else None)
    left, label_height = extent(row_labels)
    label_width, top = extent(column_labels)
    step_x, step_y = max(width, label_width) + GAP, max(height, label_height) + GAP
    top += title_height + GAP
    left += GAP
    sheet = Image.new(
        "RGB", (max(left + n_columns * step_x, title_width), top + len(rows) * step_y), "white"
    )
    write = ImageDraw.Draw(sheet).multiline_text
    write((GAP, GAP), title or "", "black", font)
    for j, text in enumerate(column_labels or ()):
        write(
            (left + j * step_x + width // 2, top - GAP),
            text,
            "black",
            font,
            anchor="md",
            align="center",
        )
    for i, row in enumerate(cells):
        where = (left - 2 * GAP, top + i * step_y + height // 2)
        write(where, row_labels[i] if row_labels else "", "black", font, anchor="rm", align="right")
        for j, cell in enumerate(row):
            sheet.paste(cell, (left + j * step_x, top + i * step_y))
    return sheet


@validated
@torch.no_grad()
def render_views(
    field: Callable, cameras: Cameras, resolution: int, n_samples: int = 64, background: float = 1.0
) -> Float[Tensor, "b 3 resolution resolution"]:
    """Pictures of a field to look at: `render(...).rgb` in [0, 1] without gradients, a few cameras
    at a time.

    Args:
        field: points (N, 3) -> density (N,), colour (N, 3), with a `bound`.
        cameras: B cameras.
        resolution: height and width, pixels.
        n_samples: bins per ray.
        background: brightness behind the field.
    """
    at_least("resolution", resolution, 1)
    at_least("n_samples", n_samples, 1)
    n = max(1, POINTS_AT_ONCE // (resolution * resolution * n_samples))
    groups = [cameras[i : i + n] for i in range(0, len(cameras), n)]
    return torch.cat(
        [
            render(field, g, resolution, n_samples=n_samples, background=background).rgb
            for g in groups
        ]
    ).clamp(0, 1)


def turntable_cameras(
    n_frames: int = 24, elevation_degrees: float = 20.0, **settings: float
) -> Cameras:
    """One turn around z: azimuth_k = 360 k / n degrees. `settings` are `orbit`'s distance and
    fov_degrees."""
    at_least("n_frames", n_frames, 1)
    return orbit([360.0 * k / n_frames for k in range(n_frames)], elevation_degrees, **settings)


class Gif(NamedTuple):
    """An animated gif: `data` holds the bytes of the file. A notebook shows it as the last value
    of a cell."""

    data: bytes

    def _repr_html_(self) -> str:
        return f'<img src="data:image/gif;base64,{base64.b64encode(self.data).decode()}">'


def with_palette(picture: Image.Image) -> Image.Image:
    """The same picture with 256 colours of its own, as gifs need (Pillow's maximum coverage,
    refined by k-means)."""
    from PIL import Image

    return picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2)


def gif(
    frames: Float[Tensor, "b 3 h w"],
    path: str | Path | None = None,
    seconds: float = 3.0,
    scale: int | None = None,
) -> Gif:
    """Frames as a gif that loops for ever.

    Every frame has 256 colours of its own. A gif counts time in hundredths of a second: frame k
    ends at

        round(100 seconds (k + 1) / B)

    so that the turn as a whole takes the time asked for. Equal neighbours become one long frame.

    Args:
        frames: B pictures in [0, 1].
        path: also write the file there, whole or not at all.
        seconds: for all frames together.
        scale: whole factor of enlargement; None makes frames at least 192 pixels wide.

    Raises:
        ValueError: no frames, or less than 0.02 s for each: browsers play those at a speed of their
            own.
    """
    n = len(frames)
    if n == 0 or seconds < 0.02 * n:
        raise ValueError(
            f"seconds: expected frames, and 0.02 s or more for each, got {n} frames in"
            f" {seconds:g} s"
        )
    pictures = _pictures(frames, FRAME_WIDTH if scale is None else scale * frames.shape[-1])
    first, *others = map(with_palette, pictures)
    ends = [round(100 * seconds * k / n) for k in range(n + 1)]
    durations = [10 * (end - start) for start, end in zip(ends[:-1], ends[1:], strict=True)]
    buffer = io.BytesIO()
    first.save(
        buffer, format="gif", save_all=True, append_images=others, duration=durations, loop=0
    )
    if path is not None:
        write_atomically(path, buffer.getvalue())
    return Gif(buffer.getvalue())


def running_mean(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mean over a symmetric window: m_k = mean(v_{k-h} .. v_{k+h}), h = min(n // 30, k, n - 1 - k).

    The window shrinks towards both ends, so straight lines stay as they are and the first and last
    value are kept."""
    k = np.arange(len(values))
    half = np.minimum(len(values) // 30, np.minimum(k, k[::-1]))
    total = np.concatenate(([0.0], np.cumsum(values)))
    return (total[k + half + 1] - total[k - half]) / (2 * half + 1)


@validated
def curves(history: Sequence[Mapping], path: str | Path | None = None) -> Image.Image:
    """One small panel per metric over the steps: the numbers in pale, their running mean in dark.

    Args:
        history: records such as {"step": 3, "loss": 0.2}; a metric may be missing from some, and
            what is not a finite number is left out. Without "step", a record's place in the list
            counts.
        path: also write the picture there as png, whole or not at all.

    Raises:
        ValueError: no numbers in the history.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image

    series: dict[str, list[tuple[float, float]]] = {}
    for place, record in enumerate(history):
        for name, value in record.items():
            if name != "step" and isinstance(value, Real) and math.isfinite(value):
                series.setdefault(name, []).append((record.get("step", place), float(value)))
    if not series:
        raise ValueError(
            "history: expected records with finite numbers, got none; run at least one step"
        )

    n_columns = min(3, len(series))
    n_rows = math.ceil(len(series) / n_columns)
    canvas = FigureCanvasAgg(
        Figure(figsize=(3.4 * n_columns, 2.3 * n_rows), dpi=110, layout="constrained")
    )
    for i, (name, pairs) in enumerate(series.items()):
        steps, values = np.array(pairs, dtype=float).T
        axes = canvas.figure.add_subplot(
            n_rows, n_columns, i + 1, xlabel="step", ylabel=name.replace("_", " ")
        )
        axes.plot(steps, values, color="lightsteelblue", linewidth=1)
        axes.plot(
            steps,
            running_mean(values),
            color="midnightblue",
            marker="." if len(steps) == 1 else None,
        )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if path is not None:
        save_png(picture, path)
    return picture
