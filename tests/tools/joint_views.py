"""What a prior of four views decides, and when: ToyWorldPrior(n_views=4) against the plain one.

python tests/tools/joint_views.py decide    closed form, a minute
python tests/tools/joint_views.py runs      PSD on both; tests/results/joint_views.jsonl
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean, stdev

from jobs import run_jobs

RESULTS = Path(__file__).parent.parent / "results" / "joint_views.jsonl"
PROMPTS = ("a mushroom", "a car")
SEEDS, TRIALS = 3, 64
LEVELS = (999, 900, 800, 700, 600, 500)


def decide() -> None:
    """Mean probability of the true colour given x_t, for one view and for four of one object."""
    import torch

    from psd_mini import ToyWorldPrior
    from psd_mini.world.isotropic import isotropic_given
    from psd_mini.world.text import components

    prior = ToyWorldPrior(32)
    print(f"| prompt, views | {' | '.join(f't = {t}' for t in LEVELS)} |")
    for prompt in PROMPTS:
        own = [k for k, (name, _) in enumerate(components()) if name in prompt]
        log_w = (prior.embed([prompt]) @ prior.keys.T).double()
        known: dict[int, list[list[float]]] = {1: [], 4: []}
        for level in LEVELS:
            of_one, of_four = [], []
            for trial in range(TRIALS):
                generator = torch.Generator().manual_seed(trial)
                cameras = prior.draw_cameras(4, generator)
                pictures = prior.views.pictures(prior.views.index_of(cameras)).double()
                k, t = own[trial % len(own)], torch.full((4,), level)
                x = 2 * pictures[:, k] - 1
                eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
                flat = prior.schedule.add_noise(x, eps, t).flatten(1)
                alpha_sigma = prior.schedule.alpha_sigma(t, flat)
                points, certain = 2 * pictures.flatten(2) - 1, torch.zeros(1, 4, 1).double()
                given = isotropic_given(flat, points, certain, prior.variance, *alpha_sigma)[0]
                of_one.append((log_w + given).softmax(-1)[:, k].mean().item())
                of_four.append((log_w[0] + given.sum(0)).softmax(-1)[k].item())
            known[1].append(of_one)
            known[4].append(of_four)
        for n_views, levels in known.items():
            cells = [f"{mean(one):.2f} ± {stdev(one) / TRIALS**0.5:.2f}" for one in levels]
            print(f"| {prompt}, {n_views} | {' | '.join(cells)} |")


def work(job: dict) -> dict:
    import torch

    from psd_mini import PSD, ToyWorldPrior, distill, judge, make_field, render_views
    from psd_mini.pipelines.generate import PREFERENCE_TIMES
    from psd_mini.rewards import make_reward, score
    from psd_mini.world.metrics import judge_views
    from psd_mini.world.text import caption

    field = make_field("voxel", torch.Generator().manual_seed(job["seed"]))
    prior, reward = ToyWorldPrior(32, n_views=job["n_views"]), make_reward("colorfulness")
    options = {"seed": job["seed"], "reward": reward, "progress": False, **PREFERENCE_TIMES}
    distill(field, prior, PSD(), job["prompt"], **options)
    views = judge_views()
    pictures = render_views(field, views.cameras, views.resolution)
    found = judge(pictures)
    value = score(reward, pictures, [job["prompt"]] * len(pictures)).mean().item()
    record = {"recognised": caption(*found.recognised), "reward": round(value, 4)}
    return record | {"distance": round(found.true_view_distance, 5)}


def runs() -> None:
    jobs = [
        {"prompt": prompt, "seed": seed, "n_views": n_views}
        for seed in range(SEEDS)
        for prompt in PROMPTS
        for n_views in (1, 4)
    ]
    records = run_jobs(jobs, work, RESULTS)
    print("| prompt | views | chosen | reward | true-view distance |\n|---|---|---|---|---|")
    for prompt in PROMPTS:
        for n_views in (1, 4):
            mine = [r for r in records if r["prompt"] == prompt and r["n_views"] == n_views]
            chosen = ", ".join(r["recognised"].split()[1] for r in mine)
            numbers = [mean(r[name] for r in mine) for name in ("reward", "distance")]
            print(f"| {prompt} | {n_views} | {chosen} | {numbers[0]:.3f} | {numbers[1]:.4f} |")


if __name__ == "__main__":
    {"decide": decide, "runs": runs}[sys.argv[1]]()
