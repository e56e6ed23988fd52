"""Several methods, several seeds, one prompt: a table with a ground truth, and a picture.

In the exact world the optimum of "reward - beta KL" is known (`methods.exact`), so a method can be
judged and not only its reward admired. With r_k the mean reward of component k's true pictures at
the judging cameras, pi_k the prompt's weights and pi*_k proportional to pi_k exp(r_k / beta):

    r_prior = sum_k pi_k r_k,   r_opt = sum_k pi*_k r_k,   gain = (r - r_prior) / (r_opt - r_prior)
    distance_to_optimum = RMS between the method's and `exact`'s 24 judged pictures at the same seed

All methods run with the same field, cameras, steps and range of timesteps. Reward hacking then
shows in three numbers: a reward above the best true object, a true_view_distance above the
oracle's, nothing recognised that the prompt names.
"""

from __future__ import annotations

import contextlib
import hashlib
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

from psd_mini._internal.arguments import at_least, validated
from psd_mini._internal.files import write_atomically
from psd_mini._internal.identity import identity
from psd_mini.methods import METHODS
from psd_mini.methods.exact import BETA
from psd_mini.pipelines.folders import REPLACE, different, folder_name, writable_folder
from psd_mini.pipelines.generate import PREFERENCE_TIMES, generate
from psd_mini.rewards import make_reward, score
from psd_mini.viz.pictures import contact_sheet, render_views, save_png
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
KEY = ("prompt", "method", "seed", "steps", "resolution", "reward_name")  # what tells runs apart
USUAL = {"reward_name": "colorfulness", "steps": 120, "resolution": 32}


