"""VSD: score distillation of a whole law of renders, which SDS would let collapse.

Objective. Let q be the law of the renders: n particles, or one field with what is unknown about it.
Make the noised law likely, and keep its entropy:

    min over q of  KL(q_t || p_t) = E_{x_t ~ q_t}[ log q_t(x_t) - log p_t(x_t) ]

Gradient. A particle x_i is 1 / n of q. It moves its own x_t = alpha_t x_i + sigma_t eps, and it
moves q_t, which adds nothing: E_{q_t}[ d log q_t ] = d (integral of q_t) = 0. So

    grad_{x_i} KL = (alpha_t / n) E[ grad log q_t(x_t) - grad log p_t(x_t) ]
                  = (alpha_t / (n sigma_t)) E[ eps_hat(x_t) - eps_q(x_t) ]

with eps_q = -sigma_t grad log q_t, the noise that q itself would predict. Therefore

    G = w(t) (eps_cfg - eps_q)

SDS has eps in the place of eps_q. Since E[eps] = 0, that is the same descent without log q_t:
nothing keeps particles apart, and all go to the nearest or heaviest mode. With a Gaussian
q = N(m, P), C = alpha_t^2 S + sigma_t^2 I the prior's covariance and D = alpha_t^2 P + sigma_t^2 I,

    grad_P KL = (alpha_t^2 / 2) (C^-1 - D^-1)      VSD: zero at P = S
                (alpha_t^2 / 2) C^-1               SDS: P shrinks to 0

What each part does. eps_cfg pulls to the prior, -eps_q pushes out of where renders already are.
`entropy` is lambda in eps_q -> lambda eps_q + (1 - lambda) eps: 0 is SDS, 1 is VSD.

Limits. One particle with its exact law, eps_q = eps: VSD is SDS, bit for bit. So is one field whose
camera is known, q(x | camera) being one picture. Particles further apart than the noise, alpha_t
||x_i - x_j|| >> sigma_t: each is on its own, SDS again. Summed over particles E[eps_q] = 0: the
entropy moves no mean. What a trained network adds for one field is what it gets wrong: it smooths
over views, and it lags (`running_gaussian`).

References: Wang et al. 2023 (VSD, arXiv 2305.16213), eq. 9; guidance 7.5, rate of the network 1e-4;
Wang et al. 2023 (ESD, arXiv 2401.00909). Tests assert the gradient of KL by quadrature, the limits,
and that 64 particles cover a two-mode prior where SDS has one mode.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import at_least, needs, validated
from psd_mini.methods.running_gaussian import RunningGaussian
from psd_mini.sds import SDS, Context, Noises, Predictions, Renders, Timesteps, sds_gradient


@validated
@dataclass
class VSD(SDS):
    """VSD as a method, with the settings of `SDS`.

    Args:
        own: the model of the renders, see `methods.score_model`, `running_gaussian` and `low_rank`;
            it is part of the checkpoint.
        entropy: lambda, the share of eps_q that is subtracted; the rest is eps.
        lookahead: h, how far to look along the model's next step (`running_gaussian`): 0 is VSD, 1
            L-VSD, a small number such as 0.01 L2-VSD.
    """

    own: Any = field(default_factory=RunningGaussian)
    entropy: float = 1.0
    lookahead: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        needs("own", self.own, "step", "noise", "update", "state_dict", "load_state_dict")
        at_least("lookahead", self.lookahead, 0, whole=False)

    def predict(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Predictions:
        """The prior's answers, and q's as the last eps_hat; q then learns from these renders."""
        predictions: Any = super().predict(x, t, eps, context)
        step = self.own.step(x, t, eps, context)
        eps_q = self.own.noise(x, t, eps, context)
        if h := self.lookahead:
            moved = {name: h * move for name, move in step.items()}
            # eps_q(h) = eps_psi + [eps_{psi + h d_psi} - eps_psi] / h
            eps_q = eps_q + (self.own.noise(x, t, eps, context, moved) - eps_q) / h
        self.own.update(step)
        both = torch.cat((predictions.eps_hat, eps_q[None]))
        context.predictions = predictions._replace(eps_hat=both)  # callbacks see eps_q too
        return context.predictions

    def residual(self, predictions: Predictions, eps: Noises) -> Tensor:
        eps_q = predictions.eps_hat[-1]  # type: ignore[index]
        # eps_cfg - (lambda eps_q + (1 - lambda) eps); lambda = 1 takes eps_q as it is
        own = eps + self.entropy * (eps_q - eps) if self.entropy != 1 else eps_q
        eps_cond, eps_neg = predictions.eps_cond, predictions.eps_neg
        return sds_gradient(eps_cond, eps_neg, own, self.guidance_scale)

    def state_dict(self) -> dict[str, Any]:
        return self.own.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.own.load_state_dict(state)
