"""The negative embedding, optimised together with the field: what should guidance push away from?

Under classifier-free guidance the denoised image depends on the negative embedding n,

    eps_cfg(n) = eps(x_t; n) + g ( eps(x_t; y) - eps(x_t; n) )
    x0_hat(n) = (x_t - sigma_t eps_cfg(n)) / alpha_t
    d x0_hat / dn = (g - 1) (sigma_t / alpha_t) d eps(x_t; n) / dn

so n can be moved to where the denoised image is rewarded, through one noise prediction. Two
objectives stand behind one interface:

    "reward"     L(n) = -mean r( decode( x0_hat(n) ) )          the reward must be differentiable
    "inversion"  L(n) = mean (eps(x_t^loser; n) - eps_loser)^2   n learns what loses; any reward

    n <- Adam(n, dL/dn),   then projected on the trust region ||n - n_0|| <= radius

At g = 1 the gradient is zero, below 1 it has the wrong sign. In a linear-Gaussian world one step of
size eta adds -eta (g - 1)^2 sigma_t^3 alpha_t C^-1 M M^T C^-1 v to the field's gradient: n
integrates reward gradients as seen through the denoiser, and without the trust region it does so
for ever (a test shows the runaway).

In the toy world, whose components have weights proportional to exp(<n, key>), the derivative is a
covariance,

    d x0_hat_cfg / dn = -(g - 1) Cov( x_0, key | x_t, n )

bounded, but exactly zero once x_t says without doubt which component it is. Against two pictures
mu_1 and mu_2 the embedding only speaks where its log-weights outweigh what x_t says,

    |<n, key_1 - key_2>|  >  alpha_t^2 ||mu_1 - mu_2||^2 / (2 (alpha_t^2 tau_x^2 + sigma_t^2))

so the radius *is* a noise level: `evidence` gives it, and the default is the evidence at the lowest
t of a run. A smaller radius speaks at large t only, when the field is still fog.

What guidance reaches. Where n has one picture mu_n and the prompt has mu_y, x0_hat_cfg is
mu_n + g (mu_y - mu_n): it leaves the prior on the side away from n. If the prior knows only dull
colours, gray + v (c - gray), the negative "gray" leads to vividness g v.

Sources: idea and its place in PSD, Leng et al. 2026 (arXiv 2603.01594), whose exact loss is not
public; the "reward" objective is that of ReNeg (Li et al. 2024, arXiv 2412.19637) taken online;
"inversion" is textual inversion (Gal et al. 2022, arXiv 2208.01618) on the loser. The derivation of
the linear-Gaussian world and of the toy world's covariance is ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import one_of, validated
from psd_mini._internal.runs import check_finite
from psd_mini.rewards import score
from psd_mini.schedule import draw_noises, sample_timesteps
from psd_mini.sds import SDS, Context, cfg

OBJECTIVES = ("reward", "inversion")


@validated
def negative_loss(
    n: Float[Tensor, "..."],
    x: Float[Tensor, "b c h w"],
    t: Tensor,
    eps: Float[Tensor, "k b c h w"],
    context: Context,
    guidance_scale: float,
    objective: str = "reward",
) -> Float[Tensor, ""]:
    """L(n), to be lowered; differentiable in n only.

    Args:
        n: the negative embedding, of the shape of one prompt's embedding.
        x: (B, C, h, w) render, used as it is; t: (B,) timesteps.
        eps: (K, B, C, h, w) noises: one for "reward", two for "inversion".
        context: prior, embeddings, cameras, prompts and reward.
        guidance_scale: g.
        objective: "reward" or "inversion" (equations: the module's docstring).

    Returns:
        Scalar: minus the mean reward, or the mean squared error per element of the loser's noise.

    Raises:
        ValueError: objective "reward" with a reward that has no gradient.
    """
    prior, schedule = context.prior, context.prior.schedule

    def denoised(noise: Tensor) -> tuple[Tensor, Tensor]:
        x_t = schedule.add_noise(x.detach(), noise, t)
        with torch.no_grad():
            eps_cond = prior.predict_noise(x_t, t, context.embeddings[:1], context.cameras)[0]
        eps_neg = prior.predict_noise(x_t, t, n[None], context.cameras)[0]
        context.cost.prior_evaluations += 2 * len(x)
        return schedule.x0_from_eps(x_t, cfg(eps_cond, eps_neg, guidance_scale), t), eps_neg

    def reward_of(x0_hat: Tensor) -> Tensor:
        return score(context.reward, prior.decode(x0_hat), context.prompts)

    if objective == "reward":
        # L = -mean r( decode( x0_hat(n) ) )
        scores = reward_of(denoised(eps[0])[0])
        if not scores.requires_grad:
            raise ValueError(
                "reward: the negative embedding climbs its gradient, and it has none; use "
                "objective='inversion'"
            )
        return -scores.mean()
    (x0_hat_1, eps_neg_1), (x0_hat_2, eps_neg_2) = denoised(eps[0]), denoised(eps[1])
    with torch.no_grad():
        first_loses = (reward_of(x0_hat_1) < reward_of(x0_hat_2)).view(-1, *[1] * (x.ndim - 1))
    # L = mean (eps(x_t^loser; n) - eps_loser)^2
    return torch.where(first_loses, eps_neg_1 - eps[0], eps_neg_2 - eps[1]).square().mean()


@validated
def evidence(
    distance_squared: float | Float[Tensor, "..."],
    alpha_t: float | Float[Tensor, "..."],
    sigma_t: float | Float[Tensor, "..."],
    variance: float = 0.0,
) -> float | Float[Tensor, "..."]:
    """What x_t says about which of two pictures it holds: mean log-odds of the true one, in nats.

        E[ log N(x_t; alpha_t mu_1, C_t I) / N(x_t; alpha_t mu_2, C_t I) | mu_1 ]
            = alpha_t^2 ||mu_1 - mu_2||^2 / (2 C_t),    C_t = alpha_t^2 tau_x^2 + sigma_t^2

    Args:
        distance_squared: ||mu_1 - mu_2||^2, squared units of x.
        alpha_t, sigma_t: of the noise level, broadcast.
        variance: tau_x^2 of each picture's kernel, squared units of x.
    """
    return alpha_t**2 * distance_squared / (2 * (alpha_t**2 * variance + sigma_t**2))


def check_guidance(guidance_scale: float, what: str) -> None:
    """Refuse g = 1, where guidance does not look at the negative prompt at all."""
    if guidance_scale == 1.0:
        why = f"{what} has no effect (it acts with the factor g - 1 = 0)"
        raise ValueError(f"guidance_scale: at 1 {why}; use for example 2")


def check_negative_prompt(negative_prompt: str, method: Any) -> None:
    """Refuse one that the method never asks the prior about. CSD asks at every scale."""
    base = getattr(method, "base", method)
    if negative_prompt and type(base) is SDS:
        check_guidance(base.guidance_scale, "the negative prompt")


@validated
class NegativeEmbedding:
    """A negative embedding with its optimiser, for the loop.

    Args:
        start: n_0, one prompt's embedding; what the trust region is centred on.
        guidance_scale: g of the method that it works for; must not be 1.
        objective: "reward" or "inversion".
        lr: Adam's step, in units of the embedding (the toy world's are log-weights).
        radius: of the trust region, a number; infinity switches it off.
        t_range: lowest and highest timestep of its own draws, fractions of the schedule.
        steps: first and last step of the run in which it moves, as fractions: (0.0, 1.0) is always.

    Raises:
        ValueError: g = 1 (the gradient is zero), unknown objective, a range out of order.
    """

    def __init__(
        self,
        start: Float[Tensor, "..."],
        guidance_scale: float,
        objective: str = "reward",
        lr: float = 0.2,
        radius: Any = 6.0,
        t_range: tuple[float, float] = (0.5, 0.98),
        steps: tuple[float, float] = (0.0, 1.0),
    ):
        check_guidance(guidance_scale, "the negative embedding")
        one_of("objective", objective, OBJECTIVES)
        for name, (low, high) in {"t_range": t_range, "steps": steps}.items():
            if not 0 <= low <= high <= 1:
                raise ValueError(f"{name}: expected 0 <= low <= high <= 1, got {(low, high)}")
        if not isinstance(radius, int | float) or not radius >= 0 or not lr > 0:
            raise ValueError(f"radius, lr: expected radius >= 0 and lr > 0, got {radius} and {lr}")
        self.start = start.detach().clone()
        self.guidance_scale, self.objective = guidance_scale, objective
        self.radius, self.t_range, self.steps = radius, t_range, steps
        self.embedding = start.detach().clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.embedding], lr=lr)

    def step(
        self, progress: float, x: Tensor, context: Context, generator: torch.Generator
    ) -> dict[str, float]:
        """Move n once, on the current render; nothing else receives a gradient.

        Args:
            progress: of the run, in [0, 1].
            x: (B, C, h, w) render in the prior's space.
            context: as the method's; generator: source of t and noise.

        Returns:
            {"negative_loss", "negative_norm"}, or {} outside of its steps.
        """
        if not self.steps[0] <= progress <= self.steps[1]:
            return {}
        T = context.prior.schedule.num_timesteps
        low, high = (round(bound * (T - 1)) for bound in self.t_range)
        t = sample_timesteps(len(x), low, high, generator)
        n_noises = 2 if self.objective == "inversion" else 1
        eps = draw_noises(n_noises, x, generator)
        with torch.enable_grad():
            loss = negative_loss(
                self.embedding, x, t, eps, context, self.guidance_scale, self.objective
            )
            (self.embedding.grad,) = torch.autograd.grad(loss, self.embedding)
        check_finite({"the gradient of the negative embedding": self.embedding.grad})
        self.optimizer.step()
        with torch.no_grad():
            away = self.embedding - self.start
            # projection on ||n - n_0|| <= radius
            self.embedding.copy_(
                self.start + away * min(1.0, self.radius / max(away.norm().item(), 1e-12))
            )
        norm = (self.embedding - self.start).norm().item()
        return {"negative_loss": loss.item(), "negative_norm": norm}

    def read(self, vocabulary: Sequence[str], n: int = 5) -> list[tuple[str, float]]:
        """The words that n moved to most, with how far, in embedding units: for embeddings with
        one number per word."""
        away = (self.embedding - self.start).detach()
        return [
            (vocabulary[i], round(away[i].item(), 3))
            for i in away.abs().argsort(descending=True)[:n].tolist()
        ]

    def __repr__(self) -> str:
        lr = self.optimizer.param_groups[0]["lr"]
        settings = self.guidance_scale, self.objective, lr, self.radius, self.t_range, self.steps
        return f"NegativeEmbedding{settings}"

    def state_dict(self) -> dict[str, Any]:
        return {
            "embedding": self.embedding.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.embedding.copy_(state["embedding"])
        self.optimizer.load_state_dict(state["optimizer"])
