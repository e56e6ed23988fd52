"""One method at high noise and another one below: guidance and preference where they belong.

    G = above(x, t, eps)   where t >= switch (T - 1),   else below(x, t, eps)

What is open is decided at high noise, where x_t does not yet tell which picture it holds, and
guidance then drowns a preference: with the learned prior at t = 0.95 a winner and a loser differ in
colour at g = 1, and hardly at g = 7.5. What is decided is drawn at low noise, where a learned prior
keeps what it sees and a preference only makes noise. So

    open prompts     above PSD with g = 1      below SDS with g = 3
    named prompts    above SDS with g = 3      below SDS with g = 1

Both parts see one t per step, so that a step is wholly above or below. They are given the noises of
the one that wants more; the other takes the first of them.

Limits: switch = 0 is `above` alone. Guidance by noise level for samples: Kynkäänniemi et al. 2024
(arXiv 2404.07724). What it changes: tests/results/learned.md.
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
