"""Pictures of the sweeps: tests/results/{psd,negative}_sweep.jsonl to notebooks/images.

python tests/tools/psd_figures.py          takes seconds
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

from matplotlib import pyplot as plt
from psd_sweep import DEFAULTS, TIMES

ROOT = Path(__file__).parent.parent.parent
IMAGES, RESULTS = ROOT / "notebooks" / "images", ROOT / "tests" / "results"
COLOURS = {
    "psd": "black",
    "pixel-clean": "C2",
    "pixel-noisy": "C1",
    "straight-through": "C3",
    "dps": "C4",
}


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def means(records: list[dict], *keys: str, **wanted) -> list[tuple]:
    """(weight, mean of each key) per weight, over records with wanted or default settings."""
    settings = DEFAULTS if str(wanted["method"]).startswith("psd") else dict.fromkeys(DEFAULTS)
    settings = {**settings, **wanted}
    mine = [r for r in records if all(r[key] == value for key, value in settings.items())]
    weights = sorted({r["weight"] for r in mine})
    return [(w, *(mean(r[key] for r in mine if r["weight"] == w) for key in keys)) for w in weights]


def tidy(axis) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def frontier(records: list[dict]) -> None:
    """Reward against distance per method and weight, from high noise and from a settled object."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), dpi=110, layout="constrained", sharey=True)
    zoom = axes[0].inset_axes((0.5, 0.08, 0.48, 0.42), xlim=(0.985, 1.09), ylim=(0.955, 1.03))
    zoom.set_title("the corner at (1, 1)", fontsize=8)
    zoom.tick_params(labelsize=7)
    for axis, start in ((axes[0], {}), (zoom, {}), (axes[1], {"times": "low"})):
        for method, colour in COLOURS.items():
            points = means(records, "ratio", "of_best", method=method, **start)
            if points:
                _, x, y = zip(*points, strict=True)
                axis.plot(x, y, marker="o", ms=4, color=colour, label=method)
            for weight, x, y in points:
                corner = x < 1.09 and 0.955 < y < 1.03
                if corner == (axis is zoom):
                    style = {"textcoords": "offset points", "fontsize": 7, "color": colour}
                    axis.annotate(f"{weight:g}", (x, y), xytext=(4, -8), **style)
    for axis, start in zip(axes, ({}, {"times": "low"}), strict=True):
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.set_xlabel("true-view distance / oracle's (1: as good as this field can be)")
        axis.set_xscale("log")
        axis.set(xticks=[1, 1.5, 2, 3, 5], xticklabels=["1", "1.5", "2", "3", "5"], xlim=(0.9, 8))
        axis.minorticks_off()
        axis.set_title(f"t begins {'in [0.02, 0.98]' if start else 'in [0.9, 1]'}", fontsize=10)
        tidy(axis)
    axes[0].set_ylabel("reward / best true object's (above 1: hacked)")
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(IMAGES / "psd_frontier.png")


def settings(records: list[dict]) -> None:
    """Gain against the weight for each omega and flat lambda; gain against the first timesteps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), dpi=110, layout="constrained")
    lines = {name: {"method": "psd", "omega": name} for name in ("hard", "bt", "gap", "gated")}
    lines["hard, lambda not times sigma_t"] = {"method": "psd-flat"}
    for i, (name, wanted) in enumerate(lines.items()):
        weights, gains = zip(*means(records, "gain", **wanted), strict=True)
        left.plot(weights, gains, marker=".", color=f"C{i}" if i else "black", label=name)
    left.set(xscale="log", xlabel="preference weight", ylabel="gain", title="omega and weight")
    left.legend(frameon=False, fontsize=9)
    starts = [(name, low, high) for name, (low, high) in TIMES.items() if name != "low"]
    for name, low, _ in sorted(starts, key=lambda s: s[1]):
        wanted = {"method": "psd", "weight": 1.0, **DEFAULTS, "times": name}
        runs = [r for r in records if all(r[key] == value for key, value in wanted.items())]
        right.plot([low] * len(runs), [r["gain"] for r in runs], "o", color="black", alpha=0.4)
        right.plot([low], [mean(r["gain"] for r in runs)], "_", color="C3", ms=22, mew=2)
    right.set(
        xlabel="lowest t of the first steps (fraction)",
        title="where the run begins, weight 1 (dots: runs, bar: mean)",
    )
    for axis in (left, right):
        axis.axhline(1, color="gray", linewidth=0.8)
        tidy(axis)
    figure.savefig(IMAGES / "psd_settings.png")


def negative(records: list[dict]) -> None:
    """Gain of every schedule, and how far the embedding goes without the trust region."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.2), dpi=110, layout="constrained", width_ratios=[3, 2]
    )
    usual = {"objective": "reward", "lr": 0.2, "radius": 6.0, "t_low": 0.5, "t_high": 0.98}
    usual |= {"until": 1.0, "control": None}
    off = dict.fromkeys(usual)
    low, high = {"method": "sds", "start": "low"}, {"method": "sds", "start": "high"}
    inversion = {"objective": "inversion"}
    rows = {
        "sds, t from 0.02, none": {**low, **off},
        "sds, t from 0.02, negative": {**low, **usual},
        "sds, none": {**high, **off},
        "sds, negative at t 0.9 to 1": {**high, **usual, "t_low": 0.9, "t_high": 1.0},
        "sds, negative at t 0.3 to 0.98": {**high, **usual, "t_low": 0.3},
        "sds, negative at t 0.5 to 0.98": {**high, **usual},
        "the same, first 30% of the steps": {**high, **usual, "until": 0.3},
        "the same, inversion": {**high, **usual, **inversion},
        "inversion, all rewards tie": {**high, **usual, **inversion, "control": True},
        "psd, none": {**high, **off, "method": "psd"},
        "psd, negative at t 0.5 to 0.98": {**high, **usual, "method": "psd"},
    }
    for place, wanted in enumerate(reversed(rows.values())):
        runs = [r for r in records if all(r.get(key) == value for key, value in wanted.items())]
        left.plot([r["gain"] for r in runs], [place] * len(runs), "o", color="black", alpha=0.4)
        left.plot([mean(r["gain"] for r in runs)], [place], "|", color="C3", ms=16, mew=2)
    left.set(
        yticks=range(len(rows)),
        yticklabels=list(reversed(rows)),
        xlabel="gain (dots: runs, bar: mean)",
    )
    left.axvline(1, color="gray", linewidth=0.8)
    for i, (radius, lr) in enumerate(((6.0, 0.2), (float("inf"), 0.2), (float("inf"), 1.0))):
        wanted = {"method": "sds", "start": "high", **usual, "radius": radius, "lr": lr}
        runs = [
            r["norms"]
            for r in records
            if all(r.get(k) == v for k, v in wanted.items()) and "norms" in r
        ]
        for k, norms in enumerate(runs):
            label = f"radius {radius:g}, step {lr:g}" if k == 0 else None
            right.plot(
                [10 * j for j in range(len(norms))], norms, color=f"C{i}", alpha=0.7, label=label
            )
    right.set(
        xlabel="step",
        ylabel="|| n - n_0 ||, log-weights",
        title="with and without the trust region",
    )
    right.legend(frameon=False, fontsize=9)
    for axis in (left, right):
        tidy(axis)
    figure.savefig(IMAGES / "negative_embedding.png")


if __name__ == "__main__":
    frontier(read("psd_sweep.jsonl"))
    settings(read("psd_sweep.jsonl"))
    negative(read("negative_sweep.jsonl"))
