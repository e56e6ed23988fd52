r"""PSD: preference score distillation. Pull the render to what the prior finds likely *and* people prefer.

Objective. For a reward r and a temperature beta, reward minus KL has a known optimum, the tilted prior:

    max_q E_q[r] - beta KL(q || p)   =>   p*(x) proportional to p(x) exp(r(x) / beta)

At noise level t its score is that of p_t plus the gradient of an *implicit reward* V_t,

    V_t(x_t) = beta log E[ exp(r(x_0)/beta) | x_t ],    eps*(x_t) = eps_hat(x_t) - (sigma_t / beta) grad V_t(x_t)

and not of the reward of the noisy picture, which a reward model has never seen. Let "preferred" be a binary variable with
log-odds V_t / tau at level t. Then the optimum has the form of classifier-free guidance, with a difference of two scores:

    eps*(x_t) = eps_hat(x_t) + lambda [ eps(x_t | win) - eps(x_t | lose) ],    lambda = tau / beta

One preference P(win | x) = sigmoid(r(x) / tau) for clean pictures has these log-odds at t = 0 only: at t > 0 its log-odds come
from E[sigmoid(r / tau) | x_t], V_t comes from E[exp(r / beta) | x_t], and their slopes differ.

Gradient. Nobody has a denoiser for winners and one for losers, but two noises of one render give a pair:

    h_i   = eps_cfg(alpha_t x + sigma_t eps_i) - eps_i,   R_i = r(decode(x0_hat_i)),   i = 1, 2
    for any f and omega = tanh(gap / 2 tau) of a duel, or gap / tau, if eps_1 and eps_2 are independent:
          E[ omega(R_1 - R_2) (f_1 - f_2) ] = E[f | win] - E[f | lose] = 4 Cov( P(win | R), f ),    gap: 2 Cov(R, f) / tau
    with f = h:  h_w - h_l = (alpha_t / sigma_t) (x0_hat_l - x0_hat_w):  descent moves x from the loser to the winner
    so    G = w(t) { base + lambda(t) omega(R_1 - R_2) (h_1 - h_2) },    lambda(t) = preference_weight * sigma_t

Opposite noises eps_2 = -eps_1, the default, compare R(eps) with R(-eps), and the right sides change:

    duel: 4 Cov( P(win | eps), f ),  P(win | eps) = sigmoid( (R(eps) - R(-eps)) / tau )
    gap:  4 Cov( R_odd, f ) / tau,   R_odd = (R(eps) - R(-eps)) / 2

For a Gaussian prior and a linear reward that is 2 times (gap), sqrt 2 times (hard) or in between (duel) what independent
noises give; in other worlds it is no fixed multiple.

base is any score distillation: the mean (h_1 + h_2)/2 keeps it unbiased; the winner's h_w equals the mean with lambda
larger by 1/2; a fresh third noise costs one more evaluation. The reward is only compared: no gradient of it is needed.

What the coefficients do. lambda = 0, a constant reward or a tie: the base method bit for bit on one machine with one thread count. Opposite noises cancel the odd
part of the base's noise and make pairs differ more. Hard omega at small t, Gaussian prior: the mean of the pair's term stays
bounded, but the exact term (sigma_t / beta) grad V_t and the base's pull shrink like sigma_t. With one lambda for all t the
ratio to the exact term, and the distance of the place of rest from the prior's mean, would grow like 1 / sigma_t; hence
lambda(t). With f = eps_hat (the noise NOT subtracted, as the CFG-like form suggests) the sign is wrong: a test shows it.

Paper and reconstruction. Leng et al. 2026 (arXiv 2603.01594) publish the idea: an added implicit-reward term in
CFG form, pairs of noises ranked by a 2D reward, negative-embedding co-optimisation. Their exact formulas, weights and
schedules are not public to us. The pair estimator, its constants, omega, lambda(t) and all defaults here are a
reconstruction that is provably right in worlds where everything can be computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini.arguments import at_least, validated
from psd_mini.formulas import omega
from psd_mini.methods.context import Context, Noises, Render, Times
from psd_mini.methods.ranked import rank
from psd_mini.methods.sds import SDS

BASES = ("mean", "winner", "fresh")


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
        omega_b: (B,) odd weight of the reward differences, see `formulas.omega`.
        lambda_t: strength, broadcast.
        weight_t: w(t), broadcast.

    Returns:
        G (B, ...).

    Source: reconstruction of arXiv 2603.01594; the derivation is the module's docstring.
    """
    weight = omega_b.reshape(-1, *[1] * (h_1.ndim - 1))
    return weight_t * (base + lambda_t * weight * (h_1 - h_2))


