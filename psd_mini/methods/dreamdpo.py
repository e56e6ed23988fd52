"""DreamDPO: the preference pair alone, without a base.

Objective. The Diffusion-DPO loss on a pair of noises of one render, linearised: the winner's
denoising error minus the loser's.

Gradient (UNet Jacobian dropped, as in SDS). With h_i = eps_cfg(x_t^i) - eps_i, and w and l the
better and the worse of two noises,

    G = w(t) (h_w - h_l)    if R_w - R_l >= tau,    else    G = w(t) h_w

The first branch has no pull to the prior at all: with a constant reward it is a random walk. It is
`psd_gradient` with base 0 and hard omega; the second branch is mean base with lambda = 1/2.

The published code differs from the formula (ZhenglinZhou/DreamDPO at e297853a,
mvdream_reward_guidance.py): guidance is applied to the winner only, and the small-gap branch does
not subtract the winner's noise,

    G = w(t) { [eps_cfg(x_t^w) - eps_w] - [eps_cond(x_t^l) - eps_l] },  else  w(t) eps_cfg(x_t^w)
      = w(t) { delta_cond + (g - 1) (eps_cond - eps_neg)(x_t^w) }

a conditional pair plus CSD at the winner: at g > 1 a classifier pull comes back in.

Reference: Zhou et al. 2025 (DreamDPO, arXiv 2502.04370). Tests assert the decomposition and the
limits.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from psd_mini._internal.arguments import at_least, validated
from psd_mini.psd import rank
from psd_mini.sds import SDS, Answer, Context, Method, Noises, Renders, Timesteps


@validated
@dataclass
class DreamDPO(Method):
    """DreamDPO as a method.

    Args:
        base: its guidance scale and weighting are used.
        tau: gap below which only the winner's term acts, in reward units, at least 0: at 0 it never
            acts alone.
        published_code: the published code's variant instead of the formula.
    """

    base: SDS = field(default_factory=SDS)
    tau: float = 0.001
    published_code: bool = False
    n_noises = 2  # the pair; without an annotation, since it is no setting

    def __post_init__(self) -> None:
        at_least("tau", self.tau, 0, whole=False)

    def __call__(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Answer:
        ranked = rank(self.base, x, t, eps, context)
        gap = (ranked.rewards[0] - ranked.rewards[1])[:, None, None, None]
        first_wins = gap >= 0  # a tie goes to the first, as in the published code

        def winner(pair: Tensor) -> Tensor:
            return torch.where(first_wins, pair[0], pair[1])

        def loser(pair: Tensor) -> Tensor:
            return torch.where(first_wins, pair[1], pair[0])

        h_w, h_l = winner(ranked.residuals), loser(ranked.residuals)
        alone = h_w
        if self.published_code:
            h_l = loser(ranked.predictions.eps_cond - eps)
            alone = winner(self.base.guided(ranked.predictions))
        # G = w(t) (h_w - h_l) where the gap is clear, else the winner's term
        weight_t = context.prior.schedule.weight(t, self.base.weighting, x)
        gradient = weight_t * torch.where(gap.abs() >= self.tau, h_w - h_l, alone)
        reward = ranked.rewards.mean().item()
        return gradient, {"gradient_rms": gradient.square().mean().sqrt().item(), "reward": reward}
