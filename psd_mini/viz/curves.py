"""Curves over the steps of a run and over preference weights, as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from psd_mini._internal.arguments import validated
from psd_mini.viz.pictures import save_png

if TYPE_CHECKING:
    from PIL import Image


def running_mean(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mean over a symmetric window: m_k = mean(v_{k-h} .. v_{k+h}), h = min(n // 30, k, n - 1 - k).

    The window shrinks towards both ends: straight lines, the first and the last value are kept.
    """
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
    from matplotlib.ticker import MaxNLocator

    series: dict[str, list[tuple[float, float]]] = {}
    for place, record in enumerate(history):
        for name, value in record.items():
            if name != "step" and isinstance(value, Real) and math.isfinite(value):
                series.setdefault(name, []).append((record.get("step", place), float(value)))
    if not series:
        expected = "expected records with finite numbers, got none"
        raise ValueError(f"history: {expected}; run at least one step")

    n_columns = min(3, len(series))
    n_rows = math.ceil(len(series) / n_columns)
    inches = (3.4 * n_columns, 2.3 * n_rows)
    canvas = _canvas(inches)
    for i, (name, pairs) in enumerate(series.items(), 1):
        steps, values = np.array(pairs, dtype=float).T
        words = {"xlabel": "step", "ylabel": name.replace("_", " ")}
        axes = canvas.figure.add_subplot(n_rows, n_columns, i, **words)
        axes.plot(steps, values, color="lightsteelblue", linewidth=1)
        dot = "." if len(steps) == 1 else None
        axes.plot(steps, running_mean(values), color="midnightblue", marker=dot)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    picture = _drawn(canvas)
    if path is not None:
        save_png(picture, path)
    return picture


def overoptimisation(curves_of: Mapping[str, Sequence[tuple[float, float, float]]]) -> Image.Image:
    """Proxy and gold reward over the preference weight, a panel for each method.

    A ring marks the weight with the highest proxy: what one would choose who has no gold reward.

    Args:
        curves_of: method -> (weight, proxy, gold) in the order of the weights.
    """
    n = len(curves_of)
    canvas = _canvas((3.2 * n, 3.0))
    panels = canvas.figure.subplots(1, n, squeeze=False, sharey=True)[0]
    for axes, (method, points) in zip(panels, curves_of.items(), strict=True):
        weights, proxy, gold = (np.array(column) for column in zip(*points, strict=True))
        axes.semilogx(weights, proxy, "o--", color="darkorange", label="proxy reward")
        axes.semilogx(weights, gold, "s-", color="midnightblue", label="gold reward")
        best = proxy.argmax()
        ring = {"s": 160, "facecolors": "none", "edgecolors": "midnightblue"}
        axes.scatter(weights[best], gold[best], label="chosen by the proxy", **ring)
        axes.set_title(method, fontsize=10)
        axes.set_xlabel("preference weight")
    panels[0].legend(fontsize=9)
    return _drawn(canvas)


def _canvas(inches: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return FigureCanvasAgg(Figure(figsize=inches, dpi=110, layout="constrained"))


def _drawn(canvas: Any) -> Image.Image:
    """The picture of a canvas, with a pale grid and without a frame."""
    from PIL import Image

    for axes in canvas.figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
