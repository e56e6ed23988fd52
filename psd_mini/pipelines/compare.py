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

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from psd_mini.pipelines.folders import REPLACE, different, folder_name, not_both, writable_folder
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
RUNS = "compare_runs"  # folder with the record and the pictures of every finished run
KEY = ("prompt", "method", "seed", "steps", "resolution", "reward_name")  # what tells runs apart
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
        reward: "colorfulness", "color:NAME", "proxy:smooth", "proxy:rugged" or a function of your
            own.
        seeds: how many, from 0. steps, resolution: as for `generate`.
        out: the folder; None is psd_mini_out/compare- with the prompt and each setting that is not
            the default (but methods and seeds, which can be added later).
        resume: keep finished runs that are there (in its folder compare_runs) and add what is
            missing. Methods and rewards of your own are known again by their names and code. The
            table holds the rows that were asked for last.
        overwrite: start anew in a folder that holds runs.

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
    reward_name = reward if isinstance(reward, str) else identity(reward)
    same = {"prompt": prompt, "reward_name": reward_name, "steps": steps, "resolution": resolution}
    others = {name: same[name] for name in USUAL if same[name] != USUAL[name]}
    folder = Path(out or f"psd_mini_out/{folder_name(['compare', prompt], others)}")
    past = [] if overwrite else past_runs(folder, same, resume)
    truth = ground_truth(prompt, reward)
    writable_folder(folder)
    (folder / RUNS).mkdir(exist_ok=True)
    if overwrite:
        for path in (folder / RUNS).glob("*.json"):
            path.unlink()

    jobs: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name in dict.fromkeys([*methods, "exact"]):
            jobs.append({**same, "method": name, "seed": seed})
            if not isinstance(own.get(name, name), str):  # known again by its name and its code
                jobs[-1]["identity"] = identity(own[name])
    done = {_key(record): record for record in past if _pictures_of(record, folder).exists()}
    waiting = [job for job in jobs if _key(job) not in done]
    objects: dict[Any, Any] = own if isinstance(reward, str) else {**own, None: reward}
    done |= {_key(record): record for record in run_all(waiting, folder, objects)}
    return write_tables([done[_key(job)] for job in jobs], truth, folder)


def own_methods(methods: Sequence[str] | Mapping[str, str | Callable]) -> dict[str, Any]:
    """The dictionary, or {} for a list of names; a name that is not known is refused."""
    own = dict(methods) if isinstance(methods, Mapping) else {}
    for name in methods:
        if name not in own and name.removesuffix("+neg") not in METHODS:
            known = ", ".join(METHODS)
            raise ValueError(f"methods: {name!r} is not known; choose from {known} (and +neg)")
    return own


