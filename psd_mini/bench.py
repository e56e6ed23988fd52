"""Where the time of a step goes, measured on this machine."""

from __future__ import annotations

import platform
from functools import partial

import torch

from psd_mini.distill import distill
from psd_mini.fields import make_field
from psd_mini.methods import METHODS, make_method
from psd_mini.priors.toy_world import ToyWorldPrior
from psd_mini.rewards import make_reward

PARTS = ("render", "prior", "backward")


def bench(steps: int = 30) -> list[dict]:
    """Print and return milliseconds per step of every method on voxels, and of SDS on triplanes, and what the time goes to.

    "rest" is what belongs to neither rendering, prior nor backward: rewards, optimiser, bookkeeping.

    Args:
        steps: steps that are timed, after 3 that warm up; at least 1.
    """
    prior, reward = ToyWorldPrior(), make_reward("colorfulness")
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; 4 cameras of 32 x 32; ms a step"
    )
    print(f"{'field':10}{'method':18}" + "".join(f"{name:>10}" for name in (*PARTS, "rest", "total", "/ sds", "evals")))
    rows: list[dict] = []
    for kind, name in [*(("voxel", name) for name in METHODS), ("triplane", "sds")]:
        method = make_method(name)
        run = partial(distill, prior=prior, method=method, prompt="a mushroom", reward=reward, progress=False)
        run(make_field(kind), steps=3)
        cost = run(make_field(kind), steps=steps).cost
        row = {part: 1e3 * cost.seconds.get(part, 0.0) / steps for part in PARTS}
        total = 1e3 * cost.seconds["total"] / steps
        row |= {"rest": total - sum(row.values()), "total": total, "ratio": total / rows[0]["total"] if rows else 1.0}
        row |= {"evaluations": cost.prior_evaluations / steps}
        print(f"{kind:10}{name:18}" + "".join(f"{value:10.2f}" for value in row.values()))
        rows.append({"field": kind, "method": name, **row})
    return rows
