"""Pictures to look at: contact sheets, turntables and curves.

Everything here takes image tensors (B, 3, H, W) in [0, 1], as `render` makes them, or plain dictionaries of numbers, and
gives `PIL.Image` objects or files. Pillow and matplotlib are imported when they are first needed.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from psd_mini.cameras import Cameras, orbit
from psd_mini.rendering import render

if TYPE_CHECKING:
    from PIL import Image

CELL_WIDTH = 96  # pictures on a contact sheet are enlarged to at least this, pixels
FRAME_WIDTH = 192  # and frames of a turntable to this
POINTS_AT_ONCE = 2**19  # field evaluations that `render_views` holds in memory together
GAP, TEXT_SIZE, TEXT_WIDTH = 4, 14, 150  # of a contact sheet, pixels
PAPER, INK, RAW_LINE, SMOOTH_LINE = "white", "#202020", "#b8cbe0", "#1f5f9e"


def to_uint8(image: Float[Tensor, "*b 3 h w"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """Bytes from an image in [0, 1]: byte = round(255 clamp(image, 0, 1)), channels last.

    Args:
        image: (3, H, W) or (B, 3, H, W), on any device.

    Raises:
        ValueError: not three channels, or not three or four axes.
    """
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(f"image: expected (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}; decode latents first")
    return (255 * image.detach().clamp(0, 1)).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: into a temporary neighbour first, which then takes the name in one step.

    Raises:
        OSError: the folder does not exist or cannot be written; an older file of this name stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}; choose a folder that exists and is writable", str(path)
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _pictures(images: Float[Tensor, "b 3 h w"], width: int | None) -> list[Image.Image]:
    """PIL images, enlarged by the smallest whole factor that makes them at least `width` pixels wide."""
    from PIL import Image

    scale = 1 if width is None else max(1, math.ceil(width / images.shape[-1]))
    pictures = [Image.fromarray(array) for array in to_uint8(images)]
    return [p.resize((scale * p.width, scale * p.height), Image.Resampling.LANCZOS) for p in pictures]


def save_png(image: Float[Tensor, "3 h w"] | Image.Image, path: str | Path) -> None:
    """Write one picture, a tensor (3, H, W) in [0, 1] or a `PIL.Image`, as png; whole or not at all."""
    buffer = io.BytesIO()
    picture = _pictures(image[None], None)[0] if isinstance(image, Tensor) else image
    picture.save(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def contact_sheet(
    rows: Sequence[Float[Tensor, "n 3 h w"]] | Float[Tensor, "n 3 h w"],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Image.Image:
    """A labelled grid of pictures on white paper.

    Args:
        rows: one tensor (n, 3, H, W) per row, in [0, 1], n may differ; a single such tensor is one row. All pictures have
            the same size; small ones are enlarged by a whole factor to at least 96 pixels.
        row_labels: a text to the left of each row.
        column_labels: a text above each column.
        title: a text above everything.

    Returns:
        The sheet. Long labels are broken at spaces.

    Raises:
        ValueError: no pictures, pictures of different sizes, or more or fewer labels than rows or columns.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = [rows] if isinstance(rows, Tensor) and rows.ndim == 4 else list(rows)
    sizes = {tuple(row.shape[1:]) for row in rows}
    if len(sizes) != 1:
        raise ValueError(f"rows: expected pictures of one size, got {sorted(sizes) or 'none'}; resize them first")
    n_columns = max(len(row) for row in rows)
    for name, labels, n in (("row_labels", row_labels, len(rows)), ("column_labels", column_labels, n_columns)):
        if labels is not None and len(labels) != n:
            raise ValueError(f"{name}: expected {n} texts, got {len(labels)}")

    cells = [_pictures(row, CELL_WIDTH) for row in rows]
    width, height = next(cell.size for row in cells for cell in row)
    font = ImageFont.load_default(TEXT_SIZE)
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def block(text: str, at_most: int) -> tuple[str, int, int]:
        """The text broken into lines of at most so many pixels where it has spaces; its width and height with a gap."""
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            lines = [*lines[:-1], longer] if draw.textlength(longer, font) <= at_most else [*lines, word]
        text = "\n".join(line for line in lines if line)
        right, bottom = draw.multiline_textbbox((0, 0), text, font)[2:]
        return text, math.ceil(right) + 2 * GAP, math.ceil(bottom) + 2 * GAP

    left_texts = [block(text, TEXT_WIDTH) for text in row_labels or ()]
    top_texts = [block(text, width) for text in column_labels or ()]
    step_x = max([width, *(w for _, w, _ in top_texts)]) + GAP
    step_y = max([height, *(h for _, _, h in left_texts)]) + GAP
    left = max([w for _, w, _ in left_texts], default=0) + GAP
    title_text = block(title or "", max(left + n_columns * step_x, 2 * TEXT_WIDTH))
    title_height = title_text[2] if title else 0
    top = title_height + max([h for _, _, h in top_texts], default=0) + GAP

    size = (max(left + n_columns * step_x, title_text[1] + GAP), top + len(rows) * step_y)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.multiline_text((GAP, GAP), title_text[0], INK, font)
    for j, (text, _, _) in enumerate(top_texts):
        draw.multiline_text((left + j * step_x + width // 2, top - GAP), text, INK, font, anchor="md", align="center")
    for i, row in enumerate(cells):
        if left_texts:
            where = (left - 2 * GAP, top + i * step_y + height // 2)
            draw.multiline_text(where, left_texts[i][0], INK, font, anchor="rm", align="right")
        for j, cell in enumerate(row):
            sheet.paste(cell, (left + j * step_x, top + i * step_y))
    return sheet


@torch.no_grad()
def render_views(
    field: Callable, cameras: Cameras, size: int, n_samples: int = 64, background: float = 1.0
) -> Float[Tensor, "b 3 size size"]:
    """Pictures of a field to look at: `render(...).rgb` in [0, 1] without gradients, a few cameras at a time.

    Args:
        field: points (N, 3) -> density (N,), colour (N, 3), with a `bound`.
        cameras: B cameras.
        size: height and width, pixels.
        n_samples: bins per ray.
        background: brightness behind the field.
    """
    n = max(1, POINTS_AT_ONCE // (size * size * n_samples))
    groups = (cameras[i : i + n] for i in range(0, len(cameras), n))
    return torch.cat([render(field, g, size, n_samples=n_samples, background=background).rgb for g in groups]).clamp(
        0, 1
    )


def turntable_cameras(n_frames: int = 24, elevation_degrees: float = 20.0, **settings: float) -> Cameras:
    """One full turn around z in equal steps from azimuth 0, azimuth_k = 360 k / n degrees; settings go to `orbit`."""
    return orbit([360.0 * k / n_frames for k in range(n_frames)], elevation_degrees, **settings)


def save_gif(
    frames: Float[Tensor, "b 3 h w"], path: str | Path, seconds: float = 3.0, scale: int | None = None
) -> None:
    """Write frames as a gif that loops for ever; whole or not at all.

    A gif has 256 colours a frame and counts time in hundredths of a second: every frame gets colours of its own, and
    frame k ends at round(100 seconds (k + 1) / n), so that the turn as a whole takes the time asked for.

    Args:
        frames: pictures in [0, 1].
        path: the file.
        seconds: for all frames together.
        scale: whole factor of enlargement; None makes frames at least 192 pixels wide.

    Raises:
        ValueError: no frames, or less than 0.02 s for each: browsers play those at a speed of their own.
    """
    n = len(frames)
    if n == 0 or seconds < 0.02 * n:
        raise ValueError(f"seconds: expected at least 0.02 s for each of {n} frames (and one frame), got {seconds:g}")
    pictures = _pictures(frames, FRAME_WIDTH if scale is None else scale * frames.shape[-1])
    pictures = [p.quantize(256, kmeans=1, dither=0) for p in pictures]
    ends = [round(100 * seconds * k / n) for k in range(n + 1)]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="gif",
        save_all=True,
        append_images=pictures[1:],
        duration=[10 * (b - a) for a, b in zip(ends[:-1], ends[1:], strict=True)],
        loop=0,
    )
    write_atomically(path, buffer.getvalue())


def curves(history: Sequence[Mapping], path: str | Path | None = None) -> Image.Image:
    """One small panel per metric over the steps: the numbers in pale, their running mean in dark.

    The running mean at step k averages over a window of n / 15 records around k, fewer at the ends.

    Args:
        history: records such as {"step": 3, "loss": 0.2}; a metric may be missing from some, and what is no finite number
            is left out. Without "step" a record's place in the list counts.
        path: also write the picture there, as png.

    Raises:
        ValueError: no numbers in the history.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    series: dict[str, list[tuple[float, float]]] = {}
    for place, record in enumerate(history):
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((record.get("step", place), value))
    if not series:
        raise ValueError("history: holds no finite numbers to draw; run at least one step")

    n_columns = min(3, len(series))
    n_rows = math.ceil(len(series) / n_columns)
    figure = Figure(figsize=(3.4 * n_columns, 2.3 * n_rows), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for i, (name, pairs) in enumerate(series.items()):
        steps, values = np.array(pairs, dtype=float).T
        window = np.ones(max(1, len(values) // 15 // 2 * 2 + 1))
        smooth = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
        axes = figure.add_subplot(n_rows, n_columns, i + 1)
        axes.plot(steps, values, color=RAW_LINE, linewidth=1, marker="." if len(values) < 15 else None)
        axes.plot(steps, smooth, color=SMOOTH_LINE, linewidth=1.5, marker="." if len(values) == 1 else None)
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylabel(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    if path is not None:
        save_png(picture, path)
    return picture
