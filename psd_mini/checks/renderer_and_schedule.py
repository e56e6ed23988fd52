"""Checks of two other places where formulas go wrong: the renderer and the noise schedule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini.checks import diagnosis
from psd_mini.checks.exact_world import SHAPE, T, normal, picture
from psd_mini.checks.grading.names import Names, keys
from psd_mini.checks.grading.submission import answered, environment, parts_of, prepare
from psd_mini.checks.guard import guarded
from psd_mini.checks.probe import Prober
from psd_mini.checks.reading import fit
from psd_mini.checks.report import Report, Unreadable

RENDER = (
    "rgb = sum_i T_i (1 - exp(-rho_i delta_i)) c_i + T_end b,  T_i = exp(-sum_{j<i} rho_j delta_j)"
)
RAYS, SAMPLES, BACKGROUND = 64, 12, 0.7


def _shifted(passed: Tensor) -> Tensor:
    """Exclusive cumulative product: what reaches sample i through those before it."""
    return torch.cat((torch.ones_like(passed[:, :1]), torch.cumprod(passed, -1)[:, :-1]), -1)


def _normalised(light: Tensor, alpha: Tensor) -> Tensor:
    return light * alpha / (light * alpha).sum(-1, keepdim=True)


def _from_behind(passed: Tensor) -> Tensor:
    return _shifted(passed.flip(-1)).flip(-1)


# what is wrong with a formula (the first of each table is right), and the formula
Rules = dict[str, Callable[..., Tensor]]
NO_DELTA = "delta is missing: opacity must not depend on the number of samples"
NO_ALPHA = "the weights are T rho: alpha = 1 - exp(-rho delta) belongs in place of rho"
FOG = "alpha = rho delta without the exponential: exact for thin fog only"
SWAPPED_ALPHA = "alpha and 1 - alpha are swapped: exp(-rho delta) is what passes"
ALPHAS: Rules = {  # of rho, delta
    "": lambda rho, delta: 1 - torch.exp(-rho * delta),
    NO_DELTA: lambda rho, delta: 1 - torch.exp(-rho),
    NO_ALPHA: lambda rho, delta: rho,
    FOG: lambda rho, delta: rho * delta,
    SWAPPED_ALPHA: lambda rho, delta: torch.exp(-rho * delta),
}
TRANSMITTANCE: Rules = {  # of what each sample lets pass, 1 - alpha
    "": _shifted,
    "the transmittance is inclusive: sample i must not shadow itself": lambda passed: torch.cumprod(
        passed, -1
    ),
    "the transmittance is missing: samples behind others are not shadowed": torch.ones_like,
    "the order is reversed: transmittance comes from the far end": _from_behind,
}
RENDER_WEIGHTS: Rules = {  # of transmittance, alpha
    "": lambda light, alpha: light * alpha,
    "premultiplied twice: the colour is multiplied by alpha twice": lambda light, alpha: (
        light * alpha**2
    ),
    "the weights are divided by their sum: empty rays become opaque": _normalised,
}
BACKGROUNDS: Rules = {  # of the opacity
    "": lambda opacity: 1 - opacity,
    "no background: (1 - opacity) b is missing": torch.zeros_like,
    "the background is added in full: it must be multiplied by 1 - opacity": torch.ones_like,
}


@validated
@guarded("the renderer")
def check_renderer(fn: Any, *, names: Names = None) -> Report:
    """Does fn(density (N, S), colour (N, S, 3), deltas (N, S), background) composite along rays?

    The answer is rgb (N, 3), or weights (N, S), or both in a tuple. Who takes z_vals instead of
    deltas makes deltas of them; the last sample is empty, so that its width does not matter.
    Without a background parameter, black is expected.
    """
    fn, report = (
        prepare(fn, ("render", "composite", "forward"), names),
        Report("check of the renderer"),
    )
    n, s = RAYS, SAMPLES
    steps = torch.rand(n, s, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = 1 + torch.cumsum(0.05 + 0.2 * steps, -1)
    delta = torch.cat((z[:, 1:] - z[:, :-1], torch.full((n, 1), 0.1).double()), -1)
    colour = torch.rand(n, s, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rho = 2.5 * normal(n, s, seed=1).abs()
    rho[:, -1] = 0
    rho.requires_grad_()
    # "sigma", "rgb" and "t" are other things to a renderer than to a denoiser
    values: Any = {"density": rho, "x": rho, "colour": colour.clone(), "image": colour.clone()}
    values |= {"t": z, "z_vals": z, "widths": delta, "background": BACKGROUND}
    prober = Prober(fn, names)
    prober.given = {k: v for k, v in values.items() if k not in environment()}
    prober.given["device"] = torch.device("cpu")
    answer, _ = prober.ask({})
    answered(answer)
    answer = list(answer.values()) if isinstance(answer, dict) else answer
    tensors = [part for part in parts_of(answer) if isinstance(part, Tensor)]
    rgb = next((part for part in tensors if part.shape == (n, 3)), None)
    shapes = ((n, s), (n, s, 1))
    weights = next((part.reshape(n, s) for part in tensors if part.shape in shapes), None)
    target = weights if rgb is None else rgb
    if target is None:
        came = ", ".join(str(tuple(part.shape)) for part in tensors) or type(answer).__name__
        cause = f"it returned {came}, expected rgb (N, 3)"
        report.add(False, "answer", came, f"rgb ({n}, 3) or weights ({n}, {s})", cause, RENDER)
        return report
    best = _closest(target, rho, delta, colour, "background" in keys(fn, names))
    read = "rgb" if rgb is not None else f"weights (rgb would be {(n, 3)})"
    unknown = f"it is none of the known slips; {tuple(target.shape)} came, read as {read}"
    causes = [unknown] if best is None else best[0]
    came = "another" if causes else "as it should"
    report.add(not causes, "compositing", came, "the formula", "; ".join(causes), RENDER)
    if best is not None:
        _judge_gradient(report, target, best[1], rho)
    return report


def _closest(
    target: Tensor, rho: Tensor, delta: Tensor, colour: Tensor, takes_background: bool
) -> tuple[list[str], Tensor] | None:
    """The formula with the fewest slips that gives rgb or weights: the slips, and its numbers."""
    best: tuple[list[str], Tensor] | None = None
    rules = product(ALPHAS, TRANSMITTANCE, RENDER_WEIGHTS, BACKGROUNDS, (True, False))
    for c1, c2, c3, c4, own in rules:
        causes = [c for c in (c1, c2, c3, c4 if takes_background else "") if c]
        alpha = ALPHAS[c1](rho, delta)
        passed = 1 - alpha if own else torch.exp(-rho * delta)  # T of its own alpha, or the right T
        mine = RENDER_WEIGHTS[c3](TRANSMITTANCE[c2](passed), alpha)
        if target.shape[-1] == 3:
            behind = BACKGROUNDS[c4](mine.sum(-1, keepdim=True)) * BACKGROUND
            mine = torch.einsum("ns,nsc->nc", mine, colour) + behind
        better = best is None or len(causes) < len(best[0])
        if better and torch.allclose(target.double(), mine, rtol=1e-4, atol=1e-5):
            best = causes, mine
    return best


def _judge_gradient(report: Report, target: Tensor, mine: Tensor, rho: Tensor) -> None:
    """Does autograd see through it as through the formula that gives the same numbers?"""
    if not target.requires_grad:
        cause = "no gradient reaches the density: detached, or under no_grad?"
        report.add(False, "gradient", "None", "a gradient of the density", cause)
        return
    got = torch.autograd.grad(target.sum(), rho, retain_graph=True)[0]
    want = torch.autograd.grad(mine.sum(), rho, retain_graph=True)[0]
    same = torch.allclose(got[:, :-1], want[:, :-1], rtol=1e-3, atol=1e-5)
    came = "as the formula's" if same else "another"
    report.add(same, "gradient", came, "the formula's", "a part of it was detached")


TIMES = (1, 30, 200, 500, 800, 990)


@validated
@guarded("the schedule")
def check_schedule(fn: Any, *, names: Names = None) -> Report:
    """Is this noise schedule, or this way to add noise, right?

    In all forms x_t = a x + s eps, and `diagnosis` knows a and s.

    Args:
        fn: of betas (T,): returns abar (T,), or (alpha, sigma), sqrt(abar) and sqrt(1 - abar); or
            fn(x, t, eps, alphas_cumprod): returns x_t. Which one is seen from its parameters.
        names: parameter -> key of `grading.names.NAMES`.
    """
    fn = prepare(fn, ("add_noise", "alphas_cumprod", "q_sample", "forward"), names)
    report = Report("check of the schedule")
    if {"eps", "x"} & keys(fn, names):
        seen = [_mixed(Prober(fn, names), t) for t in TIMES]
    else:
        seen = _tabulated(Prober(fn, names))
    tables = {"signal": diagnosis.SIGNAL, "noise": diagnosis.NOISE}
    for (row, table), values in zip(tables.items(), zip(*seen, strict=True), strict=False):
        name, cause = diagnosis.level(table, zip(TIMES, values, strict=True), 1e-3)
        equation = "abar_t = prod_{s<=t} (1 - beta_s)"
        report.add(not cause, row, name, table[0][0], cause, equation)
    return report


def _mixed(prober: Prober, t: int) -> list[float]:
    """a and s of somebody's x_t = a x + s eps."""
    x, eps = picture(2, t).float(), normal(2, *SHAPE, seed=t).float()
    answer, trace = prober.ask({"x": x, "eps": eps, "t": torch.full((2,), t)})
    answered(answer)
    answer = answer[0] if isinstance(answer, tuple | list) else answer
    if not isinstance(answer, Tensor) or answer.shape != x.shape:
        text = f"it returned {type(answer).__name__}, expected x_t of x's shape"
        raise Unreadable(text, "wrong")
    drawn = [d.double().broadcast_to(x.shape) for d in trace.draws if d.numel() == x.numel()]
    noise = drawn[-1] if drawn else eps.double()
    levels, left = fit(answer.double(), [x.double(), noise])
    if left > 1e-3:
        text = f"x_t is no combination of x and eps: {left:.0%} of it is something else"
        raise Unreadable(text, "wrong")
    return levels


def _tabulated(prober: Prober) -> list[list[float]]:
    """a (of abar alone, its root) and s at TIMES, from one number per timestep."""
    answer, _ = prober.ask({"t": torch.arange(T)})
    answered(answer)
    parts = [part for part in parts_of(answer) if isinstance(part, Tensor)]
    if not parts or any(part.shape != (T,) for part in parts):
        came = ", ".join(str(tuple(part.shape)) for part in parts) or type(answer).__name__
        text = f"it returned {came}, expected one number per timestep, ({T},)"
        raise Unreadable(text, "wrong")
    if len(parts) == 1:  # a negative abar stays one
        parts = [parts[0].sign() * parts[0].double().abs().sqrt()]
    return [[part[t].item() for part in parts] for t in TIMES]
