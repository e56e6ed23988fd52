"""Several methods, several seeds, one prompt: a table with a ground truth, and a picture.

In the exact world the optimum of "reward - beta KL" is known (`methods.exact`), so a method can be judged and not only its
reward admired. With r_k the mean reward of component k's true pictures at the judging cameras, pi_k the prompt's weights
and pi*_k proportional to pi_k exp(r_k / beta):

    r_prior = sum_k pi_k r_k,   r_opt = sum_k pi*_k r_k,   gain = (r - r_prior) / (r_opt - r_prior)
    distance_to_optimum = RMS between the method's and `exact`'s 24 judged pictures at the same seed

All methods run with the same field, cameras, steps and range of timesteps. Reward hacking then shows in three numbers: a
reward above the best true object, a true_view_distance above the oracle's, nothing recognised that the prompt names.
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

from psd_mini.arguments import at_least, validated
from psd_mini.checkpoint import identity
from psd_mini.files import write_atomically
from psd_mini.folders import REPLACE, different, folder_name, writable_folder
from psd_mini.methods import METHODS
from psd_mini.methods.exact import BETA
from psd_mini.rewards import make_reward, score
from psd_mini.text_to_3d import PREFERENCE_TIMES, generate
from psd_mini.viz import contact_sheet, render_views, save_png
from psd_mini.world import text
from psd_mini.world.metrics import judge_views

DEFAULT_METHODS = ("sds", "sds2", "csd", "pixel-clean", "dps", "dreamdpo", "rewardsds", "psd", "psd+neg", "sds+neg", "exact")
NEGATIVE_GUIDANCE = 2.0  # the negative embedding acts with the factor g - 1, so "+neg" runs need g above 1
COLUMNS = (
    *("reward", "gain", "true_view_distance", "oracle_distance", "log_density_gap", "distance_to_optimum"),
    *("prior_evaluations", "seconds"),
)


# methods and the reward that `compare` was given as objects, while it runs: forked processes inherit them
_OWN: dict[str, Any] = {}


def ground_truth(prompt: str, reward: str | Callable, beta: float = BETA) -> dict[str, float]:
    """What there is to gain: mean reward under the prompt, at the optimum, and of the best true object.

    Args:
        prompt: words the toy world knows.
        reward: a name, see `rewards.make_reward`, or a function.
        beta: temperature of the objective, reward units.

    Returns:
        {"r_prior", "r_opt", "r_best"} in reward units (equations: the module's docstring).
    """
    reward, views = make_reward(reward), judge_views()
    prompts = [prompt] * len(text.components())
    per_camera = [score(reward, views.pictures(torch.tensor([p]))[0], prompts) for p in range(len(views.cameras))]
    r = torch.stack(per_camera).mean(0).double()
    log_pi = (text.embed([prompt])[0] @ text.component_keys().T).double()
    pi, pi_star = log_pi.softmax(0), (log_pi + r / beta).softmax(0)
    return {"r_prior": (pi @ r).item(), "r_opt": (pi_star @ r).item(), "r_best": r[log_pi > log_pi.max() - 1].max().item()}


def run_one(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """One method, one seed: the record without the optimum, which needs `exact`'s pictures; those of this run are kept."""
    name, with_negative = job["method"].removesuffix("+neg"), job["method"].endswith("+neg")
    reward = _OWN.get("reward", job["reward"])
    result = generate(
        job["prompt"],
        method=_OWN.get(f"method {name}", name),
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
    pictures = render_views(result.field, views.cameras, views.size)
    torch.save((255 * pictures).round().byte(), _pictures_of(job, Path(folder)))
    value = score(make_reward(reward), pictures, [job["prompt"]] * len(pictures)).mean().item()
    record = {**job, "score": value, **result.metrics, "prior_evaluations": result.cost["prior_evaluations"]}
    return {**record, "seconds": result.seconds}


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
    """Run every method with every seed, one single-threaded process per core, and write compare.md, .json and .png.

    Args:
        prompt: what to make; one that leaves the colour open gives a preference something to choose.
        methods: names of `methods.METHODS`, "+neg" added for the negative embedding; `exact` is always run too. Methods of
            your own come as a dictionary, {"psd": "psd", "mine": MyMethod()}, whose keys name the rows.
        reward: "colorfulness", "color:NAME" or a function of your own.
        seeds: how many, from 0. steps, resolution: as for `generate`.
        out: the folder; None is psd_mini_out/compare- with the prompt and each setting that is not the default (but methods and
            seeds, which can be added later).
        resume: keep finished runs that are there (records.jsonl) and add what is missing. Methods and rewards of your own
            are known again by their names and code. The table holds the rows that were asked for last.
        overwrite: start anew in a folder that holds runs.

    Returns:
        The records of compare.json, one per method and seed.

    Raises:
        ValueError: an unknown method, prompt or reward, no seed, or a folder with other runs, before anything is run.
    """
    if resume and overwrite:
        raise ValueError("resume, overwrite: one keeps the runs in the folder, the other replaces them; choose one")
    own = dict(methods) if isinstance(methods, Mapping) else {}
    for name in methods:
        if name not in own and name.removesuffix("+neg") not in METHODS:
            raise ValueError(f"methods: {name!r} is not known; choose from {', '.join(METHODS)}, with +neg if wanted")
    at_least("seeds", seeds, 1)
    at_least("steps", steps, 1)
    at_least("resolution", resolution, 8)
    name_of_reward = reward if isinstance(reward, str) else identity(reward)
    settings = {"prompt": prompt, "reward": name_of_reward, "steps": steps, "resolution": resolution}
    usual = {"reward": "colorfulness", "steps": 120, "resolution": 32}
    others = {name: settings[name] for name in usual if settings[name] != usual[name]}
    folder = Path(out or f"psd_mini_out/{folder_name(['compare', prompt], others)}")
    past = _past_runs(folder, settings, resume, overwrite)
    truth = ground_truth(prompt, reward)
    writable_folder(folder)
    methods = [*dict.fromkeys([*methods, "exact"])]
    # a method that is given as an object is known again by its name and its code
    code = {name: {"identity": identity(method)} for name, method in own.items() if not isinstance(method, str)}
    jobs = [{**settings, "method": name, "seed": seed, **code.get(name, {})} for seed in range(seeds) for name in methods]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    if overwrite:
        (folder / "records.jsonl").unlink(missing_ok=True)
    done = {_key(r): r for r in past if _pictures_of(r, folder).exists()}
    objects = {f"method {name}": method for name, method in own.items()}
    done |= _run_all(
        [job for job in jobs if _key(job) not in done],
        folder,
        objects | ({} if name_of_reward is reward else {"reward": reward}),
    )
    return _write_tables(jobs, done, truth, folder)


def _past_runs(folder: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> list[dict[str, Any]]:
    """The finished runs in a folder; refused where they would be lost, or are of another comparison."""
    log, past = folder / "records.jsonl", []
    if overwrite:
        return []
    for line in log.read_text().splitlines() if log.exists() else []:
        with contextlib.suppress(ValueError):  # half a line, of a process that was killed
            past.append(json.loads(line))
    for record in past:
        if difference := different({**record, "reward": record.get("reward_name", record["reward"])}, settings):
            raise ValueError(f"out: {folder} holds another comparison, with {difference}; {REPLACE}")
    if not resume and (past or (folder / "compare.json").exists()):
        raise ValueError(f"out: {folder} holds {len(past)} finished runs; go on with them by resume=True (--resume), {REPLACE}")
    return past


def _run_all(waiting: list[dict[str, Any]], folder: Path, objects: dict[str, Any]) -> dict[tuple, dict[str, Any]]:
    """Run jobs in processes of their own; their records, which are also added to records.jsonl one by one."""
    done = {}
    _OWN.update(objects)
    # what is given as an object cannot be sent to another process, but a fork has it already
    context = multiprocessing.get_context("fork") if _OWN else None
    pool = ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, (1,))
    try:
        with pool, (folder / "records.jsonl").open("a+") as file:
            file.seek(0)
            if file.read()[-1:] not in ("", "\n"):
                file.write("\n")  # after half a line, of a process that was killed
            futures = [pool.submit(run_one, job, str(folder)) for job in waiting]
            for count, future in enumerate(as_completed(futures), 1):
                record = future.result()
                done[_key(record)] = record
                file.write(json.dumps(record) + "\n")
                file.flush()
                print(f"[{count}/{len(waiting)}] {record['method']} seed {record['seed']}: {record['recognised']}", flush=True)
    finally:
        _OWN.clear()  # or the next call of `run_one` would take them for its own
    return done


def _write_tables(
    jobs: list[dict[str, Any]], done: dict[tuple, dict[str, Any]], truth: dict[str, float], folder: Path
) -> list[dict[str, Any]]:
    """compare.json, .md and .png of these jobs; the records."""
    prompt, reward, methods = jobs[0]["prompt"], jobs[0]["reward"], [*dict.fromkeys(job["method"] for job in jobs)]
    records = []
    for job in jobs:
        raw = dict(done[_key(job)])
        value = raw.pop("score") if "score" in raw else raw["reward"]
        optimum = _load(
            _pictures_of(next(one for one in jobs if (one["method"], one["seed"]) == ("exact", job["seed"])), folder)
        )
        distance = (_load(_pictures_of(job, folder)) - optimum).square().mean().sqrt().item()
        gain = (value - truth["r_prior"]) / (truth["r_opt"] - truth["r_prior"]) if truth["r_opt"] > truth["r_prior"] else 0.0
        records.append({**raw, "reward_name": reward, "reward": value, "gain": gain, "distance_to_optimum": distance})
    write_atomically(folder / "compare.json", json.dumps(records, indent=1).encode())
    write_atomically(folder / "compare.md", table(records, truth).encode())
    rows = [_load(_pictures_of(job, folder))[::3] for job in jobs[: len(methods)]]  # of seed 0
    save_png(contact_sheet(rows, methods, title=f"{prompt}, reward {reward}, seed 0"), folder / "compare.png")
    print(table(records, truth) + f"\ntable, records and pictures are in {folder}")
    return records


def table(records: list[dict[str, Any]], truth: dict[str, float]) -> str:
    """Markdown: mean over the seeds, plus-minus the standard error where there are several."""
    lines = [
        f"Mean reward of the prompt {truth['r_prior']:.3f}, at the optimum {truth['r_opt']:.3f}, best true object "
        f"{truth['r_best']:.3f}. Mean over seeds ± standard error.",
        "",
        "| method | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " | recognised |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for name in dict.fromkeys(record["method"] for record in records):
        mine = [record for record in records if record["method"] == name]
        cells = []
        for column in COLUMNS:
            values = [float(record[column]) for record in mine]
            error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 and column != "prior_evaluations" else ""
            cells.append(f"{mean(values):.0f}" if column in ("prior_evaluations", "seconds") else f"{mean(values):.3f}{error}")
        lines.append(f"| {name} | " + " | ".join(cells) + " | " + ", ".join(record["recognised"] for record in mine) + " |")
    return "\n".join(lines) + "\n"


def _key(record: dict[str, Any]) -> tuple:
    names = ("prompt", "method", "seed", "steps", "resolution")
    own = (record["identity"],) if "identity" in record else ()
    return (*(record[name] for name in names), record.get("reward_name", record["reward"]), *own)


def _pictures_of(job: dict[str, Any], folder: Path) -> Path:
    # the digest keeps runs of another method of the same name in the same folder apart
    digest = hashlib.sha256(repr(_key(job)).encode()).hexdigest()[:8]
    return folder / "pictures" / f"{job['method']}-{job['seed']}-{digest}.pt"


def _load(path: Path) -> Tensor:
    return torch.load(path, weights_only=True).float() / 255
