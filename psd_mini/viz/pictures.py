"""Pictures to look at: contact sheets and turntables.

Everything here takes image tensors (B, 3, H, W) in [0, 1], as `render` makes them, or plain
dictionaries of numbers, and gives `PIL.Image` pictures or files. Pillow and matplotlib are imported
when they are first needed.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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

Texts = Sequence[str]
# pictures of a contact sheet and of a gif are enlarged to at least this, pixels
CELL_WIDTH, FRAME_WIDTH = 96, 192
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
        expected = "expected (3, H, W) or (B, 3, H, W)"
        raise ValueError(f"image: {expected}, got {tuple(image.shape)}; decode latents first")
    return (255 * image.detach().clamp(0, 1)).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def _pictures(images: Float[Tensor, "b 3 h w"], least_width: int) -> list[Image.Image]:
    """PIL pictures, enlarged by the smallest whole factor that makes them so many pixels wide."""
    from PIL import Image

    height, width = images.shape[-2:]
    scale = max(1, math.ceil(least_width / width))
    pictures = [Image.fromarray(array) for array in to_uint8(images)]
    shape = (scale * width, scale * height)
    return [picture.resize(shape, Image.Resampling.LANCZOS) for picture in pictures]


def png(image: Float[Tensor, "3 h w"] | Image.Image) -> bytes:
    """The bytes of a png file: of a tensor (3, H, W) in [0, 1] or a `PIL.Image`."""
    buffer = io.BytesIO()
    picture = _pictures(image[None], 1)[0] if isinstance(image, Tensor) else image
    picture.save(buffer, format="png")
    return buffer.getvalue()


def save_png(image: Float[Tensor, "3 h w"] | Image.Image, path: str | Path) -> None:
    """Write one picture as a png file, whole or not at all; see `png`."""
    write_atomically(path, png(image))


def in_base64(data: bytes) -> str:
    """Bytes as text, as web pages hold them."""
    return base64.b64encode(data).decode()


@validated
def contact_sheet(
    rows: Sequence[Float[Tensor, "_ 3 _ _"]] | Float[Tensor, "n 3 h w"],
    row_labels: Texts | None = None,
    column_labels: Texts | None = None,
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
        ValueError: no pictures, pictures of different sizes, or a wrong number of labels.
    """
    rows = [rows] if isinstance(rows, Tensor) and rows.ndim == 4 else list(rows)
    shapes = {tuple(row.shape[1:]) for row in rows if len(row)}
    if len(shapes) != 1:
        got = sorted(shapes) or "none"
        raise ValueError(f"rows: expected pictures of one size, got {got}; resize them first")
    n_columns = max(len(row) for row in rows)
    wanted = {"row_labels": (row_labels, len(rows)), "column_labels": (column_labels, n_columns)}
    for name, (labels, n) in wanted.items():
        if labels is not None and len(labels) != n:
            expected = f"expected {n} texts, as rows has so many or so long ones"
            raise ValueError(f"{name}: {expected}; got {len(labels)}")
    cells = [_pictures(row, CELL_WIDTH) for row in rows]
    return _draw_sheet(cells, row_labels or [], column_labels or [], title or "")


