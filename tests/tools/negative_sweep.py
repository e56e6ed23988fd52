"""When the negative embedding helps: timesteps, step size, radius, steps, with and without PSD.

    python tests/tools/negative_sweep.py     resumable; prints a table of means

Writes tests/results/negative_sweep.jsonl. Two open prompts, two seeds, voxels, 32 x 32, 120 steps,
colourfulness, guidance scale 2. "start" is the range of timesteps of the field's own draws: "high"
begins in [0.9, 1], "low" in [0.02, 0.98].
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from jobs import run_jobs

RESULTS = Path(__file__).parent.parent / "results" / "negative_sweep.jsonl"
PROMPTS = ("a mushroom", "a car")
NEGATIVE = {
    "objective": "reward",
    "lr": 0.2,
    "radius": 6.0,
    "t_low": 0.9,
    "t_high": 1.0,
    "until": 1.0,
    "control": None,
}
WIDE = {**NEGATIVE, "t_low": 0.5, "t_high": 0.98}
OFF = dict.fromkeys(NEGATIVE)
VARIANTS = [
    *({"method": "sds", "start": start, **OFF} for start in ("low", "high")),
    {"method": "psd", "start": "high", **OFF},
    *(
        {"method": "sds", "start": "low", **NEGATIVE, "t_low": low, "t_high": high}
        for low, high in ((0.02, 0.5), (0.5, 0.98))
    ),
    *(
        {"method": "sds", "start": "high", **NEGATIVE, "t_low": low, "t_high": high}
        for low, high in ((0.5, 0.98), (0.9, 1.0))
    ),
    *({"method": "sds", "start": "high", **NEGATIVE, "lr": lr} for lr in (0.05, 1.0)),
    *(
        {"method": "sds", "start": "high", **NEGATIVE, "radius": radius}
        for radius in (2.0, 20.0, float("inf"))
    ),
    {"method": "sds", "start": "high", **NEGATIVE, "radius": float("inf"), "lr": 1.0},
    {"method": "sds", "start": "high", **NEGATIVE, "until": 0.3},
    {"method": "sds", "start": "high", **NEGATIVE, "objective": "inversion"},
    {"method": "psd", "start": "high", **NEGATIVE},
    {"method": "psd", "start": "low", **OFF},
    {"method": "psd", "start": "low", **NEGATIVE},
    {"method": "sds", "start": "high", **NEGATIVE, "t_low": 0.3, "t_high": 0.98},
    {"method": "sds", "start": "high", **NEGATIVE, "t_low": 0.7, "t_high": 0.98},
    {"method": "sds", "start": "high", **NEGATIVE, "t_low": 0.5, "t_high": 1.0},
    *({"method": "sds", "start": "high", **WIDE, "lr": lr} for lr in (0.05, 1.0)),
    *(
        {"method": "sds", "start": "high", **WIDE, "radius": radius}
        for radius in (2.0, 20.0, float("inf"))
    ),
    {"method": "sds", "start": "high", **WIDE, "lr": 1.0, "radius": float("inf")},
    {"method": "sds", "start": "high", **WIDE, "until": 0.3},
    {"method": "sds", "start": "high", **WIDE, "objective": "inversion"},
    # the control: all rewards tie, so that inversion describes a noise that has not lost
    {"method": "sds", "start": "high", **WIDE, "objective": "inversion", "control": True},
    {"method": "psd", "start": "high", **WIDE},
    {"method": "psd", "start": "low", **WIDE},
]


def work(job: dict) -> dict:
    import torch

    from psd_mini import generate, render_views
    from psd_mini.methods import make_method
    from psd_mini.negative import NegativeEmbedding
    from psd_mini.pipelines.compare import ground_truth
    from psd_mini.pipelines.generate import PREFERENCE_TIMES
    from psd_mini.rewards import make_reward
    from psd_mini.world import text
    from psd_mini.world.metrics import judge_views

    def all_tie(images, prompts):
        return torch.zeros(len(images))

    times = {"t_min": (0.02, 0.02), "t_max": (0.98, 0.2)}
    if job["start"] == "high":
        times = PREFERENCE_TIMES
    negative = False
    if job["objective"]:
        settings = job["objective"], job["lr"], job["radius"], (job["t_low"], job["t_high"])
        negative = NegativeEmbedding(text.embed([""])[0], 2.0, *settings, (0.0, job["until"]))
    options = {"method": make_method(job["method"], 2.0), "negative": negative, **times}
    options["opacity_weight"] = 0.0  # as when these were made
    options["reward"] = all_tie if job["control"] else "colorfulness"
    result = generate(job["prompt"], seed=job["seed"], progress=False, **options)
    pictures = render_views(result.field, judge_views().cameras, 64)
    truth = ground_truth(job["prompt"], "colorfulness")
    reward = make_reward("colorfulness")(pictures).mean().item()
    ratio = result.metrics["true_view_distance"] / result.metrics["oracle_distance"]
    found = {}
    if negative:
        moved = negative.read(text.VOCABULARY)
        norms = [r["negative_norm"] for r in result.history if "negative_norm" in r]
        found = {
            "words": [f"{word} {value:+.1f}" for word, value in moved],
            "norm": round(negative.embedding.norm().item(), 2),
            "norms": [round(norm, 2) for norm in norms[::10]],
        }
    return {
        "reward": round(reward, 4),
        "of_best": round(reward / truth["r_best"], 3),
        "gain": round((reward - truth["r_prior"]) / (truth["r_opt"] - truth["r_prior"]), 3),
        "recognised": result.metrics["recognised"],
        "ratio": round(ratio, 3),
        **found,
        "seconds": round(result.seconds, 1),
    }


if __name__ == "__main__":
    jobs = [{**v, "prompt": p, "seed": s} for v in VARIANTS for p in PROMPTS for s in (0, 1)]
    records = run_jobs(jobs, work, RESULTS)
    print(
        "| method | start | negative | gain | reward / best | distance / oracle | recognised |"
        " moved to |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for v in VARIANTS:
        mine = [r for r in records if all(r.get(key) == value for key, value in v.items())]
        settings = ", ".join(
            f"{k}={v[k]:g}" if isinstance(v[k], float) else f"{k}={v[k]}"
            for k in NEGATIVE
            if v[k] is not None
        )
        columns = [f"{mean(r[key] for r in mine):.2f}" for key in ("gain", "of_best", "ratio")]
        seen = ", ".join(r["recognised"].split(" ", 1)[1] for r in mine)
        moved = ", ".join(mine[0].get("words", [])[:3])
        print(
            f"| {v['method']} | {v['start']} | {settings or 'none'} | {' | '.join(columns)} |"
            f" {seen} | {moved} |"
        )