@validated
@dataclass
class PSD:
    """PSD as a method: any base plus the preference term.

    Args:
        base: SDS() or CSD(): guidance scale and weighting are its own.
        preference_weight: lambda / sigma_t, dimensionless; 0 is the base method.
        omega: "hard", "gap", "bt" or "gated".
        tau: temperature or threshold in reward units; None is the running median of |R_1 - R_2|, kept in the checkpoint.
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
        if self.pair_base not in BASES:
            raise ValueError(f"pair_base: {self.pair_base!r} is not known; choose from {', '.join(BASES)}")
        at_least("preference_weight", self.preference_weight, 0, whole=False)
        omega(torch.zeros(1), self.omega, 1.0 if self.tau is None else self.tau)  # names and signs are checked there

    @property
    def n_noises(self) -> int:
        """Independent noises per picture that the loop draws."""
        return (1 if self.antithetic else 2) + (self.pair_base == "fresh")

    @property
    def shared_timestep(self) -> bool:
        return self.over_views

    def __call__(self, x: Render, t: Times, eps: Noises, context: Context) -> tuple[Tensor, dict[str, float]]:
        eps = torch.cat((eps[:1], -eps[:1], eps[1:])) if self.antithetic else eps
        ranked = rank(self.base, x, t, eps, context, self.over_views)
        h_1, h_2 = ranked.residuals[:2]
        gap = ranked.rewards[0] - ranked.rewards[1]
        weight = omega(gap, self.omega, self._temperature(gap))
        base = ranked.base[2] if self.pair_base == "fresh" else ranked.base[:2].mean(0)
        if self.pair_base == "winner":
            base = torch.where((gap >= 0).view(-1, *[1] * (x.ndim - 1)), ranked.base[0], ranked.base[1])
        schedule = context.prior.schedule
        lambda_t = self.strength(schedule.alpha_sigma(t, x)[1])
        gradient = psd_gradient(base, h_1, h_2, weight, lambda_t, schedule.weight(t, self.base.weighting, x))
        pull = lambda_t * weight.view(-1, *[1] * (x.ndim - 1)) * (h_1 - h_2)
        return gradient, {
            "gradient_rms": gradient.square().mean().sqrt().item(),
            "reward": ranked.rewards[:2].mean().item(),
            "reward_gap": gap.abs().mean().item(),
            "preference_share": (pull.norm() / base.norm().clamp(min=1e-12)).item(),
        }

    def strength(self, sigma_t: Float[Tensor, "..."]) -> Tensor:
        """lambda(t) = preference_weight sigma_t, the shape of sigma_t; override it for another dependence on t."""
        return self.preference_weight * sigma_t

    def _temperature(self, gap: Tensor) -> float:
        """tau, or a running estimate of the median |gap|: it moves by 5% up or down with every step, towards the data."""
        if self.tau is not None:
            return self.tau
        typical = gap.abs().median().item()
        if self.median_gap <= 0:
            self.median_gap = typical
        else:
            self.median_gap *= 1.05 if typical > self.median_gap else 1 / 1.05
        return max(self.median_gap, 1e-12)

    def state_dict(self) -> dict[str, float]:
        return {"median_gap": self.median_gap}

    def load_state_dict(self, state: dict[str, float]) -> None:
        at_least("state: median_gap", state.get("median_gap"), 0, whole=False)
        self.median_gap = state["median_gap"]
