"""Checks of SDS, CSD and VSD gradients, and of classifier-free guidance.

The three gradients are rows over noise predictions, with any positive weight w(t):

    SDS   w(t) ( eps_uncond + g (eps_cond - eps_uncond) - eps )       DreamFusion, arXiv 2209.14988, eq. 3
    CSD   w(t) ( eps_cond - eps_uncond )                              arXiv 2310.19415, eq. 9
    VSD   w(t) ( eps_uncond + g (eps_cond - eps_uncond) - eps_q )     ProlificDreamer, arXiv 2305.16213, eq. 10

so one reading of coefficients serves all (see `reading`). A loss may stand for its gradient, summed
over elements and divided by the batch or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini.checks import diagnosis, world
from psd_mini.checks.grading.submission import (
    COURSE,
    Unreadable,
    answered,
    arguments,
    invoke,
    keys,
    prepare,
)
from psd_mini.checks.guard import guarded
from psd_mini.checks.judging import (
    Kind,
    basics,
    judge,
    judge_batch,
    judge_graph,
    judge_inputs,
    judge_mean,
    judge_noise,
)
from psd_mini.checks.probe import Prober, given
from psd_mini.checks.reading import fit
from psd_mini.checks.report import Report

SDS = Kind("SDS", "noise", "G = w(t) (uncond + g (cond - uncond) - eps)", COURSE)
CSD = Kind("CSD", None, "G = w(t) (cond - uncond)", ("csd_loss", "get_csd_loss", *COURSE))
VSD = Kind(
    "VSD",
    "q",
    "G = w(t) (uncond + g (cond - uncond) - eps_q)",
    ("vsd_loss", "get_vsd_loss", *COURSE),
)
# batch, g, t, seed: several noise levels, 500 twice with another picture; both limits of guidance;
#     a batch of three
LEVELS = ((7.5, 500), (3.0, 250), (7.5, 90), (7.5, 750), (3.0, 930), (7.5, 500))
PLAN = [(1, g, (t,), seed) for seed, (g, t) in enumerate(LEVELS)]
LIMITS = [(1, 1.0, (400,), 6), (1, 0.0, (400,), 7)]
BATCH = (3, 7.5, (150, 450, 800), 8)


@validated
@guarded("SDS")
def check_sds(
    fn: Any, *, weighting: str | None = None, names: Mapping[str, str] | None = None
) -> Report:
    """Is this an SDS gradient, and if not, what is it?

    Args:
        fn: a function, a class, or an object with a method such as `sds_loss`; see `submission` for
            parameter names.
        weighting: "sds" (sigma_t^2), "uniform" (1) or "fantasia3d" (alpha_t sigma_t^2) if only that
            w(t) is right; None takes any.
        names: parameter -> key of `submission.NAMES`, for parameters with names of their own.

    Returns:
        A `Report`; it never raises, `report.require()` does.
    """
    return _check(SDS, fn, names, weighting)


@validated
@guarded("CSD")
def check_csd(
    fn: Any, *, weighting: str | None = None, names: Mapping[str, str] | None = None
) -> Report:
    """Is this a CSD gradient? Arguments as in `check_sds`; a factor g in front is allowed."""
    return _check(CSD, fn, names, weighting)


@validated
@guarded("VSD")
def check_vsd(
    fn: Any,
    *,
    train: Callable | None = None,
    weighting: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Report:
    """Is this a VSD gradient? Against the exact score of a Gaussian law q of the renders.

    Args:
        fn: as in `check_sds`; q's network is its parameter `unet_lora`, `unet_q`, `predict_q`, ...
        train: the training loss of q's network, fn(x, t, eps, unet_lora, ...), if it is to be
            checked too.
        weighting, names: as in `check_sds`.
    """
    report = _check(VSD, fn, names, weighting)
    if train is not None:
        _check_training(report, train, names)
    return report


def _check(
    kind: Kind, target: Any, names: Mapping[str, str] | None, weighting: str | None
) -> Report:
    if weighting not in (None, *diagnosis.WEIGHTINGS):
        raise Unreadable(
            f"weighting: {weighting!r} is not known; choose from {', '.join(diagnosis.WEIGHTINGS)}"
        )
    report = Report(f"check of {kind.name}")
    fn = prepare(target, (*kind.methods, kind.name.lower()), names)
    prober = Prober(fn, names)
    runs = [prober.run(*PLAN[0])]
    if not basics(report, runs[0], kind.equation):
        return report
    runs += [prober.run(*plan) for plan in PLAN[1:]]
    limits = [prober.run(*plan) for plan in LIMITS]
    try:
        batched, failure = [prober.run(*BATCH)], ""
    except Unreadable as error:
        batched, failure = [], str(error)
    judge(report, kind, runs, limits, batched, "guidance_scale" in keys(fn, names), weighting)
    judge_noise(report, [*runs, *batched])
    judge_mean(report, kind, runs)
    judge_graph(report, runs)
    judge_batch(report, kind, batched, failure)
    return report


def _check_training(report: Report, train: Callable, names: Mapping[str, str] | None) -> None:
    """q's network must learn eps_q = E[eps | x_t] of the renders: min || eps_q(x_t) - eps ||^2.

    The loss is quadratic in eps_q, so its gradient by q's bias is k (eps_q - target), and a fit
    tells the target."""
    prober = Prober(train, names)
    answer, trace = prober.ask({**given(1, 3), "t": torch.tensor([400]), "guidance_scale": 7.5})
    if isinstance(answer, Tensor) and answer.requires_grad:
        answer.sum().backward()
    gradient = prober.given["q"].bias.grad
    if gradient is None or not trace.calls:
        cause = "q's network receives no gradient: it never learns"
        report.add(False, "training of q", "no gradient for q", "a gradient", cause)
        return
    vectors = {
        "q" if call.model == "q" else f"prior {i}": call.eps_hat.detach().double()
        for i, call in enumerate(trace.calls)
    }
    noises = [
        noise for noise in [*trace.draws, given(1, 3)["eps"]] if noise.shape == gradient.shape
    ]
    vectors |= {f"noise {i}": noise.double() for i, noise in enumerate(noises)}
    terms = dict(zip(vectors, fit(gradient.double(), list(vectors.values()))[0], strict=True))
    k = terms.pop("q", 0.0) or 1.0
    learnt = {name.split()[0]: -value / k for name, value in terms.items() if abs(value / k) > 0.02}
    came = "q learns " + (" ".join(f"{v:+.3g} {name}" for name, v in learnt.items()) or "nothing")
    cause = "q must predict the noise that is in x_t"
    if "prior" in learnt:
        cause = (
            "q is trained to match the frozen model: the two become equal and the VSD gradient"
            " vanishes"
        )
    report.add(
        set(learnt) == {"noise"},
        "training of q",
        came,
        "q learns +1 noise",
        cause,
        "min || eps_q(x_t) - eps ||^2",
    )


@validated
@guarded("classifier-free guidance")
def check_cfg(fn: Any, *, names: Mapping[str, str] | None = None) -> Report:
    """Is fn(eps_cond, eps_uncond, guidance_scale) = eps_uncond + g (eps_cond - eps_uncond)?

    Names of other kinds are taken by place: prompt, empty prompt, scale.
    """
    report = Report("check of classifier-free guidance")
    fn = prepare(fn, ("cfg", "guidance", "apply_cfg", "forward"))
    cond, uncond = world.normal(2, 2, *world.SHAPE, seed=5)
    seen: dict[float, list[float]] = {}
    changed: set[str] = set()
    left = 0.0
    for g in (7.5, 3.0, 0.5, 1.0, 0.0):
        mine, free, both = (
            cond.clone(),
            uncond.clone(),
            torch.cat((uncond, cond)),
        )  # a submission may change them in place
        values = {
            "eps_cond": mine,
            "cond": mine,
            "eps_uncond": free,
            "uncond": free,
            "guidance_scale": g,
            "eps": both,
        }
        try:
            named = arguments(fn, values, names)
            by_name = len(named) == 2 or {id(mine), id(free)} <= set(map(id, named.values()))
        except Unreadable:
            by_name = False
        result = invoke(fn, named) if by_name else fn(mine, free, g)
        answered(result)
        pairs = {
            "eps_cond": (mine, cond),
            "eps_uncond": (free, uncond),
            "eps": (both, torch.cat((uncond, cond))),
        }
        changed |= {name for name, (now, before) in pairs.items() if not torch.equal(now, before)}
        if not isinstance(result, Tensor) or result.shape != cond.shape:
            came = (
                f"shape {tuple(result.shape)}"
                if isinstance(result, Tensor)
                else type(result).__name__
            )
            cause = f"it returned {came}, expected a tensor like eps_cond"
            report.add(False, "answer", came, f"shape {tuple(cond.shape)}", cause)
            return report
        seen[g], rest = fit(result.double(), [cond, uncond])
        left = max(left, rest)
    row, cause = diagnosis.guidance([(g, c, u) for g, (c, u) in seen.items()], 1e-2)
    if left > 1e-2:
        row, cause = (
            f"{left:.0%} of it is not linear",
            "guidance must be linear in the two predictions (was it rescaled?)",
        )
    report.add(
        not cause,
        "guidance",
        row,
        "uncond + g (cond - uncond)",
        cause,
        "eps_hat = eps_neg + g (eps_cond - eps_neg)",
    )
    for g, wanted in ((1.0, "cond"), (0.0, "uncond")):
        c, u = seen[g]
        right = abs(c - g) + abs(u - 1 + g) < 1e-2
        report.add(
            right,
            f"g = {g:g}",
            f"{c:.3g} cond {u:+.3g} uncond",
            wanted,
            "" if cause else "the limit is wrong",
        )
    judge_inputs(report, changed)
    return report
