"""Rows of a report: is there a gradient; its direction, size and guidance; graph, inputs, batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from psd_mini.checks import directions
from psd_mini.checks.directions import GUIDED, Method, fit_rows
from psd_mini.checks.probe import Trial, readings_of
from psd_mini.checks.reading import PREDICTIONS, Reading, cosine, in_numbers
from psd_mini.checks.report import Report
from psd_mini.checks.sizes import W_FORMULAS, Scale, size
from psd_mini.checks.tables import Row, Rows, causes_of, formulas, named

JACOBIAN = "the gradient flows through the UNet (its Jacobian): detach it, or call it under no_grad"
NOT_FINITE = "the gradient is NaN or infinite: division by zero, or a logarithm of it?"
CANCELLED = "the gradient is exactly zero: the target equals x, or equal predictions are subtracted"
NOT_DETACHED = "the gradient is exactly zero: was the target detached? x cancels in x - (x - G)"
THROUGH_X_T = "the gradient flows through x_t, which brings an extra alpha_t: a part of w(t)"
TWO_X_T = "the two predictions are not at the same x_t: each must see the same noise, at the same t"
KEPT = (
    "the UNet is called with gradients on: right, but its graph costs memory and time; use"
    " torch.no_grad()"
)
MIXED = "pictures influence each other, share a t or a weight, or embeddings are interleaved"

CLAMPED = "the gradient is clamped elementwise at {:.3g}: large elements lose their direction"
NOT_LINEAR = "of it is no combination of predictions, noise and x: not linear in them (rescaled?)"
BY_TANH = "the gradient goes through a tanh: large elements lose their direction"
CUT_OFF = "the elements of the gradient {} 0 are cut off (clamp, relu)"
UNBOUND = "is clamped to -1..1: noise predictions are numbers of any size"
OF_NOISES = f"each prediction {UNBOUND}"
BENDS = {  # of the gradient G that is right, c, u and guided predictions, noise and pictures
    "sign(G)": "only the sign of each element of the gradient is left",
    "tanh(G)": BY_TANH,
    "tanh(sigma^2 G)": BY_TANH,
    "relu(G)": CUT_OFF.format("below"),
    "-relu(-G)": CUT_OFF.format("above"),
    "abs(G)": "the absolute value of the gradient is taken: its signs are lost",
    "G^2": "the gradient is squared: its signs are lost",
    "G - G.mean()": "the mean over the picture is subtracted from the gradient",
    "G abs(G)": "each element of the gradient is multiplied by its size",
    "normalize(G, dim=0)": "the gradient is normalised at every pixel: only whole pictures may be",
    "limit(guided) - eps": f"the guided prediction {UNBOUND}",
    "limit(u) + g (limit(c) - limit(u)) - eps": OF_NOISES,
    "limit(c) - limit(u)": OF_NOISES,
    "x - limit((noisy - sigma guided) / alpha)": "x0_hat is clamped to -1..1: it is no picture",
}
FUNCTIONS = {"sign": torch.sign, "tanh": torch.tanh, "relu": F.relu, "abs": torch.abs}
FUNCTIONS |= {"normalize": F.normalize, "limit": lambda values: values.clamp(-1, 1)}
BENT = formulas("G, c, u, guided, eps, x, noisy, alpha, sigma, g", BENDS, FUNCTIONS)


@dataclass
class Runs:
    """All calls of one submission.

    trials: of one picture, at several t. limits: at g = 1 and g = 0. batched: of three pictures;
    empty where that failed, and failure says why. takes_g: does it take the guidance scale?
    """

    trials: list[Trial]
    limits: list[Trial] = field(default_factory=list)
    batched: list[Trial] = field(default_factory=list)
    failure: str = ""
    takes_g: bool = True

    @property
    def tolerance(self) -> float:
        """Relative, of coefficients: larger in half precision."""
        return max(trial.tolerance for trial in self.trials)


def basics(report: Report, trial: Trial, equation: str) -> bool:
    """Is there a gradient to speak of? Adds a row; False where nothing more can be said."""
    calls, cause = trial.trace.calls, ""
    came = f"a {trial.style}, {len(calls)} call(s) of the UNet"
    if not bool(trial.gradient.isfinite().all()):
        came, cause = "NaN or infinity", NOT_FINITE
    elif not calls:
        cause = "the UNet was never called: the prior has no say in this gradient"
    elif all(call.model == "q" for call in calls):
        cause = "only q is asked, never the prior: are its adapters on all the time?"
    elif bool((trial.gradient == 0).all()):
        lost = trial.loss is not None and trial.loss.abs().max() > 0
        came, cause = "exactly zero", NOT_DETACHED if lost else CANCELLED
    expected = "finite, not zero, with calls of the UNet"
    report.add(not cause, "gradient", came, expected, cause, equation)
    return not cause


def judge_gradient(report: Report, method: Method, runs: Runs, scale: Scale) -> bool:
    """Direction, size and guidance, apart; False where they cannot be read."""
    readings = readings_of(runs.trials)
    if not runs.takes_g:
        own = _own_guidance(readings, runs.tolerance)
        for reading in readings + readings_of(runs.batched):
            reading.g = own or reading.g
    blocked = _unreadable(method, runs, readings)
    rows = None if blocked else directions.explain_direction(method, readings, runs.tolerance)
    if rows is None:
        came = _terms(readings[0])
        cause = blocked or f"the gradient is {came} at g = {readings[0].g:g}; see the rows below"
        report.add(False, "direction", came, "cosine 1", cause, method.equation)
        return not blocked
    _judge_direction(report, method, runs, rows)
    _judge_size(report, method, runs, rows, scale)
    _judge_guidance(report, method, runs, rows)
    return True


def _own_guidance(readings: list[Reading], tolerance: float) -> float | None:
    """Where the scale is not an argument, any one g >= 1 is right; None where there is none.

    eps_hat = g cond + (1 - g) uncond has g = c / (c + u); one with the two swapped has 1 - g there.
    """
    scales = []
    for reading in readings:
        c, u = reading.total("cond"), reading.total("uncond")
        if abs(c + u) <= 0.2 * tolerance * max(abs(c), abs(u)):
            return None
        scales.append(c / (c + u))
    if max(scales) - min(scales) > tolerance * (1 + abs(scales[0])):
        return None
    own = 1 - scales[0] if scales[0] < -tolerance else scales[0]
    return own if own > 1 - tolerance else None


def _unreadable(method: Method, runs: Runs, readings: list[Reading]) -> str:
    """Why the coefficients of this gradient mean nothing; "" where they do."""
    if any(trial.through_unet() for trial in runs.trials):
        return JACOBIAN
    if all(map(_at_two_x_t, readings)):
        return TWO_X_T
    limits = [clamped_at(reading.gradient) for reading in readings]
    if any(limits) or max(reading.leftover for reading in readings) > 5 * runs.tolerance:
        return why_not_linear(method, readings, max(limits), runs.trials[0].style)
    return ""


def _at_two_x_t(reading: Reading) -> bool:
    """Are there predictions of several kinds, and no two x_t have one kind in common?"""
    asked = [label for group in reading.groups for label in group.eps_hat]
    return len(reading.groups) > 1 and len(set(asked)) == len(asked)


def why_not_linear(method: Method, readings: Sequence[Reading], limit: float, style: str) -> str:
    """What bends these gradients, or how much of them nothing explains; limit: see `clamped_at`."""
    for row in BENT:
        if all(cosine(row.value(*_parts(method, r)), r.gradient) > 0.999 for r in readings):
            return row.cause
    leftover = max(reading.leftover for reading in readings)
    if leftover > 0.9 and style == "loss":
        return "nothing of the gradient is left but rounding: was the target detached?"
    if limit:
        return CLAMPED.format(limit)
    return f"{leftover:.0%} {NOT_LINEAR}"


def _parts(method: Method, reading: Reading) -> list[Tensor | float]:
    """What the formulas are made of."""
    exact = directions.reference(method, reading, [1.0] * len(reading.groups))
    group, g = reading.groups[0], reading.g
    c, u = group.vector("cond"), group.vector("uncond")
    parts = [exact, c, u, u + g * (c - u), group.vector("eps"), reading.x, group.x_t]
    return [*parts, group.a or 1e-30, group.s, g]


def clamped_at(gradient: Tensor) -> float:
    """The largest size of an element if several have it, and not all; otherwise 0."""
    sizes = gradient.abs()
    at_limit = int((sizes > sizes.max() * (1 - 1e-5)).sum())
    return sizes.max().item() if 4 <= at_limit < sizes.numel() else 0.0


def _judge_direction(report: Report, method: Method, runs: Runs, rows: Rows) -> None:
    """The sign, the subtracted term and the place of the residual; and the exact gradient."""
    readings = readings_of(runs.trials)
    cosines = []
    for reading in readings:
        exact = directions.reference(method, reading, fit_rows(reading, rows) or [])
        cosines.append(cosine(reading.gradient, rows[3].value() * exact))
    worst, causes = min(cosines), causes_of(rows[1:])
    status: bool | str = worst > 1 - runs.tolerance and not causes
    through_x_t = any(trial.through_x_t() for trial in runs.trials)
    if status and through_x_t:
        status, causes = "note", [THROUGH_X_T]
    elif through_x_t and rows[2].cause == directions.AT_X_T:
        causes.append("x_t is not detached: a factor alpha_t or 1 - alpha_t comes in through it")
    came = f"cosine {worst:.4f}: {_terms(readings[0])}"
    report.add(status, "direction", came, "cosine 1", "; ".join(causes), method.equation)


def _judge_size(report: Report, method: Method, runs: Runs, rows: Rows, scale: Scale) -> None:
    """w(t), and the factors beside it."""
    seen = []
    for reading in readings_of(runs.trials) + readings_of(runs.batched):
        weights = fit_rows(reading, rows, runs.tolerance)
        if weights is not None:
            seen.append((reading.t, reading.batch, reading.g, abs(sum(weights))))
    free_g = method.predictions != GUIDED
    style = runs.trials[0].style
    ok, came, cause = size(seen, style, 5 * runs.tolerance, scale, free_g)
    weight = W_FORMULAS.get(scale.weighting or "")
    expected = f"w(t) = {weight}" if weight else "any w(t) > 0"
    cause = method.words.get("size", "") + cause
    report.add(ok, "size", came, expected, cause, method.equation)


def _judge_guidance(report: Report, method: Method, runs: Runs, rows: Rows) -> None:
    """The combination of the predictions, and its limits g = 1 and g = 0."""
    combination, readings = rows[0], readings_of(runs.trials)
    name, cause = combination.name, combination.cause
    if not runs.takes_g and name == GUIDED:
        name = f"a fixed g = {readings[0].g:.3g}"
    elif cause and combination.slips > 1:  # its numbers are all that is known
        name = combination_of(readings[0], rows)
        g = readings[0].g
        cause = f"{name} came at g = {g:g}, expected {g:g} cond {1 - g:+g} uncond ({cause})"
    report.add(not cause, "guidance", name, method.predictions, cause)
    if not runs.takes_g or method.predictions != GUIDED or cause or rows[1].cause:
        return
    unguided = (named(directions.PREDICTIONS, "cond"), *rows[1:])
    for reading, wanted in zip(readings_of(runs.limits), ("cond", "uncond"), strict=False):
        status: bool | str = fit_rows(reading, rows, runs.tolerance) is not None
        # some take g = 0 for no guidance
        if not status and reading.g == 0 and fit_rows(reading, unguided, runs.tolerance):
            status = "note"
        cause = f"at g = {reading.g:g} guidance must reduce to one prediction"
        came = combination_of(reading, rows)
        report.add(status, f"guidance at g = {reading.g:g}", came, wanted, cause)


def combination_of(reading: Reading, rows: Sequence[Row]) -> str:
    """The predictions in units of what is subtracted, if that is known, "7.5 cond -6.5 uncond"."""
    free = named(directions.PREDICTIONS, "another combination")
    weights = fit_rows(reading, (free, *rows[1:])) or []
    k = sum(weights) or 1.0
    c, u = reading.total("cond") / k, reading.total("uncond") / k
    return f"{c:.3g} cond {u:+.3g} uncond"


def _terms(r: Reading) -> str:
    """The gradient written out, "+7.5 eps_cond -6.5 eps_uncond -1 eps"."""
    terms = {f"eps_{label}": r.total(label) for label in ("cond", "uncond", "negative")}
    terms |= {label: r.total(label) for label in ("eps", "eps_q", "another_noise", "x")}
    return in_numbers(terms, 1e-3)


def judge_graph(report: Report, trials: list[Trial]) -> None:
    """Is the UNet's graph kept (memory, even where no gradient flows)? Are inputs changed?"""
    kept = any(call.eps_hat.requires_grad for trial in trials for call in trial.trace.calls)
    came = "kept" if kept else "not kept"
    report.add("note" if kept else True, "graph of the UNet", came, "not kept", KEPT)
    judge_inputs(report, trials)


def judge_inputs(report: Report, trials: list[Trial]) -> None:
    """Are inputs left as they were?"""
    changed = {name for trial in trials for name in trial.changed}
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
        exact = directions.reference(method, reading, _used(reading))
        worst = min(worst, abs(cosine(reading.gradient, exact)))
    fine, sound = worst > 1 - 5 * batched[0].tolerance, report.ok
    status = fine or (not sound and "note")
    came, cause = f"cosine {worst:.4f}", f"{MIXED} (repeat for repeat_interleave?)" if sound else ""
    report.add(status, "batch of 3", came, "cosine 1 for each picture", cause)
