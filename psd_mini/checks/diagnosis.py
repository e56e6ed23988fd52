"""From coefficients to words: which slip makes these numbers?

Three tables, each a list of hypotheses that are compared with all runs at once: how noise was added (`noising`), how guidance
combines two predictions (`guidance`), and by which factor a gradient is too large or small (`size`). They are independent, so
two mistakes are both found. What fits none of the rows is reported as plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product

from psd_mini.checks.world import SCALING, SHAPE, T, alpha_sigma

ELEMENTS, PIXELS, CHANNELS = math.prod(SHAPE), SHAPE[1] * SHAPE[2], SHAPE[0]
Level = Callable[[int], float]


def _alpha(t: int) -> float:
    return alpha_sigma(t)[0]


def _sigma(t: int) -> float:
    return alpha_sigma(t)[1]


def _beta(t: int) -> float:
    return 1 - (_alpha(t) / _alpha(t - 1)) ** 2 if t > 0 else _sigma(0) ** 2


ROOT = "the square root is missing (alphas_cumprod is alpha_t squared)"
STEP = "alphas in place of alphas_cumprod: the product over all earlier steps is missing"
# hypotheses for a and s in x_t = a x + s eps: (formula, value at t, cause); the first is right
SIGNAL: list[tuple[str, Level, str]] = [
    ("sqrt(abar_t)", _alpha, ""),
    ("abar_t", lambda t: _alpha(t) ** 2, ROOT),
    ("alpha_{t-1}", lambda t: _alpha(t - 1), "t is off by one between noising and the UNet: the signal level is that of t - 1"),
    ("alpha_{t+1}", lambda t: _alpha(t + 1), "t is off by one between noising and the UNet: the signal level is that of t + 1"),
    ("sqrt(1 - abar_t)", _sigma, "alpha_t and sigma_t are swapped"),
    ("1 - abar_t", lambda t: _sigma(t) ** 2, "alpha_t and sigma_t are swapped, and " + ROOT),
    ("sqrt(1 - beta_t)", lambda t: (1 - _beta(t)) ** 0.5, STEP),
    ("1 - beta_t", lambda t: 1 - _beta(t), STEP + "; " + ROOT),
    ("1", lambda t: 1.0, "x is not scaled by alpha_t"),
    ("0", lambda t: 0.0, "x is not in x_t: the UNet was asked about pure noise"),
    ("alpha_t / scaling", lambda t: _alpha(t) / SCALING, "latents were not multiplied by vae.config.scaling_factor"),
]
NOISE: list[tuple[str, Level, str]] = [
    ("sqrt(1 - abar_t)", _sigma, ""),
    ("1 - abar_t", lambda t: _sigma(t) ** 2, "the square root is missing: sigma_t is sqrt(1 - abar_t)"),
    ("0", lambda t: 0.0, "no noise was added: the UNet must see x_t = alpha_t x + sigma_t eps"),
    ("sigma_{t-1}", lambda t: _sigma(t - 1), "t is off by one between noising and the UNet: the noise level is that of t - 1"),
    ("sigma_{t+1}", lambda t: _sigma(t + 1), "t is off by one between noising and the UNet: the noise level is that of t + 1"),
    ("sqrt(abar_t)", _alpha, "alpha_t and sigma_t are swapped"),
    ("abar_t", lambda t: _alpha(t) ** 2, "alpha_t and sigma_t are swapped, and " + ROOT),
    ("sqrt(beta_t)", lambda t: _beta(t) ** 0.5, STEP),
    ("beta_t", _beta, STEP + "; the square root is missing"),
    ("1 - alpha_t", lambda t: 1 - _alpha(t), "sigma_t is sqrt(1 - abar_t), not 1 - sqrt(abar_t)"),
    ("1", lambda t: 1.0, "the noise is not scaled by sigma_t"),
]


def level(table: Sequence[tuple[str, Level, str]], values: Iterable[tuple[int, float]], tolerance: float) -> tuple[str, str]:
    """Which formula gives these (t, value): its name and what is wrong with it; numbers and a general cause otherwise."""
    values = list(values)
    for name, formula, cause in table:
        if all(abs(value - formula(t)) <= tolerance * max(abs(formula(t)), 0.02) for t, value in values):
            return name, cause
    t, value = values[0]
    return f"{value:.4g} at t = {t}", f"{value:.4g} came at t = {t}, expected {table[0][0]} = {table[0][1](t):.4g}"


# hypotheses for eps_hat = c eps_cond + u eps_uncond at guidance scale g; the first is right
GUIDANCE: list[tuple[str, Callable[[float], tuple[float, float]], str]] = [
    ("uncond + g (cond - uncond)", lambda g: (g, 1 - g), ""),
    (
        "cond + g (cond - uncond)",
        lambda g: (1 + g, -g),
        "the scale behaves as s+1: cond + s (cond - uncond); start from the unconditional prediction instead",
    ),
    (
        "cond + g (uncond - cond)",
        lambda g: (1 - g, g),
        "conditional and unconditional predictions are swapped (order of the chunks?): flipped guidance, away from the prompt",
    ),
    (
        "uncond - g (cond - uncond)",
        lambda g: (-g, 1 + g),
        "flipped guidance sign: uncond - s (cond - uncond) goes away from the prompt",
    ),
    ("cond", lambda g: (1, 0), "the guidance scale is ignored: this is the conditional prediction, g = 1"),
    ("uncond", lambda g: (0, 1), "only the unconditional prediction is used: the prompt has no influence"),
    ("g (cond - uncond)", lambda g: (g, -g), "the unconditional prediction in front is missing: uncond + s (cond - uncond)"),
    ("cond - uncond", lambda g: (1, -1), "only the difference cond - uncond is used: uncond + s (cond - uncond) is expected"),
    (
        "g cond",
        lambda g: (g, 0),
        "the conditional prediction is multiplied by s, and nothing is taken from the unconditional one",
    ),
    (
        "uncond + g cond",
        lambda g: (g, 1),
        "uncond + s cond: the unconditional prediction must be subtracted inside the brackets",
    ),
    ("g cond + (g - 1) uncond", lambda g: (g, g - 1), "(1 - s) uncond is expected, (s - 1) uncond came: wrong sign"),
    ("(1 - g) uncond - g cond", lambda g: (-g, 1 - g), "wrong sign of the conditional prediction"),
    ("g cond - uncond", lambda g: (g, -1), "s cond - uncond: the factor (s - 1) of the unconditional prediction is missing"),
    ("(g - 1) cond + (2 - g) uncond", lambda g: (g - 1, 2 - g), "the scale behaves as s-1: g - 1 was taken for g"),
    ("(cond + uncond) / 2", lambda g: (0.5, 0.5), "the mean of both predictions: the guidance scale is ignored"),
]


def guidance(seen: Sequence[tuple[float, float, float]], tolerance: float) -> tuple[str, str]:
    """Which combination of predictions gives (g, c, u): its formula and what is wrong with it."""
    for name, row, cause in GUIDANCE:
        if all(max(abs(c - row(g)[0]), abs(u - row(g)[1])) <= tolerance * (1 + abs(g)) for g, c, u in seen):
            return name, cause
    g, c, u = seen[0]
    return (
        f"{c:.3g} cond {u:+.3g} uncond at g = {g:g}",
        f"{c:.3g} cond {u:+.3g} uncond came at g = {g:g}, expected {g:g} cond {1 - g:+g} uncond",
    )


WEIGHTS: dict[str, Level] = {
    "1": lambda t: 1.0,
    "sigma_t^2": lambda t: _sigma(t) ** 2,
    "alpha_t sigma_t^2": lambda t: _alpha(t) * _sigma(t) ** 2,
    "sigma_t": _sigma,
    "alpha_t": _alpha,
    "alpha_t sigma_t": lambda t: _alpha(t) * _sigma(t),
    "alpha_t^2": lambda t: _alpha(t) ** 2,
    "alpha_t^2 sigma_t^2": lambda t: (_alpha(t) * _sigma(t)) ** 2,
    "sigma_t / alpha_t": lambda t: _sigma(t) / _alpha(t),
    "alpha_t / sigma_t": lambda t: _alpha(t) / _sigma(t),
    "sigma_t^2 / alpha_t^2": lambda t: (_sigma(t) / _alpha(t)) ** 2,
    "alpha_t^2 / sigma_t^2": lambda t: (_alpha(t) / _sigma(t)) ** 2,
    "sigma_t^2 / alpha_t": lambda t: _sigma(t) ** 2 / _alpha(t),
    "1 - alpha_t": lambda t: 1 - _alpha(t),
    "sigma_t^3": lambda t: _sigma(t) ** 3,
    "sigma_t^4": lambda t: _sigma(t) ** 4,
    "t / T": lambda t: t / T,
}
SLIPPED_WEIGHTS: dict[str, tuple[Level, str]] = {
    "beta_t": (_beta, "the weight is 1 - alphas[t] with the per-step alphas: use alphas_cumprod"),
    "sigma_{t+1}^2": (lambda t: _sigma(t + 1) ** 2, "the weight is taken at t + 1: t is off by one"),
    "sigma_{t-1}^2": (lambda t: _sigma(t - 1) ** 2, "the weight is taken at t - 1: t is off by one"),
}
FACTORS: dict[float, str] = {
    1.0: "",
    2.0: "twice the reference: the factor 1/2 of 0.5 ||x - target||^2 is missing?",
    0.5: "half the reference: one factor 1/2 too many?",
}
MEANS: dict[float, str] = {
    1.0: "",
    1 / ELEMENTS: f"the size is 1/{ELEMENTS} of the reference: mean over elements instead of sum?",
    1 / PIXELS: f"the size is 1/{PIXELS} of the reference: mean over pixels instead of sum?",
    1 / CHANNELS: f"the size is 1/{CHANNELS} of the reference: mean over channels instead of sum?",
}
BATCHES = {0: "", -1: "divided by the batch", -2: "divided by the batch twice", 1: "multiplied by the batch"}


def size(
    seen: Sequence[tuple[int, int, float, float]], style: str, weighting: str | None, tolerance: float
) -> tuple[bool | str, str, str]:
    """Which w(t) and which slips make these (t, batch, g, k), k the size of the gradient against eps_hat - eps.

    Args:
        seen: timestep, batch, guidance scale and size of every picture.
        style: "loss" may be divided by the batch, "gradient" may not.
        weighting: a name from WEIGHTS that is demanded, or None: any positive function of t.

    Returns:
        ok (True, False or "note"), what came, the cause.
    """
    weights = {k: (f, "") for k, f in WEIGHTS.items() if weighting in (None, k)} | SLIPPED_WEIGHTS
    allowed = (0, -1) if style == "loss" else (0,)
    hypotheses = []
    for (name, (w, slipped)), (factor, two), (mean, many), (power, batch), scaled in product(
        weights.items(), FACTORS.items(), MEANS.items(), BATCHES.items(), (False, True)
    ):
        wrong = [
            *([many] if many else []),
            *([two] if two else []),
            *([] if power in allowed else [batch + ": the gradient of one picture must not depend on how many there are"]),
            *(["multiplied by the guidance scale"] if scaled else []),
            *([slipped] if slipped else []),
        ]
        hypotheses.append((len(wrong), name, w, factor * mean, power, scaled, "; ".join(wrong)))
    for count, name, w, constant, power, scaled, cause in sorted(hypotheses, key=lambda h: h[0]):
        if all(abs(k / (constant * w(t) * b**power * (g if scaled else 1) or 1e-30) - 1) < tolerance for t, b, g, k in seen):
            return count == 0, f"{_fraction(constant)}w(t), w = {name}", cause
    for name, (w, _) in weights.items():
        ratios = [k / w(t) for t, b, _, k in seen if b == 1] or [k / w(t) for t, _, _, k in seen]
        if len(ratios) > 1 and max(ratios) - min(ratios) < tolerance * abs(max(ratios, key=abs)):
            return False, f"{ratios[0]:.4g} w(t), w = {name}", f"the size is {ratios[0]:.4g} times the reference"
    if weighting is not None:
        return False, "another function of t", f"the weight is not {weighting}"
    spread = {t: {round(math.log(abs(k)), 2) for t2, b, _, k in seen if t2 == t and b == 1} for t, *_ in seen}
    if any(len(sizes) > 1 for sizes in spread.values()):
        return "note", "not a function of t alone", "the size differs between pictures: was the gradient normalised or clipped?"
    values = ", ".join(f"{k:.3g} at t={t}" for t, _, _, k in seen[:3])
    return "note", values, "a weight w(t) that is not in the list; any positive function of t is allowed"


def _fraction(value: float) -> str:
    """ "1/16384 ", "2 " or nothing for 1."""
    if value == 1:
        return ""
    return f"{value:g} " if value > 1 else f"1/{1 / value:g} "
