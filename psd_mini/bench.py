"""Where the time of a step goes, measured on this machine."""

from __future__ import annotations

import platform
import time

import torch

from psd_mini.distill import Run, distill
from psd_mini.fields import FIELDS, make_field
from psd_mini.methods import METHODS
from psd_mini.priors.toy_world import ToyWorldPrior


def bench(steps: int = 30) -> list[dict]:
    """Print and return milliseconds per step for every field and method: prior, render, backward, the rest.

    Args:
        steps: steps that are timed, after 3 that warm up; at least 1.
    """
    prior = ToyWorldPrior()
    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {threads} threads, torch {torch.__version__}; 4 cameras of 32 x 32 a step, ms per step")
    print(f"{'field':10}{'method':10}{'prior':>9}{'render':>9}{'backward':>9}{'other':>9}{'total':>9}")
    rows = []
    for kind in FIELDS:
        for name, method in METHODS.items():
            _timed(kind, prior, method(), 3)
            run, seconds = _timed(kind, prior, method(), steps)
            row = {part: 1e3 * value / steps for part, value in run.cost.seconds.items()}
            row["total"] = 1e3 * seconds / steps
            print(f"{kind:10}{name:10}" + "".join(f"{value:9.1f}" for value in row.values()))
            rows.append({"field": kind, "method": name, **row})
    return rows


def _timed(kind: str, prior: ToyWorldPrior, method, steps: int) -> tuple[Run, float]:
    started = time.perf_counter()
    run = distill(make_field(kind), prior, method, "a red mushroom", steps=steps, progress=False)
    return run, time.perf_counter() - started
