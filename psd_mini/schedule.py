"""The noise schedule: how much noise there is at each time, and what a denoiser may predict.

A variance-preserving diffusion model mixes a picture x with noise:

    x_t = alpha_t x + sigma_t eps,    eps ~ N(0, I)
    alpha_t = sqrt(abar_t),           sigma_t = sqrt(1 - abar_t)

alpha_t is the share of signal that is left, sigma_t is the standard deviation of the noise, and
alpha_t^2 + sigma_t^2 = 1. A denoiser may predict any of four things. At a known x_t each of them
determines the other three:

    eps_hat                                       the noise
    x0_hat = (x_t - sigma_t eps_hat) / alpha_t    the clean picture, E[x | x_t] (Tweedie)
    v      = alpha_t eps_hat - sigma_t x0_hat     the "velocity" (Salimans & Ho 2022)
    score  = -eps_hat / sigma_t                   the gradient of log p_t at x_t

Shapes: t is an integer tensor (B,) on the training grid 0..T-1, where t = 0 is the cleanest. The
first dimension of x and x_t is the batch. What stands beside them (noises, predictions) may have
more dimensions in front: (E, B, ...).

References: Ho, Jain & Abbeel 2020 (arXiv 2006.11239), eq. 4; Salimans & Ho 2022 (arXiv 2202.00512),
appendix D.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini._internal.arguments import at_least, validated

Batch = Float[Tensor, "b *event"]  # B samples of any event shape
Beside = Float[Tensor, "..."]  # what stands beside a batch: (B, *event) or (E, B, *event)
Times = Int[Tensor, "b"] | Int[Tensor, "1"]  # one timestep for each sample, or one for all
WEIGHTINGS = ("sds", "uniform", "fantasia3d")
ANNEALING = ("linear", "sqrt")


@validated
@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The numbers abar_0 > abar_1 > ... > abar_{T-1} of a diffusion model.

    They are kept in float64 on the CPU. Every method answers in the dtype and on the device of the
    tensors that it is given.

    Args:
        alphas_cumprod: abar_t = prod_{s<=t} (1 - beta_s), shape (T,), dimensionless, strictly
            between 0 and 1.

    Raises:
        ValueError: not 1-D, not strictly decreasing, or outside (0, 1). (abar = 0, "zero terminal
            SNR", is refused because x0_hat = (x_t - sigma_t eps_hat) / alpha_t does not exist.)
    """

    alphas_cumprod: Float[Tensor, "T"]

    def __post_init__(self) -> None:
        abar = self.alphas_cumprod.detach().to(device="cpu", dtype=torch.float64)
        if not bool(((abar > 0) & (abar < 1)).all()):
            came = f"{abar.min():.6g}..{abar.max():.6g}"
            raise ValueError(f"alphas_cumprod must lie in (0, 1), got {came}: leave the others out")
        if not bool((abar[1:] < abar[:-1]).all()):
            raise ValueError("alphas_cumprod must be strictly decreasing (t = 0 is the cleanest)")
        object.__setattr__(self, "alphas_cumprod", abar)

    @classmethod
    def from_betas(cls, betas: Float[Tensor, "T"]) -> "NoiseSchedule":
        """Schedule of the Markov chain with noise variances beta_t, shape (T,).

            abar_t = prod_{s<=t} (1 - beta_s)

        Raises ValueError for betas outside (0, 1). Source: arXiv 2006.11239, eq. 4.
        """
        betas = betas.to(torch.float64)
        if not bool(((betas > 0) & (betas < 1)).all()):
            came = f"{betas.min():.6g}..{betas.max():.6g}"
            raise ValueError(f"betas must lie strictly between 0 and 1, got {came}")
        return cls(torch.cumprod(1 - betas, dim=-1))

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> "NoiseSchedule":
        """Schedule of a diffusers scheduler (DDPM, DDIM, PNDM, ...): its `alphas_cumprod`.

        A last abar of 0 ("zero terminal SNR") becomes 2^-24, as in diffusers' Euler schedulers.

        Raises TypeError where there is none: flow-matching schedulers follow another equation.
        """
        if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
            came = type(scheduler).__name__
            raise TypeError(f"scheduler must have alphas_cumprod, {came} has none: pass a DDPM one")
        abar = scheduler.alphas_cumprod.double()
        return cls(torch.where(abar == 0, 2.0**-24, abar))

    @property
    def num_timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas_cumprod)

    def alpha_sigma(self, t: Int[Tensor, "b_or_1"], like: Batch) -> tuple[Tensor, Tensor]:
        """Signal and noise level, shaped to multiply a batch.

            alpha_t = sqrt(abar_t),    sigma_t = sqrt(1 - abar_t)

        Args:
            t: timesteps in 0..T-1, shape (B,); one timestep, shape (1,), serves any batch.
            like: the batch that they will multiply, shape (B, ...).

        Returns:
            alpha_t and sigma_t, each of shape (B, 1, ..., 1) in like's dtype and on its device,
            dimensionless. They are computed in float64 and rounded once: 1 - abar_0 = 8.5e-4 loses
            three digits there, which leaves sigma_0 right to 1e-14.

        Raises:
            TypeError: t is not an integer tensor, or like is not floating point.
            ValueError: t out of range, or its length is not like's batch size.
        """
        t = t.detach().to(device="cpu", dtype=torch.int64)
        if t.min().item() < 0 or t.max().item() >= self.num_timesteps:
            came = f"values from {t.min()} to {t.max()}"
            raise ValueError(f"t must lie in 0..{self.num_timesteps - 1}, got {came}")
        if len(t) not in (1, like.shape[0]):
            raise ValueError(f"t has {len(t)} entries, like has {len(like)}: give one t per sample")
        abar = self.alphas_cumprod[t]
        alpha_t, sigma_t = abar.sqrt().to(like), (1 - abar).sqrt().to(like)
        ones = [1] * (like.ndim - 1)
        return alpha_t.reshape(-1, *ones), sigma_t.reshape(-1, *ones)

    def add_noise(self, x: Batch, eps: Beside, t: Times) -> Tensor:
        """The forward process at one timestep: x_t = alpha_t x + sigma_t eps, eps ~ N(0, I)."""
        alpha_t, sigma_t = self.alpha_sigma(t, like=x)
        return alpha_t * x + sigma_t * eps

    def x0_from_eps(self, x_t: Batch, eps_hat: Beside, t: Times) -> Tensor:
        """One-step denoised picture: x0_hat = (x_t - sigma_t eps_hat) / alpha_t.

        Errors of eps_hat are multiplied by sigma_t / alpha_t, which is 15 at Stable Diffusion's
        last t: rounding eps_hat to float16 moves x0_hat by 7e-3.
        """
        alpha_t, sigma_t = self.alpha_sigma(t, like=x_t)
        return (x_t - sigma_t * eps_hat) / alpha_t

    def eps_from_x0(self, x_t: Batch, x0_hat: Beside, t: Times) -> Tensor:
        """Noise that x0_hat implies: eps_hat = (x_t - alpha_t x0_hat) / sigma_t.

        Errors of x0_hat are multiplied by alpha_t / sigma_t: 34 at Stable Diffusion's t = 0.
        """
        alpha_t, sigma_t = self.alpha_sigma(t, like=x_t)
        return (x_t - alpha_t * x0_hat) / sigma_t

    def eps_from_v(self, x_t: Batch, v: Beside, t: Times) -> Tensor:
        """Noise from velocity: eps_hat = sigma_t x_t + alpha_t v. Nothing is divided or lost."""
        alpha_t, sigma_t = self.alpha_sigma(t, like=x_t)
        return sigma_t * x_t + alpha_t * v

    def eps_from_score(self, score: Batch, t: Times) -> Tensor:
        """Noise prediction of a score: eps_hat = -sigma_t grad log p_t(x_t); batch first."""
        return -score * self.alpha_sigma(t, like=score)[1]

    def weight(self, t: Int[Tensor, "b_or_1"], kind: str, like: Batch) -> Tensor:
        """Weight w(t) of a distillation gradient.

            "sds"         w = sigma_t^2           DreamFusion (Poole et al. 2022, arXiv 2209.14988)
            "uniform"     w = 1
            "fantasia3d"  w = alpha_t sigma_t^2   the code of Fantasia3D (2023, arXiv 2303.13873)

        Names differ between codes. In DDPM papers "alphas" are 1 - beta_t; here alpha_t is
        sqrt(abar_t). threestudio's unified guidance calls sqrt(abar_t) `alphas` too, but weights by
        `1 - alphas`. That is 1 - alpha_t, smaller than sigma_t^2 = 1 - alpha_t^2 by the factor
        1 + alpha_t: nearly half at small t, equal only where no signal is left.

        Args:
            t: timesteps, shape (B,).
            kind: one of the three names.
            like: the gradient that it multiplies, shape (B, ...).

        Returns:
            w(t), shape (B, 1, ..., 1) in like's dtype, dimensionless.

        Raises:
            ValueError: unknown kind.
        """
        if kind not in WEIGHTINGS:
            raise ValueError(f"kind must be one of {', '.join(WEIGHTINGS)}, got {kind!r}")
        alpha_t, sigma_t = self.alpha_sigma(t, like)
        if kind == "uniform":
            return torch.ones_like(sigma_t)
        return sigma_t**2 if kind == "sds" else alpha_t * sigma_t**2


