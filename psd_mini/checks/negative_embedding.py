"""Check of the gradient that moves a negative embedding.

    L(n) = -mean r( decode( x0_hat(n) ) ),    d x0_hat / dn = (g - 1) (sigma_t / alpha_t) d eps(x_t; n) / dn

The reward is linear, so every slip in the algebra of x0_hat is a factor that depends on g and t only, and is told by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from psd_mini.checks import world
from psd_mini.checks.guard import guarded
from psd_mini.checks.preference import reward
from psd_mini.checks.probe import Prober
from psd_mini.checks.report import Report
from psd_mini.checks.submission import Unreadable, prepare
from psd_mini.checks.trace import flows
from psd_mini.methods.context import Context
from psd_mini.negative import negative_loss


@guarded("the negative embedding")
def check_negative_embedding(fn: Any, *, names: Mapping[str, str] | None = None) -> Report:
    """Is this the loss (or its gradient) that moves a negative embedding n to where the denoised image is rewarded?

        L(n) = -mean r( decode( x0_hat(n) ) ),    d x0_hat / dn = (g - 1) (sigma_t / alpha_t) d eps(x_t; n) / dn

    Args:
        fn: takes by name x, t, eps, predict_noise or unet, cond, n (requires a gradient), reward, guidance_scale, ...; it
            returns the loss, or the gradient with respect to n.
        names: parameter -> key of `submission.NAMES`.
    """
    report = Report("check of the negative embedding")
    fn, equation = prepare(fn, ("negative_loss", "loss", "forward"), names), "L(n) = -mean r(decode(x0_hat(n)))"
    ratios: list[tuple[float, int, int, float, float]] = []  # g, t, batch, ratio, cosine
    leaks: set[str] = set()
    largest = 0.0
    for g, t, batch in ((7.5, 500, 1), (3.0, 300, 1), (3.0, 500, 2), (1.0, 500, 1)):
        given = {
            "x": world.picture(batch, 1).float().requires_grad_(),
            "cond": world.embedding("cond", batch).requires_grad_(),
            "n": world.embedding("negative", 1).requires_grad_(),
            "eps": world.normal(batch, *world.SHAPE, seed=7).float(),
            "t": torch.full((batch,), t),
        }
        given["uncond"] = given["n"]
        try:
            answer, _ = Prober(fn, names, {"reward": reward, "guidance_scale": g}).ask(given)
        except Unreadable:
            if batch > 1:  # written for one picture: that is allowed
                continue
            raise
        gradient = _gradient_in(given["n"], answer)
        if gradient is None or not bool(gradient.isfinite().all()):
            came = "None" if gradient is None else "NaN or infinity"
            cause = "n receives no gradient: is eps(x_t; n) computed under no_grad, or the loss detached?"
            report.add(False, "gradient", came, "a gradient of n's shape", cause if gradient is None else "", equation)
            return report
        leaks |= {name for name in ("x", "cond") if flows(given[name])}
        largest = max(largest, gradient.abs().max().item())
        if g == 1.0:
            zero = gradient.abs().max().item() <= 1e-3 * largest
            cause = "at g = 1 the negative embedding has no influence: the factor is g - 1, not g"
            report.add(zero, "g = 1", "zero" if zero else "not zero", "zero", cause, "d x0_hat/dn carries g - 1")
            continue
        exact = _exact_negative(given, t, g)
        ratio = ((gradient * exact).sum() / exact.square().sum()).item()
        ratios.append((g, t, batch, ratio, ratio * exact.norm().item() / max(gradient.norm().item(), 1e-30)))
    cause = f"a gradient leaks into {' and '.join(sorted(leaks))}: only n may move; detach the rest"
    report.add(not leaks, "what else moves", ", ".join(sorted(leaks)) or "nothing", "nothing", cause)
    worst = min(abs(row[4]) for row in ratios)
    cause = "the gradient is exactly zero: is n in the loss at all?" if largest == 0 else "it is not the gradient of this loss"
    report.add(worst > 0.999, "direction", f"cosine {worst:.4f}", "cosine 1", cause, equation)
    rows: list[tuple[str, Callable[[float, int, int], float], str]] = [
        ("1", lambda g, t, b: 1.0, ""),
        ("B", lambda g, t, b: float(b), ""),
        ("g/(g-1)", lambda g, t, b: g / (g - 1), "the factor g stands where g - 1 should: cond + g (cond - n)?"),
        ("1/(1-g)", lambda g, t, b: 1 / (1 - g), "x0_hat is made of eps(n) alone: it must be made of the guided prediction"),
        ("alpha/sigma", lambda g, t, b: world.alpha_sigma(t)[0] / world.alpha_sigma(t)[1], "x0_hat lacks sigma_t / alpha_t"),
        ("alpha", lambda g, t, b: world.alpha_sigma(t)[0], "x0_hat is not divided by alpha_t"),
        ("1/sigma", lambda g, t, b: 1 / world.alpha_sigma(t)[1], "x0_hat = (x_t - sigma_t eps)/alpha_t: sigma_t is missing"),
        ("2", lambda g, t, b: 2.0, "twice the reference"),
        ("1/2", lambda g, t, b: 0.5, "half the reference"),
    ]  # fmt: skip
    for (name, factor, cause), sign in product(rows, (1, -1)):
        if worst > 0.999 and all(abs(row[3] / (sign * factor(*row[:3])) - 1) < 1e-2 for row in ratios):
            if sign < 0:
                cause = "; ".join(p for p in ("the sign is flipped: n would move to where the reward is lower", cause) if p)
            report.add(not cause, "size", f"{'-' if sign < 0 else ''}{name} of the reference", "1", cause, equation)
            return report
    report.add(worst <= 0.999, "size", f"{ratios[0][3]:.4g} of the reference", "1", "the size is wrong", equation)
    return report


def _gradient_in(n: Tensor, answer: Any) -> Tensor | None:
    """What arrived at n, back-propagating a loss where one came; or the answer itself where it has n's shape."""
    if isinstance(answer, tuple | list) and answer:
        answer = answer[0]
    if isinstance(answer, Tensor) and answer.shape == n.shape:
        return answer.detach().double()
    if n.grad is None and isinstance(answer, Tensor) and answer.requires_grad and answer.numel() == 1:
        answer.backward()
    return None if n.grad is None else n.grad.double()


def _exact_negative(run: Mapping[str, Any], t: int, g: float) -> Tensor:
    """The package's own `negative_loss`, differentiated, in this world."""
    n = run["n"].detach().double().requires_grad_()

    def predict_noise(x_t: Tensor, times: Tensor, embeddings: Tensor, cameras: Any) -> Tensor:
        return torch.stack([world.predict(x_t, times, e.expand(len(x_t), -1, -1)) for e in embeddings])

    prior = SimpleNamespace(schedule=world.SCHEDULE, predict_noise=predict_noise, decode=lambda x: x)
    embeddings = torch.stack((run["cond"][0].detach().double(), n.detach()[0]))
    context = Context(prior, embeddings, reward=lambda images, prompts: reward(images), prompts=["a"] * len(run["x"]))
    times = torch.full((len(run["x"]),), t)
    loss = negative_loss(n[0], run["x"].detach().double(), times, run["eps"].double()[None], context, g)
    return torch.autograd.grad(loss, n)[0]
