"""The exact prior: a mixture of Gaussians, where all that a diffusion model does is a formula.

    p_0(x)   = sum_k pi_k N(x; mu_k, S_k)               the clean density on R^d
    p_t(x_t) = sum_k pi_k N(x_t; alpha_t mu_k, C_k)     noised: x_t = alpha_t x + sigma_t eps
    C_k      = alpha_t^2 S_k + sigma_t^2 I
    g_k(x_t) = P(component k | x_t)                     responsibilities, a softmax

The clean sample given a noised one is again a mixture:

    p(x_0 | x_t) = sum_k g_k N(x_0; m_k, Lam_k)
    m_k          = mu_k + alpha_t S_k C_k^-1 (x_t - alpha_t mu_k)
    Lam_k        = sigma_t^2 S_k C_k^-1

C_k has the eigenvectors of S_k at every t. So one eigendecomposition gives all inverses and
determinants exactly, and full, diagonal and isotropic covariances share the code.

A "prompt" of this world is a vector e of log-weights that are added to the components':
p(x | e) = sum_k w_k N(x; mu_k, S_k) with w_k proportional to pi_k exp(e_k). The null prompt is 0.

References: Gaussian conditioning, e.g. Bishop 2006, "Pattern Recognition and Machine Learning",
section 2.3.3.
"""

import copy
import math
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from psd_mini._internal.arguments import as_numbers, at_least, validated
from psd_mini.schedule import Batch, NoiseSchedule, Times

MaybeTimes = Times | None  # None: no noise, the clean density
Prompts = Real[Tensor, "e m"] | None  # E prompts: log-weights to be added to M components'
PerPrompt = Float[Tensor, "e b *event"]  # one answer for each prompt and sample
Tilted = tuple["GaussianMixture", Float[Tensor, ""]]  # the tilted mixture and log Z


