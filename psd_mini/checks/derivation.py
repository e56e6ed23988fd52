"""Comparing a gradient that was derived on paper with the truth, in a small exact world.

`numeric_gradient` differentiates an objective that is only evaluated, never differentiated by hand.
`gradient_statistics` measures bias, variance and signal-to-noise of any method. `check_gradient`
compares two functions. All randomness is common to the two sides of a difference, so standard
errors are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import at_least, in_words, validated
from psd_mini.checks.directions import ASCENT
from psd_mini.checks.exact_world import picture
from psd_mini.checks.grading.submission import gradient_of
from psd_mini.checks.guard import guarded
from psd_mini.checks.reading import cosine, fit
from psd_mini.checks.report import Report, Unreadable
from psd_mini.checks.sizes import constants, factors
from psd_mini.checks.tables import best_explanation, products_of
from psd_mini.mixture import GaussianMixture
from psd_mini.sds import Context

Objective = Callable[[Tensor, Tensor], Tensor]  # x_t (n, d), t (n,) -> values (n,)
Point = Float[Tensor, " d"]


class Estimate(NamedTuple):
    """A mean over draws and its standard error, both (d,)."""

    value: Tensor
    standard_error: Tensor

    def agrees(self, other: Tensor, sigmas: float = 4.0) -> bool:
        """Is `other` (d,) within so many standard errors (and rounding)?"""
        slack = sigmas * self.standard_error + 1e-6 * (1 + self.value.abs().max())
        return bool(((self.value - other.flatten()).abs() <= slack).all())


def kl_objective(prior: GaussianMixture, embeddings: Tensor | None = None) -> Objective:
    """-log p_t(x_t | e), whose mean over q_t = N(alpha_t x, sigma_t^2 I) is KL(q_t || p_t) + const.

    The constant does not depend on x.
    """
    return lambda x_t, t: -prior.log_prob(x_t, t, embeddings)[0]


def reward_objective(
    prior: GaussianMixture,
    reward: Callable[[Tensor], Tensor],
    beta: float,
    embeddings: Tensor | None = None,
) -> Objective:
    """Minus "reward - beta KL", with the reward of the one-step denoised sample.

    beta (-log p_t(x_t)) - r(x0_hat(x_t))
    """
    kl = kl_objective(prior, embeddings)
    return lambda x_t, t: beta * kl(x_t, t) - reward(prior.denoise(x_t, t, embeddings)[0])


@validated
def numeric_gradient(
    objective: Objective,
    x: Point,
    t: int,
    prior: GaussianMixture,
    *,
    n: int = 20_000,
    step: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Gradient of E_eps[ objective(alpha_t x + sigma_t eps, t) ] in x, by central differences.

        dF/dx_j = E[ F(x + h e_j; eps) - F(x - h e_j; eps) ] / 2h

    with the same eps (and -eps) on both sides.

    Args:
        objective: what is averaged over the noise and to be lowered, like `kl_objective(prior)`.
        x: one point (d,), float64, d small. t: timestep. prior: gives the schedule.
        n: pairs of noises eps, -eps. step: h.
        generator: source of the noises; a fixed seed by default.

    Returns:
        `Estimate`. For the KL it is (alpha_t / sigma_t) E[eps_hat - eps], and E[G_SDS] is
        w (sigma_t / alpha_t) times that.

    The truth for a preference, "reward minus beta KL", is the KL to its optimum. With
    `tilted, _ = prior.tilt_linear(v, beta)` it is `kl_objective(tilted)`, whose gradient is
    (alpha_t / sigma_t) E[eps* - eps]. `reward_objective` is another objective, in units of the
    reward: beta times the KL, and the reward of x0_hat in place of the implicit reward.
    """
    at_least("n", n, 2)
    if not step > 0:
        raise ValueError(f"step: expected a positive length h, got {step}")
    x, d = x.double(), x.numel()
    generator = generator or torch.Generator().manual_seed(0)
    eps = torch.randn(n, d, generator=generator, dtype=torch.float64)
    times = torch.full((n,), t)
    alpha_t, sigma_t = prior.schedule.alpha_sigma(times[:1], x[None])
    columns = []
    for shift in step * torch.eye(d, dtype=torch.float64):

        def value(point: Tensor) -> Tensor:  # mean of an antithetic pair
            sides = [objective(alpha_t * point + sign * sigma_t * eps, times) for sign in (1, -1)]
            if any(getattr(side, "shape", None) != (n,) for side in sides):
                came = in_words(sides[0])
                raise ValueError(f"objective: expected values ({n},), one per x_t, got {came}")
            return (sides[0] + sides[1]) / 2

        columns.append((value(x + shift) - value(x - shift)) / (2 * step))
    samples = torch.stack(columns, -1)
    return Estimate(samples.mean(0), samples.std(0) / n**0.5)


