"""SDS and CSD: pull a render towards what a diffusion prior finds likely. Every other method builds
on it.

Objective. With x = encode(render) and x_t = alpha_t x + sigma_t eps, make the noised render likely:

    min over x of  KL(q_t || p_t),    q_t = N(alpha_t x, sigma_t^2 I)

Gradient, for one noise level t (the entropy of q_t does not depend on x):

    grad_x KL = -alpha_t E[ grad log p_t(x_t) ]               x enters x_t with the factor alpha_t
              = (alpha_t / sigma_t) E[ eps_hat(x_t) ]         eps_hat = -sigma_t grad log p_t
              = (alpha_t / sigma_t) E[ eps_hat(x_t) - eps ]   E[eps] = 0: a control variate

The factor alpha_t / sigma_t goes into a weight w(t). This is score distillation sampling, SDS:

    G = w(t) (eps_hat(x_t) - eps),    E[G] = w(t) (sigma_t / alpha_t) grad_x KL

Descent is x <- x - lr G. With x0_hat = (x_t - sigma_t eps_hat) / alpha_t, the denoised picture,
eps_hat - eps = (alpha_t / sigma_t) (x - x0_hat): the render moves towards its own denoised picture.

Guidance splits the direction into a generative part and a classifier part:

    eps_cfg - eps = (eps_cond - eps) + (g - 1) (eps_cond - eps_neg)

CSD keeps the classifier part alone, which is what is left as g grows:

    G = w(t) (eps_cond - eps_neg) = d G_SDS(g) / d g
    eps_cond - eps_null = -sigma_t grad log [ p_t(x_t | prompt) / p_t(x_t) ]
                        = -sigma_t grad log p(prompt | x_t)                       by Bayes' rule

CSD subtracts no noise, because both predictions are of the same x_t. It has no pull to the prior:
in a world of Gaussians with equal covariances C_t its gradient is the constant
-alpha_t sigma_t C_t^-1 (mu_cond - mu_neg), which no picture satisfies, so colours run away.

Limits. g = 1 is the plain prior, g = 0 forgets the prompt, a large g follows CSD and saturates
colours. w = sigma_t^2 ("sds") gives high noise more weight, w = 1 ("uniform") weighs all levels
alike. Subtracting eps lowers the variance only where the noise dominates the data (sigma_t^2 >
alpha_t^2 times the data's variance).

References: Poole et al. 2022 (DreamFusion, arXiv 2209.14988), eq. 3 and appendix A; Ho & Salimans
2022 (guidance, arXiv 2207.12598), eq. 6; Yu et al. 2023 (CSD, arXiv 2310.19415), eq. 7 and 9.
Tests assert: E[G] equals w (sigma_t / alpha_t) grad KL in closed form; the split by guidance;
G = w (alpha_t / sigma_t) (x - x0_hat); CSD is the derivative in g, the constant drift, and minus
sigma_t times the classifier's gradient.
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

from psd_mini._internal.arguments import at_least, in_words, needs, one_of, validated
from psd_mini._internal.runs import check_finite
from psd_mini.cameras import Cameras
from psd_mini.schedule import WEIGHTINGS, NoiseSchedule

Renders = Float[Tensor, "b c h w"]  # B pictures in the prior's space
Noises = Float[Tensor, "n b c h w"]  # N noises, or noise predictions, for each of B pictures
Timesteps = Int[Tensor, "b"]  # the timestep of each picture
Answer = tuple[Renders, dict[str, float]]  # of a method: G, and numbers worth plotting


@validated
def cfg(
    eps_cond: Float[Tensor, "*shape"], eps_neg: Float[Tensor, "*shape"], guidance_scale: float
) -> Float[Tensor, "*shape"]:
    """Classifier-free guidance: push the noise prediction away from the negative prompt.

        eps_hat = eps_neg + g (eps_cond - eps_neg)

    g = 1 is the plain conditional prediction, g = 0 the negative one (diffusers' convention).

    Args:
        eps_cond: noise predicted for the prompt, in units of the standard normal, any shape.
        eps_neg: noise predicted for the negative prompt (or the empty one), same shape.
        guidance_scale: g, dimensionless. A large g sharpens and saturates.

    Returns:
        The guided noise prediction, same shape and units. Rounding errors of the two predictions
        are multiplied by up to g + |g - 1|: at g = 100, float16 alone gives noise of 0.03.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6, in diffusers' parametrisation.
    """
    return eps_neg + guidance_scale * (eps_cond - eps_neg)


@validated
def guidance_from_dreamfusion(w: float) -> float:
    """Guidance scale g of `cfg` from the weight w of DreamFusion and of Ho & Salimans.

        (1 + w) eps_cond - w eps_neg = eps_neg + g (eps_cond - eps_neg)   with   g = 1 + w

    w = 0 is the plain conditional prediction there. Imagen's weight needs no conversion: it writes
    w eps_cond + (1 - w) eps_neg, so its w is g.

    Args:
        w: weight of the papers above, dimensionless.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6; DreamFusion (arXiv 2209.14988); Imagen
    (arXiv 2205.11487), eq. 2.
    """
    return 1.0 + w


@validated
def sds_gradient(
    eps_cond: Float[Tensor, "*shape"],
    eps_neg: Float[Tensor, "*shape"],
    eps: Float[Tensor, "*shape"],
    guidance_scale: float,
    weight_t: Float[Tensor, "..."] | float = 1.0,
) -> Float[Tensor, "*shape"]:
    """The SDS direction: weighted difference between guided noise prediction and noise.

        G = w(t) ( eps_neg + g (eps_cond - eps_neg) - eps )

    Args:
        eps_cond, eps_neg: noise predicted in x_t for the prompt and the negative prompt, any shape.
        eps: the noise that made x_t, same shape.
        guidance_scale: g, dimensionless.
        weight_t: w(t), broadcast against them.

    Returns:
        G, same shape. eps_hat - eps is small beside eps where alpha_t / sigma_t is small: a float16
        prediction is off by 0.02% of it at t = 0 and by 0.25% at Stable Diffusion's last t.

    Source: DreamFusion (arXiv 2209.14988), eq. 3.
    """
    return weight_t * (cfg(eps_cond, eps_neg, guidance_scale) - eps)


@validated
def csd_gradient(
    eps_cond: Float[Tensor, "*shape"],
    eps_neg: Float[Tensor, "*shape"],
    weight_t: Float[Tensor, "..."] | float = 1.0,
) -> Float[Tensor, "*shape"]:
    """The CSD direction: G = w(t) (eps_cond - eps_neg).

    Args:
        eps_cond, eps_neg: noise predicted in the same x_t for the prompt and the negative (or
            empty) prompt, any shape.
        weight_t: w(t), broadcast against them.

    Returns:
        G, same shape.

    Source: arXiv 2310.19415, eq. 9.
    """
    return weight_t * (eps_cond - eps_neg)


@validated
def surrogate_loss(
    x: Float[Tensor, "b *event"], gradient: Float[Tensor, "b *event"]
) -> Float[Tensor, ""]:
    """A loss whose gradient with respect to x is a given direction, divided by the batch.

        L = (1 / B) * 0.5 || x - stopgrad(x - G) ||^2   =>   dL/dx = G / B

    Args:
        x: (B, ...) the render in the prior's space, with its graph.
        gradient: G, same shape; no gradient flows through it.

    Returns:
        A scalar. Its value is 0.5 ||G||^2 / B and means nothing; only its gradient counts. In
        float32 G gets an error of 6e-8 (|x| + 2 |G|), and is lost where it is below 3e-8 |x|.

    Source: DreamFusion (arXiv 2209.14988) injects G by hand; this form is threestudio's (2023).
    """
    target = (x - gradient).detach()
    return 0.5 * (x - target).square().sum() / x.shape[0]


class Prior:
    """What the loop asks of a diffusion prior. A prior has

        schedule                                     a NoiseSchedule
        embed(prompts) -> embeddings (K, ...)        "" is the null prompt
        encode(images (B, 3, H, W) in [0, 1]) -> x   (B, C, h, w), differentiable
        decode(x) -> images in [0, 1]
        predict_noise(x_t, t, embeddings, cameras)   eps_hat (K, B, C, h, w), all K at once
        draw_cameras(n, generator) -> Cameras        where the loop may look from

    and may have what stands below, which says what happens otherwise.
    """

    schedule: NoiseSchedule
    keeps_graph = True  # whether predict_noise can be differentiated in x_t
    embed: Callable[[list[str]], Tensor]

    def embed_views(self, prompts: list[str]) -> Tensor:
        """Embeddings of the prompts worded for each view; here the prompts as they stand."""
        return self.embed(prompts)

    def embed_negative(self, negative_prompt: str) -> Tensor:
        """The embedding of what guidance pushes away from; errors name the negative prompt."""
        try:
            return self.embed([negative_prompt])
        except ValueError as error:
            reason = str(error).removeprefix("prompt: ")
            raise ValueError(f"negative_prompt: {reason}") from None

    def negative_settings(self, start: Tensor, prompt: Tensor) -> dict[str, Any]:
        """Settings of a `NegativeEmbedding` for a prompt's embedding; none are its own defaults."""
        return {}

    def tilted(self, reward: Callable | None, beta: float, prompt: str = "") -> Any:
        """The optimum of reward minus beta KL, which only an exact prior knows."""
        message = "exact needs a prior with `tilted`, such as the toy world's"
        raise ValueError(f"method: {message}; a learned prior has none")

    @staticmethod
    def of(prior: Any) -> Any:
        """The prior itself; one of another class is given the defaults above that it lacks."""
        for name in ("keeps_graph", "embed_views", "embed_negative", "negative_settings", "tilted"):
            if not hasattr(prior, name):
                default = getattr(Prior, name)
                bound = default.__get__(prior) if callable(default) else default
                object.__setattr__(prior, name, bound)
        return prior


class Method:
    """What the loop asks of a method: gradient, metrics = method(x, t, eps, context).

    It is given x (B, C, h, w), detached, t (B,), eps (N, B, C, h, w) and a `Context`. It returns G
    of x's shape, the direction in which its loss increases (the loop divides it by B), and a
    dictionary of numbers. A plain function that returns G, or both, is a method too. One that is
    `on_pictures` returns the direction for 2 image - 1 instead (`methods.image_residual`).
    """

    n_noises: int = 1  # N, independent noises per picture
    shared_timestep: bool = False  # one t for all pictures of a step
    on_pictures: bool = False  # where G enters: at 2 image - 1 instead of at x
    function: Callable | None = None

    def __call__(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Any:
        return self.function(x, t, eps, context)  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """What changes during a run, for the checkpoint: of its base, if it has one."""
        return self.base.state_dict() if hasattr(self, "base") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        if hasattr(self, "base"):
            self.base.load_state_dict(state)

    @staticmethod
    def of(method: Callable) -> Method:
        """The method itself, or one made of a function or of an object of another class."""
        if isinstance(method, Method):
            return method
        own = ("n_noises", "shared_timestep", "on_pictures", "state_dict", "load_state_dict")
        made = Method()
        made.__dict__ |= {name: getattr(method, name) for name in own if hasattr(method, name)}
        made.function = method
        return made


@dataclass
class Cost:
    """Running totals of a run: how often the prior was asked, and where the seconds went.

    prior_evaluations: pictures that went through the prior, counted once per embedding and noise;
    renders: pictures rendered for the loop; seconds: wall-clock by part, and "total".
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


class Predictions(NamedTuple):
    """x_t, and the noise predicted in it for the prompt and for the negative prompt."""

    x_t: Noises
    eps_cond: Noises
    eps_neg: Noises
    eps_hat: Tensor | None = None  # (K, ...) for all embeddings, and what a method adds


@validated
@dataclass
class Context:
    """What a method may use besides x, t and eps.

    prior: see `Prior`; embeddings (2, ...): [prompt, negative prompt]; cameras: B, one per picture,
    or None for priors that know none; prompts: the B prompts in words, for rewards; reward: images,
    prompts -> scores, or None; predictions: what `predict` answered last; images: B, in [0, 1].
    """

    prior: Any
    embeddings: Real[Tensor, "k *embedding"]
    cameras: Cameras | None = None
    prompts: list[str] = field(default_factory=list)
    reward: Callable | None = None
    cost: Cost = field(default_factory=Cost)
    predictions: Predictions | None = None
    images: Float[Tensor, "b 3 h w"] | None = None

    def __post_init__(self) -> None:
        needs("prior", self.prior, "schedule", "predict_noise")
        Prior.of(self.prior)


def predict(
    x: Renders, t: Timesteps, eps: Noises, context: Context, negative: bool = True
) -> Predictions:
    """Noise a render N times and ask the prior about all of it in one call, without a graph.

        x_t = alpha_t x + sigma_t eps
        eps_cond = eps_hat(x_t; prompt),    eps_neg = eps_hat(x_t; negative prompt)

    Args:
        x: (B, C, h, w) render in the prior's space.
        t: (B,) timesteps, shared by the N noises of a picture.
        eps: (N, B, C, h, w) standard normal.
        context: prior, embeddings and cameras; its cost counter is advanced.
        negative: False saves the negative prompt's half of the work; eps_neg is then eps_cond.
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
    context.predictions = Predictions(x_t, eps_hat[0], eps_hat[-1], eps_hat)
    return context.predictions


def answer(
    method: Callable, x: Renders, t: Timesteps, eps: Noises, context: Context
) -> tuple[Renders, dict[str, float]]:
    """Ask a method for its gradient and its numbers.

    Raises:
        ValueError: something else than a tensor of x's shape (or the pictures'), such as a loss.
    """
    answered = method(x, t, eps, context)
    pair = isinstance(answered, tuple) and len(answered) == 2
    gradient, metrics = answered if pair else (answered, {})
    like: Any = context.images if getattr(method, "on_pictures", False) else x
    if not isinstance(gradient, Tensor) or gradient.shape != like.shape:
        expected = f"expected a gradient of shape {tuple(like.shape)}, averaged over the noises"
        raise ValueError(f"method: {expected} (not a loss), got {in_words(gradient)}")
    return gradient, metrics


@validated
@dataclass
class SDS(Method):
    """SDS as a method of the loop, averaged over N noises per picture.

    Args:
        guidance_scale: g; at exactly 1 the negative prompt is not evaluated at all.
        weighting: "sds" (sigma_t^2), "uniform" (1) or "fantasia3d" (alpha_t sigma_t^2).
        n_noises: N; 1 is classical SDS, 2 halves its noise variance at twice the cost.
    """

    guidance_scale: float = 1.0
    weighting: str = "sds"
    n_noises: int = 1

    def __post_init__(self) -> None:
        one_of("weighting", self.weighting, WEIGHTINGS)
        at_least("n_noises", self.n_noises, 1)

    def predict(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Predictions:
        """The prior's answers that `residual` needs: the negative prompt's only if g is not 1."""
        return predict(x, t, eps, context, negative=self.guidance_scale != 1.0)

    def guided(self, predictions: Predictions) -> Tensor:
        """The guided prediction eps_cfg, (N, B, C, h, w), of which the denoised picture is made."""
        return cfg(predictions.eps_cond, predictions.eps_neg, self.guidance_scale)

    def residual(self, predictions: Predictions, eps: Noises) -> Tensor:
        """Unweighted direction for each of the N noises, (N, B, C, h, w): eps_cfg - eps."""
        return sds_gradient(predictions.eps_cond, predictions.eps_neg, eps, self.guidance_scale)

    def __call__(
        self, x: Renders, t: Timesteps, eps: Noises, context: Context
    ) -> tuple[Tensor, dict[str, float]]:
        residual = self.residual(self.predict(x, t, eps, context), eps).mean(0)
        # G = w(t) mean_i (eps_cfg(x_t^i) - eps^i)
        gradient = context.prior.schedule.weight(t, self.weighting, x) * residual
        return gradient, {"gradient_rms": gradient.square().mean().sqrt().item()}


@validated
@dataclass
class CSD(SDS):
    """CSD as a method, with the settings of `SDS`. Its `guidance_scale` only guides the denoised
    picture of methods that rank with it (`SDS.guided`)."""

    def predict(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Predictions:
        return predict(x, t, eps, context, negative=True)

    def residual(self, predictions: Predictions, eps: Noises) -> Tensor:
        return csd_gradient(predictions.eps_cond, predictions.eps_neg)
