"""The residual on the picture: a method's own target is decoded, and the render goes there.

With a learned autoencoder z = E(2 image - 1), a method's gradient reaches the picture through the
encoder's Jacobian:

    latent    J_E^T G_z,    G_z = w(t) (residual in eps),    J_E = dz / d(2 image - 1)

A pattern of colours that hardly changes the code (red and green voxels side by side that average to
brown) is one that J_E nearly loses. What it gets of J_E^T G_z is small and mostly noise, and Adam
divides every gradient by its own size: it makes whole steps of the noise, so colours become specks,
and the sides of an object disagree.

But G_z also says where the latent z should go. SDS has eps_cfg - eps = (alpha_t / sigma_t) (z -
x0_hat), so any method's G_z implies the denoised code

    x0_hat = z - (sigma_t / alpha_t) G_z / w(t)

for SDS its own x0_hat, for PSD ("hard") that of its combination, the mean of the pair's two plus
preference_weight sigma_t (winner's - loser's). The image residual decodes it and compares pictures:

    G = (2 image - 1) - (2 D(x0_hat) - 1)

D's picture is clamped to [0, 1], as every render is, and brought to the render's size. No encoder
is in the graph. Pictures and target are in units of x = 2 image - 1, and G has weight 1.

Limits. With an encoder that is x = 2 image - 1 (the exact world) this is G_z times sigma_t /
(alpha_t w(t)), where nothing is clamped. At z = x0_hat the latent gradient is zero, and this one
is what the autoencoder lost, image - D(E(image)).

Cost beside the latent form: one decoding of B pictures more, one encoding's backward pass less.

Reference: the image term of Zhu & Zhuang 2023 (HiFA, arXiv 2305.18766), alone, for one step of
denoising and any method. Tests assert the implied target of SDS and PSD, the factor in the exact
world, and that the encoder gets no gradient. What it changes: tests/results/learned.md.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from psd_mini._internal.arguments import validated
from psd_mini.methods.hifa import HiFA
from psd_mini.sds import Context, Method, Noises, Renders, Timesteps, answer

RESIDUALS = ("latent", "image")


@validated
@dataclass
class ImageResidual(Method):
    """A method whose gradient enters at the picture (equations: the module's docstring).

    Args:
        base: SDS, or any method that is built on one by its own `base`.
    """

    base: Any
    on_pictures = True

    def __post_init__(self) -> None:
        self._sds()
        self.n_noises, self.shared_timestep = self.base.n_noises, self.base.shared_timestep

    def _sds(self) -> Any:
        """The SDS that the base is built on, which knows w(t)."""
        inner = self.base
        while hasattr(inner, "base"):
            inner = inner.base
        if not hasattr(inner, "weighting"):
            expected = "expected SDS or a method with SDS as its base"
            raise ValueError(f"base: {expected}, got {type(inner).__name__}")
        return inner

    def target(self, x: Renders, t: Timesteps, gradient: Renders, context: Context) -> Renders:
        """x0_hat that a gradient in latents implies, (B, C, h, w)."""
        schedule, sds = context.prior.schedule, self._sds()
        alpha_t, sigma_t = schedule.alpha_sigma(t, x)
        # HiFA's gradient is w(t) (z - x0_hat) as it stands
        ratio = 1.0 if sds is self.base and isinstance(sds, HiFA) else sigma_t / alpha_t
        # x0_hat = z - (sigma_t / alpha_t) G_z / w(t)
        return x - ratio * gradient / schedule.weight(t, sds.weighting, x)

    def __call__(
        self, x: Renders, t: Timesteps, eps: Noises, context: Context
    ) -> tuple[Tensor, dict[str, float]]:
        images = context.images
        if images is None:
            raise ValueError("context: the image residual needs images, the renders that x codes")
        gradient, metrics = answer(self.base, x, t, eps, context)
        with torch.no_grad():
            x0_hat = self.target(x, t, gradient, context)
            decoded = context.prior.decode(x0_hat).clamp(0, 1).to(images)
        if decoded.shape != images.shape:
            decoded = F.interpolate(decoded, images.shape[-2:], mode="bilinear", antialias=True)
        # G = (2 image - 1) - (2 D(x0_hat) - 1)
        gradient = 2 * (images - decoded)
        return gradient, metrics | {"gradient_rms": gradient.square().mean().sqrt().item()}
