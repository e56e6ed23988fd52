"""Exact preference alignment: SDS on the tilted prior. What all the others try to reach.

Objective. max_q E_q[r] - beta KL(q || p) has the optimum p* proportional to p exp(r / beta). In the exact world p is a
mixture of known pictures mu_k, so p* is one too: as the kernel width goes to zero, exactly the mixture with weights

    pi*_k proportional to pi_k exp( r(mu_k) / beta )

and its noise prediction eps*_t = eps_hat - (sigma_t / beta) grad V_t is that mixture's own. The reward of a component is
the mean over the views of the whole object, so that one object is chosen and not one per view.

Gradient. G = w(t) (eps*_cfg - eps): plain SDS with the tilted prior in place of the prior.

Limits: beta -> infinity is SDS; beta -> 0 keeps the best component only.
Reference: the optimum is that of Korbak et al. 2022 (arXiv 2205.11275) and DPO (arXiv 2305.18290), eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini.sds import Context, Method, Noises, Renders, Timesteps
from psd_mini.sds import SDS

BETA = 0.02  # temperature of the RLHF objective in the experiments, in units of colourfulness


@validated
@dataclass
class Exact(Method):
    """SDS on the tilted toy-world prior, which is made once per run from the context's prior and reward.

    Args:
        base: guidance scale and weighting of the SDS that is run.
        beta: temperature, reward units, positive.
    """

    base: SDS = field(default_factory=SDS)
    beta: float = BETA
    _tilted: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta: expected a positive temperature in reward units, got {self.beta!r}")

    def __call__(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> tuple[Tensor, dict[str, float]]:
        prompt = context.prompts[0] if context.prompts else ""
        key = id(context.prior), id(context.reward), prompt
        if key not in self._tilted:
            self._tilted = {key: context.prior.tilted(context.reward, self.beta, prompt)}
        tilted = replace(context, prior=self._tilted[key])
        result = self.base(x, t, eps, tilted)
        context.predictions = tilted.predictions  # for callbacks, which watch the loop's own context
        return result
