"""Experiments in single-threaded processes: a JSON line per finished one, which is then skipped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def run_jobs(jobs: list[dict], worker: Callable[[dict], dict], path: Path) -> list[dict]:
    """Do every job that has no line in `path` yet, and return the lines of all jobs in their order.

    Args:
        jobs: settings, JSON-able; a job is its settings.
        worker: settings -> results, importable by a child process.
        path: file of JSON lines {**settings, **results}.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def key(record: dict) -> str:
        return json.dumps({name: record.get(name) for name in sorted(jobs[0])}, sort_keys=True)

    lines = path.read_text().splitlines() if path.exists() else []
    done = {key(json.loads(line)): json.loads(line) for line in lines}
    waiting = [job for job in jobs if key(job) not in done]
    print(
        f"{len(jobs) - len(waiting)} of {len(jobs)} done before, {len(waiting)} to do", flush=True
    )
    with (
        ProcessPoolExecutor(os.cpu_count(), initializer=_one_thread) as pool,
        open(path, "a") as file,
    ):
        futures = {pool.submit(worker, job): job for job in waiting}
        for count, future in enumerate(as_completed(futures), 1):
            record = {**futures[future], **future.result()}
            done[key(record)] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"[{count}/{len(waiting)}] {json.dumps(record)}", flush=True)
    return [done[key(job)] for job in jobs]
