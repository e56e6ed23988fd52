"""Other noises than fresh ones: fixed for each camera, or found by inverting the render.

    G = w(t) (eps_cfg(x_t) - eps),   x_t = alpha_t x + sigma_t eps,   eps by a rule

"fixed" (FSD): the same eps whenever a camera comes back. x_t is then a function of x alone, and the
descent at one t ends where eps_cfg(x_t) = eps, which for another eps is another picture; fresh
noise ends at their mean. With the Gaussian prior N(mu, S):

    x = mu + (alpha_t S / sigma_t) eps

"inverted" (SDI): the eps that the prior itself would give this render. DDIM (`hifa.walk`) goes from
x up to a level t+ a little above t, in k steps,

    kappa = (x_t+ - alpha_t+ x) / sigma_t+

One step of descent with w = sigma_t / alpha_t replaces x by x0_hat. Were kappa the prediction of
the step before, and t falling, that would be DDIM itself; SDS draws kappa anew in every step, a
sampler that forgets its noise, so colours and details average out. Inversion finds kappa again from
the render alone. For the Gaussian prior, many steps and t+ = t, with C = alpha_t^2 S + sigma_t^2,

    kappa = (sqrt(C / S) - alpha_t) / sigma_t (x - mu)
    G = w (alpha_t / sigma_t) (1 - alpha_t sqrt(S / C)) (x - mu)

without any variance, and a gentler pull than the mean of SDS, where the bracket is 1 - alpha_t^2 S
/ C. A share of fresh noise is kept, as published.

References: Lukoianov et al. 2024 (SDI, arXiv 2405.15891) and threestudio's file for it: k = 10,
guidance -7.5 on the way up and 7.5 down (in its code eps_cond + g (eps_cond - eps_null), one more
than g here), 0.3 of the sampler's own noise added on the way. Yan et al. 2024 (FSD, arXiv
2405.10988), from its abstract; there the noise is attached to the object, here to the camera. Tests
assert the place of rest, the inverse and the pull of a Gaussian, and the cost.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from psd_mini._internal.arguments import at_least, one_of, validated
from psd_mini.methods.hifa import walk
from psd_mini.schedule import draw_noises
from psd_mini.sds import SDS, Answer, Context, Method, Noises, Renders, Timesteps

RULES = ("fixed", "inverted")


@validated
@dataclass
class NoiseRule(Method):
    """A method with another noise than the loop's.

    Args:
        base: SDS, or what is built on it; the rule gives all its noises of a picture one value.
        rule: "fixed" or "inverted".
        inversion_steps: k.
        inversion_guidance: g on the way up.
        above: t+ - t, as a fraction of the schedule.
        fresh: share f of the loop's noise: sqrt(1 - f^2) kappa + f eps.
    """

    base: SDS = field(default_factory=SDS)
    rule: str = "inverted"
    inversion_steps: int = 10
    inversion_guidance: float = 1.0
    above: float = 1 / 60
    fresh: float = 0.3

    def __post_init__(self) -> None:
        one_of("rule", self.rule, RULES)
        at_least("inversion_steps", self.inversion_steps, 1)
        for name in ("above", "fresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share, got {getattr(self, name)!r}")

    @property
    def n_noises(self) -> int:  # type: ignore[override]
        return self.base.n_noises

    def __call__(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Answer:
        if self.rule == "fixed":
            return self.base(x, t, self._fixed(x, context).expand_as(eps), context)
        kappa = self._inverted(x, t, context)
        mixed = (1 - self.fresh**2) ** 0.5 * kappa + self.fresh * eps
        return self.base(x, t, mixed, context)

    def _fixed(self, x: Renders, context: Context) -> Tensor:
        """The noise of each picture's camera; of the first where cameras have no index."""
        index = getattr(context.cameras, "index", None)
        seeds = [0] * len(x) if index is None else index.tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.cat([draw_noises(1, x[0], g) for g in generators])

    def _inverted(self, x: Renders, t: Timesteps, context: Context) -> Tensor:
        """kappa, (B, C, h, w)."""
        schedule = context.prior.schedule
        last, k = schedule.num_timesteps - 1, self.inversion_steps
        higher = (t + round(self.above * last)).clamp(max=last)
        levels = [(higher * step / k).long() for step in range(k)]
        base = SDS(self.inversion_guidance)
        x0_hat, eps_hat = walk(base, x, torch.zeros_like(x), levels, context)
        # kappa = (x_t+ - alpha_t+ x) / sigma_t+
        return schedule.eps_from_x0(schedule.add_noise(x0_hat, eps_hat, higher), x, higher)
