"""Which omega, base, lambda and pairing: PSD's settings on two open prompts and two seeds.

    python tests/tools/psd_sweep.py          resumable; prints the means per setting

Writes tests/results/psd_sweep.jsonl. Also all reward gradients over their weight, for the frontier
of reward against distance. 32 x 32, 120 steps, voxels. The method "psd-flat" has lambda(t) = weight
instead of weight times sigma_t.
Pictures: `psd_figures.py`.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from jobs import run_jobs

RESULTS = Path(__file__).parent.parent / "results" / "psd_sweep.jsonl"
PROMPTS = ("a mushroom", "a car")
DEFAULTS = {
    "omega": "hard",
    "pair_base": "mean",
    "antithetic": True,
    "over_views": True,
    "times": "high",
}
# lowest and highest t of the first steps; the last steps are the same for all: [0.02, 0.2]
TIMES = {
    "high": (0.9, 1.0),
    "low": (0.02, 0.98),
    "0.97": (0.97, 1.0),
    "0.8": (0.8, 0.9),
    "0.7": (0.7, 0.8),
    "0.5": (0.5, 0.6),
}
VARIANTS = [
    *({"method": "psd", "weight": w, **DEFAULTS} for w in (0.0625, 0.25, 1.0, 4.0, 16.0, 64.0)),
    *({"method": "psd", "weight": w, **DEFAULTS, "times": "low"} for w in (1.0, 4.0)),
    *(
        {"method": "psd", "weight": 1.0, **DEFAULTS, "times": times}
        for times in ("0.97", "0.8", "0.7", "0.5")
    ),
    *(
        {"method": "psd", "weight": w, **DEFAULTS, "omega": omega}
        for omega in ("bt", "gap")
        for w in (1.0, 4.0, 16.0)
    ),
    {"method": "psd", "weight": 1.0, **DEFAULTS, "omega": "gated"},
    *({"method": "psd-flat", "weight": w, **DEFAULTS} for w in (1.0, 4.0)),
    {"method": "psd", "weight": 1.0, **DEFAULTS, "over_views": False},
    {"method": "psd", "weight": 1.0, **DEFAULTS, "antithetic": False},
    *(
        {"method": "psd", "weight": 1.0, **DEFAULTS, "pair_base": base}
        for base in ("winner", "fresh")
    ),
    *({"method": "pixel-clean", "weight": w} for w in (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0)),
    # hypothesis: pixel gradients hack at a settled object (gradient_figure.py); begin low, compare
    *({"method": "psd", "weight": w, **DEFAULTS, "times": "low"} for w in (16.0, 64.0)),
    *({"method": "pixel-clean", "weight": w, "times": "low"} for w in (10.0, 100.0, 1000.0)),
    *(
        {"method": kind, "weight": w}
        for kind in ("pixel-noisy", "straight-through", "dps")
        for w in (10.0, 100.0, 1000.0)
    ),
]


def work(job: dict) -> dict:
    import torch

    from psd_mini import PSD, generate, render_views
    from psd_mini.methods import RewardGradient
    from psd_mini.pipelines.compare import ground_truth
    from psd_mini.rewards import make_reward
    from psd_mini.world.metrics import judge_views

    class Flat(PSD):
        """lambda(t) = preference_weight at every t, instead of times sigma_t."""

        def strength(self, sigma_t):
            return self.preference_weight * torch.ones_like(sigma_t)

    if job["method"].startswith("psd"):
        settings = {key: job[key] for key in ("omega", "pair_base", "antithetic", "over_views")}
        method = (Flat if job["method"] == "psd-flat" else PSD)(
            preference_weight=job["weight"], **settings
        )
    else:
        method = RewardGradient(job["method"], preference_weight=job["weight"])
    low, high = TIMES[job["times"] or "high"]
    times = {"t_min": (low, 0.02), "t_max": (high, 0.2)}
    result = generate(
        job["prompt"],
        method=method,
        reward="colorfulness",
        seed=job["seed"],
        progress=False,
        opacity_weight=0.0,  # as when these were made
        **times,
    )
    pictures = render_views(result.field, judge_views().cameras, 64)
    truth = ground_truth(job["prompt"], "colorfulness")
    reward = make_reward("colorfulness")(pictures).mean().item()
    return {
        "reward": round(reward, 4),
        "of_best": round(reward / truth["r_best"], 3),
        "gain": round((reward - truth["r_prior"]) / (truth["r_opt"] - truth["r_prior"]), 3),
        "recognised": result.metrics["recognised"],
        "distance": round(result.metrics["true_view_distance"], 4),
        "ratio": round(result.metrics["true_view_distance"] / result.metrics["oracle_distance"], 3),
        "seconds": round(result.seconds, 1),
    }


if __name__ == "__main__":
    names = [*DEFAULTS, "weight"]
    variants = [dict.fromkeys(names) | variant for variant in VARIANTS]
    runs = [{"prompt": prompt, "seed": seed} for prompt in PROMPTS for seed in (0, 1)]
    records = run_jobs([{**v, **run} for v in variants for run in runs], work, RESULTS)
    columns = "method", "weight", "settings", "gain", "reward / best", "distance / oracle"
    print(f"| {' | '.join(columns)} | recognised |\n{'|---' * 7}|")
    for v in variants:
        mine = [r for r in records if all(r[key] == v[key] for key in ("method", *names))]
        changed = {k: v[k] for k in DEFAULTS if v[k] not in (None, DEFAULTS[k])}
        described = ", ".join(f"{key}={value}" for key, value in changed.items())
        cells = [f"{mean(r[key] for r in mine):.2f}" for key in ("gain", "of_best", "ratio")]
        seen = ", ".join(r["recognised"].split(" ", 1)[1] for r in mine)
        print("|", " | ".join((v["method"], f"{v['weight']:g}", described, *cells, seen)), "|")
