"""Check of a noise schedule, or of a way to add noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini.checks.exact_world import SHAPE, T, normal, picture
from psd_mini.checks.grading.names import Names, keys
from psd_mini.checks.grading.submission import answered, parts_of, prepare
from psd_mini.checks.guard import guarded
from psd_mini.checks.judging_draws import judge_normal
from psd_mini.checks.levels import NOISE, SIGNAL, SIGNAL_OF_A_TABLE, level
from psd_mini.checks.probe import Prober
from psd_mini.checks.reading import fit
from psd_mini.checks.report import Report, Unreadable

TIMES = (1, 30, 200, 500, 800, 990)
EQUATION = "abar_t = prod_{s<=t} (1 - beta_s)"
NOT_GIVEN = "it adds a noise of its own and ignores the one that it is given"


@validated
@guarded("the schedule")
def check_schedule(fn: Any, *, names: Names = None) -> Report:
    """Is this noise schedule, or this way to add noise, right?

    In all forms x_t = a x + s eps, and the tables of `levels` know a and s.

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
        name, cause = level(table, zip(TIMES, values, strict=True), 1e-3)
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
