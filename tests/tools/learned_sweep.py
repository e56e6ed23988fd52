"""The learned rung, made better: where the gradient enters, guidance by noise level, colour rate.

    python tests/tools/learned_sweep.py plan     writes tests/results/learned_plan.json
    python tests/tools/learned_sweep.py run      resumable; tests/results/learned_sweep.jsonl
    python tests/tools/learned_sweep.py tables   what stands in tests/results/learned.md, and sheets

One single-threaded process per core. The plan was committed before the first run; it holds every
job and the rules by which a setting becomes the default. All runs have the learned prior, voxels,
120 steps, four 64 x 64 cameras, t from [0.9, 1] down to [0.02, 0.2].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev

from jobs import run_jobs

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "tests" / "results"
PICTURES = Path(__file__).parent / "pictures"
NAMED = ("a red mushroom", "a blue house", "a green chair", "a yellow rocket")
OPEN = ("a mushroom", "a car", "a house", "a ball")
REWARDS = ("colorfulness", "proxy:rugged")
TODAY = ("latent", 7.5, 0.15)  # residual, guidance (or below and above t = 0.6), colour rate
SEVERAL = (TODAY, ("image", [1.0, 3.0], 0.15), ("image", [1.0, 3.0], 0.3))  # on two seeds
ONCE = (("image", 1.0, 0.15), ("image", 3.0, 0.15))
FOR_OPEN = ("image", [3.0, 1.0], 0.5)
CONTROL = ("latent", [3.0, 1.0], 0.5)
RULES = {
    "named": "the image setting of two seeds with the smaller mean distance / oracle becomes the "
    "default if it is below today's by more than two standard errors of the paired difference, "
    "over 4 prompts x 2 seeds, and the object is right no less often",
    "open": "becomes the default for methods with a preference if PSD's gain is above sds2's, same "
    "setting, by more than two standard errors of the paired difference, over 4 prompts x 2 seeds, "
    "and the object is right in at least 7 of PSD's 8 runs",
    "gain": "(reward - mean of the prompt) / (optimum of the exact world - mean), 24 judging views",
    "colour share": "share of the 24 views whose nearest true picture has the most frequent colour",
    "spread": "root mean square, over views and channels, of the main colour that fits one view "
    "best, around its mean over the views; 0 is one colour all around",
}


def job(prompt: str, method: str, seed: int, setting: tuple, reward: str | None = None) -> dict:
    named = {"residual": setting[0], "guidance": setting[1], "rate": setting[2]}
    return {"prompt": prompt, "method": method, "seed": seed, **named, "reward": reward}


def plan() -> list[dict]:
    """All jobs, the most telling ones first."""
    ways = (("sds2", None), ("psd", "colorfulness"))
    jobs = []
    for seed in (0, 1):
        jobs += [job(p, "sds", seed, s) for s in SEVERAL for p in NAMED]
        jobs += [job(p, m, seed, FOR_OPEN, r) for p in OPEN for m, r in ways]
    jobs += [job(p, m, 0, CONTROL, r) for p in ("a mushroom", "a house") for m, r in ways]
    jobs += [job(p, "psd", 0, FOR_OPEN, "proxy:rugged") for p in OPEN]
    jobs += [job(p, "sds", 0, s) for s in ONCE for p in NAMED]
    return jobs


def work(job: dict) -> dict:
    import torch

    from psd_mini import generate, judge, render_views
    from psd_mini.pipelines.compare import ground_truth
    from psd_mini.rewards import make_reward, score
    from psd_mini.world.gold import gold_reward
    from psd_mini.world.metrics import judge_views

    guidance = job["guidance"]
    options = {"guidance_scale": tuple(guidance) if isinstance(guidance, list) else guidance}
    options |= {"prior": "learned", "t_min": (0.9, 0.02), "t_max": (1.0, 0.2), "steps": 120}
    options |= {"lr_scale": (1.0, job["rate"]), "residual": job["residual"]}
    options |= {"reward": job["reward"], "seed": job["seed"], "progress": False}
    result = generate(job["prompt"], method=job["method"], **options)
    views = judge_views()
    pictures = render_views(result.field, views.cameras, views.resolution)
    PICTURES.mkdir(exist_ok=True)
    torch.save(pictures[::3].mul(255).round().byte(), picture_of(job))
    record = {
        "recognised": result.metrics["recognised"],
        "distance": round(result.metrics["true_view_distance"], 5),
        "oracle": round(result.metrics["oracle_distance"], 5),
        "evaluations": result.cost["prior_evaluations"],
        "seconds": round(result.seconds, 1),
    }
    record |= colours(pictures, judge(pictures).recognised[0])
    if job["prompt"] in OPEN:
        for reward in REWARDS:
            value = score(make_reward(reward), pictures, [job["prompt"]] * len(pictures))
            truth = ground_truth(job["prompt"], reward)
            gain = (value.mean().item() - truth["r_prior"]) / (truth["r_opt"] - truth["r_prior"])
            record[f"gain {reward}"] = round(gain, 4)
        record["gold rugged"] = round(gold_reward(judge(pictures), "rugged"), 4)
    return record


def colours(pictures, name: str) -> dict:
    """Colour share and spread (RULES) of an object that was recognised as `name`."""
    from psd_mini.world.metrics import judge_views, squared_distances
    from psd_mini.world.objects import COLOURS, OBJECTS

    views = judge_views()
    nearest = squared_distances(pictures, views).argmin(1) % len(COLOURS)
    share = nearest.bincount().max().item() / len(nearest)
    layers = views.layers[list(OBJECTS).index(name)].double()
    base, main = layers[:, :3], layers[:, 3:]
    shown = ((pictures.double() - base) * main).sum((2, 3)) / main.square().sum((2, 3))
    spread = (shown - shown.mean(0)).square().mean().sqrt().item()
    return {"share": round(share, 3), "spread": round(spread, 4)}


def picture_of(job: dict) -> Path:
    settings = "-".join(str(job[key]).replace(" ", "_") for key in sorted(job))
    return PICTURES / f"sweep-{settings.replace('/', '_')}.pt"


def with_error(values: list[float]) -> str:
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{error}"


def finished() -> list[dict]:
    path = RESULTS / "learned_sweep.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def chosen(records: list[dict], **wanted) -> list[dict]:
    return [r for r in records if all(r[name] == value for name, value in wanted.items())]


def right(records: list[dict]) -> str:
    count = sum(r["recognised"].split()[-1] == r["prompt"].split()[-1] for r in records)
    return f"{count} of {len(records)}"


def paired(a: list[dict], b: list[dict], number) -> list[float]:
    """number(a) - number(b) for the prompts and seeds that both have."""
    others = {(r["prompt"], r["seed"]): number(r) for r in b}
    keys = [(r["prompt"], r["seed"]) for r in a]
    return [number(r) - others[k] for r, k in zip(a, keys, strict=True) if k in others]


def ratio(record: dict) -> float:
    return record["distance"] / record["oracle"]


def tables() -> None:
    records = finished()
    today = chosen(records, method="sds", residual=TODAY[0], guidance=TODAY[1])
    print(
        f"| residual, guidance, colour rate | {' | '.join(NAMED)} | mean | minus today's | right |"
    )
    print("|" + "---|" * (len(NAMED) + 4))
    for residual, guidance, rate in (*SEVERAL, *ONCE):
        mine = chosen(records, method="sds", residual=residual, guidance=guidance, rate=rate)
        if not mine:
            continue
        cells = [
            ", ".join(f"{ratio(r):.2f}" for r in chosen(mine, prompt=prompt)) for prompt in NAMED
        ]
        less = with_error(paired(mine, today, ratio)) if residual == "image" else ""
        cells += [with_error([ratio(r) for r in mine]), less, right(mine)]
        print(f"| {residual}, {guidance}, {rate} | {' | '.join(cells)} |")
    titles = ["prompt, seed", "method, reward", "recognised", "distance / oracle", "gain"]
    print(f"\n| {' | '.join([*titles, 'share', 'spread'])} |")
    print("|---|---|---|---|---|---|---|")
    for residual, guidance, rate in (FOR_OPEN, CONTROL):
        setting = {"residual": residual, "guidance": guidance, "rate": rate}
        mine = [r for r in chosen(records, **setting) if r["prompt"] in OPEN]
        print(f"| **{residual}, {guidance}, {rate}** | | | | | | |")
        for r in sorted(mine, key=lambda r: (OPEN.index(r["prompt"]), r["seed"])):
            reward = r["reward"] or "colorfulness"
            cells = [f"{r['prompt']}, {r['seed']}", f"{r['method']}, {r['reward']}"]
            cells += [r["recognised"], f"{ratio(r):.2f}", f"{r[f'gain {reward}']:.2f}"]
            print(f"| {' | '.join([*cells, str(r['share']), str(r['spread'])])} |")
        controls = chosen(mine, method="sds2")
        for reward in REWARDS:
            psd = chosen(mine, method="psd", reward=reward)
            if len(psd) > 1:
                gain = f"gain {reward}"
                lead = with_error(paired(psd, controls, lambda r, gain=gain: r[gain]))
                own, other = (with_error([r[gain] for r in rows]) for rows in (psd, controls))
                print(f"\n{reward}: PSD {own}, sds2 {other}, paired lead {lead}; {right(psd)}")
                print(f"distance / oracle: PSD {with_error([ratio(r) for r in psd])}", end=", ")
                print(f"sds2 {with_error([ratio(r) for r in controls])}\n")


def sheets() -> None:
    """Two views of every finished object: pictures/sweep_named.png and sweep_open.png, and the
    first two settings in notebooks/images/learned_residual.png."""
    import torch

    from psd_mini.viz.pictures import contact_sheet, save_png, with_palette

    def strip(row: list[dict]) -> torch.Tensor:
        return torch.cat([torch.load(picture_of(one), weights_only=True)[[1, 4]] for one in row])

    labels = ["through the encoder", "on the picture"]
    shown = [strip([job(p, "sds", 0, s) for p in NAMED]) / 255 for s in SEVERAL[:2]]
    target = ROOT / "notebooks" / "images" / "learned_residual.png"
    sheet = contact_sheet(shown, labels, title="SDS on the learned prior, two views each")
    with_palette(sheet).save(target, optimize=True)
    settings = (*SEVERAL, *ONCE)
    kinds = {
        "named": [[job(p, "sds", seed, s) for p in NAMED] for s in settings for seed in (0, 1)],
        "open": [
            [job(p, m, seed, s, r) for p in OPEN]
            for s in (CONTROL, FOR_OPEN)
            for m, r in (("sds2", None), ("psd", REWARDS[0]), ("psd", REWARDS[1]))
            for seed in (0, 1)
        ],
    }
    for kind, rows in kinds.items():
        rows = [[one for one in row if picture_of(one).exists()] for row in rows]
        rows = [row for row in rows if len(row) == 4]
        names = ("residual", "guidance", "rate", "method", "reward", "seed")
        labels = [" ".join(str(row[0][name]) for name in names) for row in rows]
        strips = [strip(row) / 255 for row in rows]
        if strips:
            save_png(contact_sheet(strips, labels), PICTURES / f"sweep_{kind}.png")


def main(what: str) -> None:
    path = RESULTS / "learned_plan.json"
    if what == "plan":
        lines = ",\n  ".join(json.dumps(one) for one in plan())
        rules = json.dumps(RULES, indent=1)
        path.write_text(f'{{"written": "before any of these runs", "rules": {rules},\n')
        path.write_text(path.read_text() + f' "jobs": [\n  {lines}\n]}}\n')
    elif what == "run":
        run_jobs(json.loads(path.read_text())["jobs"], work, RESULTS / "learned_sweep.jsonl")
    else:
        tables()
        sheets()


if __name__ == "__main__":
    main(sys.argv[1])
