"""The relatives of SDS and PSD, one page each, and the register of all methods by name.

A new method is a page here and a line in `METHODS`, where the command line finds it.
"""

from collections.abc import Callable
from functools import partial

from psd_mini._internal.arguments import validated
from psd_mini.methods.dreamdpo import DreamDPO as DreamDPO
from psd_mini.methods.exact import Exact as Exact
from psd_mini.methods.regression import Regression as Regression
from psd_mini.methods.reward_gradients import KINDS as KINDS
from psd_mini.methods.reward_gradients import RewardGradient as RewardGradient
from psd_mini.methods.reward_gradients import reward_gradient as reward_gradient
from psd_mini.methods.rewardsds import RewardSDS as RewardSDS
from psd_mini.methods.rewardsds import reward_weights as reward_weights
from psd_mini.psd import PSD
from psd_mini.sds import CSD, SDS

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
def make_method(
    method: str, guidance_scale: float = 1.0, preference_weight: float | None = None
) -> Callable:
    """A method by name, on an SDS base with this guidance scale.

    Args:
        method: one of `METHODS`.
        guidance_scale: g of classifier-free guidance.
        preference_weight: strength of the preference term, for methods that have one; None is the
            method's own default.

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
        with_one = ", ".join(WEIGHTED)
        raise ValueError(
            f"preference_weight: {method} has no such weight; methods that have: {with_one}"
        )
    return METHODS[method](base=SDS(guidance_scale), preference_weight=preference_weight)
