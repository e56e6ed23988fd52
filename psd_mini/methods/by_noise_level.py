"""One method at high noise and another one below: guidance, or a preference, by noise level.

    G = above(x, t, eps)   where t >= switch (T - 1),   else below(x, t, eps)

At high noise x_t does not yet tell which picture it holds: there shapes and colours are decided,
and guidance helps an object to become what the prompt names. At low noise they are only drawn:
guidance saturates colours, and a preference adds noise. So a named prompt gets SDS with g = 3
above and g = 1 below. The converse, PSD with g = 1 above and SDS with g = 3 below, was meant for
open prompts, because strong guidance drowns a preference; that it helps is not confirmed.

Both parts see one t per step, so that a step is wholly above or below. They are given the noises of
the one that wants more; the other takes the first of them.

Limits: switch = 0 is `above` alone. Guidance by noise level for samples: Kynkäänniemi et al. 2024
(arXiv 2404.07724). Both were measured: tests/results/learned.md.
"""

from dataclasses import dataclass
from typing import Any

from psd_mini._internal.arguments import validated
from psd_mini.sds import Context, Method, Noises, Renders, Timesteps, answer

SWITCH = 0.6  # of the schedule; Stable Diffusion's alpha_t^2 is 0.16 there


@validated
@dataclass
class ByNoiseLevel(Method):
    """A method for t below the switch and one from there on (the module's docstring says why).

    Args:
        below, above: methods; both on pictures, or neither (`image_residual`).
        switch: a fraction of the schedule.
    """

    below: Any
    above: Any
    switch: float = SWITCH
    shared_timestep = True

    def __post_init__(self) -> None:
        if not 0 <= self.switch <= 1:
            raise ValueError(f"switch: expected a fraction in [0, 1], got {self.switch!r}")
        below, above = Method.of(self.below), Method.of(self.above)
        if below.on_pictures != above.on_pictures:
            raise ValueError("below, above: one is on pictures, the other is not; wrap both")
        self.parts = {"below": below, "above": above}
        self.n_noises, self.on_pictures = max(below.n_noises, above.n_noises), above.on_pictures

    def __call__(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Any:
        last = context.prior.schedule.num_timesteps - 1
        part = self.parts["above" if t[0] >= self.switch * last else "below"]
        return answer(part, x, t, eps[: part.n_noises], context)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
