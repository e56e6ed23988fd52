r"""SDS: score distillation sampling. Move the render to where the diffusion prior finds it likely.

Objective. One picture x, noised to level t, is the Gaussian q_t = N(alpha_t x, sigma_t^2 I). SDS minimises, over t and
cameras, KL(q_t || p_t(. | prompt)).

Gradient, in five lines:

    KL(q_t || p_t) = E_eps[ log q_t(x_t) - log p_t(x_t) ],  x_t = alpha_t x + sigma_t eps
    E log q_t      = minus the entropy of a Gaussian of fixed width: it does not depend on x
    grad_x KL      = -alpha_t E[ grad log p_t(x_t) ]                    (x enters x_t with the factor alpha_t)
                   = (alpha_t / sigma_t) E[ eps_hat(x_t) ]              (eps_hat = -sigma_t grad log p_t)
                   = (alpha_t / sigma_t) E[ eps_hat(x_t) - eps ]        (E[eps] = 0: a control variate)

and the factor alpha_t / sigma_t is absorbed into a weight w(t):

    G = w(t) (eps_hat(x_t) - eps),    E[G] = w(t) (sigma_t / alpha_t) grad_x KL

With classifier-free guidance the residual splits into a generative and a classifier part,

    eps_cfg - eps = (eps_cond - eps) + (g - 1) (eps_cond - eps_neg)

Limits: g = 1 is the plain prior; g = 0 forgets the prompt; large g follows the classifier part alone (CSD) and
saturates colours. w = sigma_t^2 ("sds") lets high noise speak, w = 1 ("uniform") all levels alike. Subtracting eps
lowers the variance only where the noise dominates the data (sigma_t^2 > alpha_t^2 times the data's variance).

Reference: Poole, Jain, Barron & Mildenhall 2022 (DreamFusion, arXiv 2209.14988), eq. 3 and appendix A.
Its tests assert: E[G] equals w (sigma_t / alpha_t) grad KL in closed form; the CFG split; G = w alpha_t/sigma_t (x - x0_hat).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from psd_mini.arguments import at_least, validated
from psd_mini.formulas import cfg, sds_residual
from psd_mini.methods.context import Context, Noises, Predictions, Render, Times, predict
from psd_mini.schedule import WEIGHTINGS


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
        G, same shape. Descent is x <- x - lr G.

    Source: DreamFusion (arXiv 2209.14988), eq. 3.
    """
    return weight_t * sds_residual(cfg(eps_cond, eps_neg, guidance_scale), eps)


@validated
@dataclass
class SDS:
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
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting: {self.weighting!r} is not known; choose from {', '.join(WEIGHTINGS)}")
        at_least("n_noises", self.n_noises, 1)

    def predict(self, x: Render, t: Times, eps: Noises, context: Context) -> Predictions:
        """The prior's answers that `residual` needs: the negative prompt's only if g differs from 1."""
        return predict(x, t, eps, context, negative=self.guidance_scale != 1.0)

    def noise(self, predictions: Predictions) -> Tensor:
        """The guided noise prediction eps_cfg, (N, B, C, h, w): what the denoised image is made of."""
        return cfg(predictions.eps_cond, predictions.eps_neg, self.guidance_scale)

    def residual(self, predictions: Predictions, eps: Noises) -> Tensor:
        """Unweighted direction for each of the N noises, (N, B, C, h, w): eps_cfg - eps."""
        return sds_gradient(predictions.eps_cond, predictions.eps_neg, eps, self.guidance_scale)

    def __call__(self, x: Render, t: Times, eps: Noises, context: Context) -> tuple[Tensor, dict[str, float]]:
        residual = self.residual(self.predict(x, t, eps, context), eps).mean(0)
        # G = w(t) mean_i (eps_cfg(x_t^i) - eps^i)
        gradient = context.prior.schedule.weight(t, self.weighting, x) * residual
        return gradient, {"gradient_rms": gradient.square().mean().sqrt().item()}
