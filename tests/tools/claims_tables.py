"""Tables of tests/results/claims.md from the records of `claims.py`.

    python tests/tools/claims_tables.py

The error of a mean is clustered by prompt: the standard error over prompts of the mean over seeds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent.parent / "results"
Record = dict[str, Any]
STUDENT_T_PROMPTS = 2.57  # 97.5% of Student's t with the five degrees of freedom of six prompts
STUDENT_T = 2.45  # 97.5% of Student's t with the six degrees of freedom of seven proxies


PLAN = json.loads((RESULTS / "claims_plan.json").read_text())


def read(name: str) -> list[Record]:
    path = RESULTS / f"claims_{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def clustered(values: dict[tuple[str, int], float]) -> tuple[float, float]:
    """Mean and its standard error, from values by (prompt, seed)."""
    of_prompt = defaultdict(list)
    for (prompt, _), value in values.items():
        of_prompt[prompt].append(value)
    means = [mean(mine) for mine in of_prompt.values()]
    error = stdev(means) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return mean(means), error


def by_run(records: list[Record], key: str) -> dict[tuple[str, int], float]:
    return {(r["prompt"], r["seed"]): r[key] for r in records}


def difference(ours: list[Record], theirs: list[Record], key: str) -> tuple[float, float, int, int]:
    """Paired difference of two settings: mean, error, pairs, pairs in which ours is higher."""
    first, second = by_run(ours, key), by_run(theirs, key)
    gaps = {run: first[run] - second[run] for run in first if run in second}
    return *clustered(gaps), len(gaps), sum(gap > 0 for gap in gaps.values())


def cell(records: list[Record], key: str) -> str:
    value, error = clustered(by_run(records, key))
    return f"{value:.3f} ± {error:.3f}"


def settings_of(records: list[Record]) -> dict[tuple[str, float | None], list[Record]]:
    found = defaultdict(list)
    for record in sorted(records, key=lambda r: (r["method"], r["weight"] or 0)):
        found[record["method"], record["weight"]].append(record)
    return found


def right(record: Record) -> bool:
    return record["recognised"].split()[-1] == record["prompt"].split()[-1]


def proxy_table(records: list[Record]) -> list[str]:
    lines = [
        "| method | weight | runs | proxy | gold | true-view distance | object right |",
        "|---|---|---|---|---|---|---|",
    ]
    for (method, weight), mine in settings_of(records).items():
        cells = [cell(mine, k) for k in ("proxy_reward", "gold_reward", "true_view_distance")]
        n = f"{sum(right(r) for r in mine)} of {len(mine)}"
        shown = "" if weight is None else f"{weight:g}"
        lines.append(f"| {method} | {shown} | {len(mine)} | {' | '.join(cells)} | {n} |")
    return lines


def best_by(records: list[Record], method: str, key: str) -> float | None:
    """The weight of a method with the highest mean of a key."""
    mine = {w: r for (m, w), r in settings_of(records).items() if m == method}
    return max(mine, key=lambda w: mean(r[key] for r in mine[w]))


def flat_range(swept: list[Record], method: str) -> str:
    """Swept weights whose mean gold reward is within 5% of the method's best."""
    of_weight = {
        w: mean(r["gold_reward"] for r in mine)
        for (m, w), mine in settings_of(swept).items()
        if m == method
    }
    best = max(of_weight.values())
    inside = [w for w, gold in of_weight.items() if gold >= best - 0.05 * abs(best)]
    return f"{min(inside):g} to {max(inside):g}" if len(inside) > 1 else f"{inside[0]:g}"


def verdicts(records: list[Record], swept: list[Record]) -> list[str]:
    """The plan's comparisons in one world: psd against the others, weights by proxy and by gold."""
    lines = [
        "| weights chosen by | psd minus | gold, paired | pairs | psd higher in |",
        "|---|---|---|---|---|",
    ]
    found = settings_of(records)
    weighted = [m for m in dict.fromkeys(r["method"] for r in swept) if r_weighted(swept, m)]
    for key in ("proxy_reward", "gold_reward"):
        chosen = {m: best_by(swept, m, key) for m in weighted}
        ours = found["psd", chosen["psd"]]
        for method in dict.fromkeys(r["method"] for r in records):
            theirs = found.get((method, chosen.get(method)))
            if method == "psd" or not theirs:
                continue
            gap, error, n, wins = difference(ours, theirs, "gold_reward")
            sure = "**" if abs(gap) > 2 * error else ""
            weight = "" if chosen.get(method) is None else f" at {chosen[method]:g}"
            name = f"{key.split('_')[0]} (psd at {chosen['psd']:g})"
            value = f"{sure}{gap:+.3f} ± {error:.3f}{sure}"
            lines.append(f"| {name} | {method}{weight} | {value} | {n} | {wins} |")
    return lines


