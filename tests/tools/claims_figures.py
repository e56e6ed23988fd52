"""Pictures of the claims, in notebooks/images: from the records of `claims.py`, and three runs.

python tests/tools/claims_figures.py            all
python tests/tools/claims_figures.py curves     claims_overoptimisation.png
python tests/tools/claims_figures.py car        claims_car.png
python tests/tools/claims_figures.py dull       claims_dull.png
python tests/tools/claims_figures.py views      claims_views.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

from claims import PLAN, method_of, prior_of, start_field
from claims_tables import by_run, clustered, read, settings_of, worlds

IMAGES = Path(__file__).parents[2] / "notebooks" / "images"


def curves() -> None:
    """Proxy and gold over the weight, rugged reward, both tasks (the sweep)."""
    from psd_mini.viz.curves import overoptimisation
    from psd_mini.viz.pictures import save_png

    shown: dict[str, list[tuple[float, float, float]]] = {}
    for task in PLAN["tasks"]:
        for (method, weight), mine in settings_of(worlds(read("sweep"))[task, "rugged"]).items():
            if method in ("pixel-clean", "psd") and weight is not None:
                values = [mean(r[key] for r in mine) for key in ("proxy_reward", "gold_reward")]
                shown.setdefault(f"{method}, {task}", []).append((weight, *values))
    print(shown)
    save_png(overoptimisation(shown), IMAGES / "claims_overoptimisation.png")


def car() -> None:
    """A red car, refined by the proxy of a hidden reward that prefers purple."""
    import torch

    from psd_mini import contact_sheet, distill, render_views
    from psd_mini.cameras import orbit
    from psd_mini.rewards import make_reward
    from psd_mini.viz.pictures import save_png, with_palette
    from psd_mini.world.gold import gold_reward
    from psd_mini.world.metrics import judge, judge_views

    task, seed, prompt = PLAN["tasks"]["refine"], 0, "a car"
    proxy, rows = make_reward("proxy:rugged"), {}
    views, around = judge_views(), orbit(torch.arange(6) * 60.0 + 30, 20.0)
    runs: dict[str, tuple[str, float] | None] = {"the finished red car": None}
    runs |= {"pixel gradient, weight 1000": ("pixel-clean", 1000.0), "PSD": ("psd", 20.0)}
    for name, chosen in runs.items():
        field = start_field(prompt, "rugged", seed)
        if chosen:
            times: dict[str, Any] = {key: tuple(task[key]) for key in ("t_min", "t_max")}
            times |= {"steps": task["steps"], "seed": seed, "progress": False}
            distill(field, prior_of(1.0), method_of(*chosen, {}), prompt, reward=proxy, **times)
        judged = render_views(field, views.cameras, views.resolution)
        with torch.no_grad():
            liked = proxy(judged, []).mean().item()
        gold = gold_reward(judge(judged), "rugged")
        rows[f"{name}\nproxy {liked:.2f}, gold {gold:.2f}"] = render_views(field, around, 64)
    title = 'refining "a car"; the hidden reward likes purple most and red least'
    sheet = with_palette(contact_sheet(list(rows.values()), list(rows), title=title))
    save_png(sheet, IMAGES / "claims_car.png")


def dull() -> None:
    """Reward in the dull world, every run a mark: what any negative does, what learning adds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read("dull")
    names = list(dict.fromkeys(r["variant"] for r in records))
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for place, name in enumerate(names):
        mine = [r for r in records if r["variant"] == name]
        value, error = clustered(by_run(mine, "reward_of_best"))
        values = [r["reward_of_best"] for r in mine]
        axis.plot(values, [place] * len(values), "o", color="lightsteelblue")
        axis.errorbar(value, place, xerr=2 * error, fmt="s", color="midnightblue", capsize=4)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("reward / that of the vivid object, ± two standard errors")
    axis.axvline(1, color="gray", linewidth=0.8)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "claims_dull.png", dpi=90)


def views() -> None:
    """Share of a rocket's views that show a window, over the weight of a reward that likes one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records, plain = read("views"), {"preference_weight": 0.0}
    titles = {"words": "the prior is told front, side, back", "none": "the prior knows no camera"}
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    for axis, (conditioning, title) in zip(axes, titles.items(), strict=True):
        known = [r for r in records if r["conditioning"] == conditioning]
        for single, style in ((True, "o-"), (False, "s--")):
            of_weight: dict[float, list[dict]] = {}
            for record in known:
                ours = record["settings"] == plain or record["settings"]["over_views"] != single
                if ours:
                    weight = record["settings"]["preference_weight"]
                    of_weight.setdefault(weight, []).append(record)
            weights = sorted(of_weight)
            found = [clustered(by_run(of_weight[w], "windows")) for w in weights]
            axis.errorbar(
                weights,
                [value for value, _ in found],
                yerr=[error for _, error in found],
                fmt=style,
                capsize=3,
                label="ranking single views" if single else "ranking over views",
            )
        axis.axhline(known[0]["true_windows"], color="gray", linewidth=0.8, label="true rocket")
        axis.set_xscale("symlog", linthresh=4)
        axis.set_xticks([0, 4, 8, 16, 32], ["0", "4", "8", "16", "32"])
        axis.set(title=title, xlabel="preference weight", ylim=(-0.05, 1.05))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("views with a window")
    axes[1].legend(frameon=False, loc="lower right")
    figure.savefig(IMAGES / "claims_views.png", dpi=90)


FIGURES = {"curves": curves, "car": car, "dull": dull, "views": views}

if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]()