class Statistics(NamedTuple):
    """Of a gradient at one x and t.

    mean, standard_error: (d,). bias: mean - reference (d,), None without a reference. variance:
    sum over elements. snr: |mean|^2 / variance, corrected for the mean's own noise.
    """

    mean: Tensor
    standard_error: Tensor
    bias: Tensor | None
    variance: float
    snr: float

    @property
    def unbiased(self) -> bool | None:
        """Is the bias within four standard errors everywhere?"""
        if self.bias is None:
            return None
        return Estimate(self.mean, self.standard_error).agrees(self.mean - self.bias)


@validated
def gradient_statistics(
    method: Callable,
    t: int,
    n: int = 10_000,
    *,
    prior: GaussianMixture,
    x: Point,
    reference: Point | None = None,
    context: Context | None = None,
    generator: torch.Generator | None = None,
) -> Statistics:
    """Bias, variance and signal-to-noise of a method at one noise level.

    Args:
        method: a method of this package, or fn(x, t, eps, context) -> gradient (or a pair that
            begins with it), in its shapes. One that ranks needs over_views=False: the n draws are
            no views of one object.
        t: timestep. n: independent gradients.
        prior, x: the world and the point (d,) where it is measured.
        reference: what the mean should be, (d,); for SDS w(t) (sigma_t / alpha_t)
            `numeric_gradient(kl_objective(prior), ...)`. For a preference see `numeric_gradient`.
        context: prompts, rewards; the prior's null prompt by default. Variances compare at equal
            cost only: each gradient took context.cost.prior_evaluations / n evaluations of the
            prior, and the mean of two has half the variance.

    Raises:
        ValueError: a method that ranks all pictures together.
    """
    at_least("n", n, 2)
    if x.shape != prior.means.shape[1:]:
        expected = f"a point {tuple(prior.means.shape[1:])} of the prior's world"
        raise ValueError(f"x: expected {expected}, got {tuple(x.shape)}")
    generator = generator or torch.Generator().manual_seed(0)
    if getattr(method, "over_views", False):
        name = f"{type(method).__name__} ranks all pictures together"
        raise ValueError(f"method: {name}, and here each is a draw of its own: over_views=False")
    xs = x.double().expand(n, -1)[..., None, None]
    noises = getattr(method, "n_noises", 1)
    eps = torch.randn(noises, *xs.shape, generator=generator, dtype=torch.float64)
    context = context or Context(prior, torch.zeros(2, len(prior.means), dtype=torch.float64))
    answer = method(xs, torch.full((n,), t), eps, context)
    gradient = answer[0] if isinstance(answer, tuple) else answer
    if getattr(gradient, "shape", None) != xs.shape:
        raise ValueError(f"method: expected a gradient {tuple(xs.shape)}, got {in_words(gradient)}")
    samples = gradient.detach().double().reshape(n, -1)
    mean, error = samples.mean(0), samples.std(0) / n**0.5
    variance = samples.var(0).sum().item()
    signal = max(mean.square().sum().item() - variance / n, 0.0)
    bias = None if reference is None else mean - reference.double().flatten()
    return Statistics(mean, error, bias, variance, signal / max(variance, 1e-300))