def over_proxies(ours: list[Record], theirs: list[Record]) -> tuple[float, float, list[float]]:
    """Paired difference in gold with the proxy as the unit: mean, error, value of each proxy.

    A proxy's value is the mean over prompts of the mean over its seeds.
    """
    first, second = by_run(ours, "gold_reward"), by_run(theirs, "gold_reward")
    proxy = {record["seed"]: record.get("proxy", record["seed"] % 3) for record in ours}
    of_proxy: dict[int, dict[tuple[str, int], float]] = defaultdict(dict)
    for prompt, seed in first.keys() & second.keys():
        gap = first[prompt, seed] - second[prompt, seed]
        of_proxy[proxy[seed]][prompt, seed] = gap
    values = [clustered(of_proxy[number])[0] for number in sorted(of_proxy)]
    return mean(values), stdev(values) / len(values) ** 0.5, values


def proxies_table(records: list[Record], swept: list[Record]) -> list[str]:
    """Claim 1 with an error over proxies, in one world: the plan's section "proxies"."""
    values = sorted({r.get("proxy", r["seed"] % 3) for r in records})
    lines = [
        "| weights chosen by | psd minus | gold, over proxies | "
        + " | ".join(f"proxy {number}" for number in values)
        + " |"
    ]
    lines.append("|---" * (3 + len(values)) + "|")
    found = settings_of(records)
    for key in ("proxy_reward", "gold_reward"):
        chosen = {m: best_by(swept, m, key) for m in ("psd", "pixel-clean")}
        ours = found["psd", chosen["psd"]]
        for method in ("pixel-clean", "sds2"):
            gap, error, each = over_proxies(ours, found[method, chosen.get(method)])
            weight = "" if method == "sds2" else f" at {chosen[method]:g}"
            sure = "**" if abs(gap) > STUDENT_T * error else ""
            head = f"| {key.split('_')[0]} (psd at {chosen['psd']:g}) | {method}{weight} "
            cells = [f"{sure}{gap:+.3f} ± {error:.3f}{sure}", *(f"{one:+.2f}" for one in each)]
            lines.append(f"{head}| {' | '.join(cells)} |")
    return lines


def noise_table(records: list[Record]) -> list[str]:
    """The proxy that has seen noise beside the one that has not, paired by prompt."""
    lines = [
        "| method | weight | gold, never saw noise | gold, saw noise | difference | distances |",
        "|---" * 6 + "|",
    ]
    for (method, weight), mine in settings_of(records).items():
        without, seen = ([r for r in mine if r["proxy"] == proxy] for proxy in (0, "noisy"))
        gap, error, _, _ = difference(seen, without, "gold_reward")
        sure = "**" if abs(gap) > STUDENT_T_PROMPTS * error and error else ""
        cells = [method, f"{weight:g}", cell(without, "gold_reward"), cell(seen, "gold_reward")]
        cells.append(f"{sure}{gap:+.3f} ± {error:.3f}{sure}")
        distances = [by_run(runs, "true_view_distance") for runs in (without, seen)]
        cells.append(", ".join(f"{clustered(values)[0]:.3f}" for values in distances))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def r_weighted(records: list[Record], method: str) -> bool:
    return any(r["method"] == method and r["weight"] is not None for r in records)


def worlds(records: list[Record]) -> dict[tuple[str, str], list[Record]]:
    found = defaultdict(list)
    for record in records:
        found[record["task"], record["reward"]].append(record)
    return found


def dull_table(records: list[Record]) -> list[str]:
    keys = ("reward_of_best", "vividness", "distance_to_wanted")
    lines = [
        "| variant | runs | reward / best | vividness | distance to vivid | evaluations |",
        "|---|---|---|---|---|---|",
    ]
    found = defaultdict(list)
    for record in records:
        found[record["variant"], record["radius"], record["lr"]].append(record)
    for (variant, radius, lr), mine in found.items():
        name = variant if radius is None else f"{variant}, radius {radius:g}, step {lr:g}"
        cells = " | ".join(cell(mine, key) for key in keys)
        lines.append(f"| {name} | {len(mine)} | {cells} | {mine[0]['prior_evaluations']:,} |")
    return lines


