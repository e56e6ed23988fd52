"""Where the fields' starting density and learning rates come from: a small sweep.

    python tests/tools/field_sweep.py [voxel|triplane]

Writes tests/results/field_sweep.jsonl and prints the table of field_sweep.md. For every start
(radius, sharpness and offset of the soft ball) and every factor on the learning rates: the distance
to the true views after SDS and after regression (the oracle), three prompts, default steps at
32 x 32.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from jobs import run_jobs

RESULTS = Path(__file__).parent.parent / "results"
PROMPTS = ("a mushroom", "a blue chair", "a red house")
BALLS = {
    "fog": (0.5, 8.0, -2.0),
    "ball": (0.6, 8.0, 0.0),
    "soft ball": (0.8, 4.0, -1.0),
    "solid": (0.6, 8.0, 2.0),
}


def work(job: dict) -> dict:
    from psd_mini import SDS, Regression, ToyWorldPrior, distill, fields, make_field, render_views
    from psd_mini.world.metrics import judge, judge_views
    from psd_mini.world.text import caption

    radius, sharpness, offset = BALLS[job["start"]]
    fields.BALL_RADIUS, fields.BALL_SHARPNESS, fields.BALL_OFFSET = radius, sharpness, offset
    prior = ToyWorldPrior(32)

    def fit(method):
        field = make_field(job["field"])
        distill(field, prior, method, job["prompt"], lr_scale=job["lr_scale"], progress=False)
        return judge(render_views(field, judge_views().cameras, 64))

    started = time.perf_counter()
    sds = fit(SDS())
    seconds = time.perf_counter() - started
    oracle = fit(Regression(sds.recognised))
    return {
        "recognised": caption(*sds.recognised),
        "distance": round(sds.true_view_distance, 4),
        "oracle": round(oracle.true_view_distance, 4),
        "seconds": round(seconds, 1),
    }


def table(records: list[dict]) -> str:
    lines = [
        "| field | start | lr x | prompt | recognised | SDS distance | oracle | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        cells = [r["field"], r["start"], f"{r['lr_scale']:g}", r["prompt"], r["recognised"]]
        cells += [f"{r[key]:.4f}" for key in ("distance", "oracle")]
        lines.append(f"| {' | '.join(cells)} | {r['distance'] / r['oracle']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    kinds = sys.argv[1:] or ["voxel", "triplane"]
    variants = [(start, 1.0) for start in BALLS] + [("soft ball", 0.5), ("soft ball", 2.0)]
    jobs = [
        {"field": kind, "start": start, "lr_scale": lr_scale, "prompt": prompt}
        for kind in kinds
        for start, lr_scale in variants
        for prompt in PROMPTS
    ]
    print(table(run_jobs(jobs, work, RESULTS / "field_sweep.jsonl")))
