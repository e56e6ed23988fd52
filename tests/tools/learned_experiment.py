"""Distillation from the learned checkpoint: how its defaults were chosen, and PSD against SDS.

    python tests/tools/learned_experiment.py sweep      writes tests/results/learned_sweep.jsonl
    python tests/tools/learned_experiment.py methods    tests/results/learned_experiment.jsonl and
                                                        notebooks/images/learned_psd.png

Both are resumable, one single-threaded process per core. Rewards are measured on the 24 judging
views of the finished object, and compared with the prompt's mean reward and that of the best true
object, as in `psd_mini.pipelines.compare`. An exact optimum to compare with does not exist here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean, stdev

from jobs import run_jobs

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "tests" / "results"
PICTURES = Path(__file__).parent / "pictures"
SWEEP = {  # one thing at a time from the defaults
    "guidance_scale": (3.0, 15.0),
    "lr_scale": ([1.0, 0.05], [1.0, 1.0], [0.3, 0.3]),
    "steps": (240,),
    "t_start": (0.02, 0.5),
    "entropy_weight": (0.1,),
}
CENTRE = {
    "guidance_scale": 7.5,
    "steps": 120,
    "t_start": 0.9,
    "entropy_weight": 0.01,
    "lr_scale": [1.0, 0.15],
}
SWEEP_PROMPTS = ("a red mushroom", "a blue chair", "a pink house")
# "x 4": preference_weight 4 instead of 1; "@ 3": guidance 3 instead of 7.5
METHODS = ("sds2", "psd", "psd x 4", "sds2 @ 3", "psd @ 3")
PROMPTS = ("a mushroom", "a car", "a house", "a ball")
SEEDS = 3


def work(job: dict) -> dict:
    import torch

    from psd_mini import generate, render_views
    from psd_mini.pipelines.compare import ground_truth
    from psd_mini.rewards import make_reward, score
    from psd_mini.world.metrics import judge_views

    plain = ("guidance_scale", "steps", "entropy_weight")
    # the learned rung's setting when these were made
    options = {"residual": "latent", "guidance_scale": 7.5, "lr_scale": (1.0, 0.15)}
    options |= {name: job[name] for name in plain if name in job}
    if "lr_scale" in job:
        options |= {"lr_scale": tuple(job["lr_scale"]), "t_min": (job["t_start"], 0.02)}
    method, *changes = job["method"].split()
    names = [{"x": "preference_weight", "@": "guidance_scale"}[sign] for sign in changes[::2]]
    options |= dict(zip(names, map(float, changes[1::2]), strict=True))
    options |= {"prior": "learned", "reward": "colorfulness"}
    result = generate(job["prompt"], method=method, seed=job["seed"], progress=False, **options)
    views = judge_views()
    pictures = render_views(result.field, views.cameras, views.resolution)
    PICTURES.mkdir(exist_ok=True)
    torch.save(pictures[::3].mul(255).round().byte(), picture_of(job))
    prompts = [job["prompt"]] * len(pictures)
    value = score(make_reward("colorfulness"), pictures, prompts).mean().item()
    truth = ground_truth(job["prompt"], "colorfulness")
    return {
        "recognised": result.metrics["recognised"],
        "distance": round(result.metrics["true_view_distance"], 5),
        "oracle": round(result.metrics["oracle_distance"], 5),
        "reward": round(value, 5),
        **{name: round(number, 5) for name, number in truth.items()},
        "prior_evaluations": result.cost["prior_evaluations"],
        "seconds": round(result.seconds, 1),
    }


def picture_of(job: dict) -> Path:
    settings = "-".join(str(job[key]).replace(" ", "_") for key in sorted(job))
    return PICTURES / f"learned-{settings}.pt"


def sheet(rows: list[list[dict]], labels: list[str], target: Path, title: str = "") -> None:
    import torch

    from psd_mini.viz.pictures import contact_sheet, save_png

    def two_views(job: dict) -> torch.Tensor:
        return torch.load(picture_of(job), weights_only=True)[[1, 4]] / 255

    strips = [torch.cat([two_views(job) for job in row]) for row in rows]
    save_png(contact_sheet(strips, labels, title=title), target)


def error(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values) / len(values) ** 0.5:.3f}"


def sweep() -> None:
    settings = [CENTRE] + [
        {**CENTRE, name: value} for name, values in SWEEP.items() for value in values
    ]
    settings = [s for k, s in enumerate(settings) if s not in settings[:k]]
    jobs = [
        {**s, "method": "sds", "seed": 0, "prompt": prompt}
        for s in settings
        for prompt in SWEEP_PROMPTS
    ]
    records = run_jobs(jobs, work, RESULTS / "learned_sweep.jsonl")
    rows, labels = [], []
    for s in settings:
        mine = [r for r in records if all(r[name] == value for name, value in s.items())]
        changed = {name: value for name, value in s.items() if value != CENTRE[name]}
        ratio = mean(r["distance"] / r["oracle"] for r in mine)
        right = sum(r["recognised"] == r["prompt"] for r in mine)
        seconds = f"{mean(r['seconds'] for r in mine):.0f}"
        print(f"| {changed or 'centre'} | {right} of {len(mine)} | {ratio:.2f} | {seconds} |")
        rows.append([job for job in jobs if all(job[name] == value for name, value in s.items())])
        labels.append(" ".join(map(str, changed.values())) or "centre")
    sheet(rows, labels, PICTURES / "learned_sweep.png")


def methods() -> None:
    jobs = [
        {"prompt": p, "method": m, "seed": seed}
        for seed in range(SEEDS)
        for p in PROMPTS
        for m in METHODS
    ]
    records = run_jobs(jobs, work, RESULTS / "learned_experiment.jsonl")
    titles = "method | runs | gain | reward / best true view | distance / oracle | object right"
    print(f"| {titles} | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in METHODS:
        mine = [r for r in records if r["method"] == name]
        gain = error([(r["reward"] - r["r_prior"]) / (r["r_opt"] - r["r_prior"]) for r in mine])
        best = error([r["reward"] / r["r_best"] for r in mine])
        ratio = error([r["distance"] / r["oracle"] for r in mine])
        right = sum(r["recognised"].split()[-1] == r["prompt"].split()[-1] for r in mine)
        seconds = f"{mean(r['seconds'] for r in mine):.0f}"
        found = f"{right} of {len(mine)}"
        print(f"| {name} | {len(mine)} | {gain} | {best} | {ratio} | {found} | {seconds} |")
    rows = [
        [job for job in jobs if job["method"] == m and job["seed"] == seed]
        for m in METHODS
        for seed in range(SEEDS)
    ]
    labels = [f"{m}, seed {seed}" for m in METHODS for seed in range(SEEDS)]
    target = ROOT / "notebooks" / "images" / "learned_psd.png"
    sheet(rows, labels, target, f"two views of each: {', '.join(PROMPTS)}")


if __name__ == "__main__":
    {"sweep": sweep, "methods": methods}[sys.argv[1]]()
