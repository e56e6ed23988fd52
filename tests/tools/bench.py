"""Where the time of a step goes on this machine: `python tests/tools/bench.py [--steps N]`.

Every ratio compares medians of repeats that alternate within one run, so that a machine that slows
down half-way slows both sides. All times are wall-clock milliseconds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from psd_mini._internal.arguments import at_least
from psd_mini.cameras import Cameras, camera_rays, orbit
from psd_mini.distill import distill
from psd_mini.fields import DENSITY_SCALE, VoxelField, make_field
from psd_mini.methods import METHODS, WITH_NETWORK, make_method
from psd_mini.rendering import ball_interval, compositing_weights, render
from psd_mini.rewards import make_reward
from psd_mini.viz.pictures import gif, render_views, turntable_cameras
from psd_mini.world.prior import ToyWorldPrior

PARTS = ("render", "prior", "backward")


def bench(steps: int = 30) -> list[dict]:
    """Print what a step costs and what that goes to, and return the rows of the table.

    "rest" is what belongs to neither rendering, prior nor backward: rewards, optimiser,
    bookkeeping.

    Args:
        steps: steps that are timed for each method, after 3 that warm up, and repeats of every
            ratio; at least 1.

    Raises:
        ValueError: steps below 1.
    """
    at_least("steps", steps, 1)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = methods_table(steps)
    for name in ("sds", "psd"):
        print(
            f"{name}: one step is {overhead(name, steps):.2f} times its bare prior evaluations and"
            " one render with backward"
        )
    for name, field in (("fresh", VoxelField()), ("converged", converged_field())):
        ratio, difference = renderer_ratio(field, steps)
        print(
            f"render 64 x 64 x 64, {name} field: plain / ours {ratio:.2f}; largest relative"
            f" difference {difference:.0e}"
        )
    print(f"import psd_mini / import torch: {import_ratio(max(1, steps // 6)):.2f}")
    show = partial(_show, converged_field())
    print(f"a turntable for a notebook: {alternating([show], 3)[0]:.0f} ms")
    return rows


def alternating(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of each call, the calls taking turns, after one round that warms up."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, mine in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if repeat > 0:
                mine.append(time.perf_counter() - start)
    return [1e3 * statistics.median(mine) for mine in seconds]


def methods_table(steps: int) -> list[dict]:
    """Milliseconds per step of every method on voxels, and of SDS on triplanes."""
    prior, reward = ToyWorldPrior(), make_reward("colorfulness")
    print("4 cameras of 32 x 32; ms a step")
    print(
        f"{'field':10}{'method':18}"
        + "".join(f"{name:>10}" for name in (*PARTS, "rest", "total", "/ sds", "evals"))
    )
    rows: list[dict] = []
    exact = [name for name in METHODS if name not in WITH_NETWORK]
    for kind, name in [*(("voxel", name) for name in exact), ("triplane", "sds")]:
        method = make_method(name)
        run = partial(
            distill, prior=prior, method=method, prompt="a mushroom", reward=reward, progress=False
        )
        run(make_field(kind), steps=3)
        cost = run(make_field(kind), steps=steps).cost
        row = {part: 1e3 * cost.seconds.get(part, 0.0) / steps for part in PARTS}
        total = 1e3 * cost.seconds["total"] / steps
        row |= {
            "rest": total - sum(row.values()),
            "total": total,
            "ratio": total / rows[0]["total"] if rows else 1.0,
        }
        row |= {"evaluations": cost.prior_evaluations / steps}
        print(f"{kind:10}{name:18}" + "".join(f"{value:10.2f}" for value in row.values()))
        rows.append({"field": kind, "method": name, **row})
    return rows


def _show(field: VoxelField) -> None:
    gif(render_views(field, turntable_cameras(), 64))._repr_html_()


def converged_field() -> VoxelField:
    """A red ball with sharp edges in empty space: what a field looks like after training,
    without the training."""
    field = VoxelField()
    resolution = field.density.shape[-1]
    axis = torch.linspace(-1, 1, resolution)
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    with torch.no_grad():
        field.density[0, 0] = torch.where(radius < 0.5, 10.0, -10.0)
        field.colour[0, 0] = torch.where(radius < 0.5, 4.0, 0.0)
    return field


def _forward_backward(
    picture: Callable[[], torch.Tensor], field: torch.nn.Module, direction: torch.Tensor
) -> torch.Tensor:
    field.zero_grad()
    rgb = picture()
    (rgb * direction).sum().backward()
    return rgb


def overhead(method_name: str, steps: int) -> float:
    """Cost of a step over the bare cost of its prior evaluations and of one render with its
    backward pass."""
    prior, field = ToyWorldPrior(), VoxelField()
    generator = torch.Generator().manual_seed(0)
    cameras = prior.draw_cameras(4, generator)
    embeddings, direction = prior.embed(["a mushroom"]), torch.ones(4, 3, 32, 32)
    method, reward = make_method(method_name), make_reward("colorfulness")
    run = partial(distill, VoxelField(), prior, method, "a mushroom", reward=reward, progress=False)
    evaluations = run(steps=1).cost.prior_evaluations // len(cameras)

    def bare() -> None:
        rgb = _forward_backward(
            lambda: render(field, cameras, 32, generator=generator).rgb, field, direction
        )
        x_t, t = prior.encode(rgb.detach()), torch.full((4,), 500)
        with torch.no_grad():
            for _ in range(evaluations):
                prior.predict_noise(x_t, t, embeddings, cameras)

    ratios, block = [], min(5, steps)
    for _ in range(
        max(2, steps)
    ):  # a few steps, then as many bare ones; neighbours share what else the machine is doing
        seconds = run(steps=block).cost.seconds["total"]
        start = time.perf_counter()
        for _ in range(block):
            bare()
        ratios.append(seconds / (time.perf_counter() - start))
    return statistics.median(ratios)


def plain_render(field: VoxelField, cameras: Cameras, size: int, n_samples: int) -> torch.Tensor:
    """The renderer that is written first: every ray, one call of grid_sample. Equations as in
    `psd_mini.rendering`.

    Returns:
        pictures (B, 3, size, size) on white.
    """
    origins, directions = camera_rays(cameras, size, size)
    origins = origins[:, None, None].expand_as(directions).reshape(-1, 3)
    directions = directions.reshape(-1, 3)
    near, far = ball_interval(origins, directions, field.bound)
    widths = ((far - near) / n_samples)[:, None].expand(-1, n_samples)
    z = near[:, None] + widths * (torch.arange(n_samples) + 0.5)
    points = origins[:, None] + z[..., None] * directions[:, None]
    grid = torch.cat((field.density, field.colour), dim=1)
    where = (points / field.bound).view(1, 1, 1, -1, 3)
    raw = F.grid_sample(grid, where, align_corners=True, padding_mode="border").view(4, -1)
    density, colour = DENSITY_SCALE * F.softplus(raw[0]), torch.sigmoid(raw[1:].T)
    weights, opacity = compositing_weights(density.view(z.shape), widths)
    rgb = torch.einsum("ns,nsc->nc", weights, colour.view(*z.shape, 3)) + (1 - opacity)[:, None]
    return rgb.view(len(cameras), size, size, 3).permute(0, 3, 1, 2)


def renderer_ratio(
    field: VoxelField, repeats: int, size: int = 64, n_samples: int = 64
) -> tuple[float, float]:
    """How many times as fast as `plain_render` the package's `render` is, forward and backward, and
    how far they differ.

    Returns:
        the ratio of the medians, and the largest of |a - b| / |b| over the picture and each
        parameter's gradient.
    """
    cameras = orbit([30.0], 20.0)
    direction = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    seen: dict[str, list[torch.Tensor]] = {}

    def run(name: str, picture: Callable[[], torch.Tensor]) -> None:
        rgb = _forward_backward(picture, field, direction)
        seen[name] = [
            rgb.detach(),
            *(p.grad.clone() for p in field.parameters() if p.grad is not None),
        ]

    plain = partial(run, "plain", lambda: plain_render(field, cameras, size, n_samples))
    ours = partial(run, "ours", lambda: render(field, cameras, size, n_samples=n_samples).rgb)
    slow, fast = alternating([plain, ours], repeats)
    differences = [
        ((a - b).norm() / b.norm()).item() for a, b in zip(seen["ours"], seen["plain"], strict=True)
    ]
    return slow / fast, max(differences)


def import_ratio(repeats: int) -> float:
    """Time of `import psd_mini` in a fresh process over that of `import torch`, the processes'
    own start taken off."""

    def seconds(module: str) -> float:
        code = (
            f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter()"
            " - start)"
        )
        return float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout
        )

    times = [(seconds("torch"), seconds("psd_mini")) for _ in range(repeats)]
    return statistics.median(mine for _, mine in times) / statistics.median(
        torchs for torchs, _ in times
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Where the time of a step goes.")
    parser.add_argument(
        "--steps", type=int, default=30, help="steps to time after a warm-up (default: %(default)s)"
    )
    bench(parser.parse_args().steps)
