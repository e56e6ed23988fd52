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
from psd_mini._internal.runs import identity
from psd_mini._internal.files import write_atomically
from psd_mini.methods import METHODS
from psd_mini.methods.exact import BETA
from psd_mini.rewards import make_reward, score
from psd_mini.pipelines.generate import PREFERENCE_TIMES, generate, writable_folder
from psd_mini.viz.pictures import contact_sheet, render_views, save_png
from psd_mini.world import text
from psd_mini.world.metrics import judge_views

DEFAULT_METHODS = ("sds", "sds2", "csd", "pixel-clean", "dps", "dreamdpo", "rewardsds", "psd", "psd+neg", "sds+neg", "exact")
NEGATIVE_GUIDANCE = 2.0  # the negative embedding acts with the factor g - 1, so "+neg" runs need g above 1
COLUMNS = (
    *("reward", "gain", "true_view_distance", "oracle_distance", "log_density_gap", "distance_to_optimum"),
    *("prior_evaluations", "seconds"),
)


_OWN: dict[str, Any] = {}  # methods and the reward that `compare` was given as objects; forked processes inherit it


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
    pictures = render_views(result.field, views.cameras, views.resolution)
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
    out: str | Path = "psd_mini_out/compare",
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Run every method with every seed, one single-threaded process per core, and write compare.md, .json and .png.

    Args:
        prompt: what to make; one that leaves the colour open gives a preference something to choose.
        methods: names of `methods.METHODS`, "+neg" added for the negative embedding; `exact` is always run too. Methods of
            your own come as a dictionary, {"psd": "psd", "mine": MyMethod()}, whose keys name the rows.
        reward: "colorfulness", "color:NAME" or a function of your own.
        seeds: how many, from 0. steps, resolution: as for `generate`.
        out: the folder.
        resume: keep finished runs that are there (records.jsonl) instead of starting anew; they are known by the names of
            method and reward, so give a method that you changed another name.

    Returns:
        The records of compare.json, one per method and seed.

    Raises:
        ValueError: an unknown method, prompt or reward, or no seed, before anything is run.
    """
    own = dict(methods) if isinstance(methods, Mapping) else {}
    for name in methods:
        if name not in own and name.removesuffix("+neg") not in METHODS:
            raise ValueError(f"methods: {name!r} is not known; choose from {', '.join(METHODS)}, with +neg if wanted")
    at_least("seeds", seeds, 1)
    at_least("steps", steps, 1)
    at_least("resolution", resolution, 8)
    truth, folder = ground_truth(prompt, reward), Path(out)
    writable_folder(folder)
    _OWN.clear()
    _OWN.update({f"method {name}": method for name, method in own.items()})
    if not isinstance(reward, str):
        _OWN["reward"], reward = reward, identity(reward)
    methods = [*dict.fromkeys([*methods, "exact"])]
    settings = {"prompt": prompt, "reward": reward, "steps": steps, "resolution": resolution}
    jobs = [{**settings, "method": name, "seed": seed} for seed in range(seeds) for name in methods]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    log = folder / "records.jsonl"
    if not resume:
        log.unlink(missing_ok=True)
    past = map(json.loads, log.read_text().splitlines() if log.exists() else [])
    done = {_key(r): r for r in past if _pictures_of(r, folder).exists()}
    waiting = [job for job in jobs if _key(job) not in done]
    # what is given as an object cannot be sent to another process, but a fork has it already
    context = multiprocessing.get_context("fork") if _OWN else None
    pool = ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, (1,))
    with pool, log.open("a") as file:
        futures = [pool.submit(run_one, job, str(folder)) for job in waiting]
        for count, future in enumerate(as_completed(futures), 1):
            record = future.result()
            done[_key(record)] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"[{count}/{len(waiting)}] {record['method']} seed {record['seed']}: {record['recognised']}", flush=True)

    records = []
    for job in jobs:
        raw = done[_key(job)]
        value = raw.pop("score") if "score" in raw else raw["reward"]
        optimum = _load(_pictures_of({**job, "method": "exact"}, folder))
        distance = (_load(_pictures_of(job, folder)) - optimum).square().mean().sqrt().item()
        gain = (value - truth["r_prior"]) / (truth["r_opt"] - truth["r_prior"]) if truth["r_opt"] > truth["r_prior"] else 0.0
        records.append({**raw, "reward_name": reward, "reward": value, "gain": gain, "distance_to_optimum": distance})
    write_atomically(folder / "compare.json", json.dumps(records, indent=1).encode())
    write_atomically(folder / "compare.md", table(records, truth).encode())
    rows = [_load(_pictures_of({**jobs[0], "method": name}, folder))[::3] for name in methods]
    save_png(contact_sheet(rows, methods, title=f"{prompt}, reward {reward}, seed 0"), folder / "compare.png")
    print(table(records, truth))
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
    return (*(record[name] for name in names), record.get("reward_name", record["reward"]))


def _pictures_of(job: dict[str, Any], folder: Path) -> Path:
    # the digest keeps runs of another prompt or reward in the same folder apart
    digest = hashlib.sha256(repr(_key(job)).encode()).hexdigest()[:8]
    return folder / "pictures" / f"{job['method']}-{job['seed']}-{digest}.pt"


def _load(path: Path) -> Tensor:
    return torch.load(path, weights_only=True).float() / 255
