"""The relatives of SDS and PSD, one page each, and the register of all methods by name.

Any method can be given to `generate` as an object. One that the command line knows by name is a
page here and a line in `BASES`, or in `PREFERENCE_METHODS` if it needs a reward.
"""

from collections.abc import Callable
from functools import partial

from psd_mini._internal.arguments import one_of, validated
from psd_mini.methods.by_noise_level import ByNoiseLevel as ByNoiseLevel
from psd_mini.methods.dreamdpo import DreamDPO as DreamDPO
from psd_mini.methods.exact import Exact as Exact
from psd_mini.methods.hifa import HiFA as HiFA
from psd_mini.methods.image_residual import RESIDUALS as RESIDUALS
from psd_mini.methods.image_residual import ImageResidual as ImageResidual
from psd_mini.methods.linear_combinations import ROWS as ROWS
from psd_mini.methods.linear_combinations import Coefficients as Coefficients
from psd_mini.methods.linear_combinations import LinearCombination as LinearCombination
from psd_mini.methods.low_rank import LowRank as LowRank
from psd_mini.methods.negative_words import NegativeWords as NegativeWords
from psd_mini.methods.noise_rules import NoiseRule as NoiseRule
from psd_mini.methods.regression import Regression as Regression
from psd_mini.methods.reward_gradients import KINDS as KINDS
from psd_mini.methods.reward_gradients import RewardGradient as RewardGradient
from psd_mini.methods.reward_gradients import reward_gradient as reward_gradient
from psd_mini.methods.rewardsds import RewardSDS as RewardSDS
from psd_mini.methods.rewardsds import reward_weights as reward_weights
from psd_mini.methods.running_gaussian import RunningGaussian as RunningGaussian
from psd_mini.methods.score_model import Mixture as Mixture
from psd_mini.methods.score_model import ScoreModel as ScoreModel
from psd_mini.methods.vsd import VSD as VSD
from psd_mini.psd import PSD
from psd_mini.sds import CSD, SDS, Method


@validated
def low_rank_vsd(guidance_scale: float = 1.0, lookahead: float = 0.0) -> VSD:
    """VSD whose q is `LowRank`, the prior's own network with additions."""
    return VSD(guidance_scale, own=LowRank(), lookahead=lookahead)


@validated
def sdi(guidance_scale: float = 1.0) -> NoiseRule:
    """SDI: SDS guided by this g, with the noise that `NoiseRule` finds again in each render."""
    return NoiseRule(SDS(guidance_scale))


# name -> constructor. BASES take a guidance_scale, the others a `base` to build on; those in
# WEIGHTED take a preference_weight too
BASES: dict[str, Callable[..., Method]] = {
    **{"sds": SDS, "sds2": partial(SDS, n_noises=2), "csd": CSD},
    **{row: partial(LinearCombination, row=row) for row in ("nfsd", "bridge")},
    **{"vsd": VSD, "l2-vsd": partial(VSD, lookahead=0.01), "hifa": HiFA},
    "sdi": sdi,
    **{"vsd-lora": low_rank_vsd, "l2-vsd-lora": partial(low_rank_vsd, lookahead=0.01)},
}
WITH_NETWORK = ("vsd-lora", "l2-vsd-lora")  # they need a prior with a `unet`
PREFERENCE_METHODS: dict[str, Callable[..., Method]] = {
    "psd": PSD,
    "dreamdpo": DreamDPO,
    "rewardsds": RewardSDS,
    "exact": Exact,
    **{kind: partial(RewardGradient, kind) for kind in KINDS},
}
WEIGHTED = ("psd", *KINDS)
METHODS: dict[str, Callable[..., Method]] = {**BASES, **PREFERENCE_METHODS}


@validated
def make_method(
    method: str,
    guidance_scale: float | tuple[float, float] = 1.0,
    preference_weight: float | None = None,
    residual: str = "latent",
) -> Method:
    """A method by name, on an SDS base with this guidance scale.

    Args:
        method: one of `METHODS`.
        guidance_scale: g of classifier-free guidance; a pair is g below and above t = 0.6
            (`ByNoiseLevel`), and below, a method with a preference is SDS with two noises.
        preference_weight: strength of the preference term, for methods that have one; None is the
            method's own default.
        residual: where the gradient enters, "latent" or "image" (`ImageResidual`).

    Raises:
        ValueError: unknown name, or a weight for a method without one.
    """
    one_of("method", method, METHODS)
    if preference_weight is not None and method not in WEIGHTED:
        reason = f"{method} has no such weight; methods that have: {', '.join(WEIGHTED)}"
        raise ValueError(f"preference_weight: {reason}")
    one_of("residual", residual, RESIDUALS)
    if isinstance(guidance_scale, tuple):
        below, above = guidance_scale
        lower = make_method(method if method in BASES else "sds2", below, residual=residual)
        return ByNoiseLevel(lower, make_method(method, above, preference_weight, residual))
    if residual == "image":
        return ImageResidual(make_method(method, guidance_scale, preference_weight))
    if method in BASES:
        return BASES[method](guidance_scale=guidance_scale)
    weight = {} if preference_weight is None else {"preference_weight": preference_weight}
    return METHODS[method](base=SDS(guidance_scale), **weight)
