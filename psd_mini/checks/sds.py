"""Checks of SDS, CSD and VSD gradients, and of classifier-free guidance.

The three gradients are rows over noise predictions, with any positive weight w(t):

    SDS   w(t) ( eps_uncond + g (eps_cond - eps_uncond) - eps )       DreamFusion, arXiv 2209.14988, eq. 3
    CSD   w(t) ( eps_cond - eps_uncond )                              arXiv 2310.19415, eq. 9
    VSD   w(t) ( eps_uncond + g (eps_cond - eps_uncond) - eps_q )     ProlificDreamer, arXiv 2305.16213, eq. 10

so one reading of coefficients serves all (see `probe`). A loss may stand for its gradient, summed over elements and divided
by the batch or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from psd_mini.checks import diagnosis, world
from psd_mini.checks.guard import guarded
from psd_mini.checks.judging import Kind, basics, judge, judge_batch, judge_graph, judge_mean, judge_noise
from psd_mini.checks.probe import Prober, fit
from psd_mini.checks.report import Report
from psd_mini.checks.submission import Unreadable, arguments, invoke, keys, prepare

COURSE = ("sds_loss", "get_sds_loss", "train_step", "calc_sds_loss", "compute_loss", "loss", "gradient", "forward")
SDS = Kind("SDS", "noise", "G = w(t) (uncond + g (cond - uncond) - eps)", COURSE)
CSD = Kind("CSD", None, "G = w(t) (cond - uncond)", ("csd_loss", "get_csd_loss", *COURSE))
VSD = Kind("VSD", "q", "G = w(t) (uncond + g (cond - uncond) - eps_q)", ("vsd_loss", "get_vsd_loss", *COURSE))
# batch, g, t, seed: several noise levels, both limits of guidance, one batch of three; 500 twice, with another picture
PLAN = [
    (1, 7.5, (500,), 0),
    (1, 3.0, (250,), 1),
    (1, 7.5, (90,), 2),
    (1, 7.5, (750,), 3),
    (1, 3.0, (930,), 4),
    (1, 7.5, (500,), 5),
]
LIMITS = [(1, 1.0, (400,), 6), (1, 0.0, (400,), 7)]
BATCH = (3, 7.5, (150, 450, 800), 8)


@guarded("SDS")
def check_sds(fn: Any, *, weighting: str | None = None, names: Mapping[str, str] | None = None) -> Report:
    """Is this an SDS gradient, and if not, what is it?

    Args:
        fn: a function, a class, or an object with a method such as `sds_loss`; see `submission` for parameter names.
        weighting: demand one weight, for example "sigma_t^2" or "1"; None accepts every positive function of t.
        names: parameter -> key of `submission.NAMES`, for parameters with names of their own.

    Returns:
        A `Report`; it never raises, `report.require()` does.
    """
    return _check(SDS, fn, weighting, names)


@guarded("CSD")
def check_csd(fn: Any, *, weighting: str | None = None, names: Mapping[str, str] | None = None) -> Report:
    """Is this a CSD gradient? Arguments as in `check_sds`; a factor g in front is allowed."""
    return _check(CSD, fn, weighting, names)


@guarded("VSD")
def check_vsd(
    fn: Any, *, train: Callable | None = None, weighting: str | None = None, names: Mapping[str, str] | None = None
) -> Report:
    """Is this a VSD gradient? Against the exact score of a Gaussian law q of the renders.

    Args:
        fn: as in `check_sds`; q's network is its parameter `unet_lora`, `unet_q`, `predict_q`, ...
        train: the training loss of q's network, fn(x, t, eps, unet_lora, ...), if it is to be checked too.
        weighting, names: as in `check_sds`.
    """
    report = _check(VSD, fn, weighting, names)
    if train is not None:
        _check_training(report, train, names)
    return report


def _check(kind: Kind, target: Any, weighting: str | None, names: Mapping[str, str] | None) -> Report:
    report = Report(f"check of {kind.name}")
    fn = prepare(target, (*kind.methods, kind.name.lower()), names)
    prober = Prober(fn, names)
    runs = [prober.run(*PLAN[0][:2], PLAN[0][2], PLAN[0][3])]
    if not basics(report, runs[0], kind.equation):
        return report
    runs += [prober.run(batch, g, t, seed) for batch, g, t, seed in PLAN[1:]]
    limits = [prober.run(batch, g, t, seed) for batch, g, t, seed in LIMITS]
    try:
        batched, failure = [prober.run(*BATCH[:2], BATCH[2], BATCH[3])], ""
    except Unreadable as error:
        batched, failure = [], str(error)
    judge(report, kind, runs, limits, batched, weighting, "guidance_scale" in keys(fn, names))
    judge_noise(report, [*runs, *batched])
    judge_mean(report, kind, runs)
    judge_graph(report, runs)
    judge_batch(report, kind, batched, failure)
    changed = sorted({name for run in runs for name in run.changed})
    report.add(not changed, "inputs", ", ".join(changed) or "unchanged", "unchanged", "it modifies its inputs in place")
    return report


def _check_training(report: Report, train: Callable, names: Mapping[str, str] | None) -> None:
    """q's network must learn eps_q = E[eps | x_t] of the renders: min || eps_q(x_t) - eps ||^2."""
    prober = Prober(train, names)
    prober.lenient, q = True, prober.given["q"]
    reading = prober.run(1, 7.5, (400,), 3).readings[0]
    if q.bias.grad is None or not reading.groups:
        report.add(
            False, "training of q", "no gradient for q", "a gradient", "q's network receives no gradient: it never learns"
        )
        return
    reading.gradient = q.bias.grad[0].double()
    group = reading.groups[0]
    known = group.eps_hat | ({"noise": group.eps} if group.eps is not None else {})
    c, _ = fit(reading.gradient, list(known.values()))
    terms = dict(zip(known, c, strict=True))
    k = terms.get("q", 0.0) or 1.0
    learnt = {name: -value / k for name, value in terms.items() if name != "q" and abs(value / k) > 0.02}
    came = "q learns " + (" ".join(f"{v:+.3g} {name}" for name, v in learnt.items()) or "nothing")
    cause = "q is trained to match the frozen model: the two become equal and the VSD gradient vanishes"
    if not {"cond", "uncond"} & set(learnt):
        cause = "q must predict the noise that is in x_t"
    report.add(set(learnt) == {"noise"}, "training of q", came, "q learns +1 noise", cause, "min || eps_q(x_t) - eps ||^2")


