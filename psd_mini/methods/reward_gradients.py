"""Reward gradients as people try them: differentiate the reward and add it to SDS.

Objective. Reward minus KL, as in `psd`; its exact gradient has grad V_t in the bracket,

    G = w(t) ( eps_cfg - eps - (sigma_t / beta) grad V_t(x_t) )
    V_t(x_t) = beta log E[ exp(r(x_0) / beta) | x_t ]

and since V_t is out of reach, something that can be differentiated takes its place, with
lambda = 1 / beta:

    pixel-noisy       grad r at the noisy x_t         a picture that the reward has never seen
    pixel-clean       grad r at the render x          the first thing everybody tries; no t in it
    straight-through  (1 / alpha_t) grad r at x0_hat  the denoiser's Jacobian is dropped
    dps               J^T grad r at x0_hat            J = (alpha_t / sigma_t^2) Cov(x_0 | x_t)

with J = d x0_hat / d x_t. Only the last knows the prior: J projects on directions in which the
prior varies. For a Gaussian prior and a linear reward r = <v, x> it is exact at every beta; the
first two add lambda (sigma_t^2 / alpha_t) v to where descent ends, motion along directions in which
the prior has no variance at all: off the manifold, which is how rewards get hacked. J costs one
backward pass through the denoiser. As beta goes to zero V_t tends to the best reward within reach,
and none of them does.

References: pixel-noisy is naive classifier guidance (Dhariwal & Nichol 2021, arXiv 2105.05233) with
a clean-image classifier; straight-through as in DreamReward (Ye et al. 2024, arXiv 2403.14613,
code); dps is Chung et al. 2022 (arXiv 2209.14687), eq. 16. Tests assert: the Jacobian; exactness of
dps for a Gaussian; the equilibria of the table.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import at_least, one_of, validated
from psd_mini.rewards import score
from psd_mini.sds import SDS, Answer, Context, Method, Noises, Predictions, Renders, Timesteps

KINDS = ("pixel-noisy", "pixel-clean", "straight-through", "dps")
BLACK_BOX = "a black box works with method psd"


def reward_gradient(
    kind: str,
    x: Float[Tensor, "b *event"],
    x_t: Float[Tensor, "b *event"],
    t: Tensor,
    context: Context,
    base: SDS,
    eps_hat: Float[Tensor, "b *event"] | None = None,
) -> Float[Tensor, "b *event"]:
    """What stands in for grad V_t, by name (equations: the module's docstring).

    Args:
        kind: one of `KINDS`.
        x, x_t: render and noised render, (B, ...).
        t: (B,) timesteps.
        context: prior, embeddings, cameras, prompts and a differentiable reward.
        base: its guided prediction denoises, for the last two.
        eps_hat: that prediction in x_t, if it is known; straight-through then asks the prior
            nothing.

    Returns:
        Gradient, same shape as x, in reward units per unit of x.

    Raises:
        ValueError: no reward, one that is a black box, or one whose scores do not depend on the
            pictures; "dps" with a prior that keeps no graph of its denoiser.
    """
    if context.reward is None or not getattr(context.reward, "differentiable", True):
        raise ValueError(f"reward: {kind} needs a differentiable reward; {BLACK_BOX}")
    prior, schedule = context.prior, context.prior.schedule
    if kind == "dps" and not prior.keeps_graph:
        reason = "no gradient passes through this prior's denoiser, which dps needs"
        raise ValueError(f"method: {reason}; use straight-through")
    leaf = (x if kind == "pixel-clean" else x_t).detach().requires_grad_()
    with torch.enable_grad():
        if kind in ("pixel-noisy", "pixel-clean"):
            return _slope(leaf, leaf, context)
        if kind == "dps":
            # J^T grad r: the chain rule through the denoiser
            x0_hat = schedule.x0_from_eps(leaf, _guided(leaf, t, context, base), t)
            return _slope(x0_hat, leaf, context)
        with torch.no_grad():
            eps_hat = _guided(leaf, t, context, base) if eps_hat is None else eps_hat
            x0_hat = schedule.x0_from_eps(leaf, eps_hat, t).requires_grad_()
        return _slope(x0_hat, x0_hat, context) / schedule.alpha_sigma(t, x)[0]


def _slope(x: Tensor, leaf: Tensor, context: Context) -> Tensor:
    """d r(decode(x)) / d leaf, where x was computed from leaf."""
    scores = score(context.reward, context.prior.decode(x), context.prompts)
    if not scores.requires_grad:
        raise ValueError(f"reward: its scores carry no gradient to the picture; {BLACK_BOX}")
    return torch.autograd.grad(scores.sum(), leaf)[0]


def _guided(x_t: Tensor, t: Tensor, context: Context, base: SDS) -> Tensor:
    """The base's guided noise prediction in x_t, with its graph."""
    embeddings = context.embeddings if base.guidance_scale != 1.0 else context.embeddings[:1]
    context.cost.prior_evaluations += len(embeddings) * len(x_t)
    eps_hat = context.prior.predict_noise(x_t, t, embeddings, context.cameras)
    return base.guided(Predictions(x_t, eps_hat[0], eps_hat[-1]))


@validated
@dataclass
class RewardGradient(Method):
    """A base method plus the gradient of the reward, taken in one of four ways.

    Args:
        kind: "pixel-noisy", "pixel-clean", "straight-through" or "dps".
        base: SDS() or CSD().
        preference_weight: lambda = 1 / beta, in units of 1 / reward.
    """

    kind: str
    base: SDS = field(default_factory=SDS)
    preference_weight: float = 50.0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        at_least("preference_weight", self.preference_weight, 0, whole=False)

    def __call__(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Answer:
        predictions = self.base.predict(x, t, eps, context)
        residual = self.base.residual(predictions, eps)[0]
        eps_hat = self.base.guided(predictions)[0]
        slope = reward_gradient(self.kind, x, predictions.x_t[0], t, context, self.base, eps_hat)
        schedule = context.prior.schedule
        sigma_t = schedule.alpha_sigma(t, x)[1]
        weight_t = schedule.weight(t, self.base.weighting, x)
        # G = w(t) ( h - sigma_t lambda grad r )
        gradient = weight_t * (residual - sigma_t * self.preference_weight * slope)
        return gradient, {"gradient_rms": gradient.square().mean().sqrt().item()}
