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
eq. 4.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from psd_mini._internal.arguments import validated
from psd_mini.sds import SDS, Answer, Context, Method, Noises, Renders, Timesteps

BETA = 0.02  # temperature of the RLHF objective in the experiments, in units of colourfulness


@validated
@dataclass
class Exact(Method):
    """SDS on the toy world's tilted prior, made from the context's prior, reward and first prompt.

    Args:
        base: guidance scale and weighting of the SDS that is run.
        beta: temperature, reward units, positive.
    """

    base: SDS = field(default_factory=SDS)
    beta: float = BETA

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta: expected a positive temperature, got {self.beta!r}")
        # The last tilted prior, and the prior, reward, beta and prompt that it was made from. Prior
        # and reward are kept and compared by `is`: an id is given to the next object once they are
        # gone.
        self._tilted: Any = None
        self._made_from: tuple = (None, None, None, None)

    def __call__(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Answer:
        tilted = replace(context, prior=self._tilted_prior(context))
        answer = self.base(x, t, eps, tilted)
        context.predictions = tilted.predictions  # callbacks look at the loop's own context
        return answer

    def _tilted_prior(self, context: Context) -> Any:
        prompt = context.prompts[0] if context.prompts else ""
        prior, reward, *settings = self._made_from
        same = prior is context.prior and reward is context.reward
        if not same or settings != [self.beta, prompt]:
            self._tilted = context.prior.tilted(context.reward, self.beta, prompt)
            self._made_from = context.prior, context.reward, self.beta, prompt
        return self._tilted