@guarded("classifier-free guidance")
def check_cfg(fn: Any, *, names: Mapping[str, str] | None = None) -> Report:
    """Is fn(eps_cond, eps_uncond, guidance_scale) = eps_uncond + g (eps_cond - eps_uncond)?

    Names of other kinds are taken by place: prompt, empty prompt, scale.
    """
    report = Report("check of classifier-free guidance")
    fn = prepare(fn, ("cfg", "guidance", "apply_cfg", "forward"))
    cond, uncond = world.normal(2, 2, *world.SHAPE, seed=5)
    seen: list[tuple[float, float, float]] = []
    left = 0.0
    for g in (7.5, 3.0, 0.5, 1.0, 0.0):
        both = torch.cat((uncond, cond))
        values = {"eps_cond": cond, "cond": cond, "eps_uncond": uncond, "uncond": uncond, "guidance_scale": g, "eps": both}
        try:
            given = arguments(fn, values, names)
            if len({id(v) for v in given.values()} & {id(cond), id(uncond)}) < 2 and len(given) != 2:
                raise Unreadable("")
            result = invoke(fn, given)
        except Unreadable:
            result = fn(cond, uncond, g)
        if not isinstance(result, Tensor) or result.shape != cond.shape:
            came = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            report.add(
                False, "answer", came, f"shape {tuple(cond.shape)}", f"it returned {came}, expected a tensor like eps_cond"
            )
            return report
        (c, u), rest = fit(result.double(), [cond, uncond])
        seen.append((g, c, u))
        left = max(left, rest)
    row, cause = diagnosis.guidance(seen, 1e-2)
    if left > 1e-2:
        row, cause = f"{left:.0%} of it is not linear", "guidance must be linear in the two predictions (was it rescaled?)"
    report.add(not cause, "guidance", row, "uncond + g (cond - uncond)", cause, "eps_hat = eps_neg + g (eps_cond - eps_neg)")
    for g, wanted in ((1.0, "cond"), (0.0, "uncond")):
        _, c, u = next(entry for entry in seen if entry[0] == g)
        right = abs(c - g) + abs(u - 1 + g) < 1e-2
        report.add(right, f"g = {g:g}", f"{c:.3g} cond {u:+.3g} uncond", wanted, cause or "the limit is wrong")
    return report
