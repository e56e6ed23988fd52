"""Regression to known pictures: the oracle, a yardstick for fields that were distilled.

When the true picture x* of the wanted object is known at every camera, no distillation is needed:

    L = 0.5 || x - x* ||^2,    G = x - x*

A field fitted so, with the same renderer, cameras, steps and optimiser, is the yardstick for one
that was distilled: a distance that both keep is the field's limit and not the method's. It is no
bound: another 120 steps, or a penalty on opacity, may come a little nearer.
"""

from dataclasses import dataclass

from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini.sds import Answer, Context, Method, Renders, Timesteps
from psd_mini.world.text import components


@validated
@dataclass
class Regression(Method):
    """Pull every render to the toy world's own picture of one (object, colour) at the same camera.

    Args:
        target: (object, colour), one of the world's components.
    """

    target: tuple[str, str]
    n_noises = 0  # it does not ask the prior; without an annotation, since it is no setting

    def __call__(self, x: Renders, t: Timesteps, eps: Tensor, context: Context) -> Answer:
        views = context.prior.views
        pictures = views.pictures(views.index_of(context.cameras))  # (B, M, 3, H, W)
        truth = pictures[:, components().index(self.target)]
        # G = x - x*
        gradient = x - context.prior.encode(truth.to(x))
        return gradient, {"gradient_rms": gradient.square().mean().sqrt().item()}
