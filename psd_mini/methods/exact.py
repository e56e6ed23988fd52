"""Exact preference alignment: SDS on the tilted prior. What all the others try to reach.

Objective. max_q E_q[r] - beta KL(q || p) has the optimum p* proportional to p exp(r / beta). In the
exact world p is a mixture of known pictures mu_k, so p* is one too: as the kernel width goes to
zero, exactly the mixture with weights

    pi*_k proportional to pi_k exp( r(mu_k) / beta )

and its noise prediction eps*_t = eps_hat - (sigma_t / beta) grad V_t is that mixture's own. The
reward of a component is the mean over the views of the whole object, so that one object is chosen
and not one per view.

Gradient. G = w(t) (eps*_cfg - eps): plain SDS with the tilted prior in place of the prior.

Limits: beta -> infinity is SDS; beta -> 0 keeps the best component only.
Reference: the optimum is that of Korbak et al. 2022 (arXiv 2205.11275) and DPO (arXiv 2305.18290),
eq. 4."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini.sds import SDS, Context, Method, Noises, Renders, Timesteps

BETA = 0.02  # temperature of the RLHF objective in the experiments, in units of colourfulness


@validated
@dataclass
class Exact(Method):
    """SDS on the tilted toy-world prior, which is made once per run from the context's prior,
    reward and prompt.

    Args:
        base: guidance scale and weighting of the SDS that is run.
        beta: temperature, reward units, positive.
    """

    base: SDS = field(default_factory=SDS)
    beta: float = BETA
    # what the last tilted prior was made of (prior, reward, beta, prompt), and that prior. The
    # objects themselves are kept: an id alone may belong to another object once the first is gone
    _tilted: tuple[tuple, Any] = field(default=((), None), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(
                f"beta: expected a positive temperature in reward units, got {self.beta!r}"
            )

    def __call__(
        self, x: Renders, t: Timesteps, eps: Noises, context: Context
    ) -> tuple[Tensor, dict[str, float]]:
        prompt = context.prompts[0] if context.prompts else ""
        made_of = (context.prior, context.reward, self.beta, prompt)
        before, prior = self._tilted
        same_objects = len(before) == 4 and before[0] is made_of[0] and before[1] is made_of[1]
        if not same_objects or before[2:] != made_of[2:]:
            prior = context.prior.tilted(context.reward, self.beta, prompt)
            self._tilted = made_of, prior
        tilted = replace(context, prior=prior)
        result = self.base(x, t, eps, tilted)
        context.predictions = (
            tilted.predictions
        )  # for callbacks, which watch the loop's own context
        return result
