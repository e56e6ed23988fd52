"""A number of the README again: python tests/tools/reproduce.py NAME, at most ten minutes

The README's numbers come from hundreds of runs. Here a few of these runs, spread evenly over the
records of tests/results, are made again from their settings and seeds, one single-threaded process
per core; WHAT says how many. Printed are the README's number over all runs, and for the few the
recorded and the found value. With the torch of the records they should be the same; elsewhere they
agree if their means differ by less than two standard errors of the runs, and a thousandth. The exit
status is 1 where they do not. Counts (submissions, FLOP) must be equal as printed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from jobs import run_jobs

RESULTS = Path(__file__).parent.parent / "results"
Record = dict[str, Any]


@dataclass
class Rows:
    """Runs that are made again.

    readme: the README's words about them; file: their records; keys: what in a record is the job;
    wanted: which records count; value: the number of a record; n: how many are made again; tool:
    the module in tests/tools and its function that makes a run from a job.
    """

    readme: str
    file: str
    keys: str
    wanted: Callable[[Record], bool]
    value: Callable[[Record], float]
    n: int
    tool: tuple[str, str]


def ratio(record: Record) -> float:
    """Distance to the true views relative to the oracle's."""
    return record["distance"] / record["oracle"]


def objects(kind: str, readme: str, n: int) -> Rows:
    """Prompts of the table of objects, by their ratio."""
    tool = ("all_prompts", "work")
    return Rows(readme, "all_prompts", "field prompt", lambda r: r["field"] == kind, ratio, n, tool)


def claim_1(task: str, readme: str) -> Rows:
    """PSD's gold reward at the weight that its proxy chooses in most runs."""

    def wanted(record: Record) -> bool:
        return record["method"] == "psd" and record["task"] == task and record["reward"] == "rugged"

    keys, tool = "reward task method weight prompt seed", ("claims", "proxy_run")
    return Rows(readme, "claims_main", keys, wanted, lambda r: r["gold_reward"], 6, tool)


WHAT: dict[str, Rows] = {
    "objects": objects("voxel", "0.98, 0.97", 8),
    "triplanes": objects("triplane", "0.98, 0.97", 6),
    "claim-1": claim_1("from nothing", "holds from nothing"),
    "claim-1-refining": claim_1("refine", "not when refining"),
    "claim-2": Rows(
        "holds: +0.36 ± 0.03",
        "claims_dull",
        "variant radius lr weight prompt seed",
        lambda r: r["variant"] == "gradient",
        lambda r: r["reward_of_best"],
        6,
        ("claims", "dull_run"),
    ),
    "relatives": Rows(
        "SDS is nearest to the truth",
        "relatives",
        "method prompt seed",
        lambda r: r["method"] == "SDS",
        lambda r: r["distance"],
        3,
        ("relatives", "work"),
    ),
}


def again(rows: Rows) -> list[tuple[str, float, float]]:
    """(run, recorded value, found value) of the runs that are made again."""
    lines = (RESULTS / f"{rows.file}.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if rows.wanted(record)]
    chosen = records[:: max(1, len(records) // rows.n)][: rows.n]
    jobs = [{key: record[key] for key in rows.keys.split()} for record in chosen]
    work = getattr(__import__(rows.tool[0]), rows.tool[1])
    with tempfile.TemporaryDirectory() as folder:
        found = run_jobs(jobs, work, Path(folder) / "found.jsonl")
    pairs = zip(jobs, chosen, found, strict=True)
    return [(str(job), rows.value(old), rows.value(new)) for job, old, new in pairs]


def preference() -> list[tuple[str, float, float]]:
    """Gains of SDS with as many evaluations and of PSD: two prompts of six, one seed of five."""
    from psd_mini.pipelines.compare import compare

    lines = (RESULTS / "psd_experiment_colorfulness.jsonl").read_text().splitlines()
    records = {(r["prompt"], r["method"], r["seed"]): r for r in map(json.loads, lines)}
    pairs = []
    for prompt in ("a mushroom", "a house"):
        with tempfile.TemporaryDirectory() as folder:
            for found in compare(prompt, ["sds2", "psd"], seeds=1, out=folder):
                key = (prompt, found["method"], 0)
                if key in records:
                    pairs.append((str(key), records[key]["gain"], found["gain"]))
    return pairs


def flop() -> list[tuple[str, float, float]]:
    """TFLOP of a step with Stable Diffusion at 512 pixels, as the README rounds them."""
    import flops

    counted = flops.steps(flops.columns()["default"])
    return [(name, printed, round(counted[name], 1)) for name, printed in TFLOP.items()]


TFLOP = {"SDS": 3.9, "PSD": 6.0}
OTHERS: dict[str, tuple[str, Callable[[], list[tuple[str, float, float]]]]] = {
    "preference": ("PSD 1.02 ± 0.01", preference),
    "flop": ("SDS 3.9, PSD 6.0 TFLOP", flop),
}
# not here: milliseconds a step (bench.py measures this machine), the learned prior (its records are
# of other defaults than today's), and the checker's verdicts at first sight, which only a checker
# that has not seen the submissions can give (corpus_rates.py)


def agree(pairs: list[tuple[str, float, float]]) -> bool:
    """|mean(found) - mean(recorded)| <= 2 sqrt(sum of squared standard errors) + 0.001."""
    recorded, found = [a for _, a, _ in pairs], [b for _, _, b in pairs]
    errors = [stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in (recorded, found)]
    gap = abs(mean(found) - mean(recorded))
    return gap <= 2 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5 + 1e-3


def main(name: str) -> int:
    """Run again, print both values, and return the exit status."""
    if name not in WHAT and name not in OTHERS:
        print(f"NAME: one of {', '.join([*WHAT, *OTHERS])}; got {name!r}", file=sys.stderr)
        return 2
    if name in WHAT:
        readme, pairs = WHAT[name].readme, again(WHAT[name])
    else:
        readme, pairs = OTHERS[name][0], OTHERS[name][1]()
    print(f"\n{name}: the README says {readme!r}; of its runs, {len(pairs)} again:")
    for run, recorded, found in pairs:
        print(f"  recorded {recorded:8.4f}  found {found:8.4f}  {run}")
    same = all(abs(a - b) <= 1e-3 for _, a, b in pairs)
    verdict = "the same" if same else "agree" if agree(pairs) else "DISAGREE"
    means = [mean(values) for values in ([a for _, a, _ in pairs], [b for _, _, b in pairs])]
    print(f"  means: recorded {means[0]:.4f}, found {means[1]:.4f}: {verdict}")
    return int(verdict == "DISAGREE")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
