"""Every method against the exact optimum: six prompts of open colour, five seeds, voxels.

    python tests/tools/psd_experiment.py [methods [reward]]      resumable; prints a table of means

Methods default to all of `compare`, the reward to colorfulness. Records go to
tests/results/psd_experiment_REWARD.jsonl, runs and pictures to psd_mini_out/experiment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev

from psd_mini.pipelines.compare import DEFAULT_METHODS, compare, ground_truth

ROOT = Path(__file__).parent.parent.parent
PROMPTS = ("a mushroom", "a car", "a house", "a chair", "a ball", "a rocket")
SEEDS = 5


def error(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {stdev(values) / len(values) ** 0.5:.3f}"


def main(methods: list[str], reward: str) -> None:
    records = []
    for prompt in PROMPTS:
        folder = f"{prompt} {reward}".replace(" ", "-").replace(":", "-")
        out = ROOT / "psd_mini_out" / "experiment" / folder
        best = ground_truth(prompt, reward)["r_best"]
        for record in compare(prompt, methods, reward, seeds=SEEDS, out=out, resume=True):
            records.append({**record, "of_best": record["reward"] / best})
    lines = [json.dumps(record) for record in records]
    name = f"psd_experiment_{reward.replace(':', '_')}.jsonl"
    (ROOT / "tests" / "results" / name).write_text("\n".join(lines) + "\n")
    print(
        "| method | runs | gain | reward / best true view | distance / oracle | distance to optimum"
        " | object right |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(record["method"] for record in records):
        mine = [record for record in records if record["method"] == name]
        ratio = error([r["true_view_distance"] / r["oracle_distance"] for r in mine])
        right = sum(r["recognised"].split()[-1] == r["prompt"].split()[-1] for r in mine)
        cells = [error([r[key] for r in mine]) for key in ("gain", "of_best")]
        cells += [ratio, error([r["distance_to_optimum"] for r in mine]), f"{right} of {len(mine)}"]
        print(f"| {name} | {len(mine)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    methods = sys.argv[1].split(",") if len(sys.argv) > 1 else list(DEFAULT_METHODS)
    main(methods, sys.argv[2] if len(sys.argv) > 2 else "colorfulness")