def dull_verdicts(records: list[Record]) -> list[str]:
    lines = [
        "| difference, paired | reward / best | distance to the vivid object | pairs |",
        "|---|---|---|---|",
    ]
    of = defaultdict(list)
    for record in records:
        of[record["variant"]].append(record)
    pairs = (("gradient", "null"), ("random", "null"), ("gradient", "random"))
    for ours, theirs in (*pairs, ("bandit", "random"), ("gray", "random"), ("gradient", "gray")):
        cells = []
        for key in ("reward_of_best", "distance_to_wanted"):
            gap, error, n, _ = difference(of[ours], of[theirs], key)
            sure = "**" if abs(gap) > 2 * error else ""
            cells.append(f"{sure}{gap:+.3f} ± {error:.3f}{sure}")
        lines.append(f"| {ours} minus {theirs} | {' | '.join(cells)} | {n} |")
    return lines


def rival_table(records: list[Record], judged: list[Record]) -> list[str]:
    """Gold reward of every reading of PSD, and paired differences from runs of the same seed."""
    lines = ["| task | reading | gold | minus the default | minus sds2 | minus pixel-clean |"]
    lines.append("|---" * 6 + "|")
    default = json.dumps({})
    for world, mine in worlds(records).items():
        of = defaultdict(list)
        for record in mine:
            of[json.dumps(record["settings"])].append(record)
        others = settings_of(worlds(judged)[world])
        pixel = max(weight for method, weight in others if method == "pixel-clean")
        controls = (of[default], others["sds2", None], others["pixel-clean", pixel])
        for reading, own in of.items():
            words = ", ".join(f"{k} {v}" for k, v in json.loads(reading).items()) or "the default"
            gaps = [difference(own, theirs, "gold_reward")[:2] for theirs in controls]
            cells = [f"{gap:+.2f} ± {error:.2f}" for gap, error in gaps]
            if reading == default:
                cells[0] = ""
            head = [world[0], words, cell(own, "gold_reward")]
            lines.append(f"| {' | '.join([*head, *cells])} |")
    return lines


def bases_table(records: list[Record]) -> list[str]:
    """PSD on a base minus the base alone: gold and distance, paired by prompt."""
    lines = [
        "| base | alone: gold, distance | weight | gold of PSD on it | minus alone | distance |"
    ]
    lines.append("|---" * 6 + "|")
    for base in PLAN["bases"]["bases"]:
        alone = [r for r in records if r["method"] == base]
        for weight in PLAN["bases"]["weights"]:
            own = [r for r in records if (r["settings"], r["weight"]) == ({"base": base}, weight)]
            cells = [base, f"{cell(alone, 'gold_reward')}, {cell(alone, 'true_view_distance')}"]
            cells += [f"{weight:g}", cell(own, "gold_reward")]
            for key, digits in (("gold_reward", 2), ("true_view_distance", 3)):
                gap, error, n, _ = difference(own, alone, key)
                sure = "**" if abs(gap) > STUDENT_T_PROMPTS * error else ""
                cells.append(f"{sure}{gap:+.{digits}f} ± {error:.{digits}f}{sure}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    swept, judged = read("sweep"), read("main")
    # two runs were made under an earlier plan that swept methods without a weight too
    swept = [r for r in swept if r["weight"] is not None]
    for (task, kind), mine in worlds(swept).items():
        print(f"\n### Sweep: {task}, {kind}\n")
        print("\n".join(proxy_table(mine)))
        weighted = [m for m in dict.fromkeys(r["method"] for r in mine) if r_weighted(mine, m)]
        print("\nWithin 5% of the best gold reward:", end=" ")
        print(", ".join(f"{m} {flat_range(mine, m)}" for m in weighted))
    for (task, kind), mine in worlds(judged).items():
        print(f"\n### {task}, {kind}\n")
        print("\n".join(proxy_table(mine)), "\n")
        print("\n".join(verdicts(mine, worlds(swept)[task, kind])))
    for (task, kind), mine in worlds(judged + read("proxies")).items():
        print(f"\n### {task}, {kind}: the proxy as the unit\n")
        print("\n".join(proxies_table(mine, worlds(swept)[task, kind])))
    if records := read("noise"):
        print("\n### from nothing, rugged: a proxy that has seen noise\n")
        print("\n".join(noise_table(records)))
    for name in ("learned_sweep", "learned"):
        if records := read(name):
            print(f"\n### from nothing, rugged: {name}\n")
            print("\n".join(proxy_table(records)), "\n")
    if records := read("learned"):
        print("\n".join(verdicts(records, read("learned_sweep"))))
    for name in ("dull_sweep", "dull"):
        if records := read(name):
            print(f"\n### {name}\n")
            print("\n".join(dull_table(records)))
    if records := read("dull"):
        print("\n" + "\n".join(dull_verdicts(records)))
    if records := read("rivals"):
        print("\n### Rival readings, gold reward\n")
        print("\n".join(rival_table(records, judged)))
    if records := read("bases"):
        print("\n### PSD on other bases\n")
        print("\n".join(bases_table(records)))
