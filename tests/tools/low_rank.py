"""Does the order of VSD's updates matter where q is a network? On the learned prior, one field.

    python tests/tools/low_rank.py

VSD asks q and then trains it, L-VSD (h = 1) trains it first, L2-VSD (h = 0.01) takes the linear
part of that step. q is `LowRank`: the prior's UNet with additions of rank 4. Each picture's own law
is known, so what q should answer is eps itself, and

    mismatch = mean (eps_q - eps)^2    of the eps_q that was subtracted, over the last half of a run

says how far from SDS a run is. Writes tests/results/low_rank.jsonl, a line for each run, and prints
the table of relatives.md.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from jobs import run_jobs

RECORDS = Path(__file__).parent.parent / "results" / "low_rank.jsonl"
STEPS, GUIDANCE = 50, 3.0
PROMPTS, SEEDS, RATES = ("a red mushroom", "a blue house"), (0,), (1.0, 10.0)
ORDERS = {"VSD": 0.0, "L-VSD": 1.0, "L2-VSD": 0.01}  # name -> h


def work(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    from psd_mini import SDS, distill, make_field, render_views
    from psd_mini.methods import VSD, LowRank
    from psd_mini.pretrained import make_prior
    from psd_mini.world.metrics import judge, judge_views
    from psd_mini.world.text import words

    prior, field = make_prior("learned"), make_field("voxel")
    method: Any = SDS(GUIDANCE)
    if job["order"] != "SDS":
        own = LowRank(rate=job["rate"])
        method = VSD(GUIDANCE, own=own, lookahead=ORDERS[job["order"]])
    found: list[float] = []

    def note(step: dict[str, Any]) -> None:
        eps_q = step["context"].predictions.eps_hat[-1]
        if job["order"] != "SDS" and step["step"] >= STEPS // 2:
            found.append((eps_q - step["eps"]).square().mean().item())

    look: dict[str, Any] = {"resolution": 64, "lr_scale": (1.0, 0.15), "steps": STEPS}
    how = {"seed": job["seed"], "callback": note, "progress": False}
    run = distill(field, prior, method, job["prompt"], **look, **how)
    with torch.no_grad():
        seen = judge(render_views(field, judge_views().cameras, 64))
    return {
        "mismatch": round(mean(found), 4) if found else 0.0,
        "distance": round(seen.true_view_distance, 4),
        "recognised": " ".join(seen.recognised[::-1]),
        "right": set(words(job["prompt"])) <= set(seen.recognised),
        "prior_evaluations_per_step": run.cost.prior_evaluations / STEPS,
        "seconds": round(run.cost.seconds["total"], 1),
    }


def table(records: list[dict[str, Any]]) -> str:
    """A row for each order and rate; mismatch and distance of each run."""
    lines = ["| order | eta | pictures through a network a step | right | mismatch | distance |"]
    lines.append("|---" * 6 + "|")
    for order, rate in dict.fromkeys((r["order"], r["rate"]) for r in records):
        mine = [r for r in records if (r["order"], r["rate"]) == (order, rate)]
        right = f"{sum(r['right'] for r in mine)} of {len(mine)}"
        cells = [order, f"{rate or ''}", f"{mine[0]['prior_evaluations_per_step']:g}", right]
        for key in ("mismatch", "distance"):
            cells.append(", ".join(f"{r[key]:.3f}" for r in mine))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    settings = [("SDS", None), *((order, rate) for rate in RATES for order in ORDERS)]
    jobs = [
        {"order": order, "rate": rate, "prompt": prompt, "seed": seed}
        for seed in SEEDS
        for prompt in PROMPTS
        for order, rate in settings
    ]
    print(table(run_jobs(jobs, work, RECORDS)))
