"""CSD: classifier score distillation. Only the part of guidance that says "more like the prompt, less like the rest".

Objective. Raise the implicit classifier p(prompt | x_t), which by Bayes is p_t(x_t | prompt) / p_t(x_t) up to a constant:

    eps_cond - eps_null = -sigma_t grad log [ p_t(x_t | prompt) / p_t(x_t) ] = -sigma_t grad log p(prompt | x_t)

Gradient. SDS with guidance is (eps_cond - eps) + (g - 1)(eps_cond - eps_neg); as g grows only the second part is left:

    G = w(t) (eps_cond - eps_neg),    G = d G_SDS(g) / d g

No noise is subtracted, because both predictions are of the same x_t. What it lacks is a pull to the prior: in a world of
Gaussians with equal covariances C_t the gradient is the constant -alpha_t sigma_t C_t^-1 (mu_cond - mu_neg), which no
picture satisfies, so colours run away. Equal prompts give zero.

Reference: Yu et al. 2023 (CSD, arXiv 2310.19415), eq. 7 and 9.
Its tests assert: the derivative in g; the constant drift; equality with minus sigma_t times the classifier's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from psd_mini.arguments import validated
from psd_mini.methods.context import Context, Noises, Predictions, Render, Times, predict
from psd_mini.methods.sds import SDS


@validated
def csd_gradient(
    eps_cond: Float[Tensor, "*shape"], eps_neg: Float[Tensor, "*shape"], weight_t: Float[Tensor, "..."] | float = 1.0
) -> Float[Tensor, "*shape"]:
    """The CSD direction: G = w(t) (eps_cond - eps_neg).

    Args:
        eps_cond, eps_neg: noise predicted in the same x_t for the prompt and the negative (or empty) prompt, any shape.
        weight_t: w(t), broadcast against them.

    Returns:
        G, same shape.

    Source: arXiv 2310.19415, eq. 9.
    """
    return weight_t * (eps_cond - eps_neg)


@validated
@dataclass
class CSD(SDS):
    """CSD as a method; settings and loop are those of `SDS`. `guidance_scale` only guides the denoised image of methods
    that rank with it (`SDS.noise`)."""

    def predict(self, x: Render, t: Times, eps: Noises, context: Context) -> Predictions:
        return predict(x, t, eps, context, negative=True)

    def residual(self, predictions: Predictions, eps: Noises) -> Tensor:
        return csd_gradient(predictions.eps_cond, predictions.eps_neg)
