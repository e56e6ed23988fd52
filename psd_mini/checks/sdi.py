"""Check of Score Distillation via Inversion: SDS whose noise is found, not drawn.

    G = w(t) (eps_hat(x_t) - kappa),    x_t = alpha_t x + sigma_t kappa

kappa is the noise that the prior itself gives x. DDIM goes from x up to t, or a little above, with
any guidance of its own; a step from u to v is

    x_v = alpha_v x0_hat(x_u) + sigma_v eps_hat(x_u),    kappa = (x_t - alpha_t x) / sigma_t

The UNet is asked at every point, so each step can be taken apart into x, x_u, eps_hat(x_u) and
fresh noise. Where kappa is carried to another level, or found as a fixed point, x stands in for a
part of x0_hat; the shares of both together must be alpha_v. A part of sigma_v may be fresh noise.
The rest is the check of SDS, with kappa for the noise.

Source: Lukoianov et al. 2024, arXiv 2405.15891, and threestudio's file for it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor

from psd_mini.checks.directions import GUIDED, Method
from psd_mini.checks.exact_world import alpha_sigma
from psd_mini.checks.guard import guarded
from psd_mini.checks.probe import Trial, readings_of
from psd_mini.checks.reading import Group, Reading, cosine, fit, split_gradient
from psd_mini.checks.report import Report
from psd_mini.checks.sds import check_method
from psd_mini.checks.sizes import Scale
from psd_mini.checks.tables import LEVELS, best_explanation, causes_of, formulas

RANDOM = "the noise is drawn at random: this is SDS; SDI finds it by inverting x"
NO_NOISE = "x_t holds no noise: the UNet is asked about x itself, nothing was inverted"
NO_STEP = "a step of the inversion is no DDIM step, alpha_v x0_hat(x_u) + sigma_v eps_hat(x_u)"
SIGNALS = {  # of x0_hat and x in x_v
    "alpha(v)": "",
    "alpha(u)": "the step keeps the signal level alpha_u of where it starts",
    "abar(v)": "the square root is missing in the step's signal, alpha_v = sqrt(abar_v)",
    "alpha(v) alpha(u)": "x0_hat is not divided by alpha_u in the step",
    "1 + 0 v": "x0_hat is not multiplied by alpha_v in the step",
    "sigma(v)": "alpha_v and sigma_v are swapped in the step",
}
NOISES = {  # of eps_hat in x_v
    "sigma(v)": "",
    "sigma(u)": "the step keeps the noise level sigma_u of where it starts",
    "1 - abar(v)": "the square root is missing in the step's noise, sigma_v = sqrt(1 - abar_v)",
    "0 v": "the step adds no noise: sigma_v eps_hat is missing",
    "alpha(v)": "alpha_v and sigma_v are swapped in the step",
    "sigma(v) - alpha(v) / alpha(u) (1 - sigma(u))": "eps_hat carries no sigma_u in x0_hat(x_u)",
}
SIGNAL, NOISE = (formulas("u, v", rows, LEVELS) for rows in (SIGNALS, NOISES))
EQUATION = "G = w(t) (eps_hat(x_t) - kappa), kappa found by DDIM inversion"
REDRAWN = "a fresh noise is subtracted: kappa is the one in x_t, (x_t - alpha_t x) / sigma_t"
SDI = Method("SDI", EQUATION, GUIDED, "- eps", {"- another_noise": REDRAWN})
NEAR = 0.04  # how far a level may be from another; level 0 counts as clean


def _shares(x: Tensor, start: Group, end: Group, noises: list[Tensor]) -> tuple[float, ...]:
    """x_v = b x + p x_u + q eps_hat(x_u) + n fresh noise, as (b, p, q, |n|)."""
    at_x = cosine(x, start.x_t) > 1 - 1e-7  # only one of the two is needed
    noised_x = not at_x and fit(start.x_t, [x, *noises])[1] < 1e-4
    parts = [[] if at_x else [x], [] if noised_x else [start.x_t], list(start.eps_hat.values())]
    c, left = fit(end.x_t, [*sum(parts, []), *noises])
    b, p, q = (sum(c.pop(0) for _ in part) for part in parts)
    return b, p, q, max(map(abs, c), default=0.0) if left < NEAR else 1.0


def _levels(step: tuple[float, ...], u: int, v: int) -> tuple[bool, float, float]:
    """Is this a DDIM step from level u to v? The shares of x0_hat (and x) and of eps_hat."""
    (b, p, q, fresh), (alpha_u, sigma_u), (alpha_v, sigma_v) = step, alpha_sigma(u), alpha_sigma(v)
    # x_u = alpha_u x0_hat + sigma_u eps_hat
    signal, noise = b + p * alpha_u, q + p * sigma_u
    least = max(sigma_v**2 - fresh**2, 0.0) ** 0.5  # where fresh noise takes a part of sigma_v
    fits = abs(signal - alpha_v) < NEAR and least - NEAR < noise < sigma_v + NEAR
    return fits, signal, noise


def inversion_of(reading: Reading) -> str:
    """What is wrong with the way from x up to the x_t of the gradient; "" where nothing is."""
    points, wrong = reading.groups, []
    times = [round(point.t) for point in points]
    if len(points) == 1:
        return NO_NOISE if points[0].eps is None else RANDOM
    if times[:-1] != sorted(times[:-1]):
        return "the inversion goes down in t: it starts at x, which is clean, and adds noise"
    before = 0
    for start, end in pairwise(points):
        step, u, v = _shares(reading.x, start, end, reading.noises), round(start.t), round(end.t)
        if step[3] > 0.7 * alpha_sigma(v)[1]:
            return RANDOM if step[3] < 1 else NO_STEP
        # the UNet may be told the level of x_u, or that of x_v
        if not any(_levels(step, *pair)[0] for pair in ((u, v), (before, u), (before, v))):
            wrong.append(((u, v), *_levels(step, u, v)[1:]))
        before = u
    signals = best_explanation([(t, signal) for t, signal, _ in wrong], [SIGNAL], 0.01, 1.0)
    noises = best_explanation([(t, noise) for t, _, noise in wrong], [NOISE], 0.01, 1.0)
    causes = causes_of([*(signals or ()), *(noises or ())])
    return "; ".join(causes) or (NO_STEP if wrong else "")


def _look(report: Report, trials: list[Trial]) -> None:
    """The way up; then kappa is the noise in x_t."""
    causes: dict[str, None] = {}
    for reading in readings_of(trials):
        if reading.groups:
            causes[inversion_of(reading)] = None
            last = reading.groups[-1]
            last.a, last.s = alpha_sigma(round(last.t))
            last.eps = (last.x_t - last.a * reading.x) / last.s
            reading.groups = [last]
            split_gradient(reading)
    cause, came = "; ".join(filter(None, causes)), f"{len(trials[0].trace.calls)} calls of the UNet"
    report.add(not cause, "inversion", came, "DDIM from x up to t", cause, EQUATION)


@guarded("SDI")
def check_sdi(fn: Any, *, weighting: str | None = None, gradient_scale: str = "report") -> Report:
    """Is this an SDI gradient, with its noise found by DDIM inversion of x?

    Args:
        fn, weighting, gradient_scale: as in `check_sds`. It asks the UNet at each point of
            the inversion, and last at the x_t that the gradient is made of.
    """
    return check_method(SDI, fn, Scale(weighting, gradient_scale), look=_look)