@validated
class GaussianMixture:
    """Exact diffusion prior p_0 = sum_k pi_k N(mu_k, S_k), for tests, plots and 2-D worlds.

    The methods take B samples x_t (B, *event), of any event shape with d elements, at timesteps
    t (B,). Where t may be None, None means the clean density p_0; it needs nonsingular S_k.
    embeddings (E, M) are E prompts, log-weights to be added: -inf switches a component off, and
    None is the null prompt, one row of zeros. Results have the dtype and device of `means`.

    Args:
        weights: pi_k, shape (M,), nonnegative; they are normalised to sum to one.
        means: mu_k, shape (M, d), floating point.
        covariances: S_k, positive semidefinite, in one of the forms full (M, d, d), diagonal
            (M, d), isotropic variances (M,) or (M, 1), one variance for all (a number).
        schedule: the noise schedule that defines alpha_t and sigma_t.

    Raises:
        ValueError: wrong shapes, non-finite numbers, negative weights, covariances that are not
            positive semidefinite.
        TypeError: means that are not floating point.
    """

    def __init__(
        self, weights: Any, means: Float[Tensor, "m d"], covariances: Any, schedule: NoiseSchedule
    ) -> None:
        m, d = means.shape
        self.schedule, self.means = schedule, means
        weights = _checked("weights", weights, (m,), means)
        if bool((weights < 0).any()) or not bool(weights.sum() > 0):
            expected = "nonnegative with a positive sum"
            raise ValueError(f"weights must be {expected}, got a minimum of {weights.min():.6g}")
        self.log_weights = torch.log(weights / weights.sum())

        forms = {(): (1, 1), (m,): (m, 1), (m, 1): (m, 1), (m, d): (m, d), (m, d, d): (m, d, d)}
        cov = as_numbers("covariances", covariances, dtype=means.dtype, device=means.device)
        shape = tuple(cov.shape)
        if shape not in forms:
            expected = f"(), ({m},), ({m}, {d}) or ({m}, {d}, {d}) for means {(m, d)}"
            raise ValueError(f"covariances must have shape {expected}, got {shape}")
        cov = _checked("covariances", cov, shape, means).reshape(forms[shape])
        # S_k = U_k diag(eigenvalues_k) U_k^T
        self.eigenvectors: Tensor | None = None  # U_k; None: the identity
        if cov.ndim == 3:
            self.eigenvalues, self.eigenvectors = _eigen(cov)
        else:
            if bool((cov < 0).any()):
                came = f"a variance of {cov.min():.6g}"
                raise ValueError(f"covariances must be positive semidefinite, got {came}")
            self.eigenvalues = cov.expand(m, -1)  # (M, d), or (M, 1) where all are equal

    @property
    def covariances(self) -> Float[Tensor, "m d d"]:
        """S_k as full matrices, whatever form they were given in."""
        u = self.eigenvectors
        u = torch.eye(self.means.shape[1]).to(self.means) if u is None else u
        root = u * self.eigenvalues.sqrt()[:, None]
        return root @ root.mT

    def encode(self, images: Float[Tensor, "..."]) -> Tensor:
        """This world's samples are its pictures: x = image."""
        return images

    def decode(self, x: Float[Tensor, "..."]) -> Tensor:
        """image = x, not clamped."""
        return x

    def log_prob(
        self, x_t: Batch, t: MaybeTimes = None, embeddings: Prompts = None
    ) -> Float[Tensor, "e b"]:
        """Log-density in nats, shape (E, B).

            log p_t(x_t | e) = log sum_k w_k(e) N(x_t; alpha_t mu_k, C_k)

        float32 is right to 1e-6 of the value: far from all components that is many nats.
        """
        return torch.logsumexp(self._log_weights(embeddings) + self._components(x_t, t)[-1], -1)

    def responsibilities(
        self, x_t: Batch, t: MaybeTimes = None, embeddings: Prompts = None
    ) -> Float[Tensor, "e b m"]:
        """Probability of each component given the noised sample, shape (E, B, M).

        g_k = P(component k | x_t, e) = w_k(e) N(x_t; alpha_t mu_k, C_k) / p_t(x_t | e)
        """
        return torch.softmax(self._log_weights(embeddings) + self._components(x_t, t)[-1], -1)

    def score(self, x_t: Batch, t: MaybeTimes = None, embeddings: Prompts = None) -> PerPrompt:
        """Gradient of the log-density, shape (E, B, *event).

        grad_{x_t} log p_t(x_t | e) = -sum_k g_k C_k^-1 (x_t - alpha_t mu_k)
        """
        _, c, z, log_n = self._components(x_t, t)
        g = torch.softmax(self._log_weights(embeddings) + log_n, -1)
        score = -torch.einsum("ebm,bmd->ebd", g, self._from_eigenbasis(z / c))
        return score.reshape(-1, *x_t.shape)

    def predict_noise(
        self, x_t: Batch, t: Times, embeddings: Prompts = None, cameras: Any = None
    ) -> PerPrompt:
        """The noise prediction of a perfect network, shape (E, B, *event).

            eps_hat = E[eps | x_t, e] = -sigma_t grad log p_t(x_t | e)

        Computed from the sum in `score`: no difference of nearly equal numbers at small sigma_t.
        Differentiable in x_t and in the embeddings. This world has no cameras; they are ignored.
        """
        score = self.score(x_t, t, embeddings).transpose(0, 1)
        return self.schedule.eps_from_score(score, t).transpose(0, 1)

    def denoise(self, x_t: Batch, t: MaybeTimes, embeddings: Prompts = None) -> PerPrompt:
        """One-step denoised sample, x0_hat = E[x_0 | x_t, e] = sum_k g_k m_k, (E, B, *event)."""
        alpha_t, c, z, log_n = self._components(x_t, t)
        g = torch.softmax(self._log_weights(embeddings) + log_n, -1)
        # m_k = mu_k + alpha_t S_k C_k^-1 (x_t - alpha_t mu_k)
        m = self.means + self._from_eigenbasis(alpha_t * self.eigenvalues / c * z)
        return torch.einsum("ebm,bmd->ebd", g, m).reshape(-1, *x_t.shape)

    def sample(
        self, n: int, generator: torch.Generator, embedding: Real[Tensor, "m"] | None = None
    ) -> Float[Tensor, "n d"]:
        """n independent clean samples, shape (n, d), of the null prompt or of one embedding (M,).

        k ~ w(e),    x = mu_k + U_k diag(eigenvalues_k)^(1/2) z,    z ~ N(0, I)
        """
        at_least("n", n, 1)
        log_w = self._log_weights(None if embedding is None else embedding[None], "embedding")[0, 0]
        k = torch.multinomial(log_w.exp(), n, replacement=True, generator=generator)
        means = self.means[k]
        z = self.eigenvalues[k].sqrt() * torch.empty_like(means).normal_(generator=generator)
        if self.eigenvectors is not None:
            z = torch.einsum("nj,ndj->nd", z, self.eigenvectors[k])
        return means + z

    def condition(self, embedding: Real[Tensor, "m"]) -> "GaussianMixture":
        """The world of one prompt (M,) as a mixture of its own: weights w_k(e); -inf removes k."""
        return self._reweighted(self._log_weights(embedding[None], "embedding")[0, 0])[0]

    def tilt_components(self, r: Float[Tensor, "m"], beta: float) -> Tilted:
        """Optimum of "reward minus beta KL" when component k earns r_k, whatever the point.

            log pi*_k = log pi_k + r_k / beta - log Z

        Returns, Raises, Source: as in `tilt_linear`.
        """
        _check_beta(beta)
        r = _checked("r", r, (len(self.means),), self.means)
        return self._reweighted(self.log_weights + r / beta)

    def tilt_linear(self, v: Float[Tensor, "d"], beta: float, c: float = 0.0) -> Tilted:
        """Optimum of "reward minus beta KL" for the reward r(x) = v . x + c.

        The optimum is p*(x) = p_0(x) exp(r(x) / beta) / Z. Complete the square in each component:

            S*_k = S_k,   mu*_k = mu_k + S_k v / beta
            log pi*_k = log pi_k + (v . mu_k + c) / beta + v^T S_k v / (2 beta^2) - log Z

        Args:
            v: slope of the reward, reward units per unit of x, shape (d,).
            beta: temperature in reward units, positive: the smaller, the further p* may leave p_0.
            c: the reward at the origin; it shifts log Z only.

        Returns:
            The tilted mixture and log Z = log E_{p_0}[exp(r/beta)], a 0-d tensor. For a prompt e,
            tilt `condition(e)`.

        Raises:
            ValueError: wrong shape, non-finite numbers, beta not positive.

        Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 4, for p*; the mixture by the algebra
        above.
        """
        _check_beta(beta)
        v = _checked("v", v, tuple(self.means.shape[1:]), self.means) / beta
        # S_k v in the eigenbasis, where v^T S_k v = sum_j eigenvalue_j (U^T v)_j^2
        rotated = self._to_eigenbasis(v.expand(1, *self.means.shape))[0]
        gain = 0.5 * (self.eigenvalues * rotated**2).sum(-1)
        shift = self._from_eigenbasis((self.eigenvalues * rotated)[None])[0]
        log_weights = self.log_weights + self.means @ v + c / beta + gain
        return self._reweighted(log_weights, means=self.means + shift)

    def _to_eigenbasis(self, y: Float[Tensor, "b m d"]) -> Float[Tensor, "b m d"]:
        """U_k^T y for component k."""
        u = self.eigenvectors
        return y if u is None else torch.einsum("bmd,mdj->bmj", y, u)

    def _from_eigenbasis(self, z: Float[Tensor, "b m d"]) -> Float[Tensor, "b m d"]:
        """U_k z for component k."""
        u = self.eigenvectors
        return z if u is None else torch.einsum("bmj,mdj->bmd", z, u)

    def _log_weights(self, embeddings: Prompts, name: str = "embeddings") -> Float[Tensor, "e 1 m"]:
        """log w_k(e) = log softmax_k(log pi_k + e_k); -inf switches a component off."""
        if embeddings is None:
            return self.log_weights[None, None]
        shape = len(embeddings), len(self.means)
        e = _checked(name, embeddings, shape, self.means, allow_minus_inf=True)
        logits = self.log_weights + e
        if not bool(logits.isfinite().any(-1).all()):
            raise ValueError(f"{name} must leave at least one component of positive weight per row")
        return torch.log_softmax(logits, -1)[:, None]

    def _components(self, x_t: Batch, t: MaybeTimes) -> tuple[Tensor, ...]:
        """What every formula needs, per sample and component; t = None: the clean density.

        Returns:
            alpha_t (B, 1, 1); c (B, M, d or 1): the eigenvalues of C_k; z (B, M, d):
            x_t - alpha_t mu_k in the eigenbasis; log_n (B, M): log N(x_t; alpha_t mu_k, C_k).
        """
        d = self.means.shape[1]
        if x_t.numel() != len(x_t) * d:
            raise ValueError(f"x_t must hold {d} numbers per sample, got shape {tuple(x_t.shape)}")
        x = _checked("x_t", x_t, tuple(x_t.shape), self.means).reshape(len(x_t), 1, -1)
        if t is not None:
            alpha_t, sigma_t = self.schedule.alpha_sigma(t, like=x)
        elif bool((self.eigenvalues > 0).all()):
            alpha_t, sigma_t = torch.ones_like(x[:, :, :1]), torch.zeros_like(x[:, :, :1])
        else:
            raise ValueError("t must be given: a singular covariance has no clean density")
        # C_k = alpha_t^2 S_k + sigma_t^2 I
        c = alpha_t**2 * self.eigenvalues + sigma_t**2
        z = self._to_eigenbasis(x - alpha_t * self.means)
        # log N = -1/2 sum_j [ z_j^2 / c_j + log(2 pi c_j) ]
        log_n = -0.5 * (z**2 / c + torch.log(2 * math.pi * c)).sum(-1)
        return alpha_t, c, z, log_n

    def _reweighted(self, log_weights: Float[Tensor, "m"], **changes: Tensor) -> Tilted:
        """A copy with other weights (and means, ...), and log sum_k exp(log_weights_k)."""
        log_z = torch.logsumexp(log_weights, -1)
        other = copy.copy(self)
        vars(other).update(changes, log_weights=log_weights - log_z)
        return other, log_z


