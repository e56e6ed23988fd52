"""Negative prompts that are chosen, not trained: the controls of the negative embedding.

Guidance with g > 1 pushes away from whatever stands in the negative prompt, so an optimised
embedding has to be compared with a word that nobody optimised. Two ways to choose one word a step,
with the embedding n of that word at full strength:

    "random"   a word drawn anew at every step: what any negative does
    "bandit"   the word that gained most so far, or none while no word gains: choosing without a
               gradient of the reward

    gain(word) = mean over pictures of  r(decode(x0_hat(word))) - r(decode(x0_hat without guidance))
    value(word) <- value(word) + rate (gain(word) - value(word)),    rate = max(0.2, 1 / visits)

The bandit tries two random words a step, at a t and with a noise of its own; both are compared with
the same unguided picture. That asks the prior three times a picture.

The third control, a word written by hand, is a `negative_prompt`.

Reference: the update is the constant-step bandit of Sutton & Barto, "Reinforcement learning" (2nd
ed., 2018), section 2.5. Tests assert it against a loop by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import one_of, validated
from psd_mini.negative import NegativeEmbedding, check_guidance
from psd_mini.rewards import score
from psd_mini.schedule import draw_noises, sample_timesteps
from psd_mini.sds import Context, cfg
from psd_mini.world.objects import COLOURS, OBJECTS

CHOICES = ("random", "bandit")
TRIED = 2  # words that the bandit tries in a step
SLOWEST = 0.2  # its lowest rate: older gains fade, as the field changes


@validated
class NegativeWords:
    """A negative embedding that is one word's at a time, in place of a `NegativeEmbedding`.

    Args:
        words: what there is to choose from.
        embeddings: one for each word, and after them that of no word (the null prompt).
        guidance_scale: g of the method that it works for.
        choice: "random" or "bandit" (the module's docstring).
        t_range: lowest and highest timestep of the bandit's own draws, fractions of the schedule.

    Raises:
        ValueError: an unknown choice, or another number of embeddings than words and one.
    """

    def __init__(
        self,
        words: Sequence[str],
        embeddings: Float[Tensor, "w *embedding"],
        guidance_scale: float,
        choice: str = "random",
        t_range: tuple[float, float] = (0.3, 0.95),
    ):
        one_of("choice", choice, CHOICES)
        check_guidance(guidance_scale, "a negative word")
        if len(embeddings) != len(words) + 1:
            expected = f"{len(words)} for the words and one for no word"
            raise ValueError(f"embeddings: expected {expected}, got {len(embeddings)}")
        self.words, self.embeddings = list(words), embeddings.detach()
        self.guidance_scale, self.choice, self.t_range = guidance_scale, choice, t_range
        self.value, self.visits = torch.zeros(len(words)), torch.zeros(len(words))
        self.embedding = self.embeddings[-1]

    def step(
        self, progress: float, x: Tensor, context: Context, generator: torch.Generator
    ) -> dict[str, float]:
        """Choose the word of this step; arguments and result as in `NegativeEmbedding.step`."""
        places = torch.randperm(len(self.words), generator=generator, device=generator.device)
        tried = places[:TRIED]
        if self.choice == "random":
            self.embedding = self.embeddings[tried[0]]
            return {"negative_word": float(tried[0])}
        for word, gain in zip(
            tried.tolist(), self.gains(tried, x, context, generator), strict=True
        ):
            self.visits[word] += 1
            # value <- value + rate (gain - value)
            rate = max(SLOWEST, 1 / self.visits[word].item())
            self.value[word] += rate * (gain - self.value[word])
        best = int(self.value.argmax()) if self.value.max() > 0 else len(self.words)
        self.embedding = self.embeddings[best]
        return {"negative_word": float(best), "negative_gain": self.value.max().item()}

    @torch.no_grad()
    def gains(
        self, tried: Tensor, x: Tensor, context: Context, generator: torch.Generator
    ) -> list[float]:
        """What guidance away from each word adds to the reward of the denoised picture."""
        prior, schedule = context.prior, context.prior.schedule
        low, high = (round(bound * (schedule.num_timesteps - 1)) for bound in self.t_range)
        t = sample_timesteps(len(x), low, high, generator)
        x_t = schedule.add_noise(x, draw_noises(1, x, generator)[0], t)
        embeddings = torch.cat((context.embeddings[:1], self.embeddings[tried]))
        eps_cond, *of_words = prior.predict_noise(x_t, t, embeddings, context.cameras)
        context.cost.prior_evaluations += len(embeddings) * len(x)

        def reward_of(eps_hat: Tensor) -> Tensor:
            x0_hat = schedule.x0_from_eps(x_t, eps_hat, t)
            return score(context.reward, prior.decode(x0_hat), context.prompts)

        unguided = reward_of(eps_cond)
        guided = [reward_of(cfg(eps_cond, eps, self.guidance_scale)) for eps in of_words]
        return [(rewards - unguided).mean().item() for rewards in guided]

    def read(self, vocabulary: Sequence[str] = (), n: int = 5) -> list[tuple[str, float]]:
        """The n words that gained most, with their gain in reward units."""
        best = self.value.argsort(descending=True)[:n].tolist()
        return [(self.words[word], round(self.value[word].item(), 3)) for word in best]

    def __repr__(self) -> str:
        settings = self.guidance_scale, self.choice, self.t_range, self.words
        return f"NegativeWords{settings}"

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "visits": self.visits, "embedding": self.embedding}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.visits = state["value"].clone(), state["visits"].clone()
        self.embedding = state["embedding"]


def make_negative(
    negative: Any, prior: Any, prompt: str, negative_prompt: str, guidance: Any
) -> NegativeEmbedding | NegativeWords | None:
    """The one that was given, or one that starts at the negative prompt and suits the prior."""
    if not isinstance(negative, bool | str):
        return negative
    if not negative:
        return None
    start = prior.embed_negative(negative_prompt)
    below, above = guidance if isinstance(guidance, tuple) else (guidance, guidance)
    g = above if above != 1 else below  # it learns at high noise, if guidance acts there
    if negative is True:
        settings = prior.negative_settings(start[0], prior.embed([prompt])[0])
        return NegativeEmbedding(start[0], g, **settings)
    # no word that the prompt itself has
    known = [word for word in (*OBJECTS, *COLOURS) if word not in prompt.lower().split()]
    embeddings = torch.cat([*map(prior.embed_negative, known), start])
    return NegativeWords(known, embeddings, g, choice=negative)
