"""Check of the gradient that moves a negative embedding.

    L(n) = -mean r( decode( x0_hat(n) ) )
    d x0_hat / dn = (g - 1) (sigma_t / alpha_t) d eps(x_t; n) / dn

The reward is linear, so every slip in the algebra of x0_hat is a factor that depends on g and t
only, and is told by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from psd_mini.checks.exact_world import SCHEDULE, embedding, exact_eps
from psd_mini.checks.grading.submission import answered, parts_of, prepare
from psd_mini.checks.guard import guarded
from psd_mini.checks.probe import Prober, given
from psd_mini.checks.reading import cosine, fit
from psd_mini.checks.report import Report, Unreadable
from psd_mini.checks.rewarding import reward
from psd_mini.checks.tables import LEVELS, best_explanation, causes_of, formulas, products_of
from psd_mini.checks.trace import flows
from psd_mini.sds import cfg

NO_GRADIENT = "n receives no gradient ({}): is it under no_grad, or is the loss detached?"
AT_ONE = "at g = 1 the negative embedding has no influence: the factor is g - 1, not g"
NOT_IN_LOSS = "the gradient is exactly zero: is n in the loss at all?"
EQUATION = "L(n) = -mean r(decode(x0_hat(n)))"
SLIPS = {  # factors
    "batch": "the sum over pictures instead of the mean: multiplied by the batch",
    "-1": "the sign is flipped: n would move to where the reward is lower",
    "g / (g - 1)": "the factor g stands where g - 1 should: cond + g (cond - n)?",
    "1 / (1 - g)": "x0_hat is made of eps(n) alone, not of the guided prediction",
    "alpha_t": "x0_hat is not divided by alpha_t",
    "1 / alpha_t": "x0_hat is divided by alpha_t twice",
    "1 / sigma_t": "sigma_t is missing in x0_hat: (x_t - sigma_t eps)/alpha_t",
}


@guarded("the negative embedding")
def check_negative_embedding(fn: Any) -> Report:
    """Is this the loss that moves a negative embedding n to where x0_hat is rewarded?

        L(n) = -mean r( decode( x0_hat(n) ) )

    Args:
        fn: takes by name x, t, eps, predict_noise or unet, cond, n (requires a gradient), reward,
            guidance_scale, ...; it returns the loss, or the gradient with respect to n.
    """
    report = Report("check of the negative embedding")
    fn = prepare(fn, ("negative_loss", "loss", "forward"))
    seen: list[tuple[tuple, float]] = []  # (g, t, batch), ratio to the reference
    sizes, leaks = dict[float, float](), set[str]()
    cosines: list[float] = []
    for g, t, batch in ((7.5, 500, 1), (3.0, 300, 1), (3.0, 500, 2), (1.0, 500, 1)):
        values = given(batch, 1) | {"t": torch.full((batch,), t), "guidance_scale": g}
        values["n"] = values["uncond"] = embedding("negative", 1).requires_grad_()
        values["cond"].requires_grad_()
        try:
            answer, _ = Prober(fn).ask(values)
        except Unreadable:
            if batch > 1:  # written for one picture: that is allowed
                continue
            raise
        gradient = _gradient_in(values["n"], answer)
        if gradient is None or not bool(gradient.isfinite().all()):
            came = "None" if gradient is None else "NaN or infinity"
            report.add(False, "gradient", came, "of n's shape", NO_GRADIENT.format(came), EQUATION)
            return report
        leaks |= {name for name in ("x", "cond") if flows(values[name])}
        sizes[g] = gradient.abs().max().item()
        if g != 1:
            exact = _exact_negative(values, g)
            (ratio,), _ = fit(gradient, [exact])
            seen.append(((g, t, batch), ratio))
            cosines.append(abs(cosine(gradient, exact)))
    zero, moved = sizes[1.0] <= 1e-3 * max(sizes.values()), sorted(leaks)
    came = "zero" if zero else "not zero"
    report.add(zero, "g = 1", came, "zero", AT_ONE, "d x0_hat/dn carries g - 1")
    cause = f"a gradient leaks into {' and '.join(moved)}: only n may move; detach the rest"
    report.add(not leaks, "what else moves", ", ".join(moved) or "nothing", "nothing", cause)
    straight, came = min(cosines) > 0.999, f"cosine {min(cosines):.4f}"
    cause = "it is not the gradient of this loss" if max(sizes.values()) > 0 else NOT_IN_LOSS
    report.add(straight, "direction", came, "cosine 1", cause, EQUATION)
    if straight:
        factors, came = formulas("g, t, batch", SLIPS, LEVELS), f"{seen[0][1]:.4g}"
        rows = best_explanation(seen, [products_of(factors)])
        cause = f"the size is {came} times the reference"
        cause = cause if rows is None else "; ".join(causes_of(rows))
        report.add(not cause, "size", f"{came} of the reference", "1", cause, EQUATION)
    return report


def _gradient_in(n: Tensor, answer: Any) -> Tensor | None:
    """What arrived at n, back-propagating a loss; or the answer itself where it has n's shape."""
    answer = next(iter(parts_of(answer)), answer)
    if isinstance(answer, Tensor) and answer.shape == n.shape:
        return answer.detach().double()
    if n.grad is None:
        answered(answer)
        if isinstance(answer, Tensor) and answer.requires_grad and answer.numel() == 1:
            answer.backward()
    return None if n.grad is None else n.grad.double()


def _exact_negative(values: Mapping[str, Any], g: float) -> Tensor:
    """The gradient with respect to n of L(n), in this world."""
    x, t, eps, n, cond = (values[key].detach() for key in ("x", "t", "eps", "n", "cond"))
    n = n.double().requires_grad_()
    x_t = SCHEDULE.add_noise(x.double(), eps.double(), t)
    eps_hat = cfg(exact_eps(x_t, t, cond), exact_eps(x_t, t, n), g)
    loss = -reward(SCHEDULE.x0_from_eps(x_t, eps_hat, t)).mean()
    return torch.autograd.grad(loss, n)[0]
