"""Many runs: every prompt with every seed, by one process or by many that need not know each other.

    psd-mini sweep prompts.txt --seeds 3 --method psd --out runs
    torchrun --standalone --nproc-per-node 8 -m psd_mini sweep prompts.txt --seeds 3 --out runs
    srun --ntasks 64 psd-mini sweep prompts.txt --seeds 3 --out runs

All of them make the same files, bit for bit, since one seed and one thread count give one result:

    jobs = the sorted prompts x seeds,    mine = jobs[rank], jobs[rank + world_size], ...

A worker learns its rank from its environment and sends no messages, so it may begin, die and begin
again at any time, on any of several nodes with one file system. Of its jobs it skips those that are
finished, goes on with those that have a checkpoint, and writes what failed into error.txt. Whoever
finds everything done writes the table and the contact sheet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from psd_mini._internal.arguments import at_least, first_line, named, one_of, validated
from psd_mini._internal.files import write_atomically
from psd_mini._internal.identity import spelled
from psd_mini.fields import load_field
from psd_mini.pipelines.folders import folder_name, read_record, writable_folder
from psd_mini.pipelines.generate import generate
from psd_mini.viz.pictures import contact_sheet, render_views, save_png, turntable_cameras

# in a folder's name anyway, or nothing to do with the result
ONE_RUN = ("prompt", "seed", "out", "resume", "overwrite", "progress")
NOT_IN_NAME = (*ONE_RUN, "method", "field", "checkpoint_every", "callback")
MOST_THREADS = 256  # of a worker; a machine cannot start any number of them
COLUMNS = ("recognised", "true_view_distance", "oracle_distance", "reward")


def run_name(settings: Mapping[str, Any]) -> str:
    """The name of a run's folder: prompt, method, field, settings that are not usual, and seed."""
    usual = {name: p.default for name, p in signature(generate).parameters.items()}
    full, others = usual | dict(settings), {}
    for name in usual:
        if name not in NOT_IN_NAME and spelled(full[name]) != spelled(usual[name]):
            others[name] = full[name]
    return folder_name([full["prompt"], full["method"], full["field"]], others, [full["seed"]])


def worker() -> tuple[int, int, int]:
    """This process's rank, the number of workers, and its rank on this machine: alone 0, 1, 0.

    torchrun says it, else srun.
    """
    said = os.environ
    rank = int(said.get("RANK", said.get("SLURM_PROCID", 0)))
    count = int(said.get("WORLD_SIZE", said.get("SLURM_NTASKS", 1)))
    return rank, count, int(said.get("LOCAL_RANK", said.get("SLURM_LOCALID", 0)))


@validated
def sweep(
    prompts: str | Path | Sequence[str],
    seeds: int = 1,
    threads: int = 1,
    out: str | Path = "psd_mini_out/sweep",
    **settings: Any,
) -> dict[Path, list[str]]:
    """Run `generate` for every prompt and seed, alone or as one of many workers.

    Under torchrun or srun a worker does its share, on a GPU of its own where there are some. What
    is finished is skipped, so the same command goes on after an interrupt or with more seeds. When
    all is done, sweep.md and sweep.png are written.

    Args:
        prompts: a text file with a prompt on each line, or in Python a list of prompts.
        seeds: how many, from 0.
        threads: of torch in each worker; other counts may round otherwise.
        out: the folder of all runs, each in a folder of its own.
        settings: those of `generate`, the same for all.

    Returns:
        The table: the folder of each run -> its cells (`COLUMNS` and seconds, or one: the error; or
        none while another worker has not done it).

    Raises:
        ValueError: no prompts, no seed, or a folder that cannot be written. A run that fails is
            recorded, and the others go on.
    """
    at_least("seeds", seeds, 1)
    at_least("threads", threads, 1)
    if threads > MOST_THREADS:
        raise ValueError(f"threads: expected at most {MOST_THREADS}, got {threads}")
    for name in settings:
        one_of("settings", name, signature(generate).parameters.keys() - set(ONE_RUN))
    folder, (rank, count, local) = writable_folder(out) or Path(), worker()
    jobs: list[dict[str, Any]] = []
    for prompt in read_prompts(prompts):
        jobs += [{"prompt": prompt, "seed": seed, **settings} for seed in range(seeds)]
    places = [folder / run_name(job) for job in jobs]
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for job, place in list(zip(jobs, places, strict=True))[rank::count]:
            if "seconds" not in read_record(place):
                print(f"[worker {rank} of {count}] {place.name}: {run(job, place)}", flush=True)
    finally:
        torch.set_num_threads(before)
    table = {place: cells_of(place) for place in places}
    done = sum(map(bool, table.values()))
    print(f"{done} of {len(jobs)} runs are done, in {folder}", flush=True)
    if done == len(jobs):
        write_summary(jobs, table, folder)
    return table


def read_prompts(prompts: str | Path | Sequence[str]) -> list[str]:
    """The different prompts of a list, or of a file with one on each line, sorted."""
    if isinstance(prompts, str | Path):
        with named("prompts: expected a text file with a prompt on each line", "give one"):
            prompts = Path(prompts).read_text(encoding="utf-8").splitlines()
    found = sorted({line.strip() for line in prompts} - {""})
    if not found:
        raise ValueError("prompts: expected at least one, got none; give a prompt on each line")
    return found


def run(job: dict[str, Any], place: Path) -> str:
    """Do one job, or go on with it; what came of it, in a line."""
    try:
        resume = (place / "checkpoint.pt").exists()
        result = generate(**job, out=place, resume=resume, progress=False)
    except Exception as error:  # whatever it is, the other runs go on
        place.mkdir(parents=True, exist_ok=True)
        line = f"{type(error).__name__}: {first_line(error)}"
        write_atomically(place / "error.txt", line.encode())
        return line
    (place / "error.txt").unlink(missing_ok=True)
    return f"{result.summary()}, {result.seconds:.0f} s"


def cells_of(place: Path) -> list[str]:
    """A job's line of the table: what run.json holds, or its error; none while it is not done."""
    record, failed = read_record(place), place / "error.txt"
    if "seconds" in record:
        values = [record["metrics"].get(name, "") for name in COLUMNS] + [record["seconds"]]
        return [f"{v:.3f}" if isinstance(v, float) else str(v) for v in values]
    return [failed.read_text()] if failed.exists() else []


def write_summary(jobs: Sequence[dict], table: Mapping[Path, list[str]], folder: Path) -> None:
    """Write sweep.md (a line for each run) and sweep.png (a row for each prompt)."""
    lines = [f"| run | {' | '.join(COLUMNS)} | seconds |", "|---" * (len(COLUMNS) + 2) + "|"]
    rows: dict[str, list[torch.Tensor]] = {}
    for job, (place, cells) in zip(jobs, table.items(), strict=True):
        lines.append(f"| {place.name} | {' | '.join(cells)} |")
        path = place / "field.safetensors"
        if len(cells) > 1 and path.exists():
            picture = render_views(load_field(path), turntable_cameras(1), 64)
            rows.setdefault(job["prompt"], []).append(picture)
    write_atomically(folder / "sweep.md", "\n".join([*lines, ""]).encode())
    if rows:
        sheet = contact_sheet([torch.cat(row) for row in rows.values()], list(rows))
        save_png(sheet, folder / "sweep.png")
