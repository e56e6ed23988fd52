"""Every (object, colour) of the toy world, distilled with default settings and judged.

    python tests/tools/all_prompts.py [voxel|triplane|learned]     resumable

Writes tests/results/all_prompts.jsonl and notebooks/images/all_prompts_FIELD.png, with one
single-threaded process per core. The target: recognised in at least 95% of the prompts, and a
true_view_distance of at most 1.25 times the oracle's. "learned" is voxels distilled from the
learned checkpoint; target: 90% recognised, 90 s each.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jobs import run_jobs

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "tests" / "results" / "all_prompts.jsonl"
PICTURES = Path(__file__).parent / "pictures"


def work(job: dict) -> dict:
    import torch

    from psd_mini import generate, render_views
    from psd_mini.cameras import orbit

    field, prior = ("voxel", "learned") if job["field"] == "learned" else (job["field"], "exact")
    # the learned rung's setting when these were made
    before = {"residual": "latent", "guidance_scale": 7.5, "lr_scale": (1.0, 0.15)}
    options = {"field": field, "prior": prior, **(before if prior == "learned" else {})}
    result = generate(job["prompt"], method="sds", progress=False, **options)
    PICTURES.mkdir(exist_ok=True)
    view = render_views(result.field, orbit([30.0], 20.0), 64)[0]
    torch.save(view.mul(255).round().byte(), picture_of(job))
    return {
        "recognised": result.metrics["recognised"],
        "distance": round(result.metrics["true_view_distance"], 5),
        "oracle": round(result.metrics["oracle_distance"], 5),
        "gap": round(result.metrics["log_density_gap"], 5),
        "seconds": round(result.seconds, 1),
    }


def picture_of(job: dict) -> Path:
    return PICTURES / f"{job['field']}-{job['prompt'].replace(' ', '-')}.pt"


def sheet(kind: str) -> None:
    """Contact sheet of all prompts: rows are objects, columns colours."""
    import torch

    from psd_mini.viz.pictures import contact_sheet, save_png, with_palette
    from psd_mini.world.objects import COLOURS, OBJECTS
    from psd_mini.world.text import caption

    def picture(name, colour):
        job = {"field": kind, "prompt": caption(name, colour)}
        return torch.load(picture_of(job), weights_only=True) / 255

    rows = [torch.stack([picture(name, colour) for colour in COLOURS]) for name in OBJECTS]
    target = ROOT / "notebooks" / "images" / f"all_prompts_{kind}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_png(with_palette(contact_sheet(rows, list(OBJECTS), list(COLOURS))), target)


def main(kinds: list[str]) -> None:
    from psd_mini.world.text import caption, components

    for kind in kinds:
        jobs = [{"field": kind, "prompt": caption(*component)} for component in components()]
        records = run_jobs(jobs, work, RESULTS)
        right = sum(r["recognised"] == r["prompt"] for r in records)
        ratios = sorted(r["distance"] / r["oracle"] for r in records)
        mean = sum(r["distance"] for r in records) / len(records)
        middle, largest = ratios[len(ratios) // 2], ratios[-1]
        print(f"{kind}: recognised {right} of {len(records)}; ", end="")
        print(f"distance / oracle: median {middle:.3f}, largest {largest:.3f}; ", end="")
        print(f"mean distance {mean:.4f}")
        sheet(kind)


if __name__ == "__main__":
    main(sys.argv[1:] or ["voxel", "triplane"])