def past_runs(folder: Path, same: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The finished runs in a folder.

    Raises:
        ValueError: they are of another comparison, or would be lost.
    """
    past = [json.loads(path.read_text()) for path in sorted((folder / RUNS).glob("*.json"))]
    for record in past:
        if difference := different(record, same):
            what = f"holds another comparison, with {difference}"
            raise ValueError(f"out: {folder} {what}; {REPLACE}")
    if not resume and (past or (folder / "compare.json").exists()):
        what = f"holds {len(past)} finished runs; go on with them by resume=True (--resume)"
        raise ValueError(f"out: {folder} {what}, {REPLACE}")
    return past


def run_all(
    waiting: list[dict[str, Any]], folder: Path, objects: Mapping[Any, Any]
) -> Iterator[dict[str, Any]]:
    """Run jobs in processes of their own: the records, as they are finished."""
    # what is given as an object cannot be sent to another process, but a fork begins with it
    context = multiprocessing.get_context("fork") if objects else None
    with ProcessPoolExecutor(os.cpu_count(), context, Worker.begin, (objects,)) as pool:
        futures = [pool.submit(Worker.run, job, folder) for job in waiting]
        for count, future in enumerate(as_completed(futures), 1):
            record = future.result()
            what = f"{record['method']} seed {record['seed']}: {record['recognised']}"
            print(f"[{count}/{len(waiting)}] {what}", flush=True)
            yield record


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
    def run(cls, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        """One method, one seed: its record. Both it and the pictures are kept in the folder."""
        prompt, name = job["prompt"], job["method"].removesuffix("+neg")
        method, reward = cls.objects.get(name, name), cls.objects.get(None, job["reward_name"])
        numbers: dict[str, Any] = {name: job[name] for name in ("seed", "steps", "resolution")}
        if job["method"].endswith("+neg"):
            numbers |= {"negative": True, "guidance_scale": NEGATIVE_GUIDANCE}
        how = {**PREFERENCE_TIMES, "progress": False}
        result = generate(prompt, method=method, reward=reward, **numbers, **how)
        views = judge_views()
        pictures = render_views(result.field, views.cameras, views.resolution)
        torch.save((255 * pictures).round().byte(), _pictures_of(job, folder))
        value = score(make_reward(reward), pictures, [prompt] * len(pictures)).mean().item()
        cost = {"prior_evaluations": result.cost["prior_evaluations"], "seconds": result.seconds}
        record = {**job, "reward": value, **result.metrics, **cost}
        path = _pictures_of(job, folder).with_suffix(".json")
        write_atomically(path, json.dumps(record).encode())
        return record


def write_tables(
    records: list[dict[str, Any]], truth: dict[str, float], folder: Path
) -> list[dict[str, Any]]:
    """Write compare.json, .md and .png; the records, with gain and distance to the optimum."""
    pictures = [_load(_pictures_of(record, folder)) for record in records]
    both = list(zip(records, pictures, strict=True))
    optima = {record["seed"]: seen for record, seen in both if record["method"] == "exact"}
    to_gain, finished = truth["r_opt"] - truth["r_prior"], []
    for record, seen in both:
        # gain = (r - r_prior) / (r_opt - r_prior)
        gain = (record["reward"] - truth["r_prior"]) / to_gain if to_gain > 0 else 0.0
        distance = (seen - optima[record["seed"]]).square().mean().sqrt().item()
        finished.append({**record, "gain": gain, "distance_to_optimum": distance})
    markdown = table(finished, truth)
    write_atomically(folder / "compare.json", json.dumps(finished, indent=1).encode())
    write_atomically(folder / "compare.md", markdown.encode())
    of_seed_0 = {record["method"]: seen[::3] for record, seen in both if record["seed"] == 0}
    title = f"{records[0]['prompt']}, reward {records[0]['reward_name']}, seed 0"
    sheet = contact_sheet(list(of_seed_0.values()), list(of_seed_0), title=title)
    save_png(sheet, folder / "compare.png")
    print(f"{markdown}\ntable, records and pictures are in {folder}")
    return finished


def table(records: list[dict[str, Any]], truth: dict[str, float]) -> str:
    """Markdown: mean over the seeds, plus-minus the standard error where there are several."""
    truths = (
        f"Mean reward of the prompt {truth['r_prior']:.3f}, at the optimum {truth['r_opt']:.3f}, "
        f"best true object {truth['r_best']:.3f}. Mean over seeds ± standard error."
    )
    names = " | ".join(name.replace("_", " ") for name in COLUMNS)
    rule = "|---" * (len(COLUMNS) + 2) + "|"
    lines = [truths, "", f"| method | {names} | recognised |", rule]
    for method in dict.fromkeys(record["method"] for record in records):
        mine = [record for record in records if record["method"] == method]
        cells = [_cell(name, [float(record[name]) for record in mine]) for name in COLUMNS]
        seen = ", ".join(record["recognised"] for record in mine)
        lines.append(f"| {method} | {' | '.join(cells)} | {seen} |")
    return "\n".join(lines) + "\n"


def _cell(column: str, values: list[float]) -> str:
    digits = 0 if column in ("prior_evaluations", "seconds") else 3
    if len(values) == 1 or column == "prior_evaluations":
        return f"{mean(values):.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values) / len(values) ** 0.5:.3f}"


def _key(record: dict[str, Any]) -> tuple:
    return (*(record[name] for name in KEY), record.get("identity"))


def _pictures_of(record: dict[str, Any], folder: Path) -> Path:
    # the digest keeps runs of another method of the same name in the same folder apart
    digest = hashlib.sha256(repr(_key(record)).encode()).hexdigest()[:8]
    return folder / RUNS / f"{record['method']}-{record['seed']}-{digest}.pt"


def _load(path: Path) -> Tensor:
    return torch.load(path, weights_only=True).float() / 255
