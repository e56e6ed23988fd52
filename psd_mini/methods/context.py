"""What a method is given besides x, t and eps, and the one place where the prior is asked.

A method is called as

    gradient, metrics = method(x (B, C, h, w), t (B,), eps (N, B, C, h, w), context)

with N = method.n_noises independent noises per picture (1 without that attribute), and returns G, the direction in which its
loss increases, of x's shape, and a dictionary of numbers worth plotting, which may be left out. Everything it needs to know
of the world is in the context. A plain function is a method.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from psd_mini.arguments import needs, validated
from psd_mini.cameras import Cameras
from psd_mini.failures import check_finite


@dataclass
class Cost:
    """Running totals of a run: how often the prior was asked, and where the seconds went.

    prior_evaluations: pictures that went through the prior, counted once per embedding and noise; renders: pictures
    rendered for the loop; seconds: wall-clock by part, "render", "prior", "backward" and "total".
    """

    prior_evaluations: int = 0
    renders: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str):
        """Add the wall-clock time of a block to `seconds[part]`."""
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


Render = Float[Tensor, "b c h w"]
Times = Int[Tensor, "b"]
Noises = Float[Tensor, "n b c h w"]


class Predictions(NamedTuple):
    """x_t, and the noise predicted in it for the prompt and for the negative prompt; each (N, B, C, h, w)."""

    x_t: Float[Tensor, "n b c h w"]
    eps_cond: Float[Tensor, "n b c h w"]
    eps_neg: Float[Tensor, "n b c h w"]


@validated
@dataclass
class Context:
    """What a method may use.

    prior: see `psd_mini.priors`; embeddings (2, ...): [prompt, negative prompt]; cameras: B, one per picture, or None for
    priors that know none; prompts: the B prompts in words, for rewards; reward: images, prompts -> scores, or None;
    predictions: what `predict` answered last, for those who watch (callbacks).
    """

    prior: Any
    embeddings: Real[Tensor, "k *embedding"]
    cameras: Cameras | None = None
    prompts: list[str] = field(default_factory=list)
    reward: Callable | None = None
    cost: Cost = field(default_factory=Cost)
    predictions: Predictions | None = None

    def __post_init__(self) -> None:
        needs("prior", self.prior, "schedule", "predict_noise")


def answer(
    method: Callable, x: Float[Tensor, "b c h w"], t: Tensor, eps: Float[Tensor, "n b c h w"], context: Context
) -> tuple[Float[Tensor, "b c h w"], dict[str, float]]:
    """Ask a method for its gradient and its numbers, and refuse what is not a gradient.

    Raises:
        ValueError: something else than a tensor of x's shape, such as a loss, or one gradient for each of the N noises.
    """
    answered = method(x, t, eps, context)
    gradient, metrics = answered if isinstance(answered, tuple) and len(answered) == 2 else (answered, {})
    if not isinstance(gradient, Tensor) or gradient.shape != x.shape:
        came = f"shape {tuple(gradient.shape)}" if isinstance(gradient, Tensor) else type(gradient).__name__
        raise ValueError(
            f"method: expected a gradient of shape {tuple(x.shape)} (not a loss, and averaged over the noises), got {came}"
        )
    return gradient, metrics


def predict(x: Render, t: Times, eps: Noises, context: Context, negative: bool = True) -> Predictions:
    """Noise a render N times and ask the prior about all of it in one batched call, without keeping its graph.

        x_t = alpha_t x + sigma_t eps,    eps_cond = eps_hat(x_t; prompt),    eps_neg = eps_hat(x_t; negative prompt)

    Args:
        x: (B, C, h, w) render in the prior's space.
        t: (B,) timesteps, shared by the N noises of a picture.
        eps: (N, B, C, h, w) standard normal.
        context: prior, embeddings and cameras; its cost counter is advanced.
        negative: False saves the negative prompt's half of the work; eps_neg is then eps_cond.

    Returns:
        `Predictions`.
    """
    n = eps.shape[0]
    with context.cost.timed("prior"), torch.no_grad():
        x_t = context.prior.schedule.add_noise(x, eps, t)
        cameras = context.cameras
        if cameras is not None and n > 1:
            cameras = cameras[torch.arange(len(cameras)).repeat(n)]
        embeddings = context.embeddings if negative else context.embeddings[:1]
        eps_hat = context.prior.predict_noise(x_t.flatten(0, 1), t.repeat(n), embeddings, cameras)
        check_finite({"the prior's noise prediction": eps_hat})
        eps_hat = eps_hat.view(len(embeddings), *eps.shape)
    context.cost.prior_evaluations += eps_hat[:, :, :, 0, 0, 0].numel()
    context.predictions = Predictions(x_t, eps_hat[0], eps_hat[-1])
    return context.predictions
