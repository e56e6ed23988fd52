"""Does a 2D reward transfer to 3D? A reward that likes one attractive view, and Janus faces.

    python tests/tools/claims_views.py     resumable; prints the table

The reward is the part of the picture that has the colour of glass, which a rocket shows from the
front only: it has one window. A prior that does not know the camera (or knows a word for it) may
open a window on every side. Windows are counted on the finished object: the share of 24 views
around it that show more glass than half of what a true rocket shows from the front. Records:
tests/results/claims_views.jsonl.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from claims_tables import clustered
from jobs import run_jobs

RESULTS = Path(__file__).parent.parent / "results" / "claims_views.jsonl"
PROMPTS = ("a red rocket", "a green rocket", "a yellow rocket")
SEEDS = (0, 1)
RANKINGS: dict[str, dict[str, Any]] = {
    "no preference": {"preference_weight": 0.0},
    "single views, weight 4": {"preference_weight": 4.0, "over_views": False},
    "single views, weight 16": {"preference_weight": 16.0, "over_views": False},
    "over views, weight 4": {"preference_weight": 4.0, "over_views": True},
    "over views, weight 8": {"preference_weight": 8.0, "over_views": True},
    "over views, weight 32": {"preference_weight": 32.0, "over_views": True},
}


def run(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    from psd_mini import PSD, SDS, ToyWorldPrior, distill, make_field, render_views
    from psd_mini.cameras import orbit
    from psd_mini.rewards import NamedColor
    from psd_mini.world.objects import GLASS
    from psd_mini.world.pool import make_views
    from psd_mini.world.text import components

    reward = NamedColor(GLASS, width=0.1)
    method = PSD(SDS(), **job["settings"])
    field = make_field("voxel", torch.Generator().manual_seed(job["seed"]))
    numbers: dict[str, Any] = {"t_min": (0.9, 0.02), "t_max": (1.0, 0.2), "steps": 80}
    prior = ToyWorldPrior(32, job["conditioning"])
    numbers |= {"seed": job["seed"], "progress": False}
    distill(field, prior, method, job["prompt"], reward=reward, **numbers)
    around = orbit(torch.arange(24) * 15.0, 15.0)
    shown = reward(render_views(field, around, 64))
    _, colour, _ = job["prompt"].split()
    place = components().index(("rocket", colour))
    true = reward(make_views(around, 64).pictures(torch.arange(24))[:, place])
    front = true.max().item()
    return {
        "windows": (shown > front / 2).float().mean().item(),
        "true_windows": (true > front / 2).float().mean().item(),
        "reward": shown.mean().item() / true.mean().item(),
    }


if __name__ == "__main__":
    jobs = [
        {"conditioning": conditioning, "ranking": name, "settings": settings}
        | {"prompt": prompt, "seed": seed}
        for seed in SEEDS
        for conditioning in ("words", "none")
        for prompt in PROMPTS
        for name, settings in RANKINGS.items()
    ]
    records = run_jobs(jobs, run, RESULTS)
    print("| conditioning | ranking | views with a window | glass colour / true |")
    print("|---|---|---|---|")
    for conditioning in ("words", "none"):
        for name in RANKINGS:
            mine = [r for r in records if (r["conditioning"], r["ranking"]) == (conditioning, name)]
            cells = []
            for key in ("windows", "reward"):
                value, error = clustered({(r["prompt"], r["seed"]): r[key] for r in mine})
                cells.append(f"{value:.2f} ± {error:.2f}")
            print(f"| {conditioning} | {name} | {' | '.join(cells)} |")
    print(f"a true rocket: {records[0]['true_windows']:.2f} of the views")