def ground_truth(prompt: str, reward: str | Callable, beta: float = BETA) -> dict[str, float]:
    """What there is to gain: mean reward of the prompt, of the optimum, and of the best true
    object.

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
    pi, pi_star = log_pi.softmax(0), (log_pi + r / beta).softmax(0)
    best = r[log_pi > log_pi.max() - 1].max()
    return {"r_prior": (pi @ r).item(), "r_opt": (pi_star @ r).item(), "r_best": best.item()}


def run_one(job: dict[str, Any], folder: str, objects: Mapping[str, Any]) -> dict[str, Any]:
    """One method, one seed: its record; the pictures are kept for the distance to the optimum.

    Args:
        job: a record's `KEY`.
        folder: where the pictures go.
        objects: methods of the user's own by name, and under None a reward of the user's own.
    """
    name, with_negative = job["method"].removesuffix("+neg"), job["method"].endswith("+neg")
    reward = objects.get(None, job["reward_name"])
    result = generate(
        job["prompt"],
        method=objects.get(name, name),
        reward=reward,
        seed=job["seed"],
        steps=job["steps"],
        resolution=job["resolution"],
        negative=with_negative,
        guidance_scale=NEGATIVE_GUIDANCE if with_negative else None,
        progress=False,
        **PREFERENCE_TIMES,
    )
    views = judge_views()
    pictures = render_views(result.field, views.cameras, views.resolution)
    torch.save((255 * pictures).round().byte(), _pictures_of(job, Path(folder)))
    value = score(make_reward(reward), pictures, [job["prompt"]] * len(pictures)).mean().item()
    cost = {"prior_evaluations": result.cost["prior_evaluations"], "seconds": result.seconds}
    return {**job, "reward": value, **result.metrics, **cost}


@validated
def compare(
    prompt: str,
    methods: Sequence[str] | Mapping[str, str | Callable],
    reward: str | Callable = "colorfulness",
    seeds: int = 3,
    steps: int = 120,
    resolution: int = 32,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Run every method with every seed, a process per core, and write compare.md, .json and .png.

    Args:
        prompt: what to make; one that leaves the colour open gives a preference something to
            choose.
        methods: names of `methods.METHODS`, "+neg" added for the negative embedding; `exact` is
            always run too. Methods of your own come as a dictionary, {"psd": "psd", "mine":
            MyMethod()}, whose keys name the rows.
        reward: "colorfulness", "color:NAME" or a function of your own.
        seeds: how many, from 0. steps, resolution: as for `generate`.
        out: the folder; None is psd_mini_out/compare- with the prompt and each setting that is not
            the default (but methods and seeds, which can be added later).
        resume: keep finished runs that are there (records.jsonl) and add what is missing. Methods
            and rewards of your own are known again by their names and code. The table holds the
            rows that were asked for last.
        overwrite: start anew in a folder that holds runs.

    Returns:
        The records of compare.json, one per method and seed: `reward` is the mean reward of the
        24 judged pictures, `reward_name` whose it is.

    Raises:
        ValueError: an unknown method, prompt or reward, no seed, or a folder with other runs,
            before anything is run.
    """
    if resume and overwrite:
        raise ValueError(
            "resume, overwrite: one keeps the runs in the folder, the other replaces them;"
            " choose one"
        )
    own = dict(methods) if isinstance(methods, Mapping) else {}
    for name in methods:
        if name not in own and name.removesuffix("+neg") not in METHODS:
            known = ", ".join(METHODS)
            raise ValueError(
                f"methods: {name!r} is not known; choose from {known}, with +neg if wanted"
            )
    for count, least in (("seeds", 1), ("steps", 1), ("resolution", 8)):
        at_least(count, {"seeds": seeds, "steps": steps, "resolution": resolution}[count], least)
    reward_name = reward if isinstance(reward, str) else identity(reward)
    same = {"prompt": prompt, "reward_name": reward_name, "steps": steps, "resolution": resolution}
    others = {name: same[name] for name in USUAL if same[name] != USUAL[name]}
    folder = Path(out or f"psd_mini_out/{folder_name(['compare', prompt], others)}")
    past = past_runs(folder, same, resume, overwrite)
    truth = ground_truth(prompt, reward)
    writable_folder(folder)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    if overwrite:
        (folder / "records.jsonl").unlink(missing_ok=True)

    jobs = []
    for seed in range(seeds):
        for name in dict.fromkeys([*methods, "exact"]):
            job = {**same, "method": name, "seed": seed}
            if not isinstance(own.get(name, name), str):
                job["identity"] = identity(own[name])  # known again by its name and its code
            jobs.append(job)
    done = {_key(r): r for r in past if _pictures_of(r, folder).exists()}
    waiting = [job for job in jobs if _key(job) not in done]
    objects = own if isinstance(reward, str) else {**own, None: reward}
    done |= run_all(waiting, folder, objects)
    return write_tables([done[_key(job)] for job in jobs], truth, folder)


def past_runs(
    folder: Path, same: dict[str, Any], resume: bool, overwrite: bool
) -> list[dict[str, Any]]:
    """The finished runs in a folder; refused if they would be lost, or are of another
    comparison."""
    log, past = folder / "records.jsonl", []
    if overwrite:
        return []
    for line in log.read_text().splitlines() if log.exists() else []:
        with contextlib.suppress(ValueError):  # half a line, of a process that was killed
            past.append(json.loads(line))
    for record in past:
        if difference := different(record, same):
            raise ValueError(
                f"out: {folder} holds another comparison, with {difference}; {REPLACE}"
            )
    if not resume and (past or (folder / "compare.json").exists()):
        raise ValueError(
            f"out: {folder} holds {len(past)} finished runs; go on with them by resume=True "
            f"(--resume), {REPLACE}"
        )
    return past


def run_all(
    waiting: list[dict[str, Any]], folder: Path, objects: Mapping[str, Any]
) -> dict[tuple, dict[str, Any]]:
    """Run jobs in processes of their own; each record is added to records.jsonl when it is
    there."""
    done = {}
    # what is given as an object cannot be sent to another process, but a fork begins with it
    context = multiprocessing.get_context("fork") if objects else None
    pool = ProcessPoolExecutor(os.cpu_count(), context, Worker.begin, (objects,))
    with pool, (folder / "records.jsonl").open("a+") as file:
        file.seek(0)
        if file.read()[-1:] not in ("", "\n"):
            file.write("\n")  # after half a line, of a process that was killed
        futures = [pool.submit(Worker.run, job, str(folder)) for job in waiting]
        for count, future in enumerate(as_completed(futures), 1):
            record = future.result()
            done[_key(record)] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            what = f"{record['method']} seed {record['seed']}: {record['recognised']}"
            print(f"[{count}/{len(waiting)}] {what}", flush=True)
    return done


