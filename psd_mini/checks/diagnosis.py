"""From coefficients to words: which slip makes these numbers?

Tables of hypotheses, each compared with all runs at once: how signal and noise were mixed
(`level`), how guidance combines two predictions (`guidance`), and by which slips a gradient is too
large or small (`explain`, `size`). They are independent, so two mistakes are both found. What fits
none of the rows is reported as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from psd_mini.checks.world import SCALING, SHAPE, T, alpha_sigma

Level = Callable[[int], float]
Slip = tuple[str, Callable[..., float]]  # words, and the factor that the slip brings


def _alpha(t: int) -> float:
    return alpha_sigma(t)[0]


def _sigma(t: int) -> float:
    return alpha_sigma(t)[1]


def _beta(t: int) -> float:
    return 1 - (_alpha(t) / _alpha(t - 1)) ** 2 if t > 0 else _sigma(0) ** 2


ROOT = "the square root is missing (alphas_cumprod is alpha_t squared)"
STEP = "alphas in place of alphas_cumprod: the cumulative product is missing"
SHIFT = (
    "t is off by one, in the schedule or between noising and the UNet: the {} level is that of t"
    " {} 1"
)
SWAP = "alpha_t and sigma_t are swapped"
# hypotheses for a and s in x_t = a x + s eps: (formula, value at t, cause); the first is right
SIGNAL: list[tuple[str, Level, str]] = [
    ("sqrt(abar_t)", _alpha, ""),
    ("abar_t", lambda t: _alpha(t) ** 2, ROOT),
    ("alpha_{t-1}", lambda t: _alpha(t - 1), SHIFT.format("signal", "-")),
    ("alpha_{t+1}", lambda t: _alpha(t + 1), SHIFT.format("signal", "+")),
    ("sqrt(1 - abar_t)", _sigma, SWAP),
    ("1 - abar_t", lambda t: _sigma(t) ** 2, f"{SWAP}, and {ROOT}"),
    ("sqrt(1 - beta_t)", lambda t: (1 - _beta(t)) ** 0.5, STEP),
    ("1 - beta_t", lambda t: 1 - _beta(t), f"{STEP}; {ROOT}"),
    ("1", lambda t: 1.0, "x is not scaled by alpha_t"),
    ("0", lambda t: 0.0, "x is not in x_t: the UNet was asked about pure noise"),
    (
        "alpha_t / scaling",
        lambda t: _alpha(t) / SCALING,
        "latents were not multiplied by vae.config.scaling_factor",
    ),
    (
        "sqrt(prod beta_s)",
        lambda t: math.prod(map(_beta, range(t + 1))) ** 0.5,
        "the product is over beta and not over 1 - beta",
    ),
    (
        "alpha_{T-1-t}",
        lambda t: _alpha(T - 1 - t),
        "the schedule is reversed: t = 0 must be the cleanest",
    ),
]
NOISE: list[tuple[str, Level, str]] = [
    ("sqrt(1 - abar_t)", _sigma, ""),
    (
        "1 - abar_t",
        lambda t: _sigma(t) ** 2,
        "the square root is missing: sigma_t is sqrt(1 - abar_t)",
    ),
    ("0", lambda t: 0.0, "no noise was added: the UNet must see x_t = alpha_t x + sigma_t eps"),
    ("sigma_{t-1}", lambda t: _sigma(t - 1), SHIFT.format("noise", "-")),
    ("sigma_{t+1}", lambda t: _sigma(t + 1), SHIFT.format("noise", "+")),
    ("sqrt(abar_t)", _alpha, SWAP),
    ("abar_t", lambda t: _alpha(t) ** 2, f"{SWAP}, and {ROOT}"),
    ("sqrt(beta_t)", lambda t: _beta(t) ** 0.5, STEP),
    ("beta_t", _beta, f"{STEP}; the square root is missing"),
    (
        "1 - alpha_t",
        lambda t: 1 - _alpha(t),
        "sigma_t is sqrt(1 - abar_t), not 1 - sqrt(abar_t), which is 1 - alpha_t",
    ),
    ("1", lambda t: 1.0, "the noise is not scaled by sigma_t"),
]


def level(
    table: Sequence[tuple[str, Level, str]], values: Iterable[tuple[int, float]], tolerance: float
) -> tuple[str, str]:
    """Which formula gives these (t, value): its name and what is wrong with it; numbers and a
    general cause otherwise."""
    values = list(values)
    for name, formula, cause in table:
        if all(
            abs(value - formula(t)) <= tolerance * max(abs(formula(t)), 0.02) for t, value in values
        ):
            return name, cause
    t, value = max(
        values, key=lambda v: (math.isnan(v[1]), abs(v[1] - table[0][1](v[0])))
    )  # the largest error
    return (
        f"{value:.4g} at t = {t}",
        f"{value:.4g} came at t = {t}, expected {table[0][0]} = {table[0][1](t):.4g}",
    )


S_PLUS_1 = (
    "your scale acts as g + 1 (DreamFusion's convention, s+1): that is cond + g (cond - uncond);"
    " start from uncond instead"
)
# hypotheses for eps_hat = c eps_cond + u eps_uncond at guidance scale g: ((c, u) at g, cause); the
# first is right
GUIDANCE: dict[str, tuple[Callable[[float], tuple[float, float]], str]] = {
    "uncond + g (cond - uncond)": (lambda g: (g, 1 - g), ""),
    "cond + g (cond - uncond)": (lambda g: (1 + g, -g), S_PLUS_1),
    "cond + g (uncond - cond)": (
        lambda g: (1 - g, g),
        (
            "conditional and unconditional predictions are swapped (order of the chunks?): flipped"
            " guidance, away from the prompt"
        ),
    ),
    "uncond - g (cond - uncond)": (
        lambda g: (-g, 1 + g),
        "flipped guidance sign: it goes away from the prompt",
    ),
    "cond": (
        lambda g: (1, 0),
        "the guidance scale is ignored: this is the conditional prediction, g = 1",
    ),
    "uncond": (
        lambda g: (0, 1),
        "only the unconditional prediction is used: the prompt has no influence",
    ),
    "g (cond - uncond)": (lambda g: (g, -g), "the unconditional prediction in front is missing"),
    "cond - uncond": (lambda g: (1, -1), "only the difference cond - uncond is used"),
    "(g - 1) cond + (2 - g) uncond": (
        lambda g: (g - 1, 2 - g),
        "the scale behaves as s-1: g - 1 was taken for g",
    ),
}


def guidance(seen: Sequence[tuple[float, float, float]], tolerance: float) -> tuple[str, str]:
    """Which combination of predictions gives (g, c, u): its formula and what is wrong with it."""
    for name, (row, cause) in GUIDANCE.items():
        if all(
            max(abs(c - row(g)[0]), abs(u - row(g)[1])) <= tolerance * (1 + abs(g))
            for g, c, u in seen
        ):
            return name, cause
    g, c, u = seen[0]
    came = f"{c:.3g} cond {u:+.3g} uncond"
    return (
        f"{came} at g = {g:g}",
        f"{came} came at g = {g:g}, expected {g:g} cond {1 - g:+g} uncond (guidance)",
    )


def explain(
    seen: Sequence[tuple[tuple, float]], slips: Sequence[Slip], tolerance: float = 1e-2
) -> list[str] | None:
    """The fewest slips (three at most) whose factors multiply to all these values: their words, or
    None.

    Args:
        seen: (inputs, value) of every run; the value would be 1 without a slip.
        slips: (words, factor as a function of the inputs); without words it is allowed.
        tolerance: relative.
    """
    factors = [[factor(*inputs) for inputs, _ in seen] for _, factor in slips]
    found = []
    for chosen in (c for n in range(4) for c in combinations(range(len(slips)), n)):
        if all(
            abs(v - p) < tolerance * abs(p)
            for (_, v), p in zip(seen, _product(factors, chosen, len(seen)), strict=True)
        ):
            found.append([slips[j][0] for j in chosen if slips[j][0]])
    return min(found, key=len, default=None)


def _product(factors: list[list[float]], chosen: Sequence[int], n: int) -> Iterable[float]:
    """The product of the chosen slips' factors, one run after the other."""
    return (math.prod(factors[j][i] for j in chosen) for i in range(n))


