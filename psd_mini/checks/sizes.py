"""How large a gradient is: the tables of weights w(t) and of factors, and the policy on factors.

Any positive w(t) is right. A constant factor beside it changes the learning rate and nothing else:
it is "scaled", and it is named. A factor that depends on the batch or on the guidance scale is
wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from psd_mini._internal.arguments import one_of
from psd_mini.checks.exact_world import SHAPE
from psd_mini.checks.report import Ok
from psd_mini.checks.tables import LEVELS, Row, causes_of, fewest_slips, formulas, products_of

# the status of a constant factor, by policy
POLICIES = {"ignore": "note", "report": "scaled", "require": "wrong"}
# the names of `schedule.WEIGHTINGS` as formulas
W_FORMULAS = {"sds": "sigma_t^2", "uniform": "1", "fantasia3d": "alpha_t sigma_t^2"}
Sizes = Sequence[tuple[int, int, float, float]]  # t, batch, g, size of a gradient


@dataclass(frozen=True)
class Scale:
    """What is asked of a gradient's size.

    weighting: the key of W_FORMULAS if only that w(t) is right. policy: a key of POLICIES.
    """

    weighting: str | None = None
    policy: str = "report"

    def __post_init__(self) -> None:
        one_of("weighting", self.weighting or "sds", W_FORMULAS)
        one_of("gradient_scale", self.policy, POLICIES)


def _power(i: int, j: int) -> str:
    """alpha_t^i sigma_t^j."""
    powers = [("alpha_t", i), ("sigma_t", j)]
    return " ".join(name if p == 1 else f"{name}^{p}" for name, p in powers if p) or "1"


_POWERS = sorted(product(range(-2, 3), range(-2, 5)), key=lambda p: abs(p[0]) + abs(p[1]))
WEIGHTS = {  # w(t), the simple ones first
    **{_power(i, j): "" for i, j in _POWERS},
    "1 - alpha_t": "",
    "t / T": "",
    "beta_t": "the weight is 1 - alphas[t] with the per-step alphas: use alphas_cumprod",
    "sigma_{t+1}^2": "the weight is taken at t + 1: t is off by one",
    "sigma_{t-1}^2": "the weight is taken at t - 1: t is off by one",
}
WEIGHTS_OF_T = formulas("t", WEIGHTS, LEVELS)
ALONE = "the gradient of one picture must not depend on how many there are"
TWICE = "the factor 1/2 of 0.5 ||x - target||^2 is missing?"
HALF = "one factor 1/2 too many?"


def constants(shape: Sequence[int] = SHAPE) -> list[Row]:
    """Factors that are the same for every t, batch and guidance scale; shape: of one picture."""
    n, pixels, channels = math.prod(shape), math.prod(shape[1:]), shape[0]
    mean = "mean over {} instead of sum?"
    rows = [Row(f"1/{n}", lambda *_: 1 / n, mean.format("elements"))]
    if 1 < pixels < n:
        either = f"{mean} (or 4/{n}: a mean over elements, and a factor 1/2 missing twice?)"
        rows.append(Row(f"1/{pixels}", lambda *_: 1 / pixels, either.format("pixels")))
        rows.append(Row(f"1/{channels}", lambda *_: 1 / channels, mean.format("channels")))
    return [*rows, Row("2", lambda *_: 2.0, TWICE), Row("1/2", lambda *_: 0.5, HALF)]


ANY_CONSTANT = Row("any", lambda: None, "it is a constant of its own", slips=2.5)


def factors(style: str, free_g: bool = False) -> list[Row]:
    """Factors of (t, batch, g). A "loss" may be divided by the batch, a "gradient" may not."""
    by_g = "" if free_g else "multiplied by the guidance scale"
    divided = "" if style == "loss" else f"divided by the batch: {ALONE}"
    rows = {"batch": f"multiplied by the batch: {ALONE}", "g": by_g, "1/batch": divided}
    if style == "loss":
        rows["1/batch^2"] = f"divided by the batch twice: {ALONE}"
    return formulas("t, batch, g", rows, {})


def size(
    seen: Sizes, style: str, tolerance: float, scale: Scale = Scale(), free_g: bool = False
) -> tuple[Ok, str, str]:
    """Which w(t) and which factors make these (t, batch, g, k), k the size against eps_hat - eps.

    Args:
        seen: timestep, batch, guidance scale and size of every picture.
        style: "loss" or "gradient", see `factors`.
        scale: what is asked of it.
        free_g: a factor g is allowed.

    Returns:
        ok or the status, what came, the cause.
    """
    wanted = W_FORMULAS.get(scale.weighting or "", "")
    weights = sorted(WEIGHTS_OF_T, key=lambda row: row.name != wanted)
    known = [*products_of(constants(), 2), *([ANY_CONSTANT] if len(seen) > 1 else [])]

    def ratio(weight: Row, factor: Row, t: int, b: int, g: float, k: float) -> float:
        return k / max(weight.value(t) * factor.value(t, b, g), 1e-30)

    def fits(weight: Row, constant: Row, factor: Row) -> bool:
        expected = ratio(weight, factor, *seen[0])
        if constant is not ANY_CONSTANT:
            expected = constant.value()
        # written so that NaN does not fit
        errors = (abs(ratio(weight, factor, *run) - expected) for run in seen)
        return all(error <= tolerance * expected for error in errors)

    found = fewest_slips([weights, known, products_of(factors(style, free_g), 2)], fits)
    if found is None:
        return _unknown_size(seen, wanted)
    weight, constant, factor = found
    scaled, wrong = "", causes_of((weight, factor))
    if constant is ANY_CONSTANT:
        scaled = f"the size is {ratio(weight, factor, *seen[0]):.4g} times the reference"
    elif constant.cause:
        scaled = f"the size is {constant.name} times the reference: {constant.cause}"
    if wanted not in ("", weight.name):
        wrong.append(f"w(t) = {weight.name} came, w(t) = {wanted} is expected")
    status = "wrong" if wrong else POLICIES[scale.policy] if scaled else "ok"
    came = f"w(t) = {weight.name}" + (", times a factor" if scaled or wrong else "")
    return status, came, "; ".join(filter(None, [scaled, *wrong]))


def _unknown_size(seen: Sizes, wanted: str) -> tuple[Ok, str, str]:
    """What `size` says where no known weight fits."""
    logs: dict[int, set[float]] = {}
    for t, b, _, k in seen:
        if b == 1:
            logs.setdefault(t, set()).add(round(math.log(abs(k)), 2))
    if any(len(sizes) > 1 for sizes in logs.values()):
        cause = "the size differs between pictures: was the gradient normalised or clipped?"
        return not wanted and "note", "not a function of t alone", cause
    values = ", ".join(f"{k:.3g} at t={t}" for t, _, _, k in seen[:3])
    if wanted:
        return False, values, f"w(t) = {wanted} is expected, and this is no multiple of it"
    cause = "a weight w(t) that is not in the list; any positive function of t is allowed"
    return "note", values, cause
