"""How the time of a step grows with each size: `python tests/tools/growth.py FILE.png`.

The slopes on a log-log plot, against what the algorithm says:

    image size       rays = pixels^2                                            slope 2
    samples per ray  the field is asked once per sample                         slope 1
    views            pictures are independent                                   slope 1
    grid size R      rendering reads a fixed number of points (slope 0);
                     Adam, the copy for NaNs and the checks go over R^3 nodes   from 0 towards 3
    components K     one squared distance per component                         slope 1

Fixed costs (Python, small tensors) flatten the left end of every curve, so the slope printed is
that of the last two points.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable

import torch

from psd_mini.distill import distill
from psd_mini.fields import VoxelField
from psd_mini.methods import make_method
from psd_mini.mixture import GaussianMixture
from psd_mini.schedule import scaled_linear_schedule
from psd_mini.world.prior import ToyWorldPrior

SIZES = {
    "image size": (16, 32, 64),
    "samples per ray": (16, 32, 64, 128),
    "views": (2, 4, 8, 16),
    "grid size": (16, 32, 64, 96),
    "mixture components": (24, 96, 384, 1536),
}
EXPECTED = {
    "image size": "2",
    "samples per ray": "1",
    "views": "1",
    "grid size": "0 to 3",
    "mixture components": "1",
}


def step_milliseconds(
    prior: ToyWorldPrior,
    steps: int,
    resolution: int = 32,
    n_samples: int = 32,
    cameras_per_step: int = 4,
) -> float:
    """One step of SDS on voxels in the exact world."""
    run = distill(
        *(VoxelField(resolution), prior, make_method("sds"), "a mushroom"),
        steps=steps,
        resolution=prior.views.resolution,
        n_samples=n_samples,
        cameras_per_step=cameras_per_step,
        progress=False,
    )
    return 1e3 * run.cost.seconds["total"] / steps


def mixture_milliseconds(n_components: int, repeats: int, dimension: int = 3 * 32 * 32) -> float:
    """One prediction for four pictures from an isotropic mixture of K components."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(n_components, dimension, generator=generator)
    mixture = GaussianMixture(torch.ones(n_components), means, 0.1, scaled_linear_schedule())
    x_t, t = torch.randn(4, dimension, generator=generator), torch.full((4,), 500)
    mixture.predict_noise(x_t, t)
    start = time.perf_counter()
    for _ in range(repeats):
        mixture.predict_noise(x_t, t)
    return 1e3 * (time.perf_counter() - start) / repeats


def growth_of_cost(
    path: str, steps: int = 10, rounds: int = 3
) -> dict[str, list[tuple[int, float]]]:
    """Measure, print and draw milliseconds against every size, the others at their defaults.

    Args:
        path: png file for the picture.
        steps: steps (or predictions) per measurement.
        rounds: measurements of every size, taken in turns; the median counts.

    Returns:
        for each name in `SIZES`, pairs of size and milliseconds.
    """
    priors = {size: ToyWorldPrior(size) for size in SIZES["image size"]}
    measure: dict[str, Callable[[int], float]] = {
        "image size": lambda n: step_milliseconds(priors[n], steps),
        "samples per ray": lambda n: step_milliseconds(priors[32], steps, n_samples=n),
        "views": lambda n: step_milliseconds(priors[32], steps, cameras_per_step=n),
        "grid size": lambda n: step_milliseconds(priors[32], steps, resolution=n),
        "mixture components": lambda n: mixture_milliseconds(n, steps),
    }
    seen: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for name, sizes in SIZES.items():
            for size in sizes:
                seen.setdefault((name, size), []).append(measure[name](size))
    table = {
        name: [(size, statistics.median(seen[name, size])) for size in sizes]
        for name, sizes in SIZES.items()
    }
    for name, points in table.items():
        values = ", ".join(f"{size}: {ms:.1f}" for size, ms in points)
        print(
            f"{name:20} ms at {values}; slope {_last_slope(points):.2f}, expected {EXPECTED[name]}"
        )
    _draw(table, path)
    return table


def _last_slope(points: list[tuple[int, float]]) -> float:
    (n_1, ms_1), (n_2, ms_2) = points[-2:]
    return math.log(ms_2 / ms_1) / math.log(n_2 / n_1)


def _draw(table: dict[str, list[tuple[int, float]]], path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(3.0 * len(table), 2.6), dpi=110, layout="constrained"))
    for i, (name, points) in enumerate(table.items()):
        axes = canvas.figure.add_subplot(
            1, len(table), i + 1, xlabel=name, xscale="log", yscale="log"
        )
        sizes, ms = zip(*points, strict=True)
        axes.plot(sizes, ms, marker="o", color="midnightblue")
        axes.set_xticks(sizes, labels=[str(size) for size in sizes], minor=False)
        axes.minorticks_off()
        axes.set_title(f"slope {_last_slope(points):.2f} (expected {EXPECTED[name]})", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.figure.axes[0].set_ylabel("ms")
    canvas.figure.savefig(path)


if __name__ == "__main__":
    growth_of_cost(sys.argv[1])
