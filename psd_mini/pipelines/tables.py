"""The tables of a comparison: what there was to gain, and what every method made of it.

The equations are those of `compare`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import named
from psd_mini._internal.files import read_archive, write_atomically
from psd_mini.methods.exact import BETA
from psd_mini.rewards import make_reward, score
from psd_mini.viz.curves import overoptimisation
from psd_mini.viz.pictures import contact_sheet, save_png
from psd_mini.world import text
from psd_mini.world.metrics import judge_views

COLUMNS = (
    *("reward", "gain", "true_view_distance", "oracle_distance", "log_density_gap"),
    *("distance_to_optimum", "prior_evaluations", "seconds"),
)


def ground_truth(prompt: str, reward: str | Callable, beta: float = BETA) -> dict[str, float]:
    """What there is to gain: mean reward of the prompt, of the optimum, of the best true object.

    Args:
        prompt: words the toy world knows.
        reward: a name, see `rewards.make_reward`, or a function.
        beta: temperature of the objective, reward units.

    Returns:
        {"r_prior", "r_opt", "r_best"} in reward units (equations: `pipelines.compare`).
    """
    reward, views = make_reward(reward), judge_views()
    prompts = [prompt] * len(text.components())
    pictures = (views.pictures(torch.tensor([p]))[0] for p in range(len(views.cameras)))
    r = torch.stack([score(reward, seen, prompts) for seen in pictures]).mean(0).double()
    log_pi = (text.embed([prompt])[0] @ text.component_keys().T).double()
    # pi*_k is proportional to pi_k exp(r_k / beta)
    pi, pi_star = log_pi.softmax(0), (log_pi + r / beta).softmax(0)
    best = r[log_pi > log_pi.max() - 1].max()
    return {"r_prior": (pi @ r).item(), "r_opt": (pi_star @ r).item(), "r_best": best.item()}


def name_and_weight(name: str) -> tuple[str, float | None]:
    """("psd", 16.0) of "psd@16" or "psd@16+neg"; no weight is the method's own."""
    method, _, weight = name.removesuffix("+neg").partition("@")
    try:
        return method, float(weight) if weight else None
    except ValueError:
        raise ValueError(f"methods: {name!r}: expected a number after @, as in psd@16") from None


def load(path: Path) -> tuple[dict[str, Any], Tensor]:
    """A finished run: its record, and its pictures in [0, 1]."""
    with named(f"out: {path} is damaged or no finished run", "delete it, and resume"):
        run = read_archive(path)
        return run["record"], run["pictures"].float() / 255


def write_tables(
    files: Sequence[Path], truth: dict[str, float], folder: Path
) -> list[dict[str, Any]]:
    """Write compare.json, .md and .png; the records, with gain and distance to the optimum."""
    optima, of_seed_0, records = {}, {}, []
    runs = [load(file) for file in files]
    for record, pictures in runs:
        if record["method"] == "exact":
            optima[record["seed"]] = pictures
    to_gain = truth["r_opt"] - truth["r_prior"]
    for record, pictures in runs:
        # gain = (r - r_prior) / (r_opt - r_prior)
        gain = (record["reward"] - truth["r_prior"]) / to_gain if to_gain > 0 else 0.0
        distance = (pictures - optima[record["seed"]]).square().mean().sqrt().item()
        records.append({**record, "gain": gain, "distance_to_optimum": distance})
        if record["seed"] == 0:
            of_seed_0[record["method"]] = pictures[::3]
    markdown = table(records, truth)
    write_atomically(folder / "compare.json", json.dumps(records, indent=1).encode())
    write_atomically(folder / "compare.md", markdown.encode())
    title = f"{records[0]['prompt']}, reward {records[0]['reward_name']}, seed 0"
    sheet = contact_sheet(list(of_seed_0.values()), list(of_seed_0), title=title)
    save_png(sheet, folder / "compare.png")
    if of_weights := over_weights(records):
        save_png(overoptimisation(of_weights), folder / "overoptimisation.png")
    print(f"{markdown}\ntable, records and pictures are in {folder}")
    return records


def over_weights(records: list[dict[str, Any]]) -> dict[str, list[tuple[float, float, float]]]:
    """For each method that was given with several weights: (weight, proxy, gold), seeds' means."""
    found: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for record in records:
        name, weight = name_and_weight(record["method"])
        if weight is not None and "gold_reward" in record:
            found.setdefault(name, {}).setdefault(weight, []).append(record)
    keys = "reward", "gold_reward"
    return {
        name: [(w, *(mean(r[key] for r in found[name][w]) for key in keys)) for w in sorted(of)]
        for name, of in found.items()
        if len(of) > 1
    }


def table(records: list[dict[str, Any]], truth: dict[str, float]) -> str:
    """Markdown: mean over the seeds, plus-minus the standard error where there are several."""
    truths = (
        f"Mean reward of the prompt {truth['r_prior']:.3f}, at the optimum {truth['r_opt']:.3f}, "
        f"best true object {truth['r_best']:.3f}. Mean over seeds ± standard error."
    )
    columns = (
        *COLUMNS[:1],
        *(["gold_reward"] if "gold_reward" in records[0] else []),
        *COLUMNS[1:],
    )
    names = " | ".join(name.replace("_", " ") for name in columns)
    rule = "|---" * (len(columns) + 2) + "|"
    lines = [truths, "", f"| method | {names} | recognised |", rule]
    for method in dict.fromkeys(record["method"] for record in records):
        mine = [record for record in records if record["method"] == method]
        cells = [_cell(name, [float(record[name]) for record in mine]) for name in columns]
        seen = ", ".join(record["recognised"] for record in mine)
        lines.append(f"| {method} | {' | '.join(cells)} | {seen} |")
    return "\n".join(lines) + "\n"


def _cell(column: str, values: list[float]) -> str:
    digits = 0 if column in ("prior_evaluations", "seconds") else 3
    if len(values) == 1 or column == "prior_evaluations":
        return f"{mean(values):.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values) / len(values) ** 0.5:.3f}"
