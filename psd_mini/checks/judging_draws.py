"""Rows of a report that do not depend on the formula's size: noise, mean, graph, batch.

x_t and the noise in it; the mean over draws and the noise around it; the UNet's graph and the
inputs; three pictures at once.
"""

from __future__ import annotations

import torch

from psd_mini.checks import diagnosis
from psd_mini.checks.exact_world import T
from psd_mini.checks.probe import Trial
from psd_mini.checks.reading import Group, cosine
from psd_mini.checks.report import Report
from psd_mini.checks.scales import Formula, reference, scales_of

SHARED_T = "in a batch, pictures do not get the noise level of their own t: is it the same for all?"
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
    a = diagnosis.level(diagnosis.SIGNAL, [(round(g.t), g.a) for g in groups], slack)
    return [a, diagnosis.level(diagnosis.NOISE, [(round(g.t), g.s) for g in groups], slack)]


def judge_noise(report: Report, trials: list[Trial]) -> None:
    """x_t = alpha_t x + sigma_t eps with eps ~ N(0, I), at the t that the UNet was told."""
    single = [trial for trial in trials if len(trial.readings) == 1]
    (a, cause_a), (s, cause_s) = levels(single)
    causes = list(dict.fromkeys(filter(None, (cause_a, cause_s))))
    together = levels([trial for trial in trials if len(trial.readings) > 1])
    if not causes and any(cause for _, cause in together):
        causes = [SHARED_T]
    came, expected = f"{a} x + {s} eps", f"{diagnosis.SIGNAL[0][0]} x + {diagnosis.NOISE[0][0]} eps"
    equation = "x_t = alpha_t x + sigma_t eps"
    report.add(not causes, "x_t", came, expected, "; ".join(causes), equation)
    if not cause_s:
        _judge_normal(report, _groups(trials))
    asked = [t for trial in trials for call in trial.trace.calls for t in call.t.tolist()]
    whole = all(0 <= t <= T - 1 and t == round(t) for t in asked)
    came = f"{min(asked):g}..{max(asked):g}"
    report.add(whole, "t", came, f"integers in 0..{T - 1}", NOT_WHOLE)


def _judge_normal(report: Report, groups: list[Group]) -> None:
    """Mean, standard deviation and kurtosis of all noises together."""
    noises = [group.eps.flatten() for group in groups if group.eps is not None]
    if not noises:
        return
    e = torch.cat(noises)
    mean, std = e.mean().item(), e.std().item()
    kurtosis = (((e - mean) / std) ** 4).mean().item()
    slack = 8 / len(e) ** 0.5 + 2e-3
    normal = abs(mean) < slack and abs(std - 1) < slack and abs(kurtosis - 3) < 10 * slack
    cause = "it is not N(0, I)"
    if abs(kurtosis - 1.8) < 0.05:
        cause = "uniform instead of normal noise (rand for randn?)"
    came = f"mean {mean:.2f}, std {std:.2f}, kurtosis {kurtosis:.2f}"
    report.add(normal, "noise", came, "0, 1, 3", cause, "eps ~ N(0, I)")


def judge_mean(report: Report, formula: Formula, trials: list[Trial]) -> None:
    """The mean over draws against its expectation, and the noise around it.

    E[G] is the mean over eps and -eps, which for this nearly Gaussian world is exact to a few parts
    in a thousand. Mistakes that single draws show are named in other rows, exactly; only where
    there are none has the mean more to say.
    """
    if not report.ok:
        return
    shifts, ratios = [], []
    for s in scales_of(formula, trials):
        eps = next((group.eps for group in s.reading.groups if group.eps is not None), None)
        if eps is None:
            return
        here, opposite = reference(formula, s.reading, eps), reference(formula, s.reading, -eps)
        expected = (here + opposite) / 2
        off = s.reading.gradient / abs(s.k) - expected
        shifts.append((off * expected).sum().item() / expected.square().sum().item())
        ratios.append(off.norm().item() / (here - expected).norm().clamp(min=1e-12).item())
    shift = torch.tensor(shifts)
    error = max((shift.std() / len(shift) ** 0.5).item(), 2e-3)
    fine = abs(shift.mean().item()) < 5 * error or "note"
    came = f"1 {shift.mean().item():+.3f}, standard error {error:.3f}"
    cause = "on average it is not the expected gradient: a bias"
    report.add(fine, "mean over draws", came, "1", cause, "E[G] = w(t) sigma_t/alpha_t grad KL")
    ratio = torch.tensor(ratios).median().item()
    fine, cause = abs(ratio - 1) < 0.1 or "note", "its variance is not that of the reference"
    report.add(fine, "noise against reference", f"{ratio:.3g}", "1", cause)


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


def judge_batch(report: Report, formula: Formula, batched: list[Trial], failure: str) -> None:
    """Three pictures at once, each with its own t, against one."""
    if failure:
        cause = "it works for one picture only: reshape w(t) to (B, 1, 1, 1)"
        report.add("note", "batch of 3", failure, "as for one picture", cause)
        return
    cosines = [abs(cosine(r.gradient, reference(formula, r))) for r in batched[0].readings]
    worst = min(cosines)
    fine, sound = worst > 1 - 5 * batched[0].tolerance, report.ok
    status = fine or (not sound and "note")
    came, cause = f"cosine {worst:.4f}", f"{MIXED} (repeat for repeat_interleave?)" if sound else ""
    report.add(status, "batch of 3", came, "cosine 1 for each picture", cause)
