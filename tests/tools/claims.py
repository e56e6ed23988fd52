"""The paper's two claims as experiments: their plan is tests/results/claims_plan.json.

    python tests/tools/claims.py sweep | main | proxies | noise | rivals | bases | dull | ...
    python tests/tools/claims.py main 3                    seeds up to 3 only

Every finished run is a line of tests/results/claims_NAME.jsonl, and is not done again.
`claims_tables.py` makes the tables of tests/results/claims.md from these lines.
"""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from jobs import run_jobs

RESULTS = Path(__file__).parent.parent / "results"
MADE = Path(os.environ.get("PSD_MINI_CACHE", "build"))
STARTS, TRAINED = MADE / "claims_starts", MADE / "claims_proxies"
PLAN = json.loads((RESULTS / "claims_plan.json").read_text())
DEFAULT_WEIGHT = 1.0  # of PSD
RADII = (70.0, 260.0, 1430.0, 6460.0)  # evidence at t = 0.5, 0.3, 0.1 and 0.02 in the vivid world
BETA = 0.1  # of the yardstick `exact`: the temperature of the proxies' training pairs


@cache
def prior_of(vividness: float) -> Any:
    from dataclasses import replace

    from psd_mini.world.pool import make_views, pool_cameras
    from psd_mini.world.prior import ToyWorldPrior

    return ToyWorldPrior(views=replace(make_views(pool_cameras(), 32), vividness=vividness))


def judged(field: Any) -> tuple[Any, Any]:
    """The 24 pictures of a finished field that are judged, and what the judge says."""
    from psd_mini import render_views
    from psd_mini.world.metrics import judge, judge_views

    pictures = render_views(field, judge_views().cameras, judge_views().resolution)
    return pictures, judge(pictures)


