"""Check of Posterior Distillation Sampling, which edits x, starting from x_src.

    z_t = (x_{t-1} - mu(x_t, eps_hat)) / s_t,    mu = c_0 x0_hat + c_1 x_t
    c_0 = alpha_{t-1} beta_t / sigma_t^2,    c_1 = sqrt(1 - beta_t) sigma_{t-1}^2 / sigma_t^2
    G   = w(t) (z_t of x, with its prompt - z_t of x_src, with its own)

Both x_t have the same noise, and so have both x_{t-1}; it cancels, and what is left is

    G   = chi (eps_tgt - eps_src) + psi (x - x_src),    chi = c_0 sigma_t / (alpha_t s_t)
    psi = (alpha_{t-1} - c_0 - c_1 alpha_t) / s_t

Since c_0 + c_1 alpha_t = alpha_{t-1}, psi is zero. With steps of one, PDS is the difference of two
predictions (DDS) with the weight chi. The published code takes two steps at a time with the beta of
one; then psi is positive, and holds x at x_src. Both are right here, and so is any s_t.

It is the check of SDS, with eps_src for the noise, and x - x_src for x.

Sources: Koo et al. 2023, arXiv 2311.13831, and its code; DDS: Hertz et al. 2023, arXiv 2304.07090.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from psd_mini.checks.directions import GUIDED, VECTORS, Method
from psd_mini.checks.exact_world import SCHEDULE, neighbour
from psd_mini.checks.guard import guarded
from psd_mini.checks.noise_schedule import judge_levels
from psd_mini.checks.probe import Trial, readings_of
from psd_mini.checks.reading import Group, Reading, fit
from psd_mini.checks.report import Report
from psd_mini.checks.sds import check_method
from psd_mini.checks.tables import LEVELS, Row, formulas

NO_PAIR = "the UNet is to be asked at two x_t, made of x and of x_src, with one noise, at one t"
OTHER_PREVIOUS = "a noise is left: both x_{t-1} are made with one eps_{t-1}, and subtracted"
AS_SOURCE = "x is asked with the source's prompt: nothing pulls towards the target's"
AS_TARGET = "x_src is asked with the target's prompt, not with its own"
UNLIKE = "source and target are guided with different scales"
VANISHES = "the loss ||z_t(x) - z_t(x_src)||^2 was back-propagated: z_t depends on x by psi alone,"
VANISHES += " which is zero; take the difference as the gradient"
C_0_ROOT = "c_0: the square root of abar_{t-1} is missing, or x0_hat is not divided by alpha_t"
X0_HAT = "x0_hat is not divided by alpha_t, or c_0 has abar_{t-1} in place of its square root"
STEP = (  # x in x_{t-1}, c_0, x_t and eps_hat in x0_hat, c_1
    *("alpha_{t-1}", "alpha_{t-1} beta_t / sigma_t^2", "1 / alpha_t", "sigma_t / alpha_t"),
    "sqrt(1 - beta_t) sigma_{t-1}^2 / sigma_t^2",
)
SLIPS = {  # what came in these places of STEP
    "x_{t-1} has the noise level of t": {0: "alpha_t"},
    C_0_ROOT: {1: "abar_{t-1} beta_t / sigma_t^2"},
    X0_HAT: {2: "1 + 0 t", 3: "sigma_t"},
    "c_0: the factor sqrt(abar_{t-1}) is missing": {1: "beta_t / sigma_t^2"},
    "c_0: 1 - alphas_cumprod is taken for beta_t": {1: "alpha_{t-1}"},
    "square roots are missing in x0_hat": {2: "1 / abar_t", 3: "sigma_t^2 / abar_t"},
    "c_1: the square root of alphas[t] is missing": {4: "(1 - beta_t) sigma_{t-1}^2 / sigma_t^2"},
    "c_1: alphas_cumprod is taken for alphas": {4: "alpha_t sigma_{t-1}^2 / sigma_t^2"},
    "c_1: the factor (1 - abar_{t-1}) / (1 - abar_t) is missing": {4: "sqrt(1 - beta_t)"},
    "c_1: x_t is missing in mu": {4: "0 t"},
}


def ratio_row(slip: Mapping[int, str]) -> Row:
    """psi / chi as a function of t, with what a slip puts in the places of STEP."""
    parts = [slip.get(place, formula) for place, formula in enumerate(STEP)]
    signal, c_0, of_x_t, of_eps, c_1 = parts
    formula = f"({signal} - (({c_0}) ({of_x_t}) + {c_1}) alpha_t) / (({c_0}) ({of_eps}))"
    return formulas("t", {formula: ""}, LEVELS)[0]


def _identity(cause: str, slip: Mapping[int, str]) -> Row:
    """A row that subtracts eps_src, and adds psi / chi (x - x_src)."""
    ratio = ratio_row(slip)

    def value(alpha: float, sigma: float, g: float) -> Tensor:
        t = int((SCHEDULE.alphas_cumprod - alpha**2).abs().argmin())
        return ratio.value(t) * VECTORS["x"] - VECTORS["eps"]

    return Row(cause, value, cause)


EQUATION = "G = w(t) (z_t(x) - z_t(x_src)), z_t = (x_{t-1} - mu(x_t)) / s_t"
OTHER = VECTORS["another_noise"]
FREE = Row("noise", lambda a, s, g: -VECTORS["eps"], OTHER_PREVIOUS, 1.0, lambda a, s, g: [OTHER])
PDS = Method("PDS", EQUATION, GUIDED, "- eps", {}, (*(_identity(*s) for s in SLIPS.items()), FREE))


def published_row(k: int) -> Row:
    """psi / chi of steps of k levels with the beta of one, as in the published code."""
    return ratio_row({i: STEP[i].replace("t-1", f"t-{k}") for i in (0, 1, 4)})


PUBLISHED = [published_row(k) for k in (2, 4, 5, 10, 20)]


def _pair(reading: Reading) -> str:
    """Write a reading as one of SDS: eps_src for the noise, x - x_src for x; or why it is none."""
    x, x_src, noises = reading.x, neighbour(reading.x), reading.noises
    points: dict[bool, Group] = {}
    for group in reading.groups:
        left = [fit(group.x_t, [origin, *noises])[1] for origin in (x, x_src)]
        points[left[0] < left[1]] = group
    if len(points) < 2 or len({group.t for group in reading.groups}) > 1:
        return NO_PAIR
    target, source = points[True], points[False]
    own, others = list(target.eps_hat.values()), list(source.eps_hat.values())
    (psi, *c), reading.leftover = fit(reading.gradient, [x - x_src, *own, *others, *noises])
    tgt = dict(zip(target.eps_hat, c, strict=False))
    src = dict(zip(source.eps_hat, c[len(own) :], strict=False))
    fresh = max(c[len(own) + len(others) :], key=abs, default=0.0)
    chi, total = sum(tgt.values()) or 1e-30, sum(src.values()) or 1e-30
    # what the source's predictions make together takes the place of the noise
    theirs = [value * source.eps_hat[name] for name, value in src.items()]
    target.eps = torch.stack(theirs).sum(0) / total
    target.noise, target.ratio = 0, 1.0
    of_x, of_source = (max(part, key=lambda name: name != "uncond") for part in (tgt, src))
    reading.groups, reading.x = [target], x - x_src
    reading.terms = {("x", 0): psi, ("eps", 0): total, ("another_noise", 0): fresh}
    reading.terms |= {("cond", 0): tgt[of_x], ("uncond", 0): tgt.get("uncond", 0.0)}
    if abs(total) < 0.01 * abs(chi):
        return "z_t of x_src is not subtracted"
    if fit(target.x_t - source.x_t, [reading.x])[1] > 0.05:
        return "the two x_t have different noises: both are made with the same eps_t"
    if (of_x, of_source) != ("cond", "negative"):
        return AS_SOURCE if of_x == "negative" else AS_TARGET
    g = tgt["cond"] / chi
    return UNLIKE if abs(g - src["negative"] / total) > 0.05 * (1 + abs(g)) else ""


def _without_published(readings: list[Reading]) -> None:
    """Take psi (x - x_src) out of all gradients, if it is that of the published steps in all."""
    for row in PUBLISHED:
        errors = [0.0]
        for reading in readings:
            chi = reading.total("cond") + reading.total("uncond") or 1e-30
            errors.append(abs(reading.total("x") / chi - row.value(reading.t)))
        if max(errors) < 0.02:
            for reading in readings:
                reading.gradient = reading.gradient - reading.terms.pop(("x", 0), 0.0) * reading.x


def _look(report: Report, trials: list[Trial]) -> None:
    """Are there two pictures, and is each asked about as it should be?"""
    loss, gradient = trials[0].loss, trials[0].gradient
    if loss is not None and gradient.square().sum() < 1e-7 * loss.abs().sum():
        report.add(False, "chain rule", "nearly zero", "not zero", VANISHES, EQUATION)
        return
    readings = readings_of(trials)
    causes = dict.fromkeys(map(_pair, readings))
    _without_published(readings)
    judge_levels(report, trials)
    cause, wanted = "; ".join(filter(None, causes)), "z_t of x and of x_src"
    report.add(not cause, "source", "another pair" if cause else wanted, wanted, cause, EQUATION)


@guarded("PDS")
def check_pds(fn: Any) -> Report:
    """Is this a PDS gradient, the target's stochastic latent minus the source's?

    Args:
        fn: as in `check_sds`, of latents x and x_src (or `tgt_latents`, `src_latents`) and of the
            prompts' embeddings cond and cond_src (or `tgt_text_embedding`, `src_text_embedding`).
    """
    return check_method(PDS, fn, look=_look)
