"""The noise schedule of a variance-preserving diffusion model, and the algebra that follows from
one equation.

    x_t = alpha_t x + sigma_t eps,    eps ~ N(0, I),    alpha_t = sqrt(abar_t),    sigma_t = sqrt(1 - abar_t)

alpha_t is the share of signal, sigma_t the standard deviation of the noise, and alpha_t^2 +
sigma_t^2 = 1. A denoiser may predict any of four things; at a known x_t each determines the other
three:

    eps_hat                                     the noise
    x0_hat = (x_t - sigma_t eps_hat) / alpha_t  the clean picture (Tweedie: the posterior mean E[x | x_t])
    v      = alpha_t eps_hat - sigma_t x0_hat   the "velocity" (Salimans & Ho 2022)
    score  = -eps_hat / sigma_t                 the gradient of log p_t at x_t

Everywhere t is an integer tensor of shape (B,) on the training grid 0..T-1, t = 0 the cleanest, and
the first dimension of x_t is the batch that t belongs to. A tensor that stands beside x (the
noises) or beside x_t (the predictions) may carry more dimensions in front, (E, B, ...).

References: Ho, Jain & Abbeel 2020 (arXiv 2006.11239), eq. 4; Salimans & Ho 2022 (arXiv 2202.00512),
appendix D."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini._internal.arguments import as_numbers, at_least, validated

Times = Int[Tensor, "b"] | Int[Tensor, "1"]  # one timestep for each sample, or one for all
WEIGHTINGS = ("sds", "uniform", "fantasia3d")


@validated
@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The numbers abar_0 > abar_1 > ... > abar_{T-1} of a diffusion model, all strictly between 0
    and 1.

    Stored in float64 on the CPU; every method answers in the dtype and on the device of the tensors
    it is given.

    Args:
        alphas_cumprod: abar_t = prod_{s<=t} (1 - beta_s), shape (T,), dimensionless.

    Raises:
        ValueError: not 1-D, not strictly decreasing, or outside (0, 1). (abar = 0, "zero terminal
            SNR", is refused because x0_hat = (x_t - sigma_t eps_hat)/alpha_t does not exist there.)
    """

    alphas_cumprod: Float[Tensor, "T"]

    def __post_init__(self) -> None:
        abar = (
            as_numbers("alphas_cumprod", self.alphas_cumprod)
            .detach()
            .to(device="cpu", dtype=torch.float64)
        )
        if not bool(((abar > 0) & (abar < 1)).all()):
            raise ValueError(
                f"alphas_cumprod must lie in (0, 1), got {abar.min():.6g}..{abar.max():.6g}: drop"
                " those"
            )
        if not bool((abar[1:] < abar[:-1]).all()):
            raise ValueError(
                "alphas_cumprod must be strictly decreasing, t = 0 being the cleanest: reverse or"
                " fix it"
            )
        object.__setattr__(self, "alphas_cumprod", abar)

    @classmethod
    def from_betas(cls, betas: Float[Tensor, "T"]) -> "NoiseSchedule":
        """Schedule of the Markov chain with noise variances beta_t, shape (T,): abar_t =
        prod_{s<=t} (1 - beta_s).

        Raises ValueError for betas outside (0, 1). Source: arXiv 2006.11239, eq. 4.
        """
        betas = as_numbers("betas", betas).to(torch.float64)
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                f"betas must lie strictly between 0 and 1, got {betas.min():.6g}..{betas.max():.6g}"
            )
        return cls(torch.cumprod(1 - betas, dim=-1))

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> "NoiseSchedule":
        """Schedule of a diffusers scheduler (DDPM, DDIM, PNDM, ...), read from its
        `alphas_cumprod`.

        Raises TypeError when the scheduler has none (flow-matching schedulers follow another
        equation)."""
        if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
            raise TypeError(
                f"scheduler must have alphas_cumprod, {type(scheduler).__name__} has none: pass a"
                " DDPM one"
            )
        return cls(scheduler.alphas_cumprod)

    @property
    def num_timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas_cumprod)

    def _abar(self, t: Int[Tensor, "b_or_1"]) -> Float[Tensor, "b"]:
        """abar_t in float64 on the CPU, after checking the range of t."""
        t = t.detach().to(device="cpu", dtype=torch.int64)
        if t.min() < 0 or t.max() >= self.num_timesteps:
            raise ValueError(
                f"t must lie in 0..{self.num_timesteps - 1}, got values from {t.min()} to {t.max()}"
            )
        return self.alphas_cumprod[t]

    def alpha_sigma(
        self, t: Int[Tensor, "b_or_1"], like: Float[Tensor, "b *event"]
    ) -> tuple[Tensor, Tensor]:
        """Signal and noise level, shaped to multiply a batch: alpha_t = sqrt(abar_t), sigma_t =
        sqrt(1 - abar_t).

        Args:
            t: timesteps in 0..T-1, shape (B,); one timestep, shape (1,), serves any batch.
            like: the batch they will multiply, shape (B, ...).

        Returns:
            alpha_t and sigma_t, each of shape (B, 1, ..., 1) in like's dtype and on its device,
            dimensionless. Digits: 1 - abar_0 = 8.5e-4 costs three, which float64 can spare (sigma_0
            is right to 1e-14); then rounded once.

        Raises:
            TypeError: t is not an integer tensor, or like is not floating point.
            ValueError: t out of range, or its length is not like's batch size.
        """
        abar = self._abar(t)
        if len(t) not in (1, like.shape[0]):
            raise ValueError(
                f"t has {len(t)} entries for like of shape {tuple(like.shape)}: give one t per"
                " sample"
            )
        shape = (-1, *[1] * (like.ndim - 1))
        return abar.sqrt().to(like).reshape(shape), (1 - abar).sqrt().to(like).reshape(shape)

    def log_snr(self, t: Int[Tensor, "b_or_1"]) -> Float[Tensor, "b"]:
        """Log signal-to-noise ratio, log(alpha_t^2 / sigma_t^2), shape (B,), float64, in nats;
        decreasing in t."""
        abar = self._abar(t)
        return abar.log() - torch.log1p(-abar)

    def add_noise(
        self, x: Float[Tensor, "b *event"], eps: Float[Tensor, "..."], t: Times
    ) -> Tensor:
        """The forward process at one timestep: x_t = alpha_t x + sigma_t eps; x (B, ...), eps
        (B, ...) ~ N(0, I)."""
        alpha_t, sigma_t = self.alpha_sigma(t, like=x)
        return alpha_t * x + sigma_t * eps

    def x0_from_eps(
        self, x_t: Float[Tensor, "b *event"], eps_hat: Float[Tensor, "..."], t: Times
    ) -> Tensor:
        """One-step denoised picture: x0_hat = (x_t - sigma_t eps_hat) / alpha_t; x_t (B, ...),
        eps_hat same.

        Digits: an error of eps_hat counts sigma_t / alpha_t times, 15 times at Stable Diffusion's
        last t: 7e-3 in float16."""
        alpha_t, sigma_t = self.alpha_sigma(t, like=x_t)
        return (x_t - sigma_t * eps_hat) / alpha_t

    def eps_from_x0(
        self, x_t: Float[Tensor, "b *event"], x0_hat: Float[Tensor, "..."], t: Times
    ) -> Tensor:
        """Noise that x0_hat implies: eps_hat = (x_t - alpha_t x0_hat) / sigma_t.

        Digits: an error of x0_hat counts alpha_t / sigma_t times, 34 times at Stable Diffusion's t
        = 0."""
        alpha_t, sigma_t = self.alpha_sigma(t, like=x_t)
        return (x_t - alpha_t * x0_hat) / sigma_t

    def eps_from_v(
        self, x_t: Float[Tensor, "b *event"], v: Float[Tensor, "..."], t: Times
    ) -> Tensor:
        """Noise from velocity: eps_hat = sigma_t x_t + alpha_t v (solve x_t = alpha_t x +
        sigma_t eps with v)."""
        alpha_t, sigma_t = self.alpha_sigma(t, like=x_t)
        return sigma_t * x_t + alpha_t * v

    def x0_from_v(
        self, x_t: Float[Tensor, "b *event"], v: Float[Tensor, "..."], t: Times
    ) -> Tensor:
        """Clean picture from velocity: x0_hat = alpha_t x_t - sigma_t v."""
        alpha_t, sigma_t = self.alpha_sigma(t, like=x_t)
        return alpha_t * x_t - sigma_t * v

    def v_from_eps(
        self, x_t: Float[Tensor, "b *event"], eps: Float[Tensor, "..."], t: Times
    ) -> Tensor:
        """Velocity from noise: v = alpha_t eps - sigma_t x0, which at a given x_t is (eps - sigma_t
        x_t) / alpha_t.

        Digits: errors count 1 / alpha_t times; back from v, in eps_from_v and x0_from_v, nothing is
        divided and none is lost."""
        alpha_t, sigma_t = self.alpha_sigma(t, like=x_t)
        return (eps - sigma_t * x_t) / alpha_t

    def score_from_eps(self, eps_hat: Float[Tensor, "b *event"], t: Times) -> Tensor:
        """Score of the noised density: grad log p_t(x_t) = -eps_hat / sigma_t; batch first.
        Errors count 1 / sigma_t times."""
        return -eps_hat / self.alpha_sigma(t, like=eps_hat)[1]

    def eps_from_score(self, score: Float[Tensor, "b *event"], t: Times) -> Tensor:
        """Noise prediction of a score: eps_hat = -sigma_t grad log p_t(x_t); batch first."""
        return -score * self.alpha_sigma(t, like=score)[1]

    def weight(
        self, t: Int[Tensor, "b_or_1"], kind: str, like: Float[Tensor, "b *event"]
    ) -> Float[Tensor, "b *ones"]:
        """Weight w(t) of a distillation gradient.

            "sds"         w = sigma_t^2           DreamFusion (Poole et al. 2022, arXiv 2209.14988)
            "uniform"     w = 1
            "fantasia3d"  w = alpha_t sigma_t^2   Fantasia3D (Chen et al. 2023, arXiv 2303.13873), from its code

        Beware of names when comparing with other code: in DDPM papers "alphas" are 1 - beta_t, here
        alpha_t is sqrt(abar_t), and threestudio's unified guidance keeps sqrt(abar_t) in an
        attribute `alphas` but then weights by `1 - alphas`. That is 1 - alpha_t, not sigma_t^2 = 1
        - alpha_t^2: smaller by the factor 1 + alpha_t, so nearly half at small t, and equal only
        where no signal is left.

        Args:
            t: timesteps, shape (B,). kind: one of the three names. like: the gradient it
                multiplies, (B, ...).

        Returns:
            w(t), shape (B, 1, ..., 1) in like's dtype, dimensionless.

        Raises:
            ValueError: unknown kind.
        """
        if kind not in WEIGHTINGS:
            raise ValueError(f"kind must be one of {', '.join(WEIGHTINGS)}, got {kind!r}")
        alpha_t, sigma_t = self.alpha_sigma(t, like)
        return {
            "sds": sigma_t**2,
            "uniform": torch.ones_like(sigma_t),
            "fantasia3d": alpha_t * sigma_t**2,
        }[kind]


