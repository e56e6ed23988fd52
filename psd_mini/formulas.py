"""The algebra that all score-distillation methods share.

Notation: x is the prior's view of a render, x_t = alpha_t x + sigma_t eps its noised version, eps_hat the noise that the
prior predicts in x_t, x0_hat = (x_t - sigma_t eps_hat) / alpha_t the denoised image. Every method is a direction G in x,
the one in which its loss increases: descent is x <- x - lr G.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini.arguments import validated


@validated
def cfg(eps_cond: Float[Tensor, "*shape"], eps_neg: Float[Tensor, "*shape"], guidance_scale: float) -> Float[Tensor, "*shape"]:
    """Classifier-free guidance: push the noise prediction away from the negative prompt, towards the prompt.

        eps_hat = eps_neg + g (eps_cond - eps_neg)

    g = 1 is the plain conditional prediction and g = 0 the negative one (the convention of diffusers). Papers that write
    eps_cond + w (eps_cond - eps_neg) mean g = 1 + w; see `guidance_from_dreamfusion`.

    Args:
        eps_cond: noise predicted for the prompt, in units of the standard normal, any shape.
        eps_neg: noise predicted for the negative prompt (or the empty one), same shape.
        guidance_scale: g, dimensionless. Large g sharpens and saturates.

    Returns:
        The guided noise prediction, same shape and units. Digits: what the two predictions have lost counts up to
        g + |g - 1| times: at g = 100 the rounding of float16 alone is noise of 0.03.

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

    Returns:
        g = 1 + w, dimensionless.

    Raises:
        ArgumentError: w is not a finite number.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6; DreamFusion (Poole et al. 2022, arXiv 2209.14988). For contrast:
    Imagen (Saharia et al. 2022, arXiv 2205.11487), eq. 2.
    """
    return 1.0 + w


@validated
def sds_residual(eps_hat: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the prior sees in x_t beyond the noise that was put there: the heart of score distillation.

        h = eps_hat - eps = (alpha_t / sigma_t) (x - x0_hat)

    so descent along h moves the render x towards the denoised image x0_hat. In expectation over eps it is
    (sigma_t / alpha_t) grad_x KL( N(alpha_t x, sigma_t^2 I) || p_t ).

    Args:
        eps_hat: predicted noise, guided or not, any shape.
        eps: the noise that made x_t, same shape.

    Returns:
        h, same shape, in units of the standard normal. Digits: small beside eps where alpha_t / sigma_t is, so that the
        rounding of a float16 eps_hat is 0.02% of h at t = 0 and 0.25% at Stable Diffusion's last t.

    Source: Poole et al. 2022 (DreamFusion, arXiv 2209.14988), eq. 3.
    """
    return eps_hat - eps


@validated
def surrogate_loss(x: Float[Tensor, "b *event"], gradient: Float[Tensor, "b *event"]) -> Float[Tensor, ""]:
    """A loss whose gradient with respect to x is a given direction, divided by the batch.

        L = (1 / B) * 0.5 || x - stopgrad(x - G) ||^2   =>   dL/dx = G / B

    Args:
        x: (B, ...) the render in the prior's space, with its graph.
        gradient: G, same shape; no gradient flows through it.

    Returns:
        A scalar; its value is 0.5 ||G||^2 / B and means nothing, only its gradient counts. Digits: G is rounded beside x,
        with an error of 6e-8 (|x| + 2 |G|) in float32, and gone where it is below 3e-8 |x|.

    Source: Poole et al. 2022 (arXiv 2209.14988) inject G by hand; this form is the one of threestudio (2023).
    """
    target = (x - gradient).detach()
    return 0.5 * (x - target).square().sum() / x.shape[0]


OMEGAS = ("hard", "gap", "bt", "gated")


@validated
def omega(gap: Float[Tensor, "..."], kind: str, tau: float | Float[Tensor, "..."] = 1.0) -> Float[Tensor, "..."]:
    """What a difference of rewards is worth: the weight of the winner-minus-loser direction. Odd in the gap.

        "hard"   sign(gap), 0 for a tie               only who won counts; any increasing map of the reward is the same
        "gap"    gap / tau                            linear in the reward
        "bt"     tanh(gap / (2 tau))                  = 2 P(1 beats 2) - 1 of a Bradley-Terry duel at temperature tau
        "gated"  sign(gap) where |gap| >= tau, else 0 small differences are noise

    bt tends to hard as tau -> 0 and to gap / (2 tau) as tau -> infinity.

    Args:
        gap: R_1 - R_2, any shape, in reward units.
        kind: one of the four names.
        tau: temperature or threshold, in reward units, positive (a number or a tensor that broadcasts).

    Returns:
        omega(gap), same shape, dimensionless. Digits: none are lost here, but R_1 - R_2 of float32 rewards is noise below
        1e-7 |R|, and "hard" counts that noise in full.

    Raises:
        ValueError: unknown kind, or tau not positive.

    Source: hard and bt are the two readings of a binary preference (Bradley & Terry 1952; Rafailov et al. 2023, arXiv
    2305.18290); gated is DreamDPO's threshold (Zhou et al. 2025, arXiv 2502.04370).
    """
    if kind not in OMEGAS:
        raise ValueError(f"omega: kind {kind!r} is not known; choose from {', '.join(OMEGAS)}")
    if not bool((torch.as_tensor(tau, dtype=torch.float64) > 0).all()):
        raise ValueError(f"tau: expected a positive reward difference, got {tau}")
    if kind == "hard":
        return torch.sign(gap)
    if kind == "gap":
        return gap / tau
    if kind == "bt":
        return torch.tanh(gap / (2 * tau))
    return torch.sign(gap) * (gap.abs() >= tau)