def _power(i: int, j: int) -> tuple[str, Level]:
    """alpha_t^i sigma_t^j: its name and its value."""
    parts = [
        f"{name}{f'^{p}' if p != 1 else ''}" for name, p in (("alpha_t", i), ("sigma_t", j)) if p
    ]
    return " ".join(parts) or "1", lambda t: _alpha(t) ** i * _sigma(t) ** j


# weights w(t) that are known by name, the simple ones first, and slips in them
WEIGHTS: dict[str, Level] = dict(
    _power(i, j)
    for i, j in sorted(
        ((i, j) for i in range(-2, 3) for j in range(-2, 5)), key=lambda p: abs(p[0]) + abs(p[1])
    )
) | {"1 - alpha_t": lambda t: 1 - _alpha(t), "t / T": lambda t: t / T}
WEIGHTINGS = {
    "sds": "sigma_t^2",
    "uniform": "1",
    "fantasia3d": "alpha_t sigma_t^2",
}  # schedule.weight's names for some
SLIPPED_WEIGHTS: dict[str, tuple[Level, str]] = {
    "beta_t": (_beta, "the weight is 1 - alphas[t] with the per-step alphas: use alphas_cumprod"),
    "sigma_{t+1}^2": (
        lambda t: _sigma(t + 1) ** 2,
        "the weight is taken at t + 1: t is off by one",
    ),
    "sigma_{t-1}^2": (
        lambda t: _sigma(t - 1) ** 2,
        "the weight is taken at t - 1: t is off by one",
    ),
}


