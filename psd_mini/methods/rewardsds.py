"""RewardSDS: SDS whose noises are weighted by the reward of what they denoise to.

Gradient. With N noises of one render, the base's residuals h_i (of SDS eps_cfg(x_t^i) - eps_i) and
rewards R_i of the denoised images,

    best       h of the noise with the highest reward
    softmax    sum_i softmax(R)_i h_i                                (no temperature, as published)
    min-max    0.9 mean(h of the k best) - 0.1 mean(h of the k worst),  k = 2, or 1 where N < 4

    G = w(t) * that

Weights that sum to one keep the pull to the prior: for two noises best is mean base plus (1/2)
delta, softmax mean base plus (1/2) tanh(gap/2) (h_1 - h_2), min-max 0.8 (mean + 0.625 delta), with
delta = h_w - h_l: rows of PSD's formula. Equal rewards under softmax are plain SDS with N noises.
Here the denoised images take one step; the paper takes many.

Reference: Chachy et al. 2025 (RewardSDS, arXiv 2503.09601) and its code (itaychachy/RewardSDS at
eadddefd, reward_strategy.py). Tests assert the three rows.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import at_least, one_of, validated
from psd_mini.psd import rank
from psd_mini.sds import SDS, Answer, Context, Method, Noises, Renders, Timesteps

STRATEGIES = ("best", "softmax", "min-max")


def reward_weights(rewards: Float[Tensor, "n b"], strategy: str) -> Float[Tensor, "n b"]:
    """Weights of the N noises of each picture (equations: the module's docstring).

    Args:
        rewards: (N, B) in reward units.
        strategy: "best", "softmax" or "min-max".

    Returns:
        (N, B); columns sum to 1, with min-max to 0.8. Of equal rewards the earlier noise counts as
        the better one.
    """
    if strategy == "softmax":
        return rewards.softmax(dim=0)
    place = rewards.argsort(dim=0, descending=True, stable=True).argsort(dim=0)  # 0 is the best
    if strategy == "best":
        return (place == 0).to(rewards)
    k = 2 if len(rewards) >= 4 else 1
    return 0.9 / k * (place < k).to(rewards) - 0.1 / k * (place >= len(rewards) - k).to(rewards)


@validated
@dataclass
class RewardSDS(Method):
    """RewardSDS as a method.

    Args:
        base: SDS() or CSD().
        strategy: "min-max" (published default), "best" or "softmax".
        n_noises: N, at least 2.
        over_views: rank the views of an object together, with one t per step, as the published 3D
            code does; as `PSD` does by default.
    """

    base: SDS = field(default_factory=SDS)
    strategy: str = "min-max"
    n_noises: int = 4
    over_views: bool = False

    @property
    def shared_timestep(self) -> bool:  # type: ignore[override]
        return self.over_views

    def __post_init__(self) -> None:
        one_of("strategy", self.strategy, STRATEGIES)
        at_least("n_noises", self.n_noises, 2)

    def __call__(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Answer:
        ranked = rank(self.base, x, t, eps, context, self.over_views)
        weights = reward_weights(ranked.rewards, self.strategy)[..., None, None, None]
        # G = w(t) sum_i weight_i h_i
        weight_t = context.prior.schedule.weight(t, self.base.weighting, x)
        gradient = weight_t * (weights * ranked.of_base).sum(0)
        reward = ranked.rewards.mean().item()
        return gradient, {"gradient_rms": gradient.square().mean().sqrt().item(), "reward": reward}