@validated
def scaled_linear_schedule(
    T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> NoiseSchedule:
    """Stable Diffusion's schedule: sqrt(beta_t) is linear in t ("scaled_linear" in diffusers).

        beta_t = ( sqrt(beta_start) + (t / (T-1)) (sqrt(beta_end) - sqrt(beta_start)) )^2

    Source: Rombach et al. 2022 (arXiv 2112.10752), released configuration; the defaults are Stable
    Diffusion 1.x, 2.x."""
    at_least("T", T, 1)
    if not (0 < beta_start < 1 and 0 < beta_end < 1):
        raise ValueError(
            f"beta_start, beta_end: expected noise variances in (0, 1), got {beta_start} and"
            f" {beta_end}"
        )
    return NoiseSchedule.from_betas(
        torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2
    )


def annealed(progress: float, start: float, end: float) -> float:
    """A timestep bound that moves linearly over a run: start + progress (end - start).

    Large t decides the layout, small t the detail, so bounds usually fall. start and end may be
    timesteps or fractions of T, the answer is in the same unit; progress is in [0, 1], 0 the first
    step. ValueError otherwise."""
    if not 0 <= progress <= 1:
        raise ValueError(
            f"progress must lie in [0, 1], got {progress}: pass step / max(steps - 1, 1)"
        )
    return start + progress * (end - start)


def sample_timesteps(
    batch: int, t_min: int, t_max: int, generator: torch.Generator
) -> Int[Tensor, "b"]:
    """Independent timesteps, uniform on the integers {t_min, ..., t_max}, both ends included.

    Args:
        batch: how many, B >= 1.
        t_min, t_max: integer timesteps, 0 <= t_min <= t_max; from fractions of T use round(fraction
            * (T - 1)).
        generator: source of randomness; the result lives on its device.

    Returns:
        int64 tensor of shape (B,).

    Raises:
        TypeError: bounds that are not integers. ValueError: bounds out of order or negative, batch
            < 1.
    """
    if not (isinstance(t_min, int) and isinstance(t_max, int)):
        raise TypeError(
            f"t_min and t_max must be integers, got {t_min!r} and {t_max!r}: use round(fraction *"
            " (T - 1))"
        )
    if batch < 1 or not 0 <= t_min <= t_max:
        raise ValueError(
            f"need batch >= 1 and 0 <= t_min <= t_max, got batch {batch}, t_min {t_min}, t_max"
            f" {t_max}"
        )
    return torch.randint(t_min, t_max + 1, (batch,), generator=generator, device=generator.device)
