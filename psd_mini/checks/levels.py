"""How signal and noise were mixed: the tables of a and s in x_t = a x + s eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from psd_mini.checks.exact_world import SCALING, T, alpha_at, sigma_at
from psd_mini.checks.tables import Row, fewest_slips

OfTime = Callable[[int], float]


def beta_at(t: int) -> float:
    """beta_t = 1 - abar_t / abar_{t-1}, the noise of one step."""
    return 1 - (alpha_at(t) / alpha_at(t - 1)) ** 2 if t > 0 else sigma_at(0) ** 2


def _product_of_betas(t: int) -> float:
    return math.prod(map(beta_at, range(t + 1)))


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
SIGNAL = [  # a in x_t = a x + s eps; the first row is right
    Row("sqrt(abar_t)", alpha_at),
    Row("abar_t", lambda t: alpha_at(t) ** 2, ROOT),
    Row("alpha_{t-1}", lambda t: alpha_at(t - 1), SHIFT.format("signal", "-")),
    Row("alpha_{t+1}", lambda t: alpha_at(t + 1), SHIFT.format("signal", "+")),
    Row("sqrt(1 - abar_t)", sigma_at, SWAP),
    Row("1 - abar_t", lambda t: sigma_at(t) ** 2, f"{SWAP}, and {ROOT}"),
    Row("sqrt(1 - beta_t)", lambda t: (1 - beta_at(t)) ** 0.5, STEP),
    Row("1 - beta_t", lambda t: 1 - beta_at(t), f"{STEP}; {ROOT}"),
    Row("1", lambda t: 1.0, "x is not scaled by alpha_t"),
    Row("0", lambda t: 0.0, "x is not in x_t: the UNet was asked about pure noise"),
    Row("alpha_t / scaling", lambda t: alpha_at(t) / SCALING, UNSCALED),
    Row("sqrt(prod beta_s)", lambda t: _product_of_betas(t) ** 0.5, OVER_BETA),
    Row("alpha_{T-1-t}", lambda t: alpha_at(T - 1 - t), REVERSED),
]
# 1 - prod beta_s is nearly 1: whoever makes a table of abar_t means this, who mixes x does not
SIGNAL_OF_A_TABLE = [
    SIGNAL[0],
    Row("sqrt(1 - prod beta_s)", lambda t: (1 - _product_of_betas(t)) ** 0.5, OVER_BETA),
    *SIGNAL[1:],
]
NOISE = [  # s in x_t = a x + s eps; the first row is right
    Row("sqrt(1 - abar_t)", sigma_at),
    Row("1 - abar_t", lambda t: sigma_at(t) ** 2, NO_ROOT),
    Row("0", lambda t: 0.0, "no noise was added: the UNet must see x_t = alpha_t x + sigma_t eps"),
    Row("sigma_{t-1}", lambda t: sigma_at(t - 1), SHIFT.format("noise", "-")),
    Row("sigma_{t+1}", lambda t: sigma_at(t + 1), SHIFT.format("noise", "+")),
    Row("sqrt(abar_t)", alpha_at, SWAP),
    Row("abar_t", lambda t: alpha_at(t) ** 2, f"{SWAP}, and {ROOT}"),
    Row("sqrt(beta_t)", lambda t: beta_at(t) ** 0.5, STEP),
    Row("beta_t", beta_at, f"{STEP}; the square root is missing"),
    Row("1 - alpha_t", lambda t: 1 - alpha_at(t), ONE_MINUS_ALPHA),
    Row("1", lambda t: 1.0, "the noise is not scaled by sigma_t"),
]


def level(
    table: list[Row], values: Iterable[tuple[int, float]], tolerance: float
) -> tuple[str, str]:
    """Which row of SIGNAL or NOISE gives these (t, value): its name and what is wrong with it.

    Where none does: numbers and a general cause.
    """
    values = list(values)
    right = table[0]

    def fits(row: Row) -> bool:
        for t, value in values:
            wanted = row.value(t)
            # written so that NaN does not fit
            if not abs(value - wanted) <= tolerance * max(abs(wanted), 0.02):
                return False
        return True

    found = fewest_slips([table], fits)
    if found is not None:
        return found[0].name, found[0].cause

    def error(seen: tuple[int, float]) -> tuple[bool, float]:
        t, value = seen
        return math.isnan(value), abs(value - right.value(t))

    t, worst = max(values, key=error)
    cause = f"{worst:.4g} came at t = {t}, expected {right.name} = {right.value(t):.4g}"
    return f"{worst:.4g} at t = {t}", cause
