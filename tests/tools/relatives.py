"""The relatives of SDS in the exact world, in 3D: what each costs and what comes out.

    python tests/tools/relatives.py
    python tests/tools/relatives.py timesteps      variance of a step, t independent or stratified

Writes tests/results/relatives.jsonl, a line for each run, and prints the table of relatives.md:
three prompts, three seeds, voxels, 80 steps of four cameras at 32 x 32, all else as `distill` has
it. The bridge is 40 steps of SDS and 40 of its second stage, away from the object in any colour;
NFSD's negative prompt is "gray". Distance is `true_view_distance`; "right" counts the runs in which
all that the prompt names was recognised.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from jobs import run_jobs

RECORDS = Path(__file__).parent.parent / "results" / "relatives.jsonl"
PROMPTS = {"a red house": "a house", "a blue chair": "a chair", "a mushroom": ""}
SEEDS, STEPS = 3, 80
RULES = ("fixed", "inverted")  # of `NoiseRule`
FALLING = (0.98, 0.2)  # as t_max: one t for all pictures of a step
# name -> method by name, guidance, negative prompt, settings of `distill`
METHODS = {
    "SDS": ("sds", 1.0, "", {}),
    "SDS, g = 7.5": ("sds", 7.5, "", {}),
    "CSD": ("csd", 1.0, "", {}),
    "NFSD, g = 7.5": ("nfsd", 7.5, "gray", {}),
    "SDS-Bridge": ("bridge", 1.0, None, {}),
    "VSD, running Gaussian": ("vsd", 1.0, "", {}),
    "L2-VSD": ("l2-vsd", 1.0, "", {}),
    "HiFA, 4 steps": ("hifa", 1.0, "", {}),
    "SDS, variance of depth 0.03": ("sds", 1.0, "", {"variance_weight": 0.03}),
    "SDS, variance of depth 0.003": ("sds", 1.0, "", {"variance_weight": 0.003}),
    "SDS, t falls as a root": ("sds", 1.0, "", {"t_min": FALLING, "annealing": "sqrt"}),
    "SDS, t falls in a line": ("sds", 1.0, "", {"t_min": FALLING}),
    "SDS, t stratified": ("sds", 1.0, "", {}),
    "SDS, noise fixed": ("fixed", 1.0, "", {}),
    "SDS, noise inverted": ("inverted", 1.0, "", {}),
}


def stratified(batch: int, t_min: int, t_max: int, generator: Any) -> Any:
    """One t in each of B equal slices of [t_min, t_max]: t_b = t_min + (b + u_b) (range) / B."""
    import torch

    u = torch.arange(batch) + torch.rand(batch, generator=generator)
    return (t_min + u / batch * (t_max + 1 - t_min)).long()


def work(job: dict) -> dict:
    from psd_mini import SDS, ToyWorldPrior, distill, make_field, render_views
    from psd_mini.methods import NoiseRule, make_method
    from psd_mini.schedule import sample_timesteps
    from psd_mini.world.metrics import judge, judge_views
    from psd_mini.world.text import words

    name, guidance, negative, options = METHODS[job["method"]]
    prompt, seed = job["prompt"], job["seed"]
    prior, field = ToyWorldPrior(32), make_field("voxel")
    method = NoiseRule(rule=name) if name in RULES else make_method(name, guidance)
    loop = sys.modules["psd_mini.distill"]
    loop.sample_timesteps = stratified if "stratified" in job["method"] else sample_timesteps
    stages = [(method, STEPS, negative)]
    if negative is None:
        stages = [(SDS(), STEPS // 2, ""), (method, STEPS // 2, PROMPTS[prompt])]
    started, asked = time.perf_counter(), 0
    for stage, steps, away_from in stages:
        how = {"negative_prompt": away_from, "steps": steps, "seed": seed, "progress": False}
        run = distill(field, prior, stage, prompt, **how, **options)
        asked += run.cost.prior_evaluations
    seconds = time.perf_counter() - started
    found = judge(render_views(field, judge_views().cameras, 64))
    right = set(words(prompt)) <= set(found.recognised)
    return {
        "distance": round(found.true_view_distance, 4),
        "recognised": " ".join(found.recognised[::-1]),
        "right": right,
        "prior_evaluations_per_step": asked / STEPS,
        "seconds": round(seconds, 1),
    }


def table(records: list[dict]) -> str:
    """A row for each method, the mean over its seeds; of one prompt in each column."""
    lines = [
        f"| method | pictures of the prior a step | right | {' | '.join(PROMPTS)} |",
        "|---" * (3 + len(PROMPTS)) + "|",
    ]
    for name in METHODS:
        runs = [r for r in records if r["method"] == name]
        right = f"{sum(r['right'] for r in runs)} of {len(runs)}"
        cells = [name, f"{runs[0]['prior_evaluations_per_step']:g}", right]
        for prompt in PROMPTS:
            distances = [r["distance"] for r in runs if r["prompt"] == prompt]
            cells.append(", ".join(f"{distance:.3f}" for distance in distances))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def variance_of_a_step(draw: Any, steps: int, n: int = 256) -> list[float]:
    """Total variance of the field's gradient of one SDS step, in eight groups of n / 8 draws.

    Cameras, t and noise are drawn anew each time, on a field that has had `steps` steps.
    """
    import torch

    from psd_mini import SDS, Context, ToyWorldPrior, distill, make_field, render
    from psd_mini.sds import surrogate_loss

    prior, field = ToyWorldPrior(32), make_field("voxel")
    if steps:
        distill(field, prior, SDS(), "a red house", steps=steps, progress=False)
    generator = torch.Generator().manual_seed(0)
    embeddings = prior.embed(["a red house", ""])
    rows = []
    for _ in range(n):
        cameras = prior.draw_cameras(4, generator)
        x = prior.encode(render(field, cameras, 32, generator=generator).rgb)
        t, eps = draw(4, 20, 979, generator), torch.randn(1, *x.shape, generator=generator)
        gradient, _ = SDS()(x.detach(), t, eps, Context(prior, embeddings, cameras))
        loss = surrogate_loss(x, gradient)
        parts = torch.autograd.grad(loss, list(field.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    groups = torch.stack(rows).unflatten(0, (8, -1))
    return groups.var(1).sum(1).tolist()


def timesteps() -> None:
    """The two variances and their ratio, with its standard error over the eight groups."""
    from statistics import mean, stdev

    from psd_mini.schedule import sample_timesteps

    for steps in (0, 60):
        alone, slices = (variance_of_a_step(d, steps) for d in (sample_timesteps, stratified))
        ratios = [b / mean(alone) for b in slices]
        spread = [a / mean(alone) for a in alone]
        error = (stdev(ratios) ** 2 / 8 + stdev(spread) ** 2 / 8) ** 0.5
        print(f"after {steps} steps: stratified / independent {mean(ratios):.3f} ± {error:.3f}")


if __name__ == "__main__":
    if sys.argv[1:] == ["timesteps"]:
        sys.exit(timesteps())
    jobs = [
        {"method": name, "prompt": prompt, "seed": seed}
        for seed in range(SEEDS)
        for name in METHODS
        for prompt in PROMPTS
    ]
    print(table(run_jobs(jobs, work, RECORDS)))
