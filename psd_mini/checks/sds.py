"""Checks of SDS, CSD and VSD gradients (see `directions`), and of classifier-free guidance.

One reading of coefficients serves all three (see `reading`). A loss may stand for its gradient,
summed over elements and divided by the batch or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from psd_mini.checks import judging
from psd_mini.checks.directions import CFG_METHOD, CSD_METHOD, SDS_METHOD, VSD_METHOD, Method
from psd_mini.checks.grading.names import arguments, invoke
from psd_mini.checks.grading.submission import COURSE, prepare, tensors_in
from psd_mini.checks.guard import guarded
from psd_mini.checks.noise_schedule import judge_noise
from psd_mini.checks.probe import Prober, Trial
from psd_mini.checks.reading import fit, in_numbers
from psd_mini.checks.report import Report, Unreadable
from psd_mini.checks.sizes import Scale
from psd_mini.checks.trace import Call, Trace

# batch, g, t, seed: several noise levels, t = 500 twice with another picture
G_AND_T = ((7.5, 500), (3.0, 250), (7.5, 90), (7.5, 750), (3.0, 930), (7.5, 500))
ONE_PICTURE = [(1, g, (t,), seed) for seed, (g, t) in enumerate(G_AND_T)]
LIMITS = [(1, 1.0, (400,), 6), (1, 0.0, (400,), 7)]  # of guidance
BATCH = (3, 7.5, (150, 450, 800), 8)
SWITCHED = "q seems to be asked for the prior: are its adapters switched the wrong way?"
LEARNS_PRIOR = "q is trained to match the frozen model: with both equal the VSD gradient vanishes"


@guarded("SDS")
def check_sds(fn: Any, *, weighting: str | None = None, gradient_scale: str = "report") -> Report:
    """Is this an SDS gradient, and if not, what is it?

    Args:
        fn: a function, a class, or an object with a method such as `sds_loss`; see `grading.names`
            for parameter names.
        weighting: "sds" (sigma_t^2), "uniform" (1) or "fantasia3d" (alpha_t sigma_t^2) if only that
            w(t) is right; None takes any.
        gradient_scale: what a constant factor is (a mean for a sum, a missing 1/2): "report" calls
            the gradient scaled, "ignore" right, "require" wrong.

    Returns:
        A `Report`; it never raises, `report.require()` does.
    """
    return check_method(SDS_METHOD, fn, Scale(weighting, gradient_scale))


@guarded("CSD")
def check_csd(fn: Any, *, weighting: str | None = None, gradient_scale: str = "report") -> Report:
    """Is this a CSD gradient? Arguments as in `check_sds`; a factor g in front is allowed."""
    return check_method(CSD_METHOD, fn, Scale(weighting, gradient_scale))


@guarded("VSD")
def check_vsd(fn: Any, *, weighting: str | None = None, gradient_scale: str = "report") -> Report:
    """Is this a VSD gradient? Against the exact score of a Gaussian law q of the renders.

    q's network is the parameter `unet_lora`, `unet_q`, `predict_q`, ... Its training loss is looked
    at where it comes beside the gradient. Arguments as in `check_sds`.
    """
    return check_method(VSD_METHOD, fn, Scale(weighting, gradient_scale))


def check_method(
    method: Method,
    target: Any,
    scale: Scale | None = None,
    look: Callable[[Report, list[Trial]], None] | None = None,
    world: Mapping[str, Any] = {},
) -> Report:
    """Does a submission give the gradient of this method? Exceptions of its code are raised.

    Args:
        look: takes the place of the rows on x_t, and comes first; it may change what was read,
            such as put another vector in the place of the noise.
        world: what is given in place of the usual pipeline.
    """
    report = Report(f"check of {method.name}")
    name = method.name.lower()
    fn = prepare(target, (f"{name}_loss", f"get_{name}_loss", *COURSE, name))
    runs = run_all(Prober(fn, world, guided=method is CSD_METHOD))
    if not judging.basics(report, runs.trials[0], method.equation):
        return report
    if look:
        look(report, [*runs.trials, *runs.limits, *runs.batched])
    readable = judging.judge_gradient(report, method, runs, scale or Scale())
    if not look:
        judge_noise(report, [*runs.trials, *runs.batched])
    judging.judge_graph(report, runs.trials)
    asked = [call.model for call in runs.trials[0].trace.calls for _ in call.x_t]
    if not report.ok and asked.count("q") > asked.count("prior") > 0:
        report.add(False, "networks", "q is asked more often", "the prior twice", SWITCHED)
    if method is VSD_METHOD:
        _judge_training(report, runs.trials)
    if readable:
        judging.judge_batch(report, method, runs.batched, runs.failure)
    return report


def run_all(prober: Prober) -> judging.Runs:
    """Every call that a gradient is judged by."""
    runs = judging.Runs([prober.run(*plan) for plan in ONE_PICTURE])
    runs.takes_g = "guidance_scale" in prober.keys
    runs.limits = [prober.run(*plan) for plan in LIMITS]
    try:
        runs.batched = [prober.run(*BATCH)]
    except Unreadable as error:
        runs.failure = str(error)
    return runs


def _judge_training(report: Report, trials: list[Trial]) -> None:
    """What q learns from losses that came beside that of x."""
    for trial in trials:
        known = [("x", reading.x) for reading in trial.readings]
        groups = [group for reading in trial.readings for group in reading.groups]
        known += [("noise", group.eps) for group in groups if group.eps is not None]
        learnt = _learnt(trial.training, trial.trace, known)
        if learnt:
            cause = LEARNS_PRIOR if "prior" in learnt else "q must predict the noise that is in x_t"
            fine, came = set(learnt) == {"noise"}, f"q learns {in_numbers(learnt)}"
            equation = "min || eps_q(x_t) - eps ||^2"
            report.add(fine, "training of q", came, "q learns +1 noise", cause, equation)
            return
    cause = "q's training was not checked"
    report.add("note", "training of q", "no loss of q that can be read", "", cause)


def _learnt(
    training: list[tuple[Call, Tensor]], trace: Trace, known: list[tuple[str, Tensor]]
) -> dict[str, float]:
    """The target of q's network, by what it is made of; empty where none can be read.

    q must learn eps_q = E[eps | x_t] of the renders, min || eps_q(x_t) - eps ||^2. Such a loss is
    quadratic: its gradient by eps_q is k (eps_q - target), and a fit tells the target.
    """
    others = [*known, *(("noise", noise) for draw in trace.draws for noise in draw)]
    others += [("prior", e) for call in trace.calls if call.model != "q" for e in call.eps_hat]
    for call, gradient in training:
        q, learnt = call.eps_hat[0].detach().double(), dict[str, float]()
        same = [(name, v.detach().double()) for name, v in others if v.shape == q.shape]
        (k, *values), left = fit(gradient[0].double(), [q, *(v for _, v in same)])
        for (name, _), value in zip(same, values, strict=True):
            if abs(value) > 0.02 * abs(k) > 0:
                learnt[name] = learnt.get(name, 0.0) - value / k
        if learnt and left < 0.02:
            return learnt
    return {}


@guarded("classifier-free guidance")
def check_cfg(fn: Any) -> Report:
    """Is fn(eps_cond, eps_uncond, guidance_scale) = eps_uncond + g (eps_cond - eps_uncond)?

    Names of other kinds are taken by place: prompt, empty prompt, scale.
    """
    fn = prepare(fn, ("cfg", "guidance", "apply_cfg", "forward"))

    def guided(x: Tensor, eps_cond: Tensor, eps_uncond: Tensor, guidance_scale: float) -> Tensor:
        result = _guide(fn, eps_cond, eps_uncond, guidance_scale)
        return tensors_in(result, [x.shape], "a tensor like eps_cond")[0]

    report = Report(f"check of {CFG_METHOD.name}")
    runs = run_all(Prober(guided))
    if judging.basics(report, runs.trials[0], CFG_METHOD.equation):
        judging.judge_gradient(report, CFG_METHOD, runs, Scale("uniform", "require"))
    judging.judge_inputs(report, runs.trials)
    return report


def _guide(fn: Callable, cond: Tensor, uncond: Tensor, g: float) -> Any:
    """Call with the predictions, by name or by place."""
    values: Any = {"eps_cond": cond, "cond": cond, "eps_uncond": uncond, "uncond": uncond}
    values |= {"eps": torch.cat((uncond, cond)), "guidance_scale": g}
    try:
        named = arguments(fn, values)
        by_name = len(named) == 2 or {id(cond), id(uncond)} <= set(map(id, named.values()))
    except Unreadable:
        by_name = False
    return invoke(fn, named) if by_name else fn(cond, uncond, g)
