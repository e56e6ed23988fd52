r"""PSD: preference score distillation. Pull the render to what is likely *and* preferred.

Objective. For a reward r and a temperature beta, reward minus KL has a known optimum, the tilted
prior:

    max_q E_q[r] - beta KL(q || p)   =>   p*(x) proportional to p(x) exp(r(x) / beta)

At noise level t its score is that of p_t plus the gradient of an *implicit reward* V_t,

    V_t(x_t) = beta log E[ exp(r(x_0) / beta) | x_t ]
    eps*(x_t) = eps_hat(x_t) - (sigma_t / beta) grad V_t(x_t)

and not of the reward of the noisy picture, which a reward model has never seen. Let "preferred" be
a binary variable with log-odds V_t / tau at level t. Then the optimum has the form of
classifier-free guidance, with a difference of two scores:

    eps*(x_t) = eps_hat(x_t) + lambda [ eps(x_t | win) - eps(x_t | lose) ],    lambda = tau / beta

One preference P(win | x) = sigmoid(r(x) / tau) for clean pictures has these log-odds at t = 0 only:
at t > 0 its log-odds come from E[sigmoid(r / tau) | x_t], V_t comes from E[exp(r / beta) | x_t],
and their slopes differ.

Gradient. Nobody has a denoiser for winners and one for losers, but two noises of one render give a
pair:

    h_i = eps_cfg(alpha_t x + sigma_t eps_i) - eps_i,    R_i = r(decode(x0_hat_i)),    i = 1, 2

For any f and independent noises, with omega "bt", tanh(gap / (2 tau)), a duel, or "gap", gap / tau;
"hard" is "bt" as tau -> 0:

    bt:   E[ omega(R_1 - R_2) (f_1 - f_2) ] = E[f | win] - E[f | lose] = 4 Cov(P(win | R), f)
    gap:  E[ omega(R_1 - R_2) (f_1 - f_2) ] = 2 Cov(R, f) / tau

With f = h, h_w - h_l = (alpha_t / sigma_t) (x0_hat_l - x0_hat_w): descent moves x from the loser to
the winner. So

    G = w(t) { base + lambda(t) omega(R_1 - R_2) (h_1 - h_2) }
    lambda(t) = preference_weight sigma_t        (a dial: tau / beta would be exact for V_t)

Opposite noises eps_2 = -eps_1, the default, compare R(eps) with R(-eps), and the right sides
change:

    bt:   4 Cov(P(win | eps), f),  P(win | eps) = sigmoid((R(eps) - R(-eps)) / tau)
    gap:  4 Cov(R_odd, f) / tau,   R_odd = (R(eps) - R(-eps)) / 2

For a Gaussian prior and a linear reward that is 2 times (gap), sqrt 2 times (hard) or in between
(bt) what independent noises give; in other worlds it is no fixed multiple.

base is any score distillation. The mean (h_1 + h_2)/2 keeps it unbiased; the winner's h_w equals,
with hard omega and SDS, the mean with lambda larger by 1/2; a fresh third noise costs one more
evaluation. The reward is only compared: no gradient of it is needed.

Limits. lambda = 0, a constant reward or a tie: the base method on the same two noises, bit for bit
on one machine and thread count. Opposite noises cancel the odd part of the base's noise and make
pairs differ more. Hard omega at small t, Gaussian prior: the mean of the pair's term stays bounded,
but the exact term (sigma_t / beta) grad V_t and the base's pull shrink like sigma_t. With one
lambda for all t the ratio to the exact term, and the distance of the place of rest from the prior's
mean, would grow like 1 / sigma_t; hence lambda(t). With f = eps_hat (the noise NOT subtracted, as
the CFG-like form suggests) the sign is wrong: a test shows it.

Paper and reconstruction. Leng et al. 2026 (arXiv 2603.01594) publish the idea: an added implicit-
reward term in CFG form, pairs of noises ranked by a 2D reward, negative-embedding co-optimisation.
Their exact formulas, weights and schedules are not public to us. The pair estimator, its constants,
omega, lambda(t) and all defaults here are a reconstruction that is provably right in worlds where
everything can be computed.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import at_least, one_of, validated
from psd_mini.rewards import score
from psd_mini.sds import SDS, Context, Method, Noises, Predictions, Renders, Timesteps

OMEGAS = ("hard", "gap", "bt", "gated")
PAIR_BASES = ("mean", "winner", "fresh")


@validated
def omega(
    gap: Float[Tensor, "..."], kind: str, tau: float | Float[Tensor, "..."] = 1.0
) -> Float[Tensor, "..."]:
    """What a difference of rewards is worth: the weight of the pair's direction. Odd in the gap.

        "hard"   sign(gap), 0 for a tie                only who won counts
        "gap"    gap / tau                             linear in the reward
        "bt"     tanh(gap / (2 tau))                   = 2 P(1 beats 2) - 1, Bradley-Terry at tau
        "gated"  sign(gap) where |gap| >= tau, else 0  small differences are noise

    bt tends to hard as tau -> 0 and to gap / (2 tau) as tau -> infinity.

    Args:
        gap: R_1 - R_2, any shape, in reward units.
        kind: one of the four names.
        tau: temperature or threshold, in reward units, positive (a number or a tensor).

    Returns:
        omega(gap), same shape, dimensionless. R_1 - R_2 of float32 rewards is rounding noise below
        1e-7 |R|, and "hard" counts that noise in full.

    Raises:
        ValueError: unknown kind, or tau not positive.

    Source: hard and bt are the two readings of a binary preference (Bradley & Terry 1952; Rafailov
    et al. 2023, arXiv 2305.18290); gated is DreamDPO's threshold (arXiv 2502.04370).
    """
    one_of("omega: kind", kind, OMEGAS)
    if not bool((torch.as_tensor(tau, dtype=torch.float64) > 0).all()):
        raise ValueError(f"tau: expected a positive reward difference, got {tau}")
    if kind == "hard":
        return torch.sign(gap)
    if kind == "gap":
        return gap / tau
    if kind == "bt":
        return torch.tanh(gap / (2 * tau))
    return torch.sign(gap) * (gap.abs() >= tau)


class Ranked(NamedTuple):
    """N noises of each of B renders, denoised and scored: the base method's residuals, the noise
    residuals h_i, the rewards R_i of the denoised pictures, and the predictions behind them."""

    of_base: Noises
    residuals: Noises
    rewards: Float[Tensor, "n b"]
    predictions: Predictions


def rank(
    base: SDS, x: Renders, t: Timesteps, eps: Noises, context: Context, over_views: bool = False
) -> Ranked:
    """Ask the prior once about all noises, denoise, and let the reward score each denoised picture.

        h_i = eps_cfg(x_t^i) - eps_i,    R_i = r(decode(x0_hat_i))

    The reward sees denoised pictures, which is what it was made for; it is never differentiated.

    Args:
        base: SDS, CSD or anything with `predict`, `guided` and `residual`.
        x: (B, C, h, w) render; t: (B,) timesteps; eps: (N, B, C, h, w).
        context: must have a reward.
        over_views: the B pictures are views of one object: each noise gets its mean reward over the
            views, so that noise i wins or loses for the whole object. Needs one t for all views, as
            rewards at different noise levels do not compare.

    Raises:
        ValueError: no reward, a reward that answers badly, or several t with `over_views`.
    """
    if over_views and len(set(t.tolist())) > 1:
        raise ValueError("t: ranking over views needs one timestep for all views of a step")
    predictions = base.predict(x, t, eps, context)
    with torch.no_grad():
        eps_hat = base.guided(predictions)
        # x0_hat_i = (x_t^i - sigma_t eps_cfg) / alpha_t; the schedule wants the batch first
        x0_hat = context.prior.schedule.x0_from_eps(
            predictions.x_t.transpose(0, 1), eps_hat.transpose(0, 1), t
        )
        images = context.prior.decode(x0_hat.transpose(0, 1).flatten(0, 1))
        rewards = score(context.reward, images, context.prompts * len(eps)).view(len(eps), len(x))
    if over_views:
        rewards = rewards.mean(dim=1, keepdim=True).expand_as(rewards)
    return Ranked(base.residual(predictions, eps), eps_hat - eps, rewards, predictions)


@validated
def psd_gradient(
    base: Float[Tensor, "b *event"],
    h_1: Float[Tensor, "b *event"],
    h_2: Float[Tensor, "b *event"],
    omega_b: Float[Tensor, " b"],
    lambda_t: Float[Tensor, "b *ones"] | float,
    weight_t: Float[Tensor, "b *ones"] | float = 1.0,
) -> Float[Tensor, "b *event"]:
    """The PSD direction: a base gradient plus the preference term.

        G = w(t) { base + lambda(t) omega(R_1 - R_2) (h_1 - h_2) }

    Args:
        base: (B, ...) unweighted direction of the base method, such as (h_1 + h_2) / 2.
        h_1, h_2: (B, ...) noise residuals eps_cfg(x_t^i) - eps_i of the two noises.
        omega_b: (B,) odd weight of the reward differences, see `omega`.
        lambda_t: strength, broadcast.
        weight_t: w(t), broadcast.

    Returns:
        G (B, ...).

    Source: reconstruction of arXiv 2603.01594; the derivation is the module's docstring.
    """
    omega_b = omega_b.reshape(-1, *[1] * (h_1.ndim - 1))
    return weight_t * (base + lambda_t * omega_b * (h_1 - h_2))


@validated
@dataclass
class PSD(Method):
    """PSD as a method: any base plus the preference term.

    Args:
        base: SDS() or CSD(): guidance scale and weighting are its own.
        preference_weight: lambda / sigma_t, dimensionless; 0 is the base on the pair's noises.
        omega: "hard", "gap", "bt" or "gated".
        tau: temperature or threshold in reward units; None is the running median of |R_1 - R_2|,
            kept in the checkpoint.
        pair_base: "mean", "winner" or "fresh".
        antithetic: eps_2 = -eps_1 instead of an independent noise.
        over_views: rank the views of an object together, with one t per step.
    """

    base: SDS = field(default_factory=SDS)
    preference_weight: float = 1.0
    omega: str = "hard"
    tau: float | None = None
    pair_base: str = "mean"
    antithetic: bool = True
    over_views: bool = True
    median_gap: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        one_of("pair_base", self.pair_base, PAIR_BASES)
        at_least("preference_weight", self.preference_weight, 0, whole=False)
        omega(torch.zeros(1), self.omega, 1.0 if self.tau is None else self.tau)  # looks at both

    @property
    def n_noises(self) -> int:  # type: ignore[override]
        """Independent noises per picture that the loop draws."""
        return (1 if self.antithetic else 2) + (self.pair_base == "fresh")

    @property
    def shared_timestep(self) -> bool:  # type: ignore[override]
        return self.over_views

    def __call__(
        self, x: Renders, t: Timesteps, eps: Noises, context: Context
    ) -> tuple[Tensor, dict[str, float]]:
        eps = torch.cat((eps[:1], -eps[:1], eps[1:])) if self.antithetic else eps
        ranked = rank(self.base, x, t, eps, context, self.over_views)
        h_1, h_2 = ranked.residuals[:2]
        gap = ranked.rewards[0] - ranked.rewards[1]
        base = ranked.of_base[2] if self.pair_base == "fresh" else ranked.of_base[:2].mean(0)
        if self.pair_base == "winner":
            first_wins = (gap >= 0).view(-1, *[1] * (x.ndim - 1))
            base = torch.where(first_wins, ranked.of_base[0], ranked.of_base[1])
        schedule = context.prior.schedule
        lambda_t = self.strength(schedule.alpha_sigma(t, x)[1])
        # G = w(t) { base + lambda(t) omega(R_1 - R_2) (h_1 - h_2) }
        omega_b = omega(gap, self.omega, self._temperature(gap)).view(-1, *[1] * (x.ndim - 1))
        pull = lambda_t * omega_b * (h_1 - h_2)
        gradient = schedule.weight(t, self.base.weighting, x) * (base + pull)
        return gradient, {
            "gradient_rms": gradient.square().mean().sqrt().item(),
            "reward": ranked.rewards[:2].mean().item(),
            "reward_gap": gap.abs().mean().item(),
            "preference_share": (pull.norm() / base.norm().clamp(min=1e-12)).item(),
        }

    def strength(self, sigma_t: Float[Tensor, "..."]) -> Tensor:
        """lambda(t) = preference_weight sigma_t; override it for another dependence on t."""
        return self.preference_weight * sigma_t

    def _temperature(self, gap: Tensor) -> float:
        """tau, or a running estimate of the median |gap| that moves by 5% with every step."""
        if self.tau is not None:
            return self.tau
        typical = gap.abs().median().item()
        if self.median_gap <= 0:
            self.median_gap = typical
        else:
            self.median_gap *= 1.05 if typical > self.median_gap else 1 / 1.05
        return max(self.median_gap, 1e-12)

    def state_dict(self) -> dict[str, Any]:
        return {"median_gap": self.median_gap, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        at_least("state: median_gap", state.get("median_gap"), 0, whole=False)
        self.median_gap = state["median_gap"]
