"""Rows of a report on SDS, CSD or VSD: is there a gradient; its direction, size and guidance.

What does not depend on the size is in `judging_draws`.
"""

from __future__ import annotations

from psd_mini.checks import diagnosis
from psd_mini.checks.judging_draws import levels
from psd_mini.checks.probe import Trial
from psd_mini.checks.reading import Reading, cosine
from psd_mini.checks.report import Report
from psd_mini.checks.scales import Formula, Scale, reference, scales_of

JACOBIAN = (
    "the gradient flows through the UNet (its Jacobian): detach the prediction, or call it under"
    " no_grad"
)
ASCENT = "the sign is flipped: descent along it would climb (ascent)"
ADDED = "the {} is added instead of subtracted"
NOT_LINEAR = (
    "of it is no combination of noise predictions, noise and x: a part is not linear in them"
)
NOT_FINITE = "the gradient is NaN or infinite: division by zero, or a logarithm of it?"
CANCELLED = "the gradient is exactly zero: the target equals x, or equal predictions are subtracted"
NOT_DETACHED = (
    "the gradient is exactly zero: was the target detached? x cancels in x - (x - G) unless the"
    " target is"
)
AT_X_T = (
    "the residual is taken at x_t instead of x: the target is made of x_t, so x - x_t enters the"
    " gradient"
)
THROUGH_X_T = (
    "the gradient flows through x_t, which brings an extra alpha_t: let it enter at x only"
)
# what is wrong with the subtracted term
SDS_NOT_VSD = "the noise is subtracted instead of q's prediction: this is SDS, not VSD"
REDRAWN = "the noise was redrawn: the one that is subtracted is not the one in x_t"
NO_Q = "q's prediction does not appear: is the pretrained network used for both?"
CSD_NOT_SDS = "no noise is subtracted and the predictions cancel: this is CSD, not SDS"
ALONE = "the noise is not subtracted: G is the noise prediction alone (same mean, other variance)"
BESIDE_Q = "the noise appears beside q's prediction: VSD subtracts q's prediction only"
SDS_NOT_CSD = (
    "the noise is subtracted: this is SDS; CSD is the difference of two predictions of the same x_t"
)


def basics(report: Report, trial: Trial, equation: str) -> bool:
    """Is there a gradient to speak of? Adds a row; False where nothing more can be said."""
    calls, cause = trial.trace.calls, ""
    came = f"a {trial.style}, {len(calls)} call(s) of the UNet"
    if not bool(trial.gradient.isfinite().all()):
        came, cause = "NaN or infinity", NOT_FINITE
    elif not calls:
        cause = "the UNet was never called: the prior has no say in this gradient"
    elif bool((trial.gradient == 0).all()):
        lost = trial.loss is not None and trial.loss.abs().max() > 0
        came, cause = "exactly zero", NOT_DETACHED if lost else CANCELLED
    expected = "finite, not zero, with calls of the UNet"
    report.add(not cause, "gradient", came, expected, cause, equation)
    return not cause


def judge_gradient(
    report: Report,
    formula: Formula,
    trials: list[Trial],
    limits: list[Trial],
    batched: list[Trial],
    takes_g: bool,
    weighting: str | None,
) -> None:
    """Direction, size and guidance, apart.

    Args:
        trials, limits, batched: of one picture; at g = 1 and g = 0; of three.
        takes_g: does it take the guidance scale?
        weighting: the name of w(t) if only that one is right.
    """
    tolerance = 5 * max(trial.tolerance for trial in trials)
    scales, together = scales_of(formula, trials), scales_of(formula, batched)
    if not takes_g and formula.subtracts:  # a scale of its own: whatever it is, if it is one
        for s in [*scales, *together]:
            if abs(s.c + s.u - 1) < tolerance:
                s.reading.g = s.c
    worst = min(cosine(s.reading.gradient, reference(formula, s.reading)) for s in scales)
    leftover = max(s.reading.leftover for s in scales)
    jacobian = any(trial.through_unet() for trial in trials)
    unexplained = f"{leftover:.0%} {NOT_LINEAR}"
    row, equation = "direction", formula.equation
    if leftover > 0.1 and not jacobian:  # coefficients mean nothing then
        report.add(False, row, f"cosine {worst:.4f}", "cosine 1", unexplained, equation)
        return
    causes = [JACOBIAN] if jacobian else _direction_causes(formula, trials, scales, tolerance)
    combination, cause_g = _guidance_cause(formula, scales, takes_g, tolerance)
    if jacobian and leftover > tolerance:
        combination, cause_g = _combination(scales, tolerance)[0], ""
    shown, first = _terms(scales[0].reading), scales[0].reading
    straight = worst > 1 - max(tolerance, 1e-3) / 5
    if not causes and not cause_g:
        if leftover > tolerance:
            causes = [unexplained]
        elif not straight and not any(cause for _, cause in levels(trials)):
            causes = [f"the gradient is {shown} at g = {first.g:g}; see the rows below"]
    fine, came = straight and not causes, f"cosine {worst:.4f}: {shown}"
    report.add(fine, row, came, "cosine 1", "; ".join(causes), equation)
    seen = [(s.reading.t, s.reading.batch, s.reading.g, abs(s.k)) for s in [*scales, *together]]
    ok, came, cause = diagnosis.size(seen, trials[0].style, tolerance, weighting)
    if formula.subtracts is None and cause == "multiplied by the guidance scale":  # CSD may be
        ok = True
    expected = f"w(t) = {diagnosis.W_FORMULAS[weighting]}" if weighting else "any w(t) > 0"
    report.add(ok, "size", came, expected, cause, equation)
    expected = "uncond + g (cond - uncond)" if formula.subtracts else "cond - uncond"
    report.add(not cause_g, "guidance", combination, expected, cause_g)
    if takes_g and formula.subtracts:
        at_one, at_zero = scales_of(formula, limits)
        _judge_limit(report, at_one, 1.0, "cond", cause_g, tolerance)
        _judge_limit(report, at_zero, 0.0, "uncond", cause_g, tolerance)