@validated
def implicit_reward(
    prior: GaussianMixture,
    tilted: GaussianMixture,
    log_z: Tensor,
    beta: float,
    x_t: Batch,
    t: MaybeTimes = None,
) -> Float[Tensor, "b"]:
    """The reward of a noised sample that agrees with the optimum p*(x) = p_0(x) exp(r/beta) / Z.

        V_t(x_t) = beta log E[ exp(r(x_0)/beta) | x_t ]
                 = beta ( log p*_t(x_t) - log p_t(x_t) + log Z )

    Its gradient leads from the prior to the optimum: eps*_t = eps_hat - (sigma_t/beta) grad V_t.
    At t = None (no noise) it is the reward r itself.

    Args:
        prior, tilted, log_z, beta: p_0 and what one of its tilt_* methods returned for that beta.
        x_t: noised samples, shape (B, *event).
        t: timesteps, shape (B,), or None for clean samples.

    Returns:
        V_t in reward units, shape (B,). It is a difference of log-densities: its rounding error is
        beta times theirs.

    Source: Bayes' rule, p_0(x_0) N(x_t; alpha_t x_0, sigma_t^2 I) = p_t(x_t) p(x_0 | x_t), gives
    p*_t(x_t) = integral of p*(x_0) N(x_t; alpha_t x_0, sigma_t^2 I) dx_0
    = p_t(x_t) E[exp(r/beta) | x_t] / Z.
    """
    _check_beta(beta)
    return beta * (tilted.log_prob(x_t, t)[0] - prior.log_prob(x_t, t)[0] + log_z)


