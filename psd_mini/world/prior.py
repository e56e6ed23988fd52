"""The exact diffusion prior of the toy world: a mixture of its own pictures.

At a camera of the pool, the world's pictures of all (object, colour) pairs k, as points mu_k in the
space x = 2 image - 1, are the centres of an isotropic mixture whose weights a text embedding e
chooses:

    p(x | e, camera) = sum_k w_k N(x; mu_k, tau_x^2 I),    w_k proportional to pi_k exp(<e, key_k>)

with tau_x = 2 tau and tau = 0.05, the kernel's width in image units. Noised to level t each
component is N(alpha_t mu_k, C_t I) with C_t = alpha_t^2 tau_x^2 + sigma_t^2, so the denoiser is a
softmax-weighted mean of pictures and nothing is approximated:

    g_k = softmax_k( log w_k - ||x_t - alpha_t mu_k||^2 / (2 C_t) )
    x0_hat = sum_k g_k mu_k + (alpha_t tau_x^2 / C_t) (x_t - alpha_t sum_k g_k mu_k)
    eps_hat = (x_t - alpha_t x0_hat) / sigma_t

This is the score that a perfectly trained network would have on this world (cf. the exact denoiser
of a finite data set, Karras et al. 2022, arXiv 2206.00364, appendix B.3).

Views that agree. With n_views = V, V pictures that follow each other are views of one object, as in
MVDream (Shi et al. 2023, arXiv 2308.16512), whose attention sees the tokens of all views:

    p(x^1 .. x^V | e, cameras) = sum_k w_k prod_v p(x^v | k, camera_v)
    g_k^v = softmax_k( log w_k + sum over all views u of log p_t(x_t^u | k, camera_u) )

One responsibility for all views; the rest is as above, and t may differ from view to view. The
evidence of V views adds up, so the object is decided earlier, as at a noise level sqrt(V) smaller.
With known cameras there is nothing that this repairs: one field already ties its views. Nor does it
where the camera is known in words only: the views share k, and each still has its own hidden
camera. What it changes, and what that costs a preference: tests/results/learned.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini._internal.arguments import ArgumentError, at_least, in_words, one_of, validated
from psd_mini._internal.runs import plain_torch
from psd_mini.cameras import Cameras
from psd_mini.negative import evidence
from psd_mini.rewards import score
from psd_mini.schedule import NoiseSchedule, Times, scaled_linear_schedule
from psd_mini.sds import Prior
from psd_mini.world import text
from psd_mini.world.isotropic import isotropic_denoise, isotropic_given, isotropic_log_prob
from psd_mini.world.metrics import KERNEL_WIDTH
from psd_mini.world.pool import WorldViews, make_views, pool_cameras

# a negative embedding can speak from this t on, as a fraction of the schedule: the lowest that a
# run's field is ever asked about (tests/results/claims.md)
SPEAKS_FROM = 0.02
CONDITIONING = ("camera", "words", "none")

Pictures = Float[Tensor, "b 3 h w"]
Embeddings = Float[Tensor, "e v"]
Predicted = Float[Tensor, "e b 3 h w"]  # one for each embedding


@validated
class ToyWorldPrior(Prior):
    """Exact prior over the world's pictures, given a text embedding and a camera.

    Args:
        resolution: pixels per side of x; ignored when `views` is given.
        conditioning: what the prior knows of the camera. "camera": exactly which one, the mixture
            holds that camera's pictures only. "words": its view word (front, right, back, left) is
            added to every embedding, as view-dependent prompts do for a text-to-image model, and
            the mixture holds the whole pool. "none": nothing, the mixture over the whole pool,
            whose every camera wants its own favourite side: the Janus problem.
        views: the world's pictures; default the shared pool. `replace(views, vividness=0.5)` makes
            a prior that limits what can be reached: it knows the same objects in dull colours only.
        log_prior: (M,) log pi_k of the components up to a constant; default equal.
        schedule: noise levels; default Stable Diffusion's.
        n_views: V, pictures that follow each other and are of one object; `cameras_per_step` is
            then a multiple of it.

    Raises:
        ValueError: unknown conditioning, n_views below 1, or log_prior of another shape.
    """

    @plain_torch()
    def __init__(
        self,
        resolution: int = 32,
        conditioning: str = "camera",
        views: WorldViews | None = None,
        log_prior: Float[Tensor, " m"] | None = None,
        schedule: NoiseSchedule | None = None,
        n_views: int = 1,
    ):
        one_of("conditioning", conditioning, CONDITIONING)
        at_least("n_views", n_views, 1)
        self.views = views or make_views(pool_cameras(), resolution)
        self.conditioning, self.n_views = conditioning, n_views
        self.schedule = schedule or scaled_linear_schedule()
        self.variance = (2 * KERNEL_WIDTH) ** 2  # tau_x^2: a unit of image is two units of x
        self.keys = text.component_keys()
        expected = (len(self.keys),)
        self.log_prior = torch.zeros(expected) if log_prior is None else log_prior
        if self.log_prior.shape != expected:
            raise ValueError(f"log_prior: expected {expected}, got {tuple(self.log_prior.shape)}")
        # all pictures of the pool, once they are needed, after what they were made from
        self._whole_pool: tuple[Any, Tensor] = (None, torch.empty(0))

    def __repr__(self) -> str:
        settings = f"{self.views.resolution}, {self.conditioning!r}"
        more = f", log_prior={self.log_prior.tolist()}" if self.log_prior.any() else ""
        if self.views.vividness != 1:
            more += f", vividness {self.views.vividness:g}"
        if self.n_views > 1:
            more += f", {self.n_views} views of one object"
        return f"ToyWorldPrior({settings}, {len(self.views.cameras)} cameras{more})"

    def embed(self, prompts: list[str]) -> Float[Tensor, "k v"]:
        """Embeddings of K prompts, (K, V) in log-weight units; "" is zero. See `world.text`."""
        return text.embed(prompts)

    def encode(self, images: Pictures) -> Pictures:
        """x = 2 image - 1, differentiable.

        Raises:
            ValueError: pictures of another resolution than the prior's.
        """
        came, side = tuple(images.shape), self.views.resolution
        if came[1:] != (3, side, side):
            expected = f"expected (B, 3, {side}, {side}), got {came}"
            raise ValueError(f"images: {expected}; render at the prior's resolution")
        return 2 * images - 1

    def decode(self, x: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
        """image = (x + 1) / 2, clamped to [0, 1]."""
        return ((x + 1) / 2).clamp(0, 1)

    def draw_cameras(self, n: int, generator: torch.Generator) -> Cameras:
        """n different cameras of the pool at random; all in random order if n is larger."""
        at_least("n", n, 1)
        n_all, where = len(self.views.cameras), generator.device
        return self.views.cameras[torch.randperm(n_all, generator=generator, device=where)[:n]]

    def negative_settings(
        self, start: Float[Tensor, " v"], prompt: Float[Tensor, " v"]
    ) -> dict[str, Any]:
        """A radius within which the embedding can speak at every t from `SPEAKS_FROM` on.

        Two pictures mu_1 and mu_2 of an object in two colours are further apart than alpha_t; what
        x_t says about them is `negative.evidence`, here with the mean of ||mu_1 - mu_2||^2 over
        objects, cameras and pairs of colours, the vivid ones: a field may become as vivid as they
        are, whatever the prior knows. The step is a hundredth of the radius.
        """
        main, colours = self.views.layers[:, :, 3], replace(self.views, vividness=1.0).colours
        pairs = torch.cdist(colours, colours).square().sum() / (len(colours) * (len(colours) - 1))
        # x = 2 image - 1, so ||mu_1 - mu_2||^2 = 4 ||main||^2 ||c_1 - c_2||^2
        distance = 4 * main.square().sum(dim=(2, 3)).mean() * pairs
        t = torch.tensor([round(SPEAKS_FROM * (self.schedule.num_timesteps - 1))])
        alpha_t, sigma_t = self.schedule.alpha_sigma(t, start[None])
        radius = float(evidence(distance, alpha_t, sigma_t, self.variance))
        return {"radius": radius, "lr": radius / 100}

    @torch.no_grad()
    def component_rewards(self, reward: Callable | None, prompt: str) -> Float[Tensor, " m"]:
        """r(mu_k, prompt) of every component, (M,): the mean over the pool's cameras."""
        prompts = [prompt] * len(self.keys)
        cameras = torch.arange(len(self.views.cameras)).split(1)
        rewards = [score(reward, self.views.pictures(camera)[0], prompts) for camera in cameras]
        return torch.stack(rewards).mean(0)

    def tilted(self, reward: Callable | None, beta: float, prompt: str = "") -> ToyWorldPrior:
        """The optimum of reward minus beta KL: the same pictures with other weights.

            pi*_k proportional to pi_k exp( r(mu_k, prompt) / beta )

        Exact as the kernel width goes to zero; at tau = 0.05 it neglects how the reward varies
        within a kernel.

        Args:
            reward: images, prompts -> scores; asked about every picture of the pool, without
                gradients.
            beta: temperature in reward units, positive.
            prompt: what the reward is told that the picture should show.

        Raises:
            ValueError: beta not positive, or a reward that cannot be used (see `score`).
        """
        if not beta > 0:
            raise ValueError(f"beta: expected a positive temperature, got {beta!r}")
        tilted = copy.copy(self)
        tilted.log_prior = self.log_prior + self.component_rewards(reward, prompt) / beta
        return tilted

    def denoise(
        self, x_t: Pictures, t: Times, embeddings: Embeddings, cameras: Cameras
    ) -> Predicted:
        """x0_hat = E[x | x_t, e, camera] for each embedding (equation: the module's docstring)."""
        flat = x_t.flatten(1)
        alpha_t, sigma_t = self.schedule.alpha_sigma(t, flat)
        means, of_view, of_component = self._mixture(embeddings.to(x_t), cameras, len(x_t))
        level = self.variance, alpha_t, sigma_t
        if self.n_views > 1:
            evidence = isotropic_given(flat, means, of_view, *level)
            blocks = self._blocks(evidence)
            # log w_k + what the other views of the block say of k
            of_component = of_component + (blocks.sum(2, keepdim=True) - blocks).flatten(1, 2)
        x0_hat = isotropic_denoise(flat, means, _weights(of_view, of_component), *level)
        return x0_hat.view(-1, *x_t.shape)

    def predict_noise(
        self, x_t: Pictures, t: Times, embeddings: Embeddings, cameras: Cameras
    ) -> Predicted:
        """eps_hat = (x_t - alpha_t x0_hat) / sigma_t = -sigma_t grad log p_t(x_t | e, camera).

        Args:
            x_t: (B, 3, h, w) noised pictures in x = 2 image - 1.
            t: (B,) timesteps.
            embeddings: (E, V); differentiable in them.
            cameras: B cameras of the pool, one per picture.

        Returns:
            (E, B, 3, h, w) in units of the standard normal. In float32 the error is below 1e-4 at
            every t. It is largest at middle t, where two pictures are equally likely and the
            expanded square of `isotropic` has to tell them apart.
        """
        return self.schedule.eps_from_x0(x_t, self.denoise(x_t, t, embeddings, cameras), t)

    def log_prob(
        self, x: Pictures, embeddings: Embeddings, cameras: Cameras, t: Times | None = None
    ) -> Float[Tensor, "e b"]:
        """log p_t(x_t | e, camera) in nats, (E, B); of the clean pictures when t is None.

        With n_views = V it is that of each block of V pictures, (E, B / V).
        """
        flat = x.flatten(1)
        alpha_t, sigma_t = torch.ones_like(flat[:, :1]), torch.zeros_like(flat[:, :1])
        if t is not None:
            alpha_t, sigma_t = self.schedule.alpha_sigma(t, flat)
        means, of_view, of_component = self._mixture(embeddings.to(x), cameras, len(x))
        level = self.variance, alpha_t, sigma_t
        if self.n_views == 1:
            return isotropic_log_prob(flat, means, _weights(of_view, of_component), *level)
        evidence = self._blocks(isotropic_given(flat, means, of_view, *level))
        log_w = torch.log_softmax(of_component[:, :: self.n_views], -1)
        return torch.logsumexp(log_w + evidence.sum(2), -1)

    def _blocks(self, evidence: Float[Tensor, "e b m"]) -> Float[Tensor, "e blocks v m"]:
        """The views of one object side by side."""
        if evidence.shape[1] % self.n_views:
            expected = f"expected a multiple of the prior's n_views={self.n_views}"
            raise ArgumentError(f"cameras_per_step: {expected}, got {evidence.shape[1]} pictures")
        return evidence.unflatten(1, (-1, self.n_views))

    def _mixture(self, embeddings: Tensor, cameras: Cameras, n: int) -> tuple[Tensor, ...]:
        """The mixture at each of n cameras: centres (B or 1, P M, D), log-weights of the P hidden
        cameras (E, B, P) and of the M components (E, B, M). With the camera known P is 1.
        """
        if embeddings.shape[1] != self.keys.shape[1]:
            expected = f"finite numbers (E, {self.keys.shape[1]}), as `embed` gives them"
            raise ArgumentError(f"embeddings: expected {expected}, got {in_words(embeddings)}")
        if len(cameras) != n:
            expected = f"{n} of the pool, one per picture"
            raise ArgumentError(f"cameras: expected {expected}, got {len(cameras)}")
        index = self.views.index_of(cameras)
        keys, log_prior = self.keys.to(embeddings), self.log_prior.to(embeddings)
        if self.conditioning == "camera":
            of_component = (embeddings @ keys.T + log_prior)[:, None].expand(-1, n, -1)
            certain = torch.zeros_like(of_component[..., :1])
            return self._points(index, embeddings), certain, of_component
        views = text.view_keys(self.views.cameras).to(embeddings)
        embeddings = embeddings[:, None].expand(-1, n, -1)
        if self.conditioning == "words":
            embeddings = embeddings + text.WORD_STRENGTH * views[index]
        # <e, key of (camera, object, colour)> = <e, view key> + <e, object and colour key>
        of_view, of_component = embeddings @ views.T, embeddings @ keys.T + log_prior
        made_from = self.views, embeddings.dtype, embeddings.device
        if self._whole_pool[0] != made_from:
            points = self._points(torch.arange(len(self.views.cameras)), embeddings)
            self._whole_pool = made_from, points.flatten(0, 1)[None]
        return self._whole_pool[1], of_view, of_component

    def _points(self, index: Int[Tensor, " b"], like: Tensor) -> Float[Tensor, "b m d"]:
        """mu_k = 2 picture - 1 of all components at the cameras `index`."""
        return self.views.pictures(index).to(like).flatten(2).mul_(2).sub_(1)


def _weights(of_view: Tensor, of_component: Tensor) -> Float[Tensor, "e b pm"]:
    """Log-weights of every component at every hidden camera."""
    return (of_view[..., None] + of_component[..., None, :]).flatten(2)
