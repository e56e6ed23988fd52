"""HiFA: move the render to a picture that was denoised in several steps, not in one.

Objective. Noise the render, denoise it in k steps of guided DDIM (`pretrained.sampling`) from t
down to 0, and regress to what comes out:

    L = (w / 2) ||x - stopgrad(x0_hat_k)||^2

Gradient. In the terms of SDS, with the noise that the k-step picture implies,

    eps_k = (x_t - alpha_t x0_hat_k) / sigma_t
    G = w (x - x0_hat_k) = w (sigma_t / alpha_t) (eps_k - eps)

k = 1 has eps_1 = eps_cfg: it is SDS with the weight w sigma_t / alpha_t, which counts high noise
more. So what is new is k.

What more steps do. x0_hat_1 = E[x | x_t] is a mean of all pictures that x_t may come from, and is
blurred where they differ; x0_hat_k for many steps is one of them, sharp, and another one for
another noise. For the Gaussian prior N(mu, S), C = alpha_t^2 S + sigma_t^2:

    k = 1         x0_hat - mu = (alpha_t S / C) (x_t - alpha_t mu)
    k -> infinity x0_hat - mu = sqrt(S / C) (x_t - alpha_t mu)     the probability-flow ODE

    share of x - mu taken away    1 - alpha_t^2 S / C    against  1 - alpha_t sqrt(S / C)
    spread over the noises        alpha_t S sigma_t / C  against  sigma_t sqrt(S / C)

Where the noise dominates, many steps give targets that disagree more and agree less with the mean:
a gentler pull with more noise. One step costs k times what SDS costs.

What else HiFA has: a residual in pictures beside that in latents (with an encoder x = 2 image - 1
it only rescales G), one t for all pictures of a step that falls as the square root, and a loss on
the variance of depth along a ray.

Reference: Zhu & Zhuang 2023 (HiFA, arXiv 2305.18766) and its code (JunzheJosephZhu/HiFA at
d0213bcb): guidance 100, 4 steps, constant w. Here DDIM adds no noise between steps (eta = 0; the
code has eta = 1). Tests assert k = 1, both Gaussian limits and the cost.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import at_least, validated
from psd_mini.sds import SDS, Answer, Context, Noises, Predictions, Renders, Timesteps


def walk(
    base: SDS, x0_hat: Renders, eps_hat: Renders, levels: list[Timesteps], context: Context
) -> tuple[Renders, Renders]:
    """Deterministic DDIM from level to level, down or up: x0_hat and eps_hat at the last one.

    x_t = alpha_t x0_hat + sigma_t eps_hat,  eps_hat = eps_cfg(x_t),  x0_hat that it implies
    """
    for t in levels:
        answers = base.predict(x0_hat, t, eps_hat[None], context)
        eps_hat = base.guided(answers)[0]
        x0_hat = context.prior.schedule.x0_from_eps(answers.x_t[0], eps_hat, t)
    return x0_hat, eps_hat


@validated
@dataclass
class HiFA(SDS):
    """HiFA's residual as a method; w(t) is `weighting`, and multiplies sigma_t / alpha_t.

    Args:
        guidance_scale, weighting, n_noises: as in `SDS`.
        denoise_steps: k, at least 1.
    """

    weighting: str = "uniform"
    denoise_steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("denoise_steps", self.denoise_steps, 1)

    def predict(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Predictions:
        """The prior's answers in x_t, and as the last eps_hat eps_k."""
        schedule, base = context.prior.schedule, SDS(self.guidance_scale)
        first = base.predict(x, t, eps, context)
        cameras: Any = context.cameras
        if cameras is not None:
            cameras = cameras[torch.arange(len(x)).repeat(len(eps))]
        each = replace(context, cameras=cameras)  # every noised picture goes its own way
        x_t, times, k = first.x_t.flatten(0, 1), t.repeat(len(eps)), self.denoise_steps
        eps_hat = base.guided(first).flatten(0, 1)
        x0_hat = schedule.x0_from_eps(x_t, eps_hat, times)
        levels = [(times * (1 - step / k)).long() for step in range(1, k)]
        x0_hat, _ = walk(base, x0_hat, eps_hat, levels, each)
        context.predictions = first  # callbacks look at x_t
        eps_k = schedule.eps_from_x0(x_t, x0_hat, times)
        return first._replace(eps_hat=eps_k.view_as(eps)[None])

    def guided(self, predictions: Predictions) -> Tensor:
        """eps_k, so that methods that rank with it denoise in k steps too."""
        return predictions.eps_hat[-1]  # type: ignore[index]

    def residual(self, predictions: Predictions, eps: Noises) -> Tensor:
        """eps_k - eps."""
        return self.guided(predictions) - eps

    def __call__(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Answer:
        alpha_t, sigma_t = context.prior.schedule.alpha_sigma(t, x)
        weight_t = context.prior.schedule.weight(t, self.weighting, x) * sigma_t / alpha_t
        # G = w(t) (sigma_t / alpha_t) mean_i (eps_k^i - eps^i)
        gradient = weight_t * self.residual(self.predict(x, t, eps, context), eps).mean(0)
        return gradient, {"gradient_rms": gradient.square().mean().sqrt().item()}