def slips_of_size(shape: Sequence[int] = SHAPE, style: str = "gradient") -> list[Slip]:
    """What makes a gradient too large or small, as factors of (t, batch, g).

    Args:
        shape: of one picture (C, h, w), or of whatever is averaged over.
        style: a "loss" may be divided by the batch, a "gradient" may not.
    """
    means = {"elements": math.prod(shape), "pixels": math.prod(shape[1:]), "channels": shape[0]}
    alone = "the gradient of one picture must not depend on how many there are"
    mean = "the size is 1/{} of the reference: mean over {} instead of sum?"
    slips: list[Slip] = [
        *((mean.format(n, what), lambda t, b, g, n=n: 1 / n) for what, n in means.items()),
        ("twice the reference: the factor 1/2 of 0.5 ||x - target||^2 is missing?", lambda *_: 2.0),
        ("half the reference: one factor 1/2 too many?", lambda *_: 0.5),
        (f"multiplied by the batch: {alone}", lambda t, b, g: float(b)),
        ("multiplied by the guidance scale", lambda t, b, g: g),
        ("" if style == "loss" else f"divided by the batch: {alone}", lambda t, b, g: 1 / b),
    ]
    return (
        slips
        if style == "gradient"
        else [*slips, (f"divided by the batch twice: {alone}", lambda t, b, g: 1 / b**2)]
    )


def size(
    seen: Sequence[tuple[int, int, float, float]],
    style: str,
    tolerance: float,
    weighting: str | None = None,
) -> tuple[bool | str, str, str]:
    """Which w(t) and which slips make these (t, batch, g, k), k the size of the gradient against
    eps_hat - eps.

    Args:
        seen: timestep, batch, guidance scale and size of every picture.
        style: "loss" or "gradient", see `slips_of_size`.
        weighting: a key of `WEIGHTINGS` if only that w(t) is right.

    Returns:
        ok (True, False or "note"), what came, the cause.
    """
    weights = {name: (w, "") for name, w in WEIGHTS.items()} | SLIPPED_WEIGHTS
    slips, found = slips_of_size(style=style), []
    for name, (w, slipped) in weights.items():
        ratios = [k / max(w(t), 1e-30) for t, _, _, k in seen]
        alone = [ratio for ratio, (_, b, *_) in zip(ratios, seen, strict=True) if b == 1]
        words = explain(
            [(s[:3], ratio) for s, ratio in zip(seen, ratios, strict=True)], slips, tolerance
        )
        if words is None and len(alone) > 1 and max(alone) - min(alone) < tolerance * max(alone):
            found.append(([f"the size is {alone[0]:.4g} times the reference", "", ""], name))
        elif words is not None:
            found.append((words + [slipped] * bool(slipped), name))
    wanted = WEIGHTINGS[weighting] if weighting else ""
    if found:
        words, name = min(found, key=lambda entry: (len(entry[0]), entry[1] != wanted))
        came = f"w(t) = {name}" + ", times a factor" * bool(words)
        words += (
            [f"w(t) = {name} came, w(t) = {wanted} is expected"] if wanted not in ("", name) else []
        )
        return not words, came, "; ".join(filter(None, words))
    spread = {
        t: {round(math.log(abs(k)), 2) for t2, b, _, k in seen if t2 == t and b == 1}
        for t, *_ in seen
    }
    if any(len(sizes) > 1 for sizes in spread.values()):
        cause = "the size differs between pictures: was the gradient normalised or clipped?"
        return not wanted and "note", "not a function of t alone", cause
    values = ", ".join(f"{k:.3g} at t={t}" for t, _, _, k in seen[:3])
    if wanted:
        return False, values, f"w(t) = {wanted} is expected, and this is no multiple of it"
    return (
        "note",
        values,
        "a weight w(t) that is not in the list; any positive function of t is allowed",
    )
