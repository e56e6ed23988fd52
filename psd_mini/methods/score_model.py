"""Models of the renders' own law q, which VSD subtracts (`vsd`): what noise would q predict?

    q   = (1 / n) sum_j N(m_j, kappa^2 I)          n centres, one width
    q_t = (1 / n) sum_j N(alpha_t m_j, c I),       c = alpha_t^2 kappa^2 + sigma_t^2
    r_j = softmax_j( -||x_t - alpha_t m_j||^2 / (2 c) )
    eps_q(x_t) = -sigma_t grad log q_t(x_t) = sigma_t sum_j r_j (x_t - alpha_t m_j) / c

For a render x with x_t = alpha_t x + sigma_t eps that is, without a difference of large numbers,

    eps_q = (sigma_t^2 / c) eps + (alpha_t sigma_t / c) sum_j r_j (x - m_j)

Two choices of the centres.

`Mixture`: the renders of this step themselves. For particles that is the exact law; for views of
one object it is the law without the camera, estimated from this step's views (ESD). Each is pushed
away from the others that are near it. One render with kappa = 0: eps_q = eps.

`running_gaussian.RunningGaussian`: what the same camera saw before, one centre for each camera.

kappa is a dial: 0 makes distant centres invisible to each other, a large one smooths them into one.

References: the exact score of a mixture, as in `mixture`; VSD trains a network for it (Wang et al.
2023, arXiv 2305.16213), ESD leaves out the camera (Wang et al. 2023, arXiv 2401.00909). Tests
assert the formula against autograd of log q_t, and the limits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import at_least, validated
from psd_mini.sds import Context, Noises, Renders, Timesteps


def own_noise(
    x: Renders,
    eps: Noises,
    centres: Float[Tensor, "b_or_1 m c h w"],
    alpha_t: Tensor,
    sigma_t: Tensor,
    variance: float | Tensor = 0.0,
) -> Noises:
    """eps_q (N, B, C, h, w) of renders with the noises eps (equations: the module's docstring).

    Args:
        x: (B, C, h, w); eps: (N, B, C, h, w).
        centres: m_j, (1, n, C, h, w), or (B, n, C, h, w) where each render has its own.
        alpha_t, sigma_t: noise level of each render, (B, 1, 1, 1).
        variance: kappa^2, in squared units of x.
    """
    c = alpha_t**2 * variance + sigma_t**2
    away = x[:, None] - centres  # (B, n, C, h, w): x - m_j
    # x_t - alpha_t m_j = alpha_t (x - m_j) + sigma_t eps
    offsets = alpha_t[:, None] * away + (sigma_t * eps)[:, :, None]
    r = torch.softmax(-offsets.square().flatten(3).sum(-1) / (2 * c.flatten(1)), dim=-1)
    push = torch.einsum("abm,bmchw->abchw", r, away)
    return (sigma_t**2 / c) * eps + (alpha_t * sigma_t / c) * push


class ScoreModel:
    """What VSD asks of a model of the renders; this one knows nothing: eps_q = eps, VSD is SDS."""

    parameters: dict[Any, Tensor] = {}  # what moves during a run; never changed in place

    def step(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> dict[Any, Tensor]:
        """What one update on these renders will add to the parameters."""
        return {}

    def noise(
        self, x: Renders, t: Timesteps, eps: Noises, context: Context, moved: Any = None
    ) -> Noises:
        """eps_q in x_t = alpha_t x + sigma_t eps, of the parameters plus `moved`."""
        return eps

    def update(self, step: dict[Any, Tensor]) -> None:
        """Add a step to the parameters."""
        moved = {name: self.parameters[name] + move for name, move in step.items()}
        self.parameters = {**self.parameters, **moved}

    def state_dict(self) -> dict[str, Any]:
        """What changes during a run, for the checkpoint."""
        return {"parameters": self.parameters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        if "parameters" not in state:
            wanted = f"the parameters of a {type(self).__name__}"
            raise ValueError(f"state: expected {wanted}, got {state!r:.60}")
        self.parameters = dict(state["parameters"])


@validated
@dataclass
class Mixture(ScoreModel):
    """A mixture centred at this step's renders, exact for particles.

    Args:
        width: kappa, in units of x, at least 0.
    """

    width: float = 0.0

    def __post_init__(self) -> None:
        at_least("width", self.width, 0, whole=False)

    def noise(
        self, x: Renders, t: Timesteps, eps: Noises, context: Context, moved: Any = None
    ) -> Noises:
        alpha_t, sigma_t = context.prior.schedule.alpha_sigma(t, x)
        return own_noise(x, eps, x[None], alpha_t, sigma_t, self.width**2)