@validated
def scaled_linear_schedule(
    T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> NoiseSchedule:
    """Stable Diffusion's schedule: sqrt(beta_t) is linear in t ("scaled_linear" in diffusers).

        beta_t = ( sqrt(beta_start) + t / (T-1) (sqrt(beta_end) - sqrt(beta_start)) )^2

    The defaults are those of Stable Diffusion 1.x and 2.x.

    Source: Rombach et al. 2022 (arXiv 2112.10752), released configuration.
    """
    at_least("T", T, 1)
    if not (0 < beta_start < 1 and 0 < beta_end < 1):
        came = f"{beta_start} and {beta_end}"
        raise ValueError(f"beta_start, beta_end: expected noise variances in (0, 1), got {came}")
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
    return NoiseSchedule.from_betas(roots**2)


def annealed(progress: float, start: float, end: float, kind: str = "linear") -> float:
    """A bound on t that moves over a run: start + progress (end - start), or sqrt(progress).

    Large t decides the layout and small t the detail, so bounds usually fall. As the square root
    (HiFA, arXiv 2305.18766) they have covered 71% of the way at half time.

    Args:
        progress: in [0, 1], 0 at the first step and 1 at the last; else ValueError.
        start, end: timesteps or fractions of T; the answer has the same unit.
    """
    if not 0 <= progress <= 1:
        remedy = "pass step / max(steps - 1, 1)"
        raise ValueError(f"progress must lie in [0, 1], got {progress}: {remedy}")
    return start + (progress**0.5 if kind == "sqrt" else progress) * (end - start)


@validated
def sample_timesteps(
    batch: int, t_min: int, t_max: int, generator: torch.Generator
) -> Int[Tensor, "b"]:
    """Independent timesteps, uniform on the integers t_min, ..., t_max, both ends included.

    Args:
        batch: how many, B >= 1.
        t_min, t_max: whole numbers, 0 <= t_min <= t_max; of a fraction of T use
            round(fraction * (T - 1)).
        generator: source of randomness; the result lives on its device.

    Returns:
        int64 tensor of shape (B,).

    Raises:
        ValueError: bounds that are not whole numbers, out of order or negative, or batch < 1.
    """
    if batch < 1 or not 0 <= t_min <= t_max:
        came = f"batch {batch}, t_min {t_min}, t_max {t_max}"
        raise ValueError(f"need batch >= 1 and 0 <= t_min <= t_max, got {came}")
    return torch.randint(t_min, t_max + 1, (batch,), generator=generator, device=generator.device)


def draw_noises(n: int, x: Batch, generator: torch.Generator) -> Tensor:
    """n independent standard normal noises of x's shape, in its dtype and on its device."""
    return torch.randn(n, *x.shape, generator=generator, device=generator.device).to(x)