def _checked(
    name: str, value: Any, shape: tuple[int, ...], like: Tensor, allow_minus_inf: bool = False
) -> Tensor:
    """`value` as a tensor in like's dtype, or a one-line error that names the argument."""
    value = as_numbers(name, value, dtype=like.dtype, device=like.device)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    allowed = value < math.inf if allow_minus_inf else value.isfinite()  # NaN < inf is false
    if not bool(allowed.all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity: see how it was computed")
    return value


def _check_beta(beta: float) -> None:
    """beta is a temperature, in reward units."""
    if beta <= 0:
        raise ValueError(f"beta must be positive, a temperature in reward units, got {beta}")


def _eigen(covariances: Float[Tensor, "m d d"]) -> tuple[Tensor, Tensor]:
    """Eigenvalues (M, d) and eigenvectors (M, d, d) of positive semidefinite matrices.

    Raises ValueError where they are not symmetric, or have a negative eigenvalue.

    Eigenvalues that are only rounding error come back as zero: a singular matrix stays singular.
    """
    largest = covariances.abs().amax((-2, -1))
    slack = 10 * covariances.shape[-1] * torch.finfo(covariances.dtype).eps * largest
    values, vectors = torch.linalg.eigh(covariances)
    if bool(((covariances - covariances.mT).abs().amax((-2, -1)) > slack).any()):
        raise ValueError("covariances must be symmetric: pass (C + C.mT) / 2")
    if bool((values.amin(-1) < -slack).any()):
        came = f"an eigenvalue of {values.min():.6g}"
        raise ValueError(f"covariances must be positive semidefinite, got {came}")
    return torch.where(values > slack[..., None], values, 0), vectors