def _draw_sheet(cells: list, row_labels: Texts, column_labels: Texts, title: str) -> Image.Image:
    """The grid itself: `cells` holds the PIL pictures of each row."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = next(cell.size for row in cells for cell in row)
    n_rows, n_columns = len(cells), max(map(len, cells))
    font = ImageFont.load_default(TEXT_SIZE)
    title_width, title_height = _extent([title] if title else [], font)
    left, label_height = _extent(row_labels, font)
    label_width, top = _extent(column_labels, font)
    left, top = left + GAP, top + title_height + GAP
    step_x, step_y = max(width, label_width) + GAP, max(height, label_height) + GAP

    sheet_width = max(left + n_columns * step_x, title_width)
    sheet = Image.new("RGB", (sheet_width, top + n_rows * step_y), "white")
    write = ImageDraw.Draw(sheet).multiline_text
    write((GAP, GAP), title, "black", font)
    for j, text in enumerate(column_labels):
        above = (left + j * step_x + width // 2, top - GAP)
        write(above, text, "black", font, anchor="md", align="center")
    for i, text in enumerate(row_labels):
        beside = (left - 2 * GAP, top + i * step_y + height // 2)
        write(beside, text, "black", font, anchor="rm", align="right")
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            sheet.paste(cell, (left + j * step_x, top + i * step_y))
    return sheet


def _extent(texts: Texts, font: Any) -> tuple[int, int]:
    """Width and height of the largest text, with a margin; zeros without texts."""
    from PIL import Image, ImageDraw

    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [ruler.multiline_textbbox((0, 0), text, font) for text in texts]
    width = max((math.ceil(right) + 2 * GAP for _, _, right, _ in boxes), default=0)
    height = max((math.ceil(bottom) + 2 * GAP for _, _, _, bottom in boxes), default=0)
    return width, height


@validated
@torch.no_grad()
def render_views(
    field: Callable, cameras: Cameras, resolution: int, n_samples: int = 64, background: float = 1.0
) -> Float[Tensor, "b 3 resolution resolution"]:
    """Pictures of a field to look at: `render(...).rgb` in [0, 1], without gradients.

    Args:
        field: points (N, 3) -> density (N,), colour (N, 3), with a `bound`.
        cameras: B cameras.
        resolution: height and width, pixels.
        n_samples: bins per ray.
        background: brightness behind the field.
    """
    at_least("resolution", resolution, 1)
    at_least("n_samples", n_samples, 1)
    # a few cameras at a time, so that many need no more memory
    n = max(1, POINTS_AT_ONCE // (resolution * resolution * n_samples))
    groups = [cameras[i : i + n] for i in range(0, len(cameras), n)]
    look: dict[str, Any] = {"n_samples": n_samples, "background": background}
    views = [render(field, group, resolution, **look).rgb for group in groups]
    return torch.cat(views).clamp(0, 1)


def turntable_cameras(n_frames: int = 24, elevation_degrees: float = 20.0) -> Cameras:
    """One turn around z: azimuth_k = 360 k / n degrees."""
    at_least("n_frames", n_frames, 1)
    return orbit([360.0 * k / n_frames for k in range(n_frames)], elevation_degrees)


class Gif(NamedTuple):
    """The bytes of an animated gif, which a notebook shows as the last value of a cell."""

    data: bytes

    def _repr_html_(self) -> str:
        return f'<img alt="a film" src="data:image/gif;base64,{in_base64(self.data)}">'


def with_palette(picture: Image.Image) -> Image.Image:
    """The same picture with 256 colours of its own: maximum coverage, refined by k-means."""
    from PIL import Image

    return picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2)


def gif(
    frames: Float[Tensor, "b 3 h w"], path: str | Path | None = None, seconds: float = 3.0
) -> Gif:
    """Frames as a gif that loops for ever, enlarged to at least 192 pixels across.

    Every frame has 256 colours of its own, and equal neighbours become one long frame. A gif counts
    time in hundredths of a second: frame k ends at round(100 seconds (k + 1) / B).

    Args:
        frames: B pictures in [0, 1].
        path: also write the file there, whole or not at all.
        seconds: for all frames together.

    Raises:
        ValueError: no frames, or less than 0.02 s for each, which browsers play more slowly.
    """
    n = len(frames)
    if n == 0 or seconds < 0.02 * n:
        expected = "expected frames, and 0.02 s or more for each"
        raise ValueError(f"seconds: {expected}, got {n} frames in {seconds:g} s")
    first, *others = map(with_palette, _pictures(frames, FRAME_WIDTH))
    ends = [round(100 * seconds * k / n) for k in range(n + 1)]
    durations = [10 * (end - start) for start, end in pairwise(ends)]
    animated: dict[str, Any] = {"save_all": True, "append_images": others, "loop": 0}
    buffer = io.BytesIO()
    first.save(buffer, format="gif", duration=durations, **animated)
    if path is not None:
        write_atomically(path, buffer.getvalue())
    return Gif(buffer.getvalue())