def start_field(prompt: str, kind: str, seed: int) -> Any:
    """A finished object in the colour that the gold reward likes least; made once, then read."""
    import torch

    from psd_mini import SDS, distill, load_field, make_field, save_field
    from psd_mini.world.gold import COLOUR_VALUES

    worst = min(COLOUR_VALUES[kind], key=COLOUR_VALUES[kind].get)
    prompt = f"a {worst} {prompt.split()[-1]}"
    path = STARTS / f"{prompt.replace(' ', '-')}-{seed}.safetensors"
    if not path.exists():
        field = make_field("voxel", torch.Generator().manual_seed(seed))
        distill(field, prior_of(1.0), SDS(), prompt, steps=120, seed=seed, progress=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        save_field(field, own)
        own.rename(path)
    return load_field(path)


def proxy_of(kind: str, trained: int | str) -> Any:
    """The proxy of a training seed, or "noisy"; those above 2 are not shipped, `proxies` trains."""
    from safetensors.torch import load_file

    from psd_mini.pretrained.proxy import ProxyReward, proxy_network

    if trained == "noisy":
        return ProxyReward.load(f"{kind}-noisy")
    if trained in (0, 1, 2):
        return ProxyReward.load(kind, trained)
    name, network = f"{kind}-{trained}", proxy_network()
    network.load_state_dict(load_file(TRAINED / f"{name}.safetensors"))
    return ProxyReward(name, network.requires_grad_(False).eval())


def method_of(name: str, weight: float | None, settings: dict[str, Any]) -> Any:
    from psd_mini.methods import Exact, RewardSDS, make_method
    from psd_mini.psd import PSD

    if name == "psd":
        base = make_method(settings.pop("base", "sds"), settings.pop("guidance", 1.0))
        if pair := settings.pop("pair", None):
            return Reading(base, weight, pair)
        return PSD(base, weight, **settings)
    if name == "rewardsds-views":
        return RewardSDS(over_views=True)
    if name == "exact":
        return Exact(beta=BETA)
    return make_method(name, settings.get("guidance", 1.0), weight)


class Reading:
    """PSD with another direction of the pair: h of the unguided prediction, or eps_hat alone."""

    n_noises, shared_timestep = 1, True

    def __init__(self, base: Any, weight: float, pair: str):
        self.base, self.weight, self.pair = base, weight, pair

    def __call__(self, x: Any, t: Any, eps: Any, context: Any) -> Any:
        import torch

        from psd_mini.psd import omega, psd_gradient, rank

        eps = torch.cat((eps, -eps))
        ranked = rank(self.base, x, t, eps, context, over_views=True)
        h = ranked.predictions.eps_cond - eps
        if self.pair == "noise not subtracted":
            h = ranked.residuals + eps
        schedule = context.prior.schedule
        lambda_t = self.weight * schedule.alpha_sigma(t, x)[1]
        omega_b = omega(ranked.rewards[0] - ranked.rewards[1], "hard")
        weight_t = schedule.weight(t, self.base.weighting, x)
        return psd_gradient(ranked.of_base.mean(0), h[0], h[1], omega_b, lambda_t, weight_t)


def proxy_run(job: dict[str, Any]) -> dict[str, Any]:
    """One run with a proxy reward: proxy, gold and distance, apart."""
    import torch

    from psd_mini import distill, make_field
    from psd_mini.methods import make_method
    from psd_mini.world.gold import gold_reward

    prompt, seed, kind = job["prompt"], job["seed"], job["reward"]
    task = PLAN["tasks"][job["task"]]
    field = make_field("voxel", torch.Generator().manual_seed(seed))
    if "start" in task:
        field = start_field(prompt, kind, seed)
    proxy = proxy_of(kind, job.get("proxy", seed % 3))
    settings = dict(job.get("settings") or {})
    times = {name: tuple(task[name]) for name in ("t_min", "t_max")}
    numbers: dict[str, Any] = {"steps": task["steps"], "seed": seed, **times}
    prior, plan = prior_of(1.0), PLAN["learned prior"]
    if job.get("prior") == "learned":
        from psd_mini.pretrained import make_prior

        prior = make_prior("learned")
        numbers |= {"resolution": plan["resolution"], "lr_scale": tuple(plan["lr_scale"])}
        numbers["steps"] = plan["steps"]
        how = tuple(plan["guidance"]), job["weight"], plan["residual"]
        method = make_method(job["method"], *how)
    else:
        method = method_of(job["method"], job["weight"], settings)
    run = distill(field, prior, method, prompt, reward=proxy, progress=False, **numbers)
    pictures, found = judged(field)
    with torch.no_grad():
        liked = proxy(pictures, [prompt] * len(pictures)).mean().item()
    return {
        "proxy_reward": round(liked, 4),
        "gold_reward": round(gold_reward(found, kind), 4),
        "true_view_distance": round(found.true_view_distance, 4),
        "recognised": " ".join(found.recognised[::-1]),
        "prior_evaluations": run.cost.prior_evaluations,
        "seconds": round(run.cost.seconds["total"], 1),
    }


def dull_run(job: dict[str, Any]) -> dict[str, Any]:
    """One run in the world whose prior knows only dull colours."""
    import torch

    from psd_mini import SDS, distill, make_field
    from psd_mini.methods import NegativeWords
    from psd_mini.negative import NegativeEmbedding
    from psd_mini.psd import PSD
    from psd_mini.rewards import make_reward
    from psd_mini.world import text
    from psd_mini.world.metrics import shown_vividness
    from psd_mini.world.objects import COLOURS, OBJECTS

    _, colour, name = job["prompt"].split()
    prior, reward = prior_of(0.5), make_reward(f"color:{colour}")
    g = 1.0 if job["variant"].startswith("no guidance") else 2.0
    null = text.embed([""])
    words = [word for word in (*OBJECTS, *COLOURS) if word not in (colour, name)]
    negative: Any = None
    if job["variant"] == "gradient":
        settings = {key: job[key] for key in ("radius", "lr") if job.get(key)}
        settings = settings or prior.negative_settings(null[0], text.embed([job["prompt"]])[0])
        negative = NegativeEmbedding(null[0], g, **settings)
    elif job["variant"] in ("random", "bandit"):
        embeddings = torch.cat((text.embed(words), null))
        negative = NegativeWords(words, embeddings, g, job["variant"])
    task = PLAN["tasks"]["from nothing"]
    numbers: dict[str, Any] = {key: tuple(task[key]) for key in ("t_min", "t_max")}
    numbers |= {"steps": task["steps"] * (3 if "three times" in job["variant"] else 1)}
    numbers |= {"negative_prompt": "gray" if job["variant"] == "gray" else ""}
    field = make_field("voxel", torch.Generator().manual_seed(job["seed"]))
    method, parts = PSD(SDS(g), job["weight"]), {"reward": reward, "negative": negative}
    run = distill(
        *(field, prior, method, job["prompt"]), **numbers, **parts, seed=job["seed"], progress=False
    )
    pictures, found = judged(field)
    wanted = (name, colour)
    of_best = prior_of(1.0).component_rewards(reward, job["prompt"])
    place = text.components().index(wanted)
    return {
        "reward_of_best": round(reward(pictures).mean().item() / of_best[place].item(), 4),
        "vividness": round(shown_vividness(pictures, wanted), 4),
        "distance_to_wanted": round(found.distances[place].item(), 4),
        "recognised": " ".join(found.recognised[::-1]),
        "words": negative.read(text.VOCABULARY, 3) if negative else None,
        "prior_evaluations": run.cost.prior_evaluations,
        "seconds": round(run.cost.seconds["total"], 1),
    }


def proxy_jobs(
    prompts: list[str], seeds: list[int], chosen: list[tuple[str, float | None]]
) -> list[dict[str, Any]]:
    """Jobs of `proxy_run`, seed by seed."""
    return [
        {"reward": kind, "task": task, "method": method, "weight": weight}
        | {"prompt": prompt, "seed": seed}
        for seed in seeds
        for task, kind in PLAN["worlds"]
        for prompt in prompts
        for method, weight in chosen
    ]


def sweep_jobs() -> list[dict[str, Any]]:
    plan = PLAN["sweep"]
    chosen = [(method, w) for method, weights in plan["weights"].items() for w in weights]
    return proxy_jobs(plan["prompts"], plan["seeds"], chosen)


def best_weight(records: list[dict[str, Any]], weights: list[float], key: str) -> float:
    """The weight whose records have the largest sum of `key`."""
    return max(weights, key=lambda w: sum(r[key] for r in records if r["weight"] == w))


def chosen_weights(records: list[dict[str, Any]], kind: str, task: str, method: str) -> list[float]:
    """The weights that the plan takes from the sweep: best by gold, best by proxy, the default."""
    mine = [r for r in records if (r["reward"], r["task"], r["method"]) == (kind, task, method)]
    weights = PLAN["sweep"]["weights"][method]

    best = [best_weight(mine, weights, key) for key in ("gold_reward", "proxy_reward")]
    default = [DEFAULT_WEIGHT] if method == "psd" else []
    return list(dict.fromkeys([*best, *default]))


def weighted_methods(
    swept: list[dict[str, Any]], task: str, kind: str, methods: list[str]
) -> list[tuple[str, float | None]]:
    """Methods with the weights that the plan takes from the sweep, in one world."""
    return [
        (method, weight)
        for method in methods
        for weight in chosen_weights(swept, kind, task, method)
    ]


def main_jobs() -> list[dict[str, Any]]:
    swept = run_jobs(sweep_jobs(), proxy_run, RESULTS / "claims_sweep.jsonl")
    jobs = []
    for task, kind in PLAN["worlds"]:
        chosen = weighted_methods(swept, task, kind, list(PLAN["sweep"]["weights"]))
        chosen += [(method, None) for method in PLAN["main"]["without a weight"]]
        every = proxy_jobs(PLAN["prompts"], PLAN["main"]["seeds"], chosen)
        jobs += [job for job in every if (job["task"], job["reward"]) == (task, kind)]
    # what decides the claim comes first, so that it is complete whenever the runs are stopped
    deciding = ("sds2", "pixel-clean", "psd", "exact")

    def place(job: dict[str, Any]) -> tuple[bool, bool, int]:
        extra = job["method"] not in deciding or job["weight"] == DEFAULT_WEIGHT
        return job["seed"] > 3, extra, job["seed"]

    return sorted(jobs, key=place)


def proxies_jobs() -> list[dict[str, Any]]:
    """What decides claim 1, with proxies that no run has seen; trains those that are missing."""
    from proxy import train

    kinds, plan = ("rugged", "smooth"), PLAN["proxies"]
    names = [f"{kind}-{trained}" for trained in plan["trained"] for kind in kinds]
    missing = [name for name in names if not (TRAINED / f"{name}.safetensors").exists()]
    if missing:
        train.main(TRAINED, missing)
    swept = run_jobs(sweep_jobs(), proxy_run, RESULTS / "claims_sweep.jsonl")
    jobs = []
    for task, kind in PLAN["worlds"]:
        chosen = weighted_methods(swept, task, kind, ["pixel-clean", "psd"])
        chosen.remove(("psd", DEFAULT_WEIGHT))
        seeds = [trained + 4 for trained in plan["trained"]]
        every = proxy_jobs(PLAN["prompts"], seeds, [("sds2", None), *chosen])
        jobs += [job for job in every if (job["task"], job["reward"]) == (task, kind)]
    jobs = [{**job, "proxy": job["seed"] - 4} for job in jobs]
    return sorted(jobs, key=lambda job: job["seed"])


def noise_jobs() -> list[dict[str, Any]]:
    """The proxy that has seen noisy pictures beside the one that has not."""
    plan = PLAN["noise"]
    chosen = [(method, w) for method, weights in plan["weights"].items() for w in weights]
    jobs = in_world(proxy_jobs(PLAN["prompts"], [plan["seed"]], chosen))
    return [{**job, "proxy": proxy} for job in jobs for proxy in plan["proxies"]]


def learned_sweep_jobs() -> list[dict[str, Any]]:
    plan = PLAN["learned prior"]["sweep"]
    chosen = [(method, w) for method, weights in plan["weights"].items() for w in weights]
    return in_learned_world(proxy_jobs(plan["prompts"], plan["seeds"], chosen))


def learned_jobs() -> list[dict[str, Any]]:
    path, plan = RESULTS / "claims_learned_sweep.jsonl", PLAN["learned prior"]
    swept = run_jobs(learned_sweep_jobs(), proxy_run, path)
    jobs: list[dict[str, Any]] = []
    for key in ("proxy_reward", "gold_reward"):
        chosen: list[tuple[str, float | None]] = [("sds2", None)]
        for method, weights in plan["sweep"]["weights"].items():
            mine = [record for record in swept if record["method"] == method]
            chosen.append((method, best_weight(mine, weights, key)))
        more = in_learned_world(proxy_jobs(PLAN["prompts"], plan["seeds"], chosen))
        jobs += [job for job in more if job not in jobs]
    return jobs


def in_world(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs from nothing with the rugged proxy."""
    return [job for job in jobs if (job["task"], job["reward"]) == ("from nothing", "rugged")]


def in_learned_world(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for the learned prior."""
    return [{**job, "prior": "learned"} for job in in_world(jobs)]


def base_jobs() -> list[dict[str, Any]]:
    """PSD on other bases, each beside its base alone."""
    plan = PLAN["bases"]
    jobs = []
    for base in plan["bases"]:
        chosen = [(base, None), *(("psd", weight) for weight in plan["weights"])]
        for job in in_world(proxy_jobs(PLAN["prompts"], plan["seeds"], chosen)):
            settings = {"base": base} if job["method"] == "psd" else {}
            jobs.append({**job, "settings": settings})
    return jobs


def dull_sweep_jobs() -> list[dict[str, Any]]:
    """The gradient path by radius and step, beside what needs neither."""
    prompts, seeds = PLAN["dull world"]["prompts"][:2], (0, 1)
    radii = [*RADII, float("inf")]
    settings: list[dict[str, Any]] = [
        {"variant": "gradient", "radius": radius, "lr": min(radius, RADII[-1]) * part}
        for radius in radii
        for part in (0.01, 0.05, 0.2)
    ]
    others = ("null", "random", "bandit", "gray")
    settings += [{"variant": variant, "radius": None, "lr": None} for variant in others]
    where = [{"weight": 4.0, "prompt": p, "seed": s} for p in prompts for s in seeds]
    return [{**setting, **place} for setting in settings for place in where]


def dull_jobs() -> list[dict[str, Any]]:
    plan = PLAN["dull world"]
    names = ("no guidance", "no guidance, three times the steps", "null", "gradient", "random")
    return [
        {"variant": variant, "radius": None, "lr": None}
        | {"weight": 4.0, "prompt": prompt, "seed": seed}
        for seed in plan["seeds"]
        for prompt in plan["prompts"]
        for variant in (*names, "bandit", "gray")
    ]


def rival_jobs() -> list[dict[str, Any]]:
    """PSD read in other ways, one setting changed at a time: at the default weight from nothing,
    and in refining, where that does nothing, at 20, the best by gold in the sweep."""
    readings: list[dict[str, Any]] = [
        {},
        *({"omega": kind} for kind in ("gap", "bt", "gated")),
        {"over_views": False},
        *({"pair_base": base} for base in ("winner", "fresh")),
        {"antithetic": False},
        {"antithetic": False, "over_views": False},
        {"guidance": 2.0},
        {"guidance": 2.0, "pair": "unguided"},
        {"pair": "noise not subtracted"},
        {"base": "csd"},
    ]
    jobs = proxy_jobs(PLAN["prompts"], [2], [("psd", DEFAULT_WEIGHT), ("psd", 20.0)])
    weights = {"from nothing": DEFAULT_WEIGHT, "refine": 20.0}
    mine = [j for j in jobs if j["reward"] == "rugged" and j["weight"] == weights[j["task"]]]
    return [{**job, "settings": reading} for job in mine for reading in readings]


NAMES = {
    "sweep": (sweep_jobs, proxy_run),
    "main": (main_jobs, proxy_run),
    "proxies": (proxies_jobs, proxy_run),
    "noise": (noise_jobs, proxy_run),
    "dull-sweep": (dull_sweep_jobs, dull_run),
    "dull": (dull_jobs, dull_run),
    "rivals": (rival_jobs, proxy_run),
    "bases": (base_jobs, proxy_run),
    "learned": (learned_jobs, proxy_run),
}

if __name__ == "__main__":
    jobs_of, worker = NAMES[sys.argv[1]]
    last_seed = int(sys.argv[2]) if len(sys.argv) > 2 else 99
    jobs = [job for job in jobs_of() if job["seed"] <= last_seed]
    run_jobs(jobs, worker, RESULTS / f"claims_{sys.argv[1].replace('-', '_')}.jsonl")