@guarded("a gradient")
def check_gradient(
    fn: Callable[..., Any],
    reference: Callable[..., Tensor],
    *inputs: Tensor | float,
    tolerance: float = 1e-3,
    slips: Mapping[str, Callable[..., Tensor]] | None = None,
) -> Report:
    """Does fn give the gradient that `reference` gives? Direction and size apart.

    Args:
        fn: of x and whatever else is in inputs; returns a gradient or a loss.
        reference: the same arguments; returns the gradient.
        inputs: x first; by default one picture of latents.
        tolerance: relative.
        slips: {what is wrong: the gradient that comes of it}, as functions like `reference`. A
            mistake in the sign or a factor beside one of them is named too.
    """
    report = Report("check of a gradient")
    first = inputs[0] if inputs else picture(1, 0)
    if not isinstance(first, Tensor):
        raise Unreadable(f"inputs: expected x, a tensor, as the first of them, got {first!r}")
    x, known = first.detach().clone(), list[tuple[str, Tensor]]()
    for name, gives in {"": reference, **(slips or {})}.items():
        known.append((name, gives(x.clone(), *inputs[1:]).detach().double()))
    want = known[0][1]
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        got, style, _ = gradient_of(fn(leaf, *inputs[1:]), leaf)
    got = got.double()
    if want.shape != got.shape:
        shapes = f"{tuple(got.shape)}, the reference {tuple(want.shape)}"
        raise Unreadable(f"the gradient has shape {shapes}", "wrong")
    came, cause = f"a {style}", ""
    if bool((got == 0).all()):
        came, cause = "exactly zero", "was the target detached?"
    elif not bool(got.isfinite().all()):
        came, cause = "NaN or infinity", "division by zero?"
    text = f"the gradient is {came}: {cause}"
    report.add(not cause, "gradient", came, "finite, not zero", text)
    if report.ok:
        _judge_against(report, got, known, len(x), tolerance)
    return report


def _judge_against(
    report: Report, got: Tensor, known: list[tuple[str, Tensor]], batch: int, tolerance: float
) -> None:
    """Rows on the direction and the size of a gradient, beside the right one and what slips give.

    known: the right one first, with the name "".
    """
    cosines = [cosine(got, gradient) for _, gradient in known]
    ratios = [fit(got, [gradient])[0][0] for _, gradient in known]
    alike = [i for i, along in enumerate(cosines) if abs(along) > 1 - tolerance]
    alike.sort(key=lambda i: abs(abs(ratios[i]) - 1) > tolerance)
    came, expected = f"cosine {cosines[0]:.5f}", "cosine 1"
    if not alike:
        report.add(False, "direction", came, expected, _another_direction(got, known[0][1]))
        return  # sizes of different directions do not compare
    (name, _), ratio = known[alike[0]], ratios[alike[0]]
    causes = [name] if name else []
    causes += [ASCENT] if ratio < 0 else []
    turned = cosines[0] < 1 - tolerance
    report.add(not turned, "direction", came, expected, "; ".join(causes))
    slips = [*constants((got.numel(), 1, 1)), *factors("gradient")[::2]]
    rows = best_explanation([((1, batch, 1.0), abs(ratio))], [products_of(slips)], tolerance)
    cause = "a factor is missing, or one too many" if rows is None else rows[0].cause
    came = f"{abs(ratio):.4g}" if rows is None else rows[0].name
    words = [f"the size is {came} times the reference: {cause}"] if cause else []
    words = words if turned else [*causes, *words]
    size = f"{abs(ratio if turned else ratios[0]):.4g}"
    report.add(not words, "size", size, "1", "; ".join(words))


def _another_direction(got: Tensor, want: Tensor) -> str:
    """Where the two differ most."""
    _, at = (got - want).abs().flatten().max(0)
    place = [int(index) for index in torch.unravel_index(at, got.shape)]
    values = f"{got.flatten()[at].item():.4g} came, {want.flatten()[at].item():.4g} is expected"
    return f"another direction: at {place} {values}"
