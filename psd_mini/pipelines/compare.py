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
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import at_least, one_of, validated
from psd_mini._internal.files import write_atomically
from psd_mini._internal.runs import different
from psd_mini.methods import METHODS, make_method
from psd_mini.methods.exact import BETA
from psd_mini.pipelines.folders import REPLACE, folder_name, not_both, writable_folder
from psd_mini.pipelines.generate import PREFERENCE_TIMES, generate, in_config
from psd_mini.rewards import make_reward, score
from psd_mini.viz.pictures import contact_sheet, overoptimisation, render_views, save_png
from psd_mini.world import text
from psd_mini.world.metrics import judge_views

DEFAULT_METHODS = (
    *("sds", "sds2", "csd", "pixel-clean", "dps", "dreamdpo", "rewardsds", "psd", "psd+neg"),
    *("sds+neg", "exact"),
)
NEGATIVE_GUIDANCE = 2.0  # the negative embedding acts with the factor g - 1
COLUMNS = (
    *("reward", "gain", "true_view_distance", "oracle_distance", "log_density_gap"),
    *("distance_to_optimum", "prior_evaluations", "seconds"),
)
RUNS = "compare_runs"  # folder with a file for every finished run: its record and its pictures
USUAL = {"reward_name": "colorfulness", "steps": 120, "resolution": 32}


def ground_truth(prompt: str, reward: str | Callable, beta: float = BETA) -> dict[str, float]:
    """What there is to gain: mean reward of the prompt, of the optimum, of the best true object.

    Args:
        prompt: words the toy world knows.
        reward: a name, see `rewards.make_reward`, or a function.
        beta: temperature of the objective, reward units.

    Returns:
        {"r_prior", "r_opt", "r_best"} in reward units (equations: the module's docstring).
    """
    reward, views = make_reward(reward), judge_views()
    prompts = [prompt] * len(text.components())
    pictures = (views.pictures(torch.tensor([p]))[0] for p in range(len(views.cameras)))
    r = torch.stack([score(reward, seen, prompts) for seen in pictures]).mean(0).double()
    log_pi = (text.embed([prompt])[0] @ text.component_keys().T).double()
    # pi*_k is proportional to pi_k exp(r_k / beta)
    pi, pi_star = log_pi.softmax(0), (log_pi + r / beta).softmax(0)
    best = r[log_pi > log_pi.max() - 1].max()
    return {"r_prior": (pi @ r).item(), "r_opt": (pi_star @ r).item(), "r_best": best.item()}


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
    run_all([job for job in jobs if not file_of(job, folder).exists()], folder, objects)
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


def name_and_weight(name: str) -> tuple[str, float | None]:
    """("psd", 16.0) of "psd@16" or "psd@16+neg"; no weight is the method's own."""
    method, _, weight = name.removesuffix("+neg").partition("@")
    try:
        return method, float(weight) if weight else None
    except ValueError:
        raise ValueError(f"methods: {name!r}: expected a number after @, as in psd@16") from None


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


def run_all(jobs: list[dict[str, Any]], folder: Path, objects: Mapping[Any, Any]) -> None:
    """Run jobs in processes of their own, a line for each that is finished."""
    # what is given as an object cannot be sent to another process, but a fork begins with it
    context = multiprocessing.get_context("fork") if objects else None
    with ProcessPoolExecutor(os.cpu_count(), context, Worker.begin, (objects,)) as pool:
        futures = [pool.submit(Worker.run, job, folder) for job in jobs]
        for count, future in enumerate(as_completed(futures), 1):
            print(f"[{count}/{len(jobs)}] {future.result()}", flush=True)


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
    def run(cls, job: dict[str, Any], folder: Path) -> str:
        """One method, one seed: its record and pictures are kept in the folder; a line about it."""
        prompt, (name, weight) = job["prompt"], name_and_weight(job["method"])
        method, reward = cls.objects.get(name, name), cls.objects.get(None, job["reward_name"])
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


def load(path: Path) -> tuple[dict[str, Any], Tensor]:
    """A finished run: its record, and its pictures in [0, 1]."""
    run = torch.load(path, weights_only=True)
    return run["record"], run["pictures"].float() / 255


def write_tables(
    files: Sequence[Path], truth: dict[str, float], folder: Path
) -> list[dict[str, Any]]:
    """Write compare.json, .md and .png; the records, with gain and distance to the optimum."""
    optima, of_seed_0, records = {}, {}, []
    runs = [load(file) for file in files]
    for record, pictures in runs:
        if record["method"] == "exact":
            optima[record["seed"]] = pictures
    to_gain = truth["r_opt"] - truth["r_prior"]
    for record, pictures in runs:
        # gain = (r - r_prior) / (r_opt - r_prior)
        gain = (record["reward"] - truth["r_prior"]) / to_gain if to_gain > 0 else 0.0
        distance = (pictures - optima[record["seed"]]).square().mean().sqrt().item()
        records.append({**record, "gain": gain, "distance_to_optimum": distance})
        if record["seed"] == 0:
            of_seed_0[record["method"]] = pictures[::3]
    markdown = table(records, truth)
    write_atomically(folder / "compare.json", json.dumps(records, indent=1).encode())
    write_atomically(folder / "compare.md", markdown.encode())
    title = f"{records[0]['prompt']}, reward {records[0]['reward_name']}, seed 0"
    sheet = contact_sheet(list(of_seed_0.values()), list(of_seed_0), title=title)
    save_png(sheet, folder / "compare.png")
    if curves := over_weights(records):
        save_png(overoptimisation(curves), folder / "overoptimisation.png")
    print(f"{markdown}\ntable, records and pictures are in {folder}")
    return records


def over_weights(records: list[dict[str, Any]]) -> dict[str, list[tuple[float, float, float]]]:
    """For each method that was given with several weights: (weight, proxy, gold), seeds' means."""
    found: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for record in records:
        name, weight = name_and_weight(record["method"])
        if weight is not None and "gold_reward" in record:
            found.setdefault(name, {}).setdefault(weight, []).append(record)
    keys = "reward", "gold_reward"
    return {
        name: [(w, *(mean(r[key] for r in found[name][w]) for key in keys)) for w in sorted(of)]
        for name, of in found.items()
        if len(of) > 1
    }


def table(records: list[dict[str, Any]], truth: dict[str, float]) -> str:
    """Markdown: mean over the seeds, plus-minus the standard error where there are several."""
    truths = (
        f"Mean reward of the prompt {truth['r_prior']:.3f}, at the optimum {truth['r_opt']:.3f}, "
        f"best true object {truth['r_best']:.3f}. Mean over seeds ± standard error."
    )
    columns = (
        *COLUMNS[:1],
        *(["gold_reward"] if "gold_reward" in records[0] else []),
        *COLUMNS[1:],
    )
    names = " | ".join(name.replace("_", " ") for name in columns)
    rule = "|---" * (len(columns) + 2) + "|"
    lines = [truths, "", f"| method | {names} | recognised |", rule]
    for method in dict.fromkeys(record["method"] for record in records):
        mine = [record for record in records if record["method"] == method]
        cells = [_cell(name, [float(record[name]) for record in mine]) for name in columns]
        seen = ", ".join(record["recognised"] for record in mine)
        lines.append(f"| {method} | {' | '.join(cells)} | {seen} |")
    return "\n".join(lines) + "\n"


def _cell(column: str, values: list[float]) -> str:
    digits = 0 if column in ("prior_evaluations", "seconds") else 3
    if len(values) == 1 or column == "prior_evaluations":
        return f"{mean(values):.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values) / len(values) ** 0.5:.3f}"
