"""A model of the renders that follows them, and what comes of its lag.

    q(x | camera) = N(m, kappa^2 I)                        one m for each camera
    m <- m + rho (x - m),    kappa^2 <- kappa^2 + rho (mean (x - m)^2 - kappa^2)

This is what training a network comes down to where the network is a picture m, eps_psi = (x_t -
alpha_t m) / sigma_t: one step of gradient descent with rate eta on E ||eps_psi(x_t) - eps||^2 moves
m by the share

    rho = 2 eta alpha_t^2 / sigma_t^2

Momentum. With kappa = 0, eps_q = eps + (alpha_t / sigma_t) (x - m), so

    G_VSD = G_SDS - w (alpha_t / sigma_t) (x - m)

and x - m, what the render moved of late, is pushed further: VSD on one object is SDS with momentum.
For the Gaussian prior N(mu, S), C = alpha_t^2 S + sigma_t^2, on average over eps, with learning
rate r, b = w sigma_t alpha_t / C and c = w alpha_t / sigma_t:

    x <- x - r [ b (x - mu) - c (x - m) ],    m <- m + rho (x - m)

which, if r b < 1, converges if and only if rho (1 - r b) > r (c - b). A lag is harmful below that
rho (the render runs away from its own past) and speeds the descent up above it. c - b = w alpha_t^3
S / (sigma_t C) is large at low noise.

Order of updates (`VSD.lookahead`). VSD asks the model and then trains it; L-VSD trains it first,
on the renders that it is asked about. Then x - m has become (1 - rho)(x - m):

    x <- x - r [ b (x - mu) - (1 - rho) c (x - m) ],    rho (1 + r (c - b)) > r (c - b)

stable wherever VSD is, and closer to SDS by the fraction rho. In general, with the model's kernel
K = J J^T, J = d eps_psi / d psi, and one step d_psi = -2 eta J^T (eps_psi - eps) at the same x_t,

    eps_q(h) = eps_psi + [ eps_{psi + h d_psi} - eps_psi ] / h
    h = 1          L-VSD
    h -> 0         L2-VSD: eps_psi + J d_psi = eps_psi - 2 eta K (eps_psi - eps)
    no bracket     VSD

so that G = w { eps_cfg - eps_psi + 2 eta K (eps_psi - eps) }: VSD at eta = 0, SDS at 2 eta K = I.
Looking ahead moves VSD back to SDS by 2 eta K; the linear part keeps a large step of a non-linear
model from doing more than that. For a model linear in psi all h are one; else they differ by
O(eta^2). A finite h costs one more forward pass of the model, as forward-mode derivatives do.

References: Lei et al. 2025 (L2-VSD, arXiv 2507.09748), who train a LoRA with eta from 1e-3 to 1;
their formula is known to us from notes. The reading as momentum, and the inequalities, are derived
here. Tests assert all of them, the last against forward-mode derivatives.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import at_least, validated
from psd_mini.methods.score_model import ScoreModel, own_noise
from psd_mini.sds import Context, Noises, Renders, Timesteps

Parameters = dict[Any, Tensor]  # mean by camera, and "variance"


@validated
@dataclass
class RunningGaussian(ScoreModel):
    """A Gaussian at each camera that follows its renders; without camera indices one for all.

    Args:
        rate: rho, above 0 and at most 1; 1 remembers the last render alone.
        width: kappa, in units of x; None lets it follow too, from 0 on.
    """

    rate: float = 0.1
    width: float | None = None
    parameters: Parameters = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: expected a share above 0 and at most 1, got {self.rate!r}")
        at_least("width", self.width or 0.0, 0, whole=False)
        self.parameters["variance"] = torch.tensor(float(self.width or 0) ** 2)

    def step(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Parameters:
        step: Parameters = {}
        keys, now = self._keys(x, context), self.parameters
        for key in set(keys):
            mean = x[[place for place, other in enumerate(keys) if other == key]].mean(0)
            # m <- m + rho (x - m)
            step[key] = self.rate * (mean - now.setdefault(key, mean))
        if self.width is None:
            spread = (x - torch.stack([now[key] for key in keys])).square().mean()
            step["variance"] = self.rate * (spread - now["variance"])
        return step

    def noise(
        self, x: Renders, t: Timesteps, eps: Noises, context: Context, moved: Any = None
    ) -> Noises:
        now = dict(self.parameters)
        for key, move in (moved or {}).items():
            now[key] = now[key] + move
        keys = self._keys(x, context)
        centres = torch.stack([now.get(key, own) for key, own in zip(keys, x, strict=True)])
        alpha_t, sigma_t = context.prior.schedule.alpha_sigma(t, x)
        return own_noise(x, eps, centres[:, None], alpha_t, sigma_t, now["variance"].to(x))

    def _keys(self, x: Renders, context: Context) -> list[int]:
        """Which Gaussian each render belongs to: its camera's."""
        index = getattr(context.cameras, "index", None)
        return [0] * len(x) if index is None else index.tolist()
