"""From coefficients to words: which slip makes these numbers?

Tables of hypotheses, each compared with all runs at once: how signal and noise were mixed
(`level`), how guidance combines two predictions (`guidance`), and by which slips a gradient is too
large or small (`explain`, `size`). They are independent, so two mistakes are both found. What fits
none of the rows is reported as plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product

from psd_mini.checks.exact_world import SCALING, SHAPE, T, alpha_at, sigma_at

OfTime = Callable[[int], float]
Hypotheses = list[tuple[str, OfTime, str]]  # formula, value at t, cause; the first is right
Slip = tuple[str, Callable[..., float]]  # words, and the factor that the slip brings
Pair = Callable[[float], tuple[float, float]]


def _beta(t: int) -> float:
    return 1 - (alpha_at(t) / alpha_at(t - 1)) ** 2 if t > 0 else sigma_at(0) ** 2


def _prod_beta(t: int) -> float:
    return math.prod(map(_beta, range(t + 1)))


ROOT = "the square root is missing (alphas_cumprod is alpha_t squared)"
STEP = "alphas in place of alphas_cumprod: the cumulative product is missing"
OFF_BY_ONE = "t is off by one, in the schedule or between noising and the UNet"
SHIFT = OFF_BY_ONE + ": the {} level is that of t {} 1"
SWAP = "alpha_t and sigma_t are swapped"
UNSCALED = "latents were not multiplied by vae.config.scaling_factor"
OVER_BETA = "the product is over beta and not over 1 - beta"
REVERSED = "the schedule is reversed: t = 0 must be the cleanest"
NO_ROOT = "the square root is missing: sigma_t is sqrt(1 - abar_t)"
ONE_MINUS_ALPHA = "sigma_t is sqrt(1 - abar_t), not 1 - sqrt(abar_t), which is 1 - alpha_t"
SIGNAL: Hypotheses = [  # a in x_t = a x + s eps
    ("sqrt(abar_t)", alpha_at, ""),
    ("abar_t", lambda t: alpha_at(t) ** 2, ROOT),
    ("alpha_{t-1}", lambda t: alpha_at(t - 1), SHIFT.format("signal", "-")),
    ("alpha_{t+1}", lambda t: alpha_at(t + 1), SHIFT.format("signal", "+")),
    ("sqrt(1 - abar_t)", sigma_at, SWAP),
    ("1 - abar_t", lambda t: sigma_at(t) ** 2, f"{SWAP}, and {ROOT}"),
    ("sqrt(1 - beta_t)", lambda t: (1 - _beta(t)) ** 0.5, STEP),
    ("1 - beta_t", lambda t: 1 - _beta(t), f"{STEP}; {ROOT}"),
    ("1", lambda t: 1.0, "x is not scaled by alpha_t"),
    ("0", lambda t: 0.0, "x is not in x_t: the UNet was asked about pure noise"),
    ("alpha_t / scaling", lambda t: alpha_at(t) / SCALING, UNSCALED),
    ("sqrt(prod beta_s)", lambda t: _prod_beta(t) ** 0.5, OVER_BETA),
    ("alpha_{T-1-t}", lambda t: alpha_at(T - 1 - t), REVERSED),
]
NOISE: Hypotheses = [  # s in x_t = a x + s eps
    ("sqrt(1 - abar_t)", sigma_at, ""),
    ("1 - abar_t", lambda t: sigma_at(t) ** 2, NO_ROOT),
    ("0", lambda t: 0.0, "no noise was added: the UNet must see x_t = alpha_t x + sigma_t eps"),
    ("sigma_{t-1}", lambda t: sigma_at(t - 1), SHIFT.format("noise", "-")),
    ("sigma_{t+1}", lambda t: sigma_at(t + 1), SHIFT.format("noise", "+")),
    ("sqrt(abar_t)", alpha_at, SWAP),
    ("abar_t", lambda t: alpha_at(t) ** 2, f"{SWAP}, and {ROOT}"),
    ("sqrt(beta_t)", lambda t: _beta(t) ** 0.5, STEP),
    ("beta_t", _beta, f"{STEP}; the square root is missing"),
    ("1 - alpha_t", lambda t: 1 - alpha_at(t), ONE_MINUS_ALPHA),
    ("1", lambda t: 1.0, "the noise is not scaled by sigma_t"),
]


def level(
    table: Hypotheses, values: Iterable[tuple[int, float]], tolerance: float
) -> tuple[str, str]:
    """Which formula gives these (t, value): its name and what is wrong with it.

    Where none does: numbers and a general cause.
    """
    values = list(values)
    right = table[0][1]

    def error(value: tuple[int, float]) -> tuple[bool, float]:
        return math.isnan(value[1]), abs(value[1] - right(value[0]))

    for name, formula, cause in table:
        wanted = [formula(t) for t, _ in values]
        pairs = zip(values, wanted, strict=True)
        if all(abs(v - want) <= tolerance * max(abs(want), 0.02) for (_, v), want in pairs):
            return name, cause
    t, worst = max(values, key=error)
    cause = f"{worst:.4g} came at t = {t}, expected {table[0][0]} = {right(t):.4g}"
    return f"{worst:.4g} at t = {t}", cause


S_PLUS_1 = (
    "your scale acts as g + 1 (DreamFusion's convention, s+1): that is cond + g (cond - uncond);"
    " start from uncond instead"
)
CHUNKS = (
    "conditional and unconditional predictions are swapped (order of the chunks?): flipped"
    " guidance, away from the prompt"
)
FLIPPED = "flipped guidance sign: it goes away from the prompt"
PLAIN = "the guidance scale is ignored: this is the conditional prediction, g = 1"
NO_PROMPT = "only the unconditional prediction is used: the prompt has no influence"
S_MINUS_1 = "the scale behaves as s-1: g - 1 was taken for g"
# formula: ((c, u) at g, cause) for eps_hat = c eps_cond + u eps_uncond; the first is right
GUIDANCE: dict[str, tuple[Pair, str]] = {
    "uncond + g (cond - uncond)": (lambda g: (g, 1 - g), ""),
    "cond + g (cond - uncond)": (lambda g: (1 + g, -g), S_PLUS_1),
    "cond + g (uncond - cond)": (lambda g: (1 - g, g), CHUNKS),
    "uncond - g (cond - uncond)": (lambda g: (-g, 1 + g), FLIPPED),
    "cond": (lambda g: (1, 0), PLAIN),
    "uncond": (lambda g: (0, 1), NO_PROMPT),
    "g (cond - uncond)": (lambda g: (g, -g), "the unconditional prediction in front is missing"),
    "cond - uncond": (lambda g: (1, -1), "only the difference cond - uncond is used"),
    "(g - 1) cond + (2 - g) uncond": (lambda g: (g - 1, 2 - g), S_MINUS_1),
}


def guidance(seen: Sequence[tuple[float, float, float]], tolerance: float) -> tuple[str, str]:
    """Which combination of predictions gives (g, c, u): its formula and what is wrong with it."""
    for name, (row, cause) in GUIDANCE.items():
        errors = [(g, max(abs(c - row(g)[0]), abs(u - row(g)[1]))) for g, c, u in seen]
        if all(error <= tolerance * (1 + abs(g)) for g, error in errors):
            return name, cause
    g, c, u = seen[0]
    came, wanted = f"{c:.3g} cond {u:+.3g} uncond", f"{g:g} cond {1 - g:+g} uncond"
    return f"{came} at g = {g:g}", f"{came} came at g = {g:g}, expected {wanted} (guidance)"


def explain(
    seen: Sequence[tuple[tuple, float]], slips: Sequence[Slip], tolerance: float = 1e-2
) -> list[str] | None:
    """The fewest slips (three at most) whose factors multiply to all these values, in words.

    Args:
        seen: (inputs, value) of every run; the value would be 1 without a slip.
        slips: (words, factor as a function of the inputs); without words it is allowed.
        tolerance: relative.

    Returns:
        None where no slips do.
    """
    factors = [[factor(*inputs) for inputs, _ in seen] for _, factor in slips]
    found = []
    for n in range(4):
        for chosen in combinations(range(len(slips)), n):
            products = [math.prod(factors[j][i] for j in chosen) for i in range(len(seen))]
            pairs = zip(seen, products, strict=True)
            if all(abs(value - p) < tolerance * abs(p) for (_, value), p in pairs):
                found.append([slips[j][0] for j in chosen if slips[j][0]])
    return min(found, key=len, default=None)


def _power(i: int, j: int) -> tuple[str, OfTime]:
    """alpha_t^i sigma_t^j: its name and its value."""
    powers = [("alpha_t", i), ("sigma_t", j)]
    parts = [name if p == 1 else f"{name}^{p}" for name, p in powers if p]
    return " ".join(parts) or "1", lambda t: alpha_at(t) ** i * sigma_at(t) ** j


_POWERS = sorted(product(range(-2, 3), range(-2, 5)), key=lambda p: abs(p[0]) + abs(p[1]))
TAKEN_AT = "the weight is taken at t {0} 1: t is off by one"
PER_STEP = "the weight is 1 - alphas[t] with the per-step alphas: use alphas_cumprod"
# weights w(t) that are known by name, the simple ones first, and slips in them: (w, cause)
KNOWN_WEIGHTS: dict[str, tuple[OfTime, str]] = {
    **{name: (w, "") for name, w in (_power(i, j) for i, j in _POWERS)},
    "1 - alpha_t": (lambda t: 1 - alpha_at(t), ""),
    "t / T": (lambda t: t / T, ""),
    "beta_t": (_beta, PER_STEP),
    "sigma_{t+1}^2": (lambda t: sigma_at(t + 1) ** 2, TAKEN_AT.format("+")),
    "sigma_{t-1}^2": (lambda t: sigma_at(t - 1) ** 2, TAKEN_AT.format("-")),
}
# the names of `schedule.WEIGHTINGS` as formulas
W_FORMULAS = {"sds": "sigma_t^2", "uniform": "1", "fantasia3d": "alpha_t sigma_t^2"}


def slips_of_size(shape: Sequence[int] = SHAPE, style: str = "gradient") -> list[Slip]:
    """What makes a gradient too large or small, as factors of (t, batch, g).

    Args:
        shape: of one picture (C, h, w), or of whatever is averaged over.
        style: a "loss" may be divided by the batch, a "gradient" may not.
    """
    slips: list[Slip] = []
    counts = (math.prod(shape), math.prod(shape[1:]), shape[0])
    for n, what in zip(counts, ("elements", "pixels", "channels"), strict=True):
        words = f"the size is 1/{n} of the reference: mean over {what} instead of sum?"
        slips.append((words, lambda t, b, g, n=n: 1 / n))
    alone = "the gradient of one picture must not depend on how many there are"
    divided = "" if style == "loss" else f"divided by the batch: {alone}"
    missing = "twice the reference: the factor 1/2 of 0.5 ||x - target||^2 is missing?"
    slips += [
        (missing, lambda *_: 2.0),
        ("half the reference: one factor 1/2 too many?", lambda *_: 0.5),
        (f"multiplied by the batch: {alone}", lambda t, b, g: float(b)),
        ("multiplied by the guidance scale", lambda t, b, g: g),
        (divided, lambda t, b, g: 1 / b),
    ]
    if style == "loss":
        slips.append((f"divided by the batch twice: {alone}", lambda t, b, g: 1 / b**2))
    return slips


Sizes = Sequence[tuple[int, int, float, float]]  # t, batch, g, size of a gradient


def size(
    seen: Sizes, style: str, tolerance: float, weighting: str | None = None
) -> tuple[bool | str, str, str]:
    """Which w(t) and which slips make these (t, batch, g, k), k the size against eps_hat - eps.

    Args:
        seen: timestep, batch, guidance scale and size of every picture.
        style: "loss" or "gradient", see `slips_of_size`.
        weighting: a key of `W_FORMULAS` if only that w(t) is right.

    Returns:
        ok (True, False or "note"), what came, the cause.
    """
    wanted = W_FORMULAS[weighting] if weighting else ""
    if found := _weights_that_fit(seen, slips_of_size(style=style), tolerance):
        words, name = min(found, key=lambda entry: (len(entry[0]), entry[1] != wanted))
        came = f"w(t) = {name}" + (", times a factor" if words else "")
        if wanted not in ("", name):
            words.append(f"w(t) = {name} came, w(t) = {wanted} is expected")
        return not words, came, "; ".join(filter(None, words))
    return _unknown_size(seen, wanted)


def _weights_that_fit(
    seen: Sizes, slips: list[Slip], tolerance: float
) -> list[tuple[list[str], str]]:
    """(slips in words, name of w) for every known weight that makes these sizes."""
    found = []
    for name, (w, slipped) in KNOWN_WEIGHTS.items():
        ratios = [k / max(w(t), 1e-30) for t, _, _, k in seen]
        alone = [ratio for ratio, (_, b, *_) in zip(ratios, seen, strict=True) if b == 1]
        inputs = [entry[:3] for entry in seen]
        words = explain(list(zip(inputs, ratios, strict=True)), slips, tolerance)
        if words is not None:
            found.append((words + [slipped] * bool(slipped), name))
        elif len(alone) > 1 and max(alone) - min(alone) < tolerance * max(alone):
            # a factor that nobody knows counts as three slips
            found.append(([f"the size is {alone[0]:.4g} times the reference", "", ""], name))
    return found


def _unknown_size(seen: Sizes, wanted: str) -> tuple[bool | str, str, str]:
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
