"""Several methods, several seeds, one prompt: a table with a ground truth, and a picture.

In the exact world the optimum of "reward - beta KL" is known (`methods.exact`), so a method can be
judged and not only its reward admired. With r_k the mean reward of component k's true pictures at
the judging cameras, pi_k the prompt's weights and pi*_k proportional to pi_k exp(r_k / beta):

    r_prior = sum_k pi_k r_k,   r_opt = sum_k pi*_k r_k,   gain = (r - r_prior) / (r_opt - r_prior)
    distance_to_optimum = RMS between the method's and `exact`'s 24 judged pictures at the same seed

All methods run with the same field, cameras, steps and range of timesteps. Reward hacking then
shows in three numbers: a reward above the best true object, a true_view_distance above the
oracle's, nothing recognised that the prompt names. With a proxy reward it shows in a fourth, the
gold reward that the proxy was trained to predict: a method given with several weights ("psd@4",
"psd@16") gets a curve of both, with the weight that one would choose by the proxy alone.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from psd_mini._internal.arguments import at_least, one_of, validated
from psd_mini._internal.files import write_atomically
from psd_mini._internal.identity import in_config
from psd_mini._internal.runs import different
from psd_mini.methods import METHODS, make_method
from psd_mini.pipelines.folders import REPLACE, folder_name, not_both, writable_folder
from psd_mini.pipelines.generate import PREFERENCE_TIMES, generate
from psd_mini.pipelines.tables import ground_truth, load, name_and_weight, write_tables
from psd_mini.viz.pictures import render_views
from psd_mini.world.metrics import judge_views

DEFAULT_METHODS = (
    *("sds", "sds2", "csd", "pixel-clean", "dps", "dreamdpo", "rewardsds", "psd", "psd+neg"),
    *("sds+neg", "exact"),
)
NEGATIVE_GUIDANCE = 2.0  # the negative embedding acts with the factor g - 1
RUNS = "compare_runs"  # folder with a file for every finished run: its record and its pictures
USUAL = {"reward_name": "colorfulness", "steps": 120, "resolution": 32}


@validated
def compare(
    prompt: str,
    methods: Sequence[str] | Mapping[str, str | Callable] = DEFAULT_METHODS,
    reward: str | Callable = "colorfulness",
    seeds: int = 3,
    steps: int = 120,
    resolution: int = 32,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    executor: Executor | None = None,
) -> list[dict[str, Any]]:
    """Run several methods and seeds on one prompt, a process per core; a table and a picture.

    A run takes some 20 seconds. compare.md, compare.json and compare.png are written.

    Args:
        prompt: what to make; one that leaves the colour open gives a preference something to
            choose.
        methods: names of `methods.METHODS`; "+neg" at the end adds the negative embedding, "@4" a
            preference weight of 4. `exact` is always run too. The command line takes them with
            commas between.
        reward: a name, see `make_reward`.
        seeds: how many, from 0.
        steps: optimiser steps of every run.
        resolution: pixels per side while training.
        out: the folder; None is psd_mini_out/compare- with the prompt and each setting that is not
            the default (but methods and seeds, which can be added later).
        resume: keep finished runs that are there (in its folder compare_runs) and add what is
            missing. The table holds the rows that were asked for last.
        overwrite: start anew in a folder that holds runs.
        executor: where the runs go, any executor of `concurrent.futures` (or of a cluster, with its
            interface); None is a process for each core, with one thread.

    Methods of your own come as a dictionary, {"psd": "psd", "mine": MyMethod()}, whose keys name
    the rows; a reward of your own comes as a function. They are known again by their names and
    code.

    Returns:
        The records of compare.json, one per method and seed: `reward` is the mean reward of the
        24 judged pictures, `reward_name` whose it is.

    Raises:
        ValueError: an unknown method, prompt or reward, no seed, or a folder with other runs,
            before anything is run.
    """
    not_both(resume, overwrite)
    own = own_methods(methods)
    at_least("seeds", seeds, 1)
    at_least("steps", steps, 1)
    at_least("resolution", resolution, 8)
    same = {"prompt": prompt, "reward_name": in_config(reward)}
    same |= {"steps": steps, "resolution": resolution}
    others = {name: same[name] for name in USUAL if same[name] != USUAL[name]}
    folder = Path(out or f"psd_mini_out/{folder_name(['compare', prompt], others)}")
    if not overwrite:
        look_at_past_runs(folder, same, resume)
    truth = ground_truth(prompt, reward)
    writable_folder(folder)
    (folder / RUNS).mkdir(exist_ok=True)
    if overwrite:
        for path in (folder / RUNS).glob("*.pt"):
            path.unlink()

    jobs: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name in dict.fromkeys([*methods, "exact"]):
            # a method of the user's own is known again by its name and its code
            which = {"method": name, "identity": in_config(own.get(name, name)), "seed": seed}
            jobs.append({**same, **which})
    objects: dict[Any, Any] = own if isinstance(reward, str) else {**own, None: reward}
    missing = [job for job in jobs if not file_of(job, folder).exists()]
    run_all(missing, folder, objects, executor)
    return write_tables([file_of(job, folder) for job in jobs], truth, folder)


def own_methods(methods: Sequence[str] | Mapping[str, str | Callable]) -> dict[str, Any]:
    """The dictionary, or {} for a list of names; a name that is not known is refused."""
    if isinstance(methods, Mapping):
        return dict(methods)
    for name in methods:
        method, weight = name_and_weight(name)
        one_of("methods", method, METHODS)
        make_method(method, preference_weight=weight)  # refuses a weight where there is none
    return {}


def look_at_past_runs(folder: Path, same: dict[str, Any], resume: bool) -> None:
    """Refuse a folder whose finished runs are of another comparison, or would be lost."""
    past = list((folder / RUNS).glob("*.pt"))
    for path in past:
        if difference := different(load(path)[0], same):
            what = f"holds another comparison, with {difference}"
            raise ValueError(f"out: {folder} {what}; {REPLACE}")
    if not resume and (past or (folder / "compare.json").exists()):
        what = f"holds {len(past)} finished runs; go on with them by resume=True (--resume)"
        raise ValueError(f"out: {folder} {what}, {REPLACE}")


def run_all(
    jobs: list[dict[str, Any]], folder: Path, objects: Mapping[Any, Any], executor: Executor | None
) -> None:
    """Run jobs in processes of their own, or where the executor runs them."""
    if executor is not None:
        print_as_they_end([executor.submit(Worker.run, job, folder, objects) for job in jobs])
        return
    # what is given as an object cannot be sent to another process, but a fork begins with it
    context = multiprocessing.get_context("fork") if objects else None
    with ProcessPoolExecutor(os.cpu_count(), context, Worker.begin, (objects,)) as pool:
        print_as_they_end([pool.submit(Worker.run, job, folder) for job in jobs])


def print_as_they_end(futures: list[Future]) -> None:
    """A line for each run that has ended."""
    for count, future in enumerate(as_completed(futures), 1):
        print(f"[{count}/{len(futures)}] {future.result()}", flush=True)


class Worker:
    """A process of `run_all`: one thread, and the objects that it was begun with.

    objects: methods of the user's own by name, and under None a reward of the user's own.
    """

    objects: Mapping[Any, Any] = {}

    @classmethod
    def begin(cls, objects: Mapping[Any, Any]) -> None:
        torch.set_num_threads(1)
        cls.objects = objects

    @classmethod
    def run(cls, job: dict[str, Any], folder: Path, objects: Mapping | None = None) -> str:
        """One method, one seed: its record and pictures are kept in the folder; a line about it."""
        prompt, (name, weight) = job["prompt"], name_and_weight(job["method"])
        objects = cls.objects if objects is None else objects
        method, reward = objects.get(name, name), objects.get(None, job["reward_name"])
        numbers: dict[str, Any] = {name: job[name] for name in ("seed", "steps", "resolution")}
        if job["method"].endswith("+neg"):
            numbers |= {"negative": True, "guidance_scale": NEGATIVE_GUIDANCE}
        how = {**PREFERENCE_TIMES, "progress": False}
        how |= {"preference_weight": weight} if weight is not None else {}
        result = generate(prompt, method=method, reward=reward, **numbers, **how)
        views = judge_views()
        pictures = render_views(result.field, views.cameras, views.resolution)
        value = result.metrics.get("proxy_reward", result.metrics.get("reward"))
        cost = {"prior_evaluations": result.cost["prior_evaluations"], "seconds": result.seconds}
        buffer = io.BytesIO()
        record = {**job, "reward": value, **result.metrics, **cost}
        torch.save({"record": record, "pictures": (255 * pictures).round().byte()}, buffer)
        write_atomically(file_of(job, folder), buffer.getvalue())
        return f"{job['method']} seed {job['seed']}: {record['recognised']}"


def file_of(job: dict[str, Any], folder: Path) -> Path:
    """Where a finished run is kept; another method of the same name has another file."""
    digest = hashlib.sha256(repr(job).encode()).hexdigest()[:8]
    return folder / RUNS / f"{job['method']}-{job['seed']}-{digest}.pt"
