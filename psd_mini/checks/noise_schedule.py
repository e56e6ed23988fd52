"""How signal and noise are mixed: the tables of a and s in x_t = a x + s eps, and their check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini.checks.exact_world import SCALING, SHAPE, T, alpha_at, normal, picture, sigma_at
from psd_mini.checks.grading.names import Names, keys
from psd_mini.checks.grading.submission import answered, parts_of, prepare
from psd_mini.checks.guard import guarded
from psd_mini.checks.probe import Prober
from psd_mini.checks.reading import fit
from psd_mini.checks.report import Report, Unreadable
from psd_mini.checks.tables import Table, best_explanation, formulas


def abar_at(t: int) -> float:
    """abar_t of one timestep."""
    return alpha_at(t) ** 2


def beta_at(t: int) -> float:
    """beta_t = 1 - abar_t / abar_{t-1}, the noise of one step."""
    return 1 - abar_at(t) / abar_at(t - 1) if t > 0 else 1 - abar_at(0)


def prod_beta_at(t: int) -> float:
    """The product of beta_0 to beta_t."""
    return math.prod(map(beta_at, range(t + 1)))


# of t, in formulas
LEVELS: dict[str, Any] = {
    "abar": abar_at,
    "alpha": alpha_at,
    "sigma": sigma_at,
    "beta": beta_at,
    "T": T,
}
LEVELS |= {"prod_beta": prod_beta_at, "sqrt": math.sqrt, "scaling": SCALING}
ROOT = "the square root is missing (alphas_cumprod is alpha_t squared)"
STEP = "alphas in place of alphas_cumprod: the cumulative product is missing"
OFF_BY_ONE = "t is off by one, in the schedule or between noising and the UNet"
SHIFT = OFF_BY_ONE + ": the {} level is that of t {} 1"
SWAP = "alpha_t and sigma_t are swapped"
OVER_BETA = "the product is over beta and not over 1 - beta"
ONE_MINUS_ALPHA = "sigma_t is sqrt(1 - abar_t), not 1 - sqrt(abar_t), which is 1 - alpha_t"
SIGNAL_FORMULAS = {  # a in x_t = a x + s eps; the first row is right
    "sqrt(abar_t)": "",
    "abar_t": ROOT,
    "alpha_{t-1}": SHIFT.format("signal", "-"),
    "alpha_{t+1}": SHIFT.format("signal", "+"),
    "sqrt(1 - abar_t)": SWAP,
    "1 - abar_t": f"{SWAP}, and {ROOT}",
    "sqrt(1 - beta_t)": STEP,
    "1 - beta_t": f"{STEP}; {ROOT}",
    "1": "x is not scaled by alpha_t",
    "0": "x is not in x_t: the UNet was asked about pure noise",
    "alpha_t / scaling": "latents were not multiplied by vae.config.scaling_factor",
    "sqrt(prod_beta_t)": OVER_BETA,
    "alpha_{T-1-t}": "the schedule is reversed: t = 0 must be the cleanest",
}
NOISE_FORMULAS = {  # s in x_t = a x + s eps; the first row is right
    "sqrt(1 - abar_t)": "",
    "1 - abar_t": "the square root is missing: sigma_t is sqrt(1 - abar_t)",
    "0": "no noise was added: the UNet must see x_t = alpha_t x + sigma_t eps",
    "sigma_{t-1}": SHIFT.format("noise", "-"),
    "sigma_{t+1}": SHIFT.format("noise", "+"),
    "sqrt(abar_t)": SWAP,
    "abar_t": f"{SWAP}, and {ROOT}",
    "sqrt(beta_t)": STEP,
    "beta_t": f"{STEP}; the square root is missing",
    "1 - alpha_t": ONE_MINUS_ALPHA,
    "1": "the noise is not scaled by sigma_t",
}


SIGNAL, NOISE = (formulas("t", rows, LEVELS) for rows in (SIGNAL_FORMULAS, NOISE_FORMULAS))
# 1 - prod beta_s is nearly 1: whoever makes a table of abar_t means this, who mixes x does not
ONE_MINUS = formulas("t", {"sqrt(1 - prod_beta_t)": OVER_BETA}, LEVELS)
SIGNAL_OF_A_TABLE = [SIGNAL[0], *ONE_MINUS, *SIGNAL[1:]]


def level(table: Table, seen: Sequence[tuple[int, float]], tolerance: float) -> tuple[str, str]:
    """Which row of SIGNAL or NOISE gives these (t, value): its name and what is wrong with it.

    Where none does: numbers and a general cause.
    """
    found = best_explanation([((t,), value) for t, value in seen], [table], tolerance, floor=0.02)
    if found is not None:
        return found[0].name, found[0].cause
    right = table[0]

    def error(pair: tuple[int, float]) -> tuple[bool, float]:
        t, value = pair
        return math.isnan(value), abs(value - right.value(t))

    t, worst = max(seen, key=error)
    cause = f"{worst:.4g} came at t = {t}, expected {right.name} = {right.value(t):.4g}"
    return f"{worst:.4g} at t = {t}", cause


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


TIMES = (1, 30, 200, 500, 800, 990)
EQUATION = "abar_t = prod_{s<=t} (1 - beta_s)"
NOT_GIVEN = "it adds a noise of its own and ignores the one that it is given"


@validated
@guarded("the schedule")
def check_schedule(fn: Any, *, names: Names = None) -> Report:
    """Is this noise schedule, or this way to add noise, right?

    Args:
        fn: of betas (T,): returns abar (T,), or (alpha, sigma), sqrt(abar) and sqrt(1 - abar); or
            fn(x, t, eps, alphas_cumprod): returns x_t. Which one is seen from its parameters.
        names: parameter -> key of `grading.names.NAMES`.
    """
    fn = prepare(fn, ("add_noise", "alphas_cumprod", "q_sample", "forward"), names)
    report, asked, signal = Report("check of the schedule"), keys(fn, names), SIGNAL
    noises: list[Tensor] = []
    if {"eps", "x"} & asked:
        seen = [_mixed(Prober(fn, names), t, noises) for t in TIMES]
    else:
        seen, signal = _tabulated(Prober(fn, names)), SIGNAL_OF_A_TABLE
    levels = zip(*seen, strict=True)  # of a table of abar alone, there is no noise
    for row, table, values in zip(("signal", "noise"), (signal, NOISE), levels, strict=False):
        name, cause = level(table, list(zip(TIMES, values, strict=True)), 1e-3)
        report.add(not cause, row, name, table[0].name, cause, EQUATION)
    judge_normal(report, noises)
    if noises and "eps" in asked:
        report.add(False, "noise given", "not used", "the eps in x_t", NOT_GIVEN)
    return report


def _mixed(prober: Prober, t: int, noises: list[Tensor]) -> list[float]:
    """a and s of somebody's x_t = a x + s eps; noises of its own are added to the list."""
    x, eps = picture(2, t).float(), normal(2, *SHAPE, seed=t).float()
    answer, trace = prober.ask({"x": x, "eps": eps, "t": torch.full((2,), t)})
    answered(answer)
    answer = answer[0] if isinstance(answer, tuple | list) else answer
    if not isinstance(answer, Tensor) or answer.shape != x.shape:
        text = f"it returned {type(answer).__name__}, expected x_t of x's shape"
        raise Unreadable(text, "wrong")
    drawn = [d.double().broadcast_to(x.shape) for d in trace.draws if d.numel() == x.numel()]
    levels, left = fit(answer.double(), [x.double(), eps.double(), *drawn])
    if left > 1e-3:
        text = f"x_t is no combination of x and eps: {left:.0%} of it is something else"
        raise Unreadable(text, "wrong")
    a, s, *own = levels
    if drawn and abs(s) < 1e-3 < max(map(abs, own)):
        noises.append(drawn[-1])
        s = max(own, key=abs)
    return [a, s]


def _tabulated(prober: Prober) -> list[list[float]]:
    """a (of abar alone, its root) and s at TIMES, from one number per timestep."""
    answer, _ = prober.ask({"t": torch.arange(T)})
    answered(answer)
    parts = [part for part in parts_of(answer) if isinstance(part, Tensor)]
    if not parts or any(part.shape != (T,) for part in parts):
        came = ", ".join(str(tuple(part.shape)) for part in parts) or type(answer).__name__
        text = f"it returned {came}, expected one number per timestep, ({T},)"
        raise Unreadable(text, "wrong")
    if len(parts) == 1:  # a negative abar stays one
        parts = [parts[0].sign() * parts[0].double().abs().sqrt()]
    return [[part[t].item() for part in parts] for t in TIMES]
