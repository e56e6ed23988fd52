"""Rows of a report that do not depend on the formula: x_t and its noise, graph, inputs, batch."""

from __future__ import annotations

from psd_mini.checks.directions import Method, reference
from psd_mini.checks.exact_world import T
from psd_mini.checks.noise_schedule import NOISE, SHARED_T, SIGNAL, judge_normal, level
from psd_mini.checks.probe import Trial
from psd_mini.checks.reading import PREDICTIONS, Group, Reading, cosine
from psd_mini.checks.report import Report

NOT_WHOLE = f"the UNet takes integers 0..{T - 1}: was t divided by {T}, or drawn out of range?"
KEPT = (
    "the UNet is called with gradients on: right, but its graph costs memory and time; use"
    " torch.no_grad()"
)
MIXED = "pictures influence each other, share a t or a weight, or embeddings are interleaved"


def _groups(trials: list[Trial]) -> list[Group]:
    return [group for trial in trials for r in trial.readings for group in r.groups]


def levels(trials: list[Trial]) -> list[tuple[str, str]]:
    """How signal and noise were mixed: (formula, cause) of a and of s."""
    groups = [group for group in _groups(trials) if group.t == round(group.t)]
    if not groups:
        return [("?", ""), ("?", "")]
    slack = 1e-2 if any(trial.tolerance > 0.01 for trial in trials) else 2e-4
    a = level(SIGNAL, [(round(g.t), g.a) for g in groups], slack)
    return [a, level(NOISE, [(round(g.t), g.s) for g in groups], slack)]


def judge_noise(report: Report, trials: list[Trial]) -> None:
    """x_t = alpha_t x + sigma_t eps with eps ~ N(0, I), at the t that the UNet was told."""
    if judge_levels(report, trials):
        judge_normal(report, [group.eps for group in _groups(trials) if group.eps is not None])
    asked = [t for trial in trials for call in trial.trace.calls for t in call.t.tolist()]
    whole = all(0 <= t <= T - 1 and t == round(t) for t in asked)
    came = f"{min(asked):g}..{max(asked):g}"
    report.add(whole, "t", came, f"integers in 0..{T - 1}", NOT_WHOLE)


def judge_levels(report: Report, trials: list[Trial]) -> bool:
    """x_t = alpha_t x + sigma_t eps; is there as much noise in it as there should be?"""
    single = [trial for trial in trials if len(trial.readings) == 1]
    (a, cause_a), (s, cause_s) = levels(single)
    causes = list(dict.fromkeys(filter(None, (cause_a, cause_s))))
    together = levels([trial for trial in trials if len(trial.readings) > 1])
    if not causes and any(cause for _, cause in together):
        causes = [SHARED_T]
    came, expected = f"{a} x + {s} eps", f"{SIGNAL[0].name} x + {NOISE[0].name} eps"
    equation = "x_t = alpha_t x + sigma_t eps"
    report.add(not causes, "x_t", came, expected, "; ".join(causes), equation)
    return not cause_s


def judge_graph(report: Report, trials: list[Trial]) -> None:
    """Is the UNet's graph kept (memory, even where no gradient flows)? Are inputs changed?"""
    kept = any(call.eps_hat.requires_grad for trial in trials for call in trial.trace.calls)
    came = "kept" if kept else "not kept"
    report.add("note" if kept else True, "graph of the UNet", came, "not kept", KEPT)
    judge_inputs(report, {name for trial in trials for name in trial.changed})


def judge_inputs(report: Report, changed: set[str]) -> None:
    """Are inputs left as they were?"""
    came = ", ".join(sorted(changed)) or "unchanged"
    report.add(not changed, "inputs", came, "unchanged", "it modifies its inputs in place")


def _used(reading: Reading) -> list[float]:
    """1 for each noised version whose predictions are in the gradient; others train q."""
    sizes = {key: abs(value) for key, value in reading.terms.items() if key[0] in PREDICTIONS}
    smallest = 1e-3 * max(sizes.values(), default=0.0)
    used = {number for (_, number), size in sizes.items() if size > smallest}
    return [float(number in used) for number in range(len(reading.groups))]


def judge_batch(report: Report, method: Method, batched: list[Trial], failure: str) -> None:
    """Three pictures at once, each with its own t, against one."""
    if failure:
        cause = "it works for one picture only: reshape w(t) to (B, 1, 1, 1)"
        report.add("note", "batch of 3", failure, "as for one picture", cause)
        return
    worst = 1.0
    for reading in batched[0].readings:
        exact = reference(method, reading, _used(reading))
        worst = min(worst, abs(cosine(reading.gradient, exact)))
    fine, sound = worst > 1 - 5 * batched[0].tolerance, report.ok
    status = fine or (not sound and "note")
    came, cause = f"cosine {worst:.4f}", f"{MIXED} (repeat for repeat_interleave?)" if sound else ""
    report.add(status, "batch of 3", came, "cosine 1 for each picture", cause)
