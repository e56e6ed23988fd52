"""Checks of the two other places where formulas go wrong: the renderer's compositing, and the
noise schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini.checks import diagnosis, world
from psd_mini.checks.grading.submission import Unreadable, answered, environment, keys, prepare
from psd_mini.checks.guard import guarded
from psd_mini.checks.probe import Prober
from psd_mini.checks.reading import fit
from psd_mini.checks.report import Report

RENDER = (
    "rgb = sum_i T_i (1 - exp(-rho_i delta_i)) c_i + T_end b,  T_i = exp(-sum_{j<i} rho_j delta_j)"
)


def _shifted(passed: Tensor) -> Tensor:
    """Exclusive cumulative product: what reaches sample i through those before it."""
    return torch.cat((torch.ones_like(passed[:, :1]), torch.cumprod(passed, -1)[:, :-1]), -1)


Rule = tuple[
    Callable[..., Tensor], str
]  # a formula, and what is wrong with it; the first of each table is right
ALPHAS: list[Rule] = [  # of rho, delta
    (lambda rho, delta: 1 - torch.exp(-rho * delta), ""),
    (
        lambda rho, delta: 1 - torch.exp(-rho),
        "delta is missing: opacity must not depend on the number of samples",
    ),
    (
        lambda rho, delta: rho,
        "the weights are T rho: alpha = 1 - exp(-rho delta) belongs in place of rho",
    ),
    (
        lambda rho, delta: rho * delta,
        "alpha = rho delta without the exponential: exact for thin fog only",
    ),
    (
        lambda rho, delta: torch.exp(-rho * delta),
        "alpha and 1 - alpha are swapped: exp(-rho delta) is what passes",
    ),
]
TRANSMITTANCE: list[Rule] = [  # of what each sample lets pass, 1 - alpha
    (_shifted, ""),
    (
        lambda passed: torch.cumprod(passed, -1),
        "the transmittance is inclusive: sample i must not shadow itself",
    ),
    (torch.ones_like, "the transmittance is missing: samples behind others are not shadowed"),
    (
        lambda passed: _shifted(passed.flip(-1)).flip(-1),
        "the order is reversed: transmittance comes from the far end",
    ),
]
WEIGHTS: list[Rule] = [  # of transmittance, alpha
    (lambda light, alpha: light * alpha, ""),
    (
        lambda light, alpha: light * alpha**2,
        "premultiplied twice: the colour is multiplied by alpha twice",
    ),
    (
        lambda light, alpha: light * alpha / (light * alpha).sum(-1, keepdim=True),
        "the weights are divided by their sum: empty rays become opaque",
    ),
]
BACKGROUNDS: list[Rule] = [  # of the opacity
    (lambda opacity: 1 - opacity, ""),
    (torch.zeros_like, "no background: (1 - opacity) b is missing"),
    (torch.ones_like, "the background is added in full: it must be multiplied by 1 - opacity"),
]


@validated
@guarded("the renderer")
def check_renderer(fn: Any, *, names: Mapping[str, str] | None = None) -> Report:
    """Does fn(density (N, S), colour (N, S, 3), deltas (N, S), background) composite along rays as
    it should?

    The answer is rgb (N, 3), or weights (N, S), or both in a tuple. Who takes z_vals instead of
    deltas makes deltas of them; the last sample is empty, so that its width does not matter.
    Without a background parameter, black is expected."""
    fn, report = (
        prepare(fn, ("render", "composite", "forward"), names),
        Report("check of the renderer"),
    )
    n, s, b = 64, 12, 0.7
    z = 1 + torch.cumsum(
        0.05
        + 0.2 * torch.rand(n, s, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
        -1,
    )
    delta = torch.cat((z[:, 1:] - z[:, :-1], torch.full((n, 1), 0.1).double()), -1)
    colour = torch.rand(n, s, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rho = 2.5 * world.normal(n, s, seed=1).abs()
    rho[:, -1] = 0
    rho.requires_grad_()
    # "sigma", "rgb" and "t" are other things to a renderer than to a denoiser
    values = {
        "density": rho,
        "x": rho,
        "colour": colour.clone(),
        "image": colour.clone(),
        "t": z,
        "z_vals": z,
    }
    prober = Prober(fn, names, {**values, "widths": delta, "background": b})
    prober.given = {k: v for k, v in prober.given.items() if k not in environment()} | {
        "device": torch.device("cpu")
    }
    answer, _ = prober.ask({})
    answered(answer)
    answer = list(answer.values()) if isinstance(answer, dict) else answer
    tensors = [
        p
        for p in (answer if isinstance(answer, tuple | list) else [answer])
        if isinstance(p, Tensor)
    ]
    rgb = next((p for p in tensors if p.shape == (n, 3)), None)
    weights = next((p.reshape(n, s) for p in tensors if p.shape in ((n, s), (n, s, 1))), None)
    target = weights if rgb is None else rgb
    if target is None:
        came = ", ".join(str(tuple(p.shape)) for p in tensors) or type(answer).__name__
        cause = f"it returned {came}, expected rgb (N, 3)"
        report.add(False, "answer", came, f"rgb ({n}, 3) or weights ({n}, {s})", cause, RENDER)
        return report
    takes_background = "background" in keys(fn, names)
    best: tuple[list[str], Tensor] | None = None
    rules = product(ALPHAS, TRANSMITTANCE, WEIGHTS, BACKGROUNDS, (True, False))
    for (alpha, c1), (light, c2), (weight, c3), (
        share,
        c4,
    ), own in rules:  # T of its own alpha, or of exp(-rho delta)
        causes = [c for c in (c1, c2, c3, c4 if takes_background else "") if c]
        a = alpha(rho, delta)
        w = weight(light(1 - a if own else torch.exp(-rho * delta)), a)
        mine = (
            w
            if rgb is None
            else torch.einsum("ns,nsc->nc", w, colour) + share(w.sum(-1, keepdim=True)) * b
        )
        if torch.allclose(target.double(), mine, rtol=1e-4, atol=1e-5) and (
            best is None or len(causes) < len(best[0])
        ):
            best = causes, mine
    read = "rgb" if rgb is not None else f"weights (rgb would be {(n, 3)})"
    causes = (
        [f"it is none of the known slips; {tuple(target.shape)} came, read as {read}"]
        if best is None
        else best[0]
    )
    report.add(
        not causes,
        "compositing",
        "as it should" if not causes else "another",
        "the formula",
        "; ".join(causes),
        RENDER,
    )
    if best is not None:
        _judge_gradient(report, target, best[1], rho)
    return report


def _judge_gradient(report: Report, target: Tensor, mine: Tensor, rho: Tensor) -> None:
    """Does autograd see through it as through the formula that gives the same numbers?"""
    if not target.requires_grad:
        cause = "no gradient reaches the density: detached, or under no_grad?"
        report.add(False, "gradient", "None", "a gradient of the density", cause)
        return
    got, want = (
        torch.autograd.grad(values.sum(), rho, retain_graph=True)[0] for values in (target, mine)
    )
    same = torch.allclose(got[:, :-1], want[:, :-1], rtol=1e-3, atol=1e-5)
    report.add(
        same,
        "gradient",
        "as the formula's" if same else "another",
        "the formula's",
        "a part of it was detached",
    )


TIMES = (1, 30, 200, 500, 800, 990)


@validated
@guarded("the schedule")
def check_schedule(fn: Any, *, names: Mapping[str, str] | None = None) -> Report:
    """Is this noise schedule, or this way to add noise, right? In all forms x_t = a x + s eps, and
    `diagnosis` knows a and s.

    Args:
        fn: of betas (T,): returns abar (T,), or (alpha, sigma), sqrt(abar) and sqrt(1 - abar); or
            fn(x, t, eps, alphas_cumprod): returns x_t. Which one is seen from its parameters.
    """
    fn, report = (
        prepare(fn, ("add_noise", "alphas_cumprod", "q_sample", "forward"), names),
        Report("check of the schedule"),
    )
    mixes = {"eps", "x"} & keys(fn, names)
    seen = [_mixed(Prober(fn, names), t) for t in TIMES] if mixes else _tabulated(Prober(fn, names))
    tables = ("signal", diagnosis.SIGNAL), ("noise", diagnosis.NOISE)
    for (row, table), values in zip(tables, zip(*seen, strict=True), strict=False):
        name, cause = diagnosis.level(table, list(zip(TIMES, values, strict=True)), 1e-3)
        report.add(not cause, row, name, table[0][0], cause, "abar_t = prod_{s<=t} (1 - beta_s)")
    return report


def _mixed(prober: Prober, t: int) -> list[float]:
    """a and s of somebody's x_t = a x + s eps."""
    x, eps = world.picture(2, t).float(), world.normal(2, *world.SHAPE, seed=t).float()
    answer, trace = prober.ask({"x": x, "eps": eps, "t": torch.full((2,), t)})
    answered(answer)
    answer = answer[0] if isinstance(answer, tuple | list) else answer
    if not isinstance(answer, Tensor) or answer.shape != x.shape:
        raise Unreadable(f"it returned {type(answer).__name__}, expected x_t of x's shape", "wrong")
    noises = [d.double().broadcast_to(x.shape) for d in trace.draws if d.numel() == x.numel()] or [
        eps.double()
    ]
    levels, left = fit(answer.double(), [x.double(), noises[-1]])
    if left > 1e-3:
        raise Unreadable(
            f"x_t is no combination of x and eps: {left:.0%} of it is something else", "wrong"
        )
    return levels


def _tabulated(prober: Prober) -> list[list[float]]:
    """a (of abar alone, its root) and s at TIMES, from one number per timestep."""
    answer, _ = prober.ask({"t": torch.arange(world.T)})
    answered(answer)
    parts = [
        p
        for p in (answer if isinstance(answer, tuple | list) else [answer])
        if isinstance(p, Tensor)
    ]
    if not parts or any(p.shape != (world.T,) for p in parts):
        came = ", ".join(str(tuple(p.shape)) for p in parts) or type(answer).__name__
        raise Unreadable(
            f"it returned {came}, expected one number per timestep, ({world.T},)", "wrong"
        )
    parts = (
        [parts[0].sign() * parts[0].double().abs().sqrt()] if len(parts) == 1 else parts
    )  # a negative abar stays one
    return [[part[t].item() for part in parts] for t in TIMES]
