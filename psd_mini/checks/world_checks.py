"""Checks of the two other places where formulas go wrong: the renderer's compositing, and the noise schedule."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from psd_mini.checks import diagnosis, world
from psd_mini.checks.guard import guarded
from psd_mini.checks.probe import Prober, fit
from psd_mini.checks.report import Report
from psd_mini.checks.submission import keys, prepare
from psd_mini.rendering import compositing_weights

RENDER = "rgb = sum_i T_i (1 - exp(-rho_i delta_i)) c_i + T_end b,  T_i = exp(-sum_{j<i} rho_j delta_j)"
TRANSMITTANCE = {
    "exclusive": "",
    "inclusive": "the transmittance is inclusive: sample i must not shadow itself (an exclusive cumulative product)",
    "none": "the transmittance is missing: samples behind others are not shadowed",
    "reversed": "the order is reversed: transmittance is accumulated from the far end",
    "squared": "the transmittance is applied twice",
}
ALPHAS = {
    "1 - exp(-rho delta)": "",
    "1 - exp(-rho)": "delta is missing: opacity must not depend on the number of samples",
    "rho delta": "alpha = rho delta without the exponential: exact for thin fog only",
    "exp(-rho delta)": "alpha and 1 - alpha are swapped: exp(-rho delta) is what passes",
    "(1 - exp(-rho delta))^2": "premultiplied twice: the colour is multiplied by alpha twice",
    "1 - exp(rho delta)": "the sign in the exponent is wrong",
}
BACKGROUNDS = {
    "(1 - opacity) b": "",
    "none": "no background: (1 - opacity) b is missing",
    "b": "the background is added in full: it must be multiplied by 1 - opacity",
    "opacity b": "the background is multiplied by the opacity instead of 1 - opacity",
}


def _composite(
    rho: Tensor, delta: Tensor, c: Tensor, b: float, how: tuple[str, str, str], normalise: bool
) -> tuple[Tensor, Tensor]:
    """rgb (N, C) and weights (N, S) of one hypothesis: transmittance, alpha, background, weights divided by their sum."""
    depth = rho * (torch.ones_like(delta) if how[1] == "1 - exp(-rho)" else delta)
    through = torch.exp(-depth)
    alpha = {
        "rho delta": depth,
        "exp(-rho delta)": through,
        "(1 - exp(-rho delta))^2": (1 - through) ** 2,
        "1 - exp(rho delta)": 1 - torch.exp(depth),
    }.get(how[1], 1 - through)
    passed = 1 - alpha if how[1] in ("rho delta", "exp(-rho delta)", "1 - exp(rho delta)") else through
    inclusive = torch.cumprod(passed, -1)
    exclusive = torch.cat((torch.ones_like(passed[:, :1]), inclusive[:, :-1]), -1)
    t_i = {
        "exclusive": exclusive,
        "inclusive": inclusive,
        "none": torch.ones_like(passed),
        "reversed": torch.cat((torch.cumprod(passed.flip(-1), -1).flip(-1)[:, 1:], torch.ones_like(passed[:, :1])), -1),
        "squared": exclusive**2,
    }[how[0]]
    weights = t_i * alpha
    if how == ("exclusive", "1 - exp(-rho delta)", "(1 - opacity) b"):
        weights = compositing_weights(rho, delta)[0]
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    opacity = weights.sum(-1, keepdim=True)
    share = {"(1 - opacity) b": 1 - opacity, "none": 0 * opacity, "b": 1 + 0 * opacity, "opacity b": opacity}[how[2]]
    return torch.einsum("ns,nsc->nc", weights, c) + share * b, weights


@guarded("the renderer")
def check_renderer(fn: Any, *, names: Mapping[str, str] | None = None) -> Report:
    """Does fn(density (N, S), colour (N, S, 3), deltas (N, S), background) composite along rays as it should?

    The answer is rgb (N, 3), or weights (N, S), or both in a tuple. Who takes z_vals instead of deltas makes deltas of them;
    the last sample is empty, so that its width does not matter. Without a background parameter, black is expected.
    """
    fn, report = prepare(fn, ("render", "composite", "forward"), names), Report("check of the renderer")
    n, s, b = 64, 12, 0.7
    rho = 2.5 * world.normal(n, s, seed=1).abs()
    rho[:, -1] = 0
    z = 1 + torch.cumsum(0.05 + 0.2 * torch.rand(n, s, generator=torch.Generator().manual_seed(2), dtype=torch.float64), -1)
    delta = torch.cat((z[:, 1:] - z[:, :-1], torch.full((n, 1), 0.1).double()), -1)
    colour = torch.rand(n, s, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaf = rho.clone().requires_grad_()
    values = {
        "density": leaf,
        "x": leaf,
        "colour": colour.clone(),
        "image": colour.clone(),
        "widths": delta,
        "t": z,
        "z_vals": z,
    }
    prober = Prober(fn, names, {**values, "background": b})
    prober.given.pop("alphas_cumprod")
    answer, _ = prober.ask({})
    takes_background = "background" in keys(fn, names)
    parts = (
        list(answer.values()) if isinstance(answer, dict) else list(answer) if isinstance(answer, tuple | list) else [answer]
    )
    rgb = next((p for p in parts if isinstance(p, Tensor) and p.shape == (n, 3)), None)
    weights = next((p for p in parts if isinstance(p, Tensor) and p.shape in ((n, s), (n, s, 1))), None)
    if rgb is None and weights is None:
        came = ", ".join(str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts)
        report.add(
            False, "answer", came, f"rgb ({n}, 3) or weights ({n}, {s})", f"it returned {came}, expected rgb (N, 3)", RENDER
        )
        return report
    report.add(True, "answer", "rgb" if rgb is not None else "weights", "rgb (N, 3)")
    target = rgb if rgb is not None else weights.reshape(n, s)  # type: ignore[union-attr]
    hypotheses = []
    for (tr, c1), (al, c2), (bg, c3), norm in product(
        TRANSMITTANCE.items(), ALPHAS.items(), BACKGROUNDS.items(), (False, True)
    ):
        bg_cause = "" if bg == "none" and not takes_background else c3
        c4 = "the weights are divided by their sum: empty rays become opaque" if norm else ""
        hypotheses.append(((tr, al, bg), norm, [c for c in (c1, c2, bg_cause, c4) if c]))
    for how, norm, causes in sorted(hypotheses, key=lambda h: len(h[2])):
        mine = _composite(rho, delta, colour, b, how, norm)[0 if rgb is not None else 1]
        if torch.allclose(target.detach().double(), mine, rtol=1e-4, atol=1e-5):
            report.add(not causes, "compositing", ", ".join(how), "exclusive, 1 - exp(-rho delta)", "; ".join(causes), RENDER)
            break
    else:
        right = _composite(rho, delta, colour, b, ("exclusive", "1 - exp(-rho delta)", "(1 - opacity) b"), False)
        off = (target.detach().double() - right[0 if rgb is not None else 1]).abs().max().item()
        report.add(False, "compositing", f"off by up to {off:.3g}", "0", "it is none of the known slips", RENDER)
        return report
    if not target.requires_grad:
        report.add(
            False,
            "gradient",
            "None",
            "a gradient of the density",
            "no gradient reaches the density: detached, or under no_grad?",
        )
        return report
    (got,) = torch.autograd.grad(target.sum(), leaf)
    again = rho.clone().requires_grad_()
    (want,) = torch.autograd.grad(_composite(again, delta, colour, b, how, norm)[0 if rgb is not None else 1].sum(), again)
    same = torch.allclose(got[:, :-1], want[:, :-1], rtol=1e-3, atol=1e-5)
    report.add(same, "gradient", "as the formula's" if same else "another", "the formula's", "a part of it was detached")
    return report


@guarded("the schedule")
def check_schedule(fn: Any, *, names: Mapping[str, str] | None = None) -> Report:
    """Is this noise schedule, or this way to add noise, right?

    Args:
        fn: of betas (T,): returns abar (T,), or (alpha, sigma), sqrt(abar) and sqrt(1 - abar); or fn(x, t, eps,
            alphas_cumprod): returns x_t. Which one is seen from its parameters.
    """
    fn, report = prepare(fn, ("add_noise", "alphas_cumprod", "q_sample", "forward"), names), Report("check of the schedule")
    if "eps" in keys(fn, names) or "x" in keys(fn, names):
        seen: list[tuple[int, float, float]] = []
        for t in (30, 200, 500, 800, 990):
            x, eps = world.picture(2, t).float(), world.normal(2, *world.SHAPE, seed=t).float()
            answer, trace = Prober(fn, names).ask({"x": x, "eps": eps, "t": torch.full((2,), t)})
            answer = answer[0] if isinstance(answer, tuple | list) else answer
            if not isinstance(answer, Tensor) or answer.shape != x.shape:
                cause = f"it returned {type(answer).__name__}, expected x_t of x's shape"
                report.add(False, "answer", getattr(answer, "shape", answer), tuple(x.shape), cause)
                return report
            drawn = [d.double().broadcast_to(x.shape) for d in trace.draws if d.numel() == x.numel()] or [eps.double()]
            (a, s), left = fit(answer.double(), [x.double(), drawn[-1]])
            if left > 1e-3:
                report.add(False, "x_t", f"{left:.0%} unexplained", "a x + s eps", "x_t is no combination of x and eps")
                return report
            seen.append((t, a, s))
        for row, table, index in (("signal", diagnosis.SIGNAL, 1), ("noise", diagnosis.NOISE, 2)):
            name, cause = diagnosis.level(table, [(entry[0], entry[index]) for entry in seen], 1e-3 if index == 1 else 1e-4)
            report.add(not cause, row, name, table[0][0], cause, "x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps")
        return report
    abar = world.SCHEDULE.alphas_cumprod
    alphas = torch.cat((abar[:1], abar[1:] / abar[:-1]))
    answer, _ = Prober(fn, names, {"betas": (1 - alphas).float()}).ask({"t": torch.arange(world.T)})
    parts = [p for p in (answer if isinstance(answer, tuple | list) else [answer]) if isinstance(p, Tensor)]
    if not parts or any(p.shape != abar.shape for p in parts):
        came = ", ".join(str(tuple(p.shape)) for p in parts) or type(answer).__name__
        report.add(
            False, "answer", came, f"({world.T},)", f"it returned {came}, expected one number per timestep, ({world.T},)"
        )
        return report
    shifted = torch.cat((torch.ones(1), abar[:-1]))
    levels = {
        "abar": (abar, "alphas_cumprod came where its square root was expected: the square root is missing"),
        "alpha": (abar.sqrt(), "the square root was taken: alpha_t, where alphas_cumprod was expected"),
        "sigma": ((1 - abar).sqrt(), "alpha and sigma are swapped"),
        "sigma^2": (1 - abar, "the square root is missing: sigma_t is sqrt(1 - abar_t)"),
        "1 - beta": (alphas, "the cumulative product is missing: alphas in place of alphas_cumprod"),
        "sqrt(1 - beta)": (alphas.sqrt(), "the cumulative product is missing: alphas in place of alphas_cumprod"),
        "sqrt(beta)": ((1 - alphas).sqrt(), "the cumulative product is missing"),
        "beta": (1 - alphas, "this is beta itself"),
        "1 - alpha": (1 - abar.sqrt(), "sigma_t is sqrt(1 - abar_t), not 1 - alpha_t"),
        "cumprod(beta)": (torch.cumprod(1 - alphas, 0), "the product is taken over beta and not over 1 - beta"),
        "cumsum(beta)": (torch.cumsum(1 - alphas, 0), "a sum of betas: the product of 1 - beta is expected"),
        "1 - cumsum(beta)": (1 - torch.cumsum(1 - alphas, 0), "a sum of betas: the product of 1 - beta is expected"),
        "exp(-cumsum(beta))": (torch.exp(-torch.cumsum(1 - alphas, 0)), "a sum of betas: the product of 1 - beta is expected"),
        "abar_{t-1}": (shifted, "off by one: the product stops before beta_t (abar_0 is 1 - beta_0, not 1)"),
        "alpha_{t-1}": (shifted.sqrt(), "off by one: the product stops before beta_t (abar_0 is 1 - beta_0, not 1)"),
        "abar reversed": (abar.flip(0), "reversed: t = 0 must be the cleanest"),
    }
    expected = ("abar",) if len(parts) == 1 else ("alpha", "sigma")
    for want, part in zip(expected, parts, strict=False):
        close = [n for n, (v, _) in levels.items() if torch.allclose(part.double(), v.double(), rtol=2e-4, atol=1e-6)]
        found = want if want in close else close[0] if close else "something else"
        cause = "" if found == want else levels[found][1] if close else f"it is not {want}, nor a slip that is known here"
        if want == "sigma" and found in ("alpha", "abar"):
            cause = "alpha and sigma are swapped"
        report.add(found == want, want, found, want, cause, "abar_t = prod_{s<=t} (1 - beta_s)")
    return report
