"""Check of SDS with a velocity model of rectified flow: eps - x in place of the noise.

    x_t = (1 - t) x + t eps,    0 <= t <= 1
    G   = w(t) (v_hat - (eps - x)),    v_hat = v_uncond + g (v_cond - v_uncond)

v_hat is the model's prediction E[eps - x | x_t], which is exact here (`exact_world`). As eps_hat =
x_t + (1 - t) v_hat and x0_hat = x_t - t v_hat, it is SDS with another weight:

    eps_hat - eps = (1 - t) (v_hat - (eps - x)),    x - x0_hat = t (v_hat - (eps - x))

Sources: rectified flow, Liu et al. 2022, arXiv 2209.03003, with noise at t = 1 as in Stable
Diffusion 3; its use in score distillation, Li et al. 2024 (FlowDreamer), arXiv 2408.05008.
"""

from __future__ import annotations

from typing import Any

from psd_mini.checks.directions import GUIDED, PLACES, VECTORS, Method
from psd_mini.checks.exact_world import T
from psd_mini.checks.grading.submission import environment
from psd_mini.checks.grading.unet import Velocity, flow_time
from psd_mini.checks.guard import guarded
from psd_mini.checks.noise_schedule import level
from psd_mini.checks.probe import Trial, readings_of
from psd_mini.checks.reading import split_gradient, split_x_t
from psd_mini.checks.report import Report
from psd_mini.checks.sds import check_method
from psd_mini.checks.tables import LEVELS, formulas

AS_NOISE = "v_hat is taken for a prediction of the noise: what is subtracted is eps - x, not eps"
TARGETS = {  # of alpha = 1 - t, sigma = t and g
    "- eps + x": "",
    "eps - x": "the target has the other sign, x - eps: v_hat predicts eps - x",
    "- eps - x": "the target is eps + x: v_hat predicts eps - x",
    "x": "the noise is missing in the target: v_hat predicts eps - x",
    "nothing": "no target is subtracted: G is the velocity alone",
    "- another_noise + x": "the noise was redrawn: the target has another one than x_t",
    "- sigma eps - alpha x": "x_t is subtracted in place of eps - x",
    "- sigma eps + sigma x": "x_t - v_hat lacks the factor t: x0_hat is x_t - t v_hat",
    "- alpha eps + alpha x": "x_t + v_hat lacks the factor 1 - t: eps_hat is x_t + (1 - t) v_hat",
}
SWAPPED = "t and 1 - t are swapped: at t = 1 there is only noise"
SPHERE = "the factors' squares add up to 1: in rectified flow the factors do, 1 - t and t"
OF_DDPM = "x_t is mixed with a DDPM's alpha_t and sigma_t: rectified flow mixes with 1 - t and t"
SIGNALS = {
    "1 - t": "",
    "t": SWAPPED,
    "1": "x is not multiplied by 1 - t",
    "sqrt(1 - t^2)": SPHERE,
    "sqrt(1 - t)": SPHERE,
    "alpha(round(T t))": OF_DDPM,
}
NOISES = {
    "t": "",
    "1 - t": SWAPPED,
    "1": "the noise is not multiplied by t",
    "sqrt(t)": SPHERE,
    "sigma(round(T t))": OF_DDPM,
}
SIGNAL, NOISE = (formulas("t", rows, LEVELS) for rows in (SIGNALS, NOISES))
EQUATION, OTHERS = "G = w(t) (v_hat - (eps - x))", formulas("alpha, sigma, g", TARGETS, VECTORS)
OWN = (tuple(OTHERS), (PLACES[0], PLACES[2]))  # x - x_t is along eps - x: no place of its own
FLOW = Method("flow", EQUATION, GUIDED, "- eps + x", {"SDS": AS_NOISE}, *OWN)


def _look(report: Report, trials: list[Trial]) -> None:
    """x_t = (1 - t) x + t eps, at the t that the model was told, in parts of T from now on."""
    signals, noises = [], []
    for reading in readings_of(trials):
        for group in reading.groups:
            t = flow_time(group.t).item()
            group.t = T * t
            split_x_t(group, reading.x, reading.noises)  # without a DDPM's sigma_t
            signals.append((t, group.a))
            noises.append((t, group.s))
        split_gradient(reading)
    if not signals:
        return
    slack = 1e-2 if trials[0].tolerance > 0.01 else 2e-4
    (a, wrong), (s, also) = level(SIGNAL, signals, slack), level(NOISE, noises, slack)
    cause = "; ".join(dict.fromkeys(filter(None, (wrong, also))))
    report.add(not cause, "x_t", f"({a}) x + ({s}) eps", "(1 - t) x + (t) eps", cause)


@guarded("flow")
def check_flow(fn: Any) -> Report:
    """Is this SDS with a velocity model, G = w(t) (v_hat - (eps - x)) at x_t = (1 - t) x + t eps?

    Args:
        fn: as in `check_sds`; the model is its parameter `velocity`, `transformer`, `model`, ...
            It is asked at t in [0, 1], or in [0, 1000] as in diffusers.
    """
    return check_method(FLOW, fn, look=_look, world=environment(Velocity()))