def _combination(scales: list[Scale], tolerance: float) -> tuple[str, str]:
    """Which combination of predictions these are, and what is wrong with it."""
    return diagnosis.guidance([(s.reading.g, s.c, s.u) for s in scales], tolerance)


def _guidance_cause(
    formula: Formula, scales: list[Scale], takes_g: bool, tolerance: float
) -> tuple[str, str]:
    """How the predictions are combined and what is wrong with that."""
    combination, cause = _combination(scales, tolerance)
    if formula.subtracts is None:
        if any(abs(s.u + s.c) > tolerance for s in scales):
            return combination, "CSD is the difference cond - uncond alone"
        return "cond - uncond", ""
    g = scales[0].c
    fixed = all(abs(s.c + s.u - 1) + abs(s.c - g) < tolerance for s in scales)
    if fixed and not takes_g:
        return f"a fixed g = {g:.3g}", "" if g >= 1 - tolerance else cause
    return combination, cause


def _judge_limit(
    report: Report, s: Scale, g: float, wanted: str, cause_g: str, tolerance: float
) -> None:
    """At g = 1 and g = 0 guidance is one prediction alone. Some take g = 0 for no guidance."""
    right = abs(s.c - g) + abs(s.u - 1 + g) < tolerance
    unguided = g == 0 and abs(s.c - 1) < tolerance and not cause_g
    cause = "" if cause_g else f"at g = {g:g} guidance must reduce to one prediction"
    status = right or (unguided and "note")
    name, came = f"guidance at g = {g:g}", f"{s.c:.3g} cond {s.u:+.3g} uncond"
    report.add(status, name, came, wanted, cause)


def _terms(r: Reading) -> str:
    """The gradient written out, "+7.5 eps_cond -6.5 eps_uncond -1 eps"."""
    labels = {"eps_cond": "cond", "eps_uncond": "uncond", "eps": "noise", "eps_q": "q"}
    terms = {name: r.total(label) for name, label in labels.items()}
    terms |= {"another noise": r.other, "x": r.b}
    small = 1e-3 * max(map(abs, terms.values()))
    return " ".join(f"{value:+.3g} {name}" for name, value in terms.items() if abs(value) > small)


def _direction_causes(
    formula: Formula, trials: list[Trial], scales: list[Scale], tolerance: float
) -> list[str]:
    """What is wrong with the direction, apart from guidance: each in words."""
    causes = [ASCENT] if all(s.k < 0 for s in scales) else []
    if all(s.from_x_t for s in scales):
        causes.append(AT_X_T)
    elif any(abs(s.reading.b) > tolerance * abs(s.k) for s in scales):
        itself = f"it contains the picture itself, {scales[0].reading.b:+.3g} x"
        causes.append(f"{itself}: x0_hat or the target is not what it should be")
    if all(s.added for s in scales):
        causes.append(
            ADDED.format("noise" if formula.subtracts == "noise" else "second prediction")
        )
    if cause := _subtraction_cause(formula, scales, tolerance):
        causes.append(cause)
    asked = [[set(group.eps_hat) - {"q"} for group in s.reading.groups] for s in scales]
    several = all(len(set().union(*labels)) > 1 for labels in asked)
    if several and all(len(names) == 1 for labels in asked for names in labels):
        causes.append("the two predictions are not at the same x_t")
    if any(trial.through_x_t() for trial in trials):
        causes.append(THROUGH_X_T)
    return causes


def _subtraction_cause(formula: Formula, scales: list[Scale], tolerance: float) -> str:
    """What is wrong with the term that is subtracted from the predictions; "" if nothing is."""
    q, noise = formula.subtracts == "q", any(abs(s.noise) > tolerance for s in scales)
    noiseless = all(group.eps is None for s in scales for group in s.reading.groups)
    missing = formula.subtracts and all(abs(s.n) < tolerance for s in scales)
    if not missing:
        if noise and q:
            return BESIDE_Q
        return SDS_NOT_CSD if noise and formula.subtracts is None else ""
    if q and noise:
        return SDS_NOT_VSD
    if all(abs(s.other) > tolerance for s in scales) and not noiseless:
        return REDRAWN
    if q:
        return NO_Q
    if noiseless:
        return ""
    return CSD_NOT_SDS if all(abs(s.c + s.u) < tolerance for s in scales) else ALONE
