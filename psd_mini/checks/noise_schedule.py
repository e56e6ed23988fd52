"""How signal and noise are mixed, x_t = a x + s eps: tables of a and s, rows on x_t, a check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from psd_mini.checks.exact_world import SHAPE, T, alpha_at, normal, picture, sigma_at
from psd_mini.checks.grading.submission import prepare, tensors_in
from psd_mini.checks.guard import guarded
from psd_mini.checks.probe import Prober, Trial, readings_of
from psd_mini.checks.reading import Group, fit
from psd_mini.checks.report import Report, Unreadable
from psd_mini.checks.tables import LEVELS, Table, best_explanation, formulas

ROOT = "the square root is missing (alphas_cumprod is alpha_t squared)"
STEP = "alphas in place of alphas_cumprod: the cumulative product is missing"
OFF_BY_ONE = "t is off by one, in the schedule or between noising and the UNet"
SHIFT = OFF_BY_ONE + ": the {} level is that of t {} 1"
SWAP = "alpha_t and sigma_t are swapped"
REVERSED = "the schedule is reversed: t = 0 must be the cleanest"
STRAIGHT = "this is the straight line of flow matching: x_t is alpha_t x + sigma_t eps"
OVER_BETA = "the product is over beta and not over 1 - beta"
SIGNAL_FORMULAS = {  # a in x_t = a x + s eps; the first row is right
    "sqrt(abar_t)": "",
    "abar_t": ROOT,
    "alpha_{t-1}": SHIFT.format("signal", "-"),
    "alpha_{t+1}": SHIFT.format("signal", "+"),
    "abar_{t-1}": f"{SHIFT.format('signal', '-')}; {ROOT}",
    "abar_{t+1}": f"{SHIFT.format('signal', '+')}; {ROOT}",
    "sqrt(1 - abar_t)": SWAP,
    "1 - abar_t": f"{SWAP}, and {ROOT}",
    "sqrt(1 - beta_t)": STEP,
    "1 - beta_t": f"{STEP}; {ROOT}",
    "1": "x is not scaled by alpha_t",
    "0": "x is not in x_t: the UNet was asked about pure noise",
    "alpha_t / scaling": "latents were not multiplied by vae.config.scaling_factor",
    "sqrt(prod_beta_t)": OVER_BETA,
    "alpha_{T-1-t}": REVERSED,
    "1 - t / T": STRAIGHT,
    "sqrt(alpha_t)": "a square root too many: abar_t itself is the product, alpha_t its root",
    "exp(-sum_beta_t / 2)": "abar_t is the product of 1 - beta, not exp of minus the sum of beta",
    "-alpha_t": "the signal is subtracted: x_t is alpha_t x + sigma_t eps",
}
NOISE_FORMULAS = {  # s in x_t = a x + s eps; the first row is right
    "sqrt(1 - abar_t)": "",
    "1 - abar_t": "the square root is missing: sigma_t is sqrt(1 - abar_t)",
    "0": "no noise was added: the UNet must see x_t = alpha_t x + sigma_t eps",
    "sigma_{t-1}": SHIFT.format("noise", "-"),
    "sigma_{t+1}": SHIFT.format("noise", "+"),
    "1 - abar_{t-1}": f"{SHIFT.format('noise', '-')}; the square root is missing",
    "1 - abar_{t+1}": f"{SHIFT.format('noise', '+')}; the square root is missing",
    "sigma_t / alpha_t": "this is sigma_t / alpha_t, the noise in x_t / alpha_t",
    "sqrt(abar_t)": SWAP,
    "abar_t": f"{SWAP}, and {ROOT}",
    "sqrt(beta_t)": STEP,
    "beta_t": f"{STEP}; the square root is missing",
    "1 - alpha_t": "sigma_t is sqrt(1 - abar_t), not 1 - sqrt(abar_t), which is 1 - alpha_t",
    "1": "the noise is not scaled by sigma_t",
    "sigma_{T-1-t}": REVERSED,
    "t / T": STRAIGHT,
    "-sigma_t": "the noise is subtracted: x_t is alpha_t x + sigma_t eps",
    "alpha_t sigma_t": "the noise is scaled by alpha_t too: alpha_t (x + sigma_t eps)",
    "prod_beta_t": OVER_BETA,
    "sqrt(prod_beta_t)": OVER_BETA,
}


SIGNAL, NOISE = (formulas("t", rows, LEVELS) for rows in (SIGNAL_FORMULAS, NOISE_FORMULAS))
# 1 - prod beta_s is nearly 1: whoever makes a table of abar_t means this, who mixes x does not
SUM = "abar_t is 1 minus the sum of beta: it is the product of 1 - beta"
OF_A_TABLE = {"sqrt(1 - prod_beta_t)": OVER_BETA, "root(1 - sum_beta_t)": SUM}
OF_A_TABLE |= {"alpha_{T-1} / alpha_{t-1}": "the product runs from t to the end, not from 0 to t"}
SIGNAL_OF_A_TABLE = [SIGNAL[0], *formulas("t", OF_A_TABLE, LEVELS), *SIGNAL[1:]]


def level(table: Table, seen: Sequence[tuple[int, float]], tolerance: float) -> tuple[str, str]:
    """Which row of SIGNAL or NOISE gives these (t, value): its name and what is wrong with it.

    Where none does: numbers and a general cause.
    """
    found = best_explanation([((t,), value) for t, value in seen], [table], tolerance, floor=0.02)
    if found is not None:
        return found[0].name, found[0].cause
    right, t = table[0], seen[0][0]
    times = {t: value / right.value(t) for t, value in seen}
    k, worst = times[t], max(times, key=lambda t: (math.isnan(times[t]), abs(times[t] - 1)))
    if all(abs(other - k) <= 1e-3 * abs(k) for other in times.values()):
        return f"{k:.3g} {right.name}", f"{right.name} is multiplied by {k:.3g}"
    came, expected = dict(seen)[worst], f"{right.name} = {right.value(worst):.4g}"
    return f"{came:.4g} at t = {worst}", f"{came:.4g} came at t = {worst}, expected {expected}"


def judge_normal(report: Report, noises: list[Tensor]) -> None:
    """Mean, standard deviation and kurtosis of all noises together."""
    if not noises:
        return
    e = torch.cat([noise.flatten() for noise in noises])
    mean, std = e.mean().item(), e.std().item()
    kurtosis = (((e - mean) / std) ** 4).mean().item()
    slack = 8 / len(e) ** 0.5 + 2e-3
    normal = abs(mean) < slack and abs(std - 1) < slack and abs(kurtosis - 3) < 10 * slack
    cause = "it is not N(0, I)"
    if abs(kurtosis - 1.8) < 0.05:
        cause = "uniform instead of normal noise (rand for randn?)"
    came = f"mean {mean:.2f}, std {std:.2f}, kurtosis {kurtosis:.2f}"
    report.add(normal, "noise", came, "0, 1, 3", cause, "eps ~ N(0, I)")


def _groups(trials: list[Trial]) -> list[Group]:
    return [group for reading in readings_of(trials) for group in reading.groups]


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


TIMES = (1, 30, 200, 500, 800, 990)
NOT_WHOLE = f"the UNet takes integers 0..{T - 1}: was t divided by {T}, or drawn out of range?"
EQUATION = "abar_t = prod_{s<=t} (1 - beta_s)"
NOT_GIVEN = "it adds a noise of its own and ignores the one that it is given"
BESIDE = "it adds a noise of its own beside the one that it is given"
SHARED_NOISE = "pictures of a batch share one noise: each must have its own"
SHARED_T = "in a batch, pictures do not get the noise level of their own t: is it the same for all?"


class Mixed(NamedTuple):
    """How a picture x was noised: x_t = a x + s e. own: what is wrong with e, if it is not eps."""

    t: int
    a: float
    s: float
    e: Tensor
    own: str


@guarded("the schedule")
def check_schedule(fn: Any) -> Report:
    """Is this noise schedule, or this way to add noise, right?

    Args:
        fn: of betas (T,): returns abar (T,), or (alpha, sigma), sqrt(abar) and sqrt(1 - abar); or
            fn(x, t, eps, alphas_cumprod): returns x_t. Which one is seen from its parameters.
    """
    fn = prepare(fn, ("add_noise", "alphas_cumprod", "q_sample", "forward"))
    report, prober = Report("check of the schedule"), Prober(fn)
    if not {"eps", "x"} & prober.keys:  # of a table of abar alone, there is no noise
        _judge_levels(report, SIGNAL_OF_A_TABLE, _tabulated(prober))
        return report
    mixed = [picture for t in TIMES for picture in _mixed(prober, (t, t))]
    _judge_levels(report, SIGNAL, [[(m.t, m.a) for m in mixed], [(m.t, m.s) for m in mixed]])
    causes = {picture.own for picture in mixed}
    if NOT_GIVEN in causes:
        judge_normal(report, [picture.e for picture in mixed])
    cause = "; ".join(sorted(causes - {"" if "eps" in prober.keys else NOT_GIVEN, ""}))
    report.add(not cause, "noise given", "not used as it is", "the eps in x_t", cause)
    if report.ok:  # two pictures with a t of their own
        pair = _mixed(prober, (200, 800))
        right = all(abs(picture.a - alpha_at(picture.t)) < 1e-3 for picture in pair)
        report.add(right, "batch", "another level", "that of each picture's t", SHARED_T)
    return report


def _judge_levels(
    report: Report, signal: Table, columns: Sequence[Sequence[tuple[int, float]]]
) -> None:
    """Rows on a and s, given as (t, value)."""
    for name, table, seen in zip(("signal", "noise"), (signal, NOISE), columns, strict=False):
        came, cause = level(table, seen, 1e-3)
        report.add(not cause, name, came, table[0].name, cause, EQUATION)


def _mixed(prober: Prober, times: tuple[int, int]) -> list[Mixed]:
    """Somebody's x_t of two pictures, taken apart."""
    x, eps = picture(2, times[0]), normal(2, *SHAPE, seed=times[0])
    answer, trace = prober.ask({"x": x.float(), "eps": eps.float(), "t": torch.tensor(times)})
    x_t = tensors_in(answer, [x.shape], "x_t of x's shape")[0].double()
    sizes = (x.numel(), x[0].numel())
    drawn = [d.double().reshape(-1, *SHAPE) for d in trace.draws if d.numel() in sizes]
    return [_taken_apart(i, times[i], x_t, x, eps, drawn) for i in (0, 1)]