class Worker:
    """A process of `run_all`: one thread, and the objects that it was begun with."""

    objects: Mapping[str, Any] = {}

    @classmethod
    def begin(cls, objects: Mapping[str, Any]) -> None:
        torch.set_num_threads(1)
        cls.objects = objects

    @classmethod
    def run(cls, job: dict[str, Any], folder: str) -> dict[str, Any]:
        return run_one(job, folder, cls.objects)


def write_tables(
    records: list[dict[str, Any]], truth: dict[str, float], folder: Path
) -> list[dict[str, Any]]:
    """Write compare.json, .md and .png; the records, with gain and distance to the optimum."""
    optima = {r["seed"]: _load(_pictures_of(r, folder)) for r in records if r["method"] == "exact"}
    to_gain, finished = truth["r_opt"] - truth["r_prior"], []
    for record in records:
        away = _load(_pictures_of(record, folder)) - optima[record["seed"]]
        gain = (record["reward"] - truth["r_prior"]) / to_gain if to_gain > 0 else 0.0
        distance = away.square().mean().sqrt().item()
        finished.append({**record, "gain": gain, "distance_to_optimum": distance})
    write_atomically(folder / "compare.json", json.dumps(finished, indent=1).encode())
    write_atomically(folder / "compare.md", table(finished, truth).encode())
    of_seed_0 = [record for record in records if record["seed"] == 0]
    rows = [_load(_pictures_of(record, folder))[::3] for record in of_seed_0]
    title = f"{records[0]['prompt']}, reward {records[0]['reward_name']}, seed 0"
    sheet = contact_sheet(rows, [record["method"] for record in of_seed_0], title=title)
    save_png(sheet, folder / "compare.png")
    print(table(finished, truth) + f"\ntable, records and pictures are in {folder}")
    return finished


def table(records: list[dict[str, Any]], truth: dict[str, float]) -> str:
    """Markdown: mean over the seeds, plus-minus the standard error where there are several."""
    names = [name.replace("_", " ") for name in COLUMNS]
    lines = [
        (
            f"Mean reward of the prompt {truth['r_prior']:.3f}, at the optimum"
            f" {truth['r_opt']:.3f}, best true object {truth['r_best']:.3f}. Mean over seeds ±"
            " standard error."
        ),
        "",
        f"| method | {' | '.join(names)} | recognised |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for method in dict.fromkeys(record["method"] for record in records):
        mine = [record for record in records if record["method"] == method]
        cells = [_cell(name, [float(record[name]) for record in mine]) for name in COLUMNS]
        seen = ", ".join(record["recognised"] for record in mine)
        lines.append(f"| {method} | {' | '.join(cells)} | {seen} |")
    return "\n".join(lines) + "\n"


def _cell(column: str, values: list[float]) -> str:
    if column == "prior_evaluations" or (column == "seconds" and len(values) == 1):
        return f"{mean(values):.0f}"
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):.0f}{error}" if column == "seconds" else f"{mean(values):.3f}{error}"


def _key(record: dict[str, Any]) -> tuple:
    return (*(record[name] for name in KEY), record.get("identity"))


def _pictures_of(record: dict[str, Any], folder: Path) -> Path:
    # the digest keeps runs of another method of the same name in the same folder apart
    digest = hashlib.sha256(repr(_key(record)).encode()).hexdigest()[:8]
    return folder / "pictures" / f"{record['method']}-{record['seed']}-{digest}.pt"


def _load(path: Path) -> Tensor:
    return torch.load(path, weights_only=True).float() / 255
