"""Score-distillation methods, one page each. `METHODS` is where the command line finds them by name."""

from collections.abc import Callable
from functools import partial

from psd_mini.arguments import validated
from psd_mini.methods.context import Context, Cost, Predictions, predict
from psd_mini.methods.csd import CSD, csd_gradient
from psd_mini.methods.dreamdpo import DreamDPO
from psd_mini.methods.exact import Exact
from psd_mini.methods.psd import PSD, psd_gradient
from psd_mini.methods.ranked import rank
from psd_mini.methods.regression import Regression
from psd_mini.methods.reward_gradients import KINDS, RewardGradient, reward_gradient
from psd_mini.methods.rewardsds import RewardSDS, reward_weights
from psd_mini.methods.sds import SDS, sds_gradient

# name -> constructor; `base` is the SDS or CSD that the others build on
BASES: dict[str, Callable[..., SDS]] = {"sds": SDS, "sds2": partial(SDS, n_noises=2), "csd": CSD}
PREFERENCE_METHODS: dict[str, Callable] = {
    "psd": PSD,
    "dreamdpo": DreamDPO,
    "rewardsds": RewardSDS,
    "exact": Exact,
    **{kind: partial(RewardGradient, kind) for kind in KINDS},
}
WEIGHTED = ("psd", *KINDS)
METHODS: dict[str, Callable] = {**BASES, **PREFERENCE_METHODS}


@validated
def make_method(method: str, guidance_scale: float = 1.0, preference_weight: float | None = None) -> Callable:
    """A method by name, on an SDS base with this guidance scale.

    Args:
        method: one of `METHODS`.
        guidance_scale: g of classifier-free guidance.
        preference_weight: strength of the preference term, for methods that have one; None is the method's own default.

    Raises:
        ValueError: unknown name, or a weight for a method without one.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is not known; choose from {', '.join(METHODS)}")
    if method in BASES and preference_weight is None:
        return BASES[method](guidance_scale=guidance_scale)
    if preference_weight is None:
        return METHODS[method](base=SDS(guidance_scale))
    if method not in WEIGHTED:
        raise ValueError(f"preference_weight: {method} has no such weight; methods that have: {', '.join(WEIGHTED)}")
    return METHODS[method](base=SDS(guidance_scale), preference_weight=preference_weight)


__all__ = [
    "BASES",
    "CSD",
    "KINDS",
    "METHODS",
    "PREFERENCE_METHODS",
    "PSD",
    "SDS",
    "Context",
    "Cost",
    "DreamDPO",
    "Exact",
    "Predictions",
    "Regression",
    "RewardGradient",
    "RewardSDS",
    "csd_gradient",
    "make_method",
    "predict",
    "psd_gradient",
    "rank",
    "reward_gradient",
    "reward_weights",
    "sds_gradient",
]
