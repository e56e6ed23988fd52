"""White specks under tables, and what `opacity_weight` does to them.

    python tests/tools/specks.py [voxel|triplane]     resumable
    python tests/tools/specks.py preference           PSD with and without it, on open prompts

Training sees a field in front of white only, so white matter costs nothing there. A picture does
not tell it from the background, but its opacity does. With o the opacity at a pixel of the 24
judging cameras, and the true silhouette traced from the object's signed distance,

    specks = sum of o over pixels further than MARGIN from the silhouette / area of the silhouette
    holes  = mean of 1 - o over pixels that lie further than MARGIN inside the silhouette

Writes tests/results/specks.jsonl, prints the table of objects.md, and draws a sheet per object,
tests/tools/pictures/specks-FIELD-OBJECT.png: three views on white, then on black.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from jobs import run_jobs

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "tests" / "results" / "specks.jsonl"
PICTURES = Path(__file__).parent / "pictures"
MARGIN = 2  # pixels of a 64 x 64 picture: 0.07 world units, the spacing of the voxels
PROMPTS = ("a mushroom", "a car", "a house", "a chair", "a ball", "a rocket")
OBJECTS = ("table", "snowman", "mushroom", "chair")
RUNS = (("red", 0), ("blue", 1), ("gray", 2))  # colour and seed
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "opacity 0.01": {"opacity_weight": 0.01},
    "opacity 0.02": {"opacity_weight": 0.02},
    "opacity 0.03": {"opacity_weight": 0.03},
}


@functools.cache
def silhouette(name: str) -> torch.Tensor:
    """Share of each pixel that the true object covers, (24, 64, 64), by sphere tracing."""
    from psd_mini.cameras import camera_rays
    from psd_mini.world.metrics import judge_views
    from psd_mini.world.objects import OBJECTS, union
    from psd_mini.world.views import SUPERSAMPLE, trace

    views = judge_views()
    side = views.resolution * SUPERSAMPLE
    origins, directions = camera_rays(views.cameras, side, side)
    origins = origins.T.repeat_interleave(side**2, dim=1)
    solid = union(*(part.sdf for part in OBJECTS[name]))
    depth = trace(solid, origins, directions.reshape(-1, 3).T.contiguous())
    hit = depth.isfinite().float().view(-1, side, side)
    return torch.nn.functional.avg_pool2d(hit, SUPERSAMPLE)


def grown(mask: torch.Tensor) -> torch.Tensor:
    """A mask (B, H, W) of zeros and ones, grown by MARGIN pixels on all sides."""
    return torch.nn.functional.max_pool2d(mask.float(), 2 * MARGIN + 1, 1, MARGIN)


def specks_and_holes(opacity: torch.Tensor, name: str) -> tuple[float, float]:
    """The two measures (equations: the module's docstring) of opacities (24, 64, 64)."""
    alpha = silhouette(name)
    outside, inside = 1 - grown(alpha > 0), 1 - grown(alpha < 1)
    specks = (opacity * outside).sum() / alpha.sum()
    return specks.item(), ((1 - opacity) * inside).sum().item() / inside.sum().item()


@torch.no_grad()
def seen(field: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (24, 3, 64, 64) on white and opacities (24, 64, 64) at the judging cameras."""
    from psd_mini.rendering import render
    from psd_mini.world.metrics import judge_views

    views = judge_views()
    groups = [views.cameras[i : i + 2] for i in range(0, len(views.cameras), 2)]
    parts = [render(field, group, views.resolution, n_samples=64) for group in groups]
    pictures = torch.cat([part.rgb for part in parts]).clamp(0, 1)
    return pictures, torch.cat([part.opacity[:, 0] for part in parts])


def work(job: dict) -> dict:
    from psd_mini import SDS, ToyWorldPrior, distill, make_field, orbit, render_views
    from psd_mini.pipelines.oracle import oracle_distance
    from psd_mini.world.metrics import judge
    from psd_mini.world.text import caption

    field, settings = make_field(job["field"]), VARIANTS[job["variant"]]
    prompt, seed = f"a {job['colour']} {job['object']}", job["seed"]
    distill(field, ToyWorldPrior(32), SDS(), prompt, seed=seed, progress=False, **settings)
    pictures, opacity = seen(field)
    found = judge(pictures)
    specks, holes = specks_and_holes(opacity, job["object"])
    PICTURES.mkdir(exist_ok=True)
    cameras = orbit([30.0, 75.0, 200.0], [20.0, 5.0, 40.0])
    views = [render_views(field, cameras, 64, background=shade) for shade in (1.0, 0.0)]
    torch.save(torch.cat(views).mul(255).round().byte(), picture_of(job))
    return {
        "recognised": caption(*found.recognised),
        "distance": round(found.true_view_distance, 5),
        "oracle": round(oracle_distance(job["field"], found.recognised), 4),
        "specks": round(specks, 5),
        "holes": round(holes, 5),
    }


def picture_of(job: dict) -> Path:
    words = "-".join(str(job[key]) for key in ("field", "variant", "object", "colour", "seed"))
    return PICTURES / f"specks-{words.replace(' ', '-')}.pt"


def table(records: list[dict]) -> str:
    """Specks in per cent and the distance relative to the oracle's, a row for each variant."""
    lines = [
        f"| field, regulariser | {' | '.join(OBJECTS)} | all | holes |",
        "|---|" + "---|" * (len(OBJECTS) + 2),
    ]

    def ratio(records: list[dict]) -> float:
        return mean(r["distance"] / r["oracle"] for r in records)

    for kind, variant in dict.fromkeys((r["field"], r["variant"]) for r in records):
        own = [r for r in records if (r["field"], r["variant"]) == (kind, variant)]
        cells = [f"{kind}, {variant}"]
        for name in OBJECTS:
            of_object = [r for r in own if r["object"] == name]
            specks = 100 * mean(r["specks"] for r in of_object)
            cells.append(f"{specks:.2f}%, {ratio(of_object):.3f}")
        specks, holes = (100 * mean(r[key] for r in own) for key in ("specks", "holes"))
        cells += [f"{specks:.2f}%, {ratio(own):.3f}", f"{holes:.2f}%"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sheets(jobs: list[dict]) -> None:
    """A sheet per field and object: a row for each variant, three views on white and on black."""
    from psd_mini.viz.pictures import contact_sheet, save_png

    for kind, name in dict.fromkeys((job["field"], job["object"]) for job in jobs):
        wanted = (kind, name, RUNS[0][0])
        shown = [job for job in jobs if (job["field"], job["object"], job["colour"]) == wanted]
        rows = [torch.load(picture_of(job), weights_only=True) / 255 for job in shown]
        sheet = contact_sheet(rows, [job["variant"] for job in shown])
        save_png(sheet, PICTURES / f"specks-{kind}-{name}.png")


def preferring(job: dict) -> dict:
    """A run of `psd_experiment.py` with opacity_weight 0.01 and all else as there."""
    from psd_mini import generate
    from psd_mini.pipelines.compare import PREFERENCE_TIMES, ground_truth

    how = {"seed": job["seed"], "reward": "colorfulness", "opacity_weight": 0.01}
    result = generate(
        job["prompt"], method=job["method"], progress=False, **PREFERENCE_TIMES, **how
    )
    truth = ground_truth(job["prompt"], "colorfulness")
    found, distance = result.metrics, result.metrics["true_view_distance"]
    reward = found["reward"]
    return {
        "recognised": found["recognised"],
        "gain": round((reward - truth["r_prior"]) / (truth["r_opt"] - truth["r_prior"]), 4),
        "ratio": round(distance / found["oracle_distance"], 4),
    }


def preference() -> None:
    """Paired differences to the same runs without the penalty, by method."""
    path = RESULTS.with_name("psd_experiment_colorfulness.jsonl")
    lines = map(json.loads, path.read_text().splitlines())
    before = {(r["method"], r["prompt"], r["seed"]): r for r in lines}
    jobs = [
        {"method": method, "prompt": prompt, "seed": seed}
        for seed in (0, 1)
        for prompt in PROMPTS
        for method in ("psd", "sds2")
    ]
    records = run_jobs(jobs, preferring, RESULTS.with_name("specks_preference.jsonl"))
    for method in ("psd", "sds2"):
        mine = [r for r in records if r["method"] == method]
        old = [before[method, r["prompt"], r["seed"]] for r in mine]
        pairs = list(zip(mine, old, strict=True))
        gains = [a["gain"] - b["gain"] for a, b in pairs]
        ratios = [a["ratio"] - b["true_view_distance"] / b["oracle_distance"] for a, b in pairs]
        right = sum(r["recognised"].split()[-1] == r["prompt"].split()[-1] for r in mine)
        print(
            f"{method}: object right {right} of {len(mine)}; with minus without, paired: ", end=""
        )
        print(f"gain {with_error(gains)}, distance / oracle {with_error(ratios)}")


def with_error(values: list[float]) -> str:
    return f"{mean(values):+.4f} ± {stdev(values) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    if sys.argv[1:] == ["preference"]:
        sys.exit(preference())
    jobs = [
        {"field": kind, "variant": variant, "object": name, "colour": colour, "seed": seed}
        for kind in sys.argv[1:] or ["voxel"]
        for variant in (VARIANTS if kind == "voxel" else ("none", "opacity 0.01"))
        for colour, seed in RUNS
        for name in OBJECTS
    ]
    print(table(run_jobs(jobs, work, RESULTS)))
    sheets(jobs)