def _taken_apart(
    i: int, t: int, x_t: Tensor, x: Tensor, eps: Tensor, drawn: Sequence[Tensor]
) -> Mixed:
    """x_t[i] as a combination of x[i], the noises that were given, and those that were drawn."""
    noises = [eps[i], eps[1 - i], *(noise.expand_as(x)[i] for noise in drawn)]
    words = ["", SHARED_NOISE]
    words += [SHARED_NOISE if len(noise) == 1 else NOT_GIVEN for noise in drawn]
    (a, constant, *levels), left = fit(x_t[i], [x[i], torch.ones_like(x[i]), *noises])
    if left > 1e-3:
        text = f"x_t is no combination of x and eps: {left:.0%} of it is something else"
        text += "" if abs(levels[0]) > 0.05 else ", and the noise that was given is not in it"
        raise Unreadable(text, "wrong")
    used = [j for j, value in enumerate(levels) if abs(value) > 1e-3] or [0]
    s, e = levels[used[0]], noises[used[0]]
    if abs(constant) > 1e-3:  # rand, made into something centred
        s, e = sigma_at(t), (x_t[i] - a * x[i]) / sigma_at(t)
    return Mixed(t, a, s, e, BESIDE if len(used) > 1 else words[used[0]])


def _tabulated(prober: Prober) -> list[list[tuple[int, float]]]:
    """a (of abar alone, its root) and s at TIMES, from one number per timestep."""
    answer, _ = prober.ask({"t": torch.arange(T)})
    parts = tensors_in(answer, [(T,)], f"one number per timestep, ({T},)")
    if len(parts) == 1:  # a negative abar stays one
        parts = [parts[0].sign() * parts[0].double().abs().sqrt()]
    return [[(t, part[t].item()) for t in TIMES] for part in parts]
