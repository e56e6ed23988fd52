"""The exact prior: a mixture of Gaussians, for which every quantity of a diffusion model is a
closed form.

    p_0(x)   = sum_k pi_k N(x; mu_k, S_k)                          the clean density on R^d
    p_t(x_t) = sum_k pi_k N(x_t; alpha_t mu_k, C_k)                noised: x_t = alpha_t x + sigma_t eps
    C_k      = alpha_t^2 S_k + sigma_t^2 I
    g_k(x_t) = P(component k | x_t)                                responsibilities, a softmax
    p(x_0 | x_t) = sum_k g_k N(x_0; m_k, Lam_k)                    the posterior, again a mixture
    m_k      = mu_k + alpha_t S_k C_k^-1 (x_t - alpha_t mu_k),     Lam_k = sigma_t^2 S_k C_k^-1

(Gaussian conditioning, e.g. Bishop 2006, "Pattern Recognition and Machine Learning", section
2.3.3.) C_k has the eigenvectors of S_k at every t, so one eigendecomposition gives all inverses and
determinants, exactly, and full, diagonal and isotropic covariances are one code. A "prompt" of this
world is a vector e of log-weights added to the components, p(x | e) = sum_k w_k N(x; mu_k, S_k)
with w_k proportional to pi_k exp(e_k); the null prompt is e = 0."""

import copy
import math
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from psd_mini._internal.arguments import as_numbers, at_least, validated
from psd_mini.schedule import NoiseSchedule, Times

Batch = Float[Tensor, "b *event"]  # B samples of any event shape
Prompts = (
    Real[Tensor, "e m"] | None
)  # E prompts: log-weights to be added to those of the M components


def _checked(
    name: str, value: Any, shape: tuple[int, ...], like: Tensor, allow_minus_inf: bool = False
) -> Tensor:
    """`value` as a tensor in like's dtype, or a one-line error that names the argument."""
    value = as_numbers(name, value, dtype=like.dtype, device=like.device)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    if not bool(
        (value.isfinite() | (value == -math.inf) if allow_minus_inf else value.isfinite()).all()
    ):
        raise ValueError(
            f"{name} must be finite, got NaN or infinite entries: look at how it was computed"
        )
    return value


def _eigen(
    name: str, matrices: Float[Tensor, "m d d"]
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d d"]]:
    """Eigenvalues and eigenvectors of symmetric positive semidefinite matrices, or a ValueError.

    Eigenvalues that are rounding error come back as zero, so that a singular matrix is seen to be
    singular."""
    slack = (
        10 * matrices.shape[-1] * torch.finfo(matrices.dtype).eps * matrices.abs().amax((-2, -1))
    )
    values, vectors = torch.linalg.eigh(matrices)
    if bool(((matrices - matrices.mT).abs().amax((-2, -1)) > slack).any()):
        raise ValueError(f"{name} must be symmetric: pass (C + C.mT) / 2")
    if bool((values.amin(-1) < -slack).any()):
        raise ValueError(
            f"{name} must be positive semidefinite, got an eigenvalue of {values.min():.6g}"
        )
    return torch.where(values > slack[..., None], values, 0), vectors


def _check_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(
            f"beta must be positive and finite (it is the temperature of the reward), got {beta}"
        )


@validated
class GaussianMixture:
    """Exact diffusion prior p_0 = sum_k pi_k N(mu_k, S_k), for tests, plots and two-dimensional
    worlds.

    Results come in the dtype and on the device of `means`. Below, B samples x_t (B, *event), of any
    event shape with d elements, at timesteps t (B,), for E prompts given as log-weights to be
    added, embeddings (E, M), where None is the null prompt (one row of zeros) and -inf switches a
    component off. t = None, where allowed, means the clean density p_0, for which every S_k must be
    nonsingular.

    Args:
        weights: pi_k, shape (M,), nonnegative; they are normalised to sum to one.
        means: mu_k, shape (M, d), floating point.
        covariances: S_k, positive semidefinite (singular is allowed wherever t is given), in one of
            the forms full (M, d, d), diagonal (M, d), isotropic variances (M,) or (M, 1), one
            variance for all (a number).
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
            raise ValueError(
                "weights must be nonnegative with a positive sum, got a minimum of"
                f" {weights.min():.6g}"
            )
        self.log_weights = torch.log(weights / weights.sum())

        cov = as_numbers("covariances", covariances, dtype=means.dtype, device=means.device)
        forms = {(): (1, 1), (m,): (m, 1), (m, 1): (m, 1), (m, d): (m, d), (m, d, d): (m, d, d)}
        if tuple(cov.shape) not in forms:
            expected = f"(), ({m},), ({m}, {d}) or ({m}, {d}, {d})"
            raise ValueError(
                f"covariances must have shape {expected} for means {(m, d)}, got {tuple(cov.shape)}"
            )
        cov = _checked(
            "covariances", cov.reshape(forms[tuple(cov.shape)]), forms[tuple(cov.shape)], means
        )
        # S_k = U_k diag(eigenvalues_k) U_k^T; no eigenvectors: U_k = I; eigenvalues (M, 1): all
        # equal
        self.eigenvectors: Tensor | None = None
        if cov.ndim == 3:
            self.eigenvalues, self.eigenvectors = _eigen("covariances", cov)
        elif bool((cov < 0).any()):
            raise ValueError(
                f"covariances must be positive semidefinite, got a variance of {cov.min():.6g}"
            )
        else:
            self.eigenvalues = cov.expand(m, -1)

    @property
    def covariances(self) -> Float[Tensor, "m d d"]:
        """S_k as full matrices, whatever form they were given in."""
        root = self._root(self.eigenvalues)
        return root @ root.mT

    def encode(self, images: Float[Tensor, "..."]) -> Tensor:
        """This world's samples are its pictures: x = image."""
        return images

    def decode(self, x: Float[Tensor, "..."]) -> Tensor:
        """image = x, not clamped."""
        return x

    def _to_eigenbasis(self, y: Float[Tensor, "b m d"]) -> Float[Tensor, "b m d"]:
        return (
            y if self.eigenvectors is None else torch.einsum("bmd,mdj->bmj", y, self.eigenvectors)
        )

    def _from_eigenbasis(self, z: Float[Tensor, "b m d"]) -> Float[Tensor, "b m d"]:
        return (
            z if self.eigenvectors is None else torch.einsum("bmj,mdj->bmd", z, self.eigenvectors)
        )

    def _root(self, eigenvalues: Float[Tensor, "*b m d"]) -> Float[Tensor, "*b m d d"]:
        """R_k with R_k R_k^T = U_k diag(eigenvalues_k) U_k^T, for the mixture's own S_k or for
        Lam_k."""
        u = (
            torch.eye(self.means.shape[1]).to(self.means)
            if self.eigenvectors is None
            else self.eigenvectors
        )
        return u * eigenvalues.sqrt()[..., None, :]

    def _log_weights(self, embeddings: Prompts, name: str = "embeddings") -> Float[Tensor, "e 1 m"]:
        """log w_k(e) = log softmax_k(log pi_k + e_k); an entry of -inf switches its component
        off."""
        if embeddings is None:
            return self.log_weights[None, None]
        shape = (len(embeddings), len(self.means))
        logits = self.log_weights + _checked(
            name, embeddings, shape, self.means, allow_minus_inf=True
        )
        if not bool(logits.isfinite().any(-1).all()):
            raise ValueError(
                f"{name} must leave at least one component with positive weight in every row"
            )
        return torch.log_softmax(logits, -1)[:, None]

    def _components(
        self, x_t: Batch, t: Times | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What every formula needs, per sample and component.

        Returns alpha_t (B,1,1), sigma_t (B,1,1), c (B,M,d or 1) the eigenvalues of C_k, z (B,M,d)
        the residual x_t - alpha_t mu_k in the eigenbasis, and log_n (B,M) = log N(x_t; alpha_t
        mu_k, C_k). t = None: clean density."""
        if x_t.numel() != len(x_t) * self.means.shape[1]:
            raise ValueError(
                f"x_t must hold {self.means.shape[1]} numbers per sample, got shape"
                f" {tuple(x_t.shape)}"
            )
        x = _checked("x_t", x_t, tuple(x_t.shape), self.means).reshape(len(x_t), 1, -1)
        if t is not None:
            alpha_t, sigma_t = self.schedule.alpha_sigma(t, like=x)
        elif bool((self.eigenvalues > 0).all()):
            alpha_t, sigma_t = torch.ones_like(x[:, :, :1]), torch.zeros_like(x[:, :, :1])
        else:
            raise ValueError(
                "t must be given: with a singular covariance the clean density does not exist"
            )
        c = alpha_t**2 * self.eigenvalues + sigma_t**2
        z = self._to_eigenbasis(x - alpha_t * self.means)
        # log N = -1/2 sum_j [ z_j^2 / c_j + log(2 pi c_j) ]
        log_n = -0.5 * (z**2 / c + torch.log(2 * math.pi * c)).sum(-1)
        return alpha_t, sigma_t, c, z, log_n

    def log_prob(
        self, x_t: Batch, t: Times | None = None, embeddings: Prompts = None
    ) -> Float[Tensor, "e b"]:
        """Log-density in nats, log p_t(x_t | e) = log sum_k w_k(e) N(x_t; alpha_t mu_k, C_k), shape
        (E, B).

        Digits: float32 is right to 1e-6 of the value, so far from all components nats are lost.
        """
        return torch.logsumexp(self._log_weights(embeddings) + self._components(x_t, t)[-1], -1)

    def responsibilities(
        self, x_t: Batch, t: Times | None = None, embeddings: Prompts = None
    ) -> Float[Tensor, "e b m"]:
        """P(component k | x_t, e): g_k = w_k N(x_t; alpha_t mu_k, C_k) / p_t(x_t | e), shape (E,
        B, M)."""
        return torch.softmax(self._log_weights(embeddings) + self._components(x_t, t)[-1], -1)

    def score(
        self, x_t: Batch, t: Times | None = None, embeddings: Prompts = None
    ) -> Float[Tensor, "e b *event"]:
        """grad_{x_t} log p_t(x_t | e) = -sum_k g_k C_k^-1 (x_t - alpha_t mu_k), shape (E, B,
        *event)."""
        _, _, c, z, log_n = self._components(x_t, t)
        g = torch.softmax(self._log_weights(embeddings) + log_n, -1)
        return -torch.einsum("ebm,bmd->ebd", g, self._from_eigenbasis(z / c)).reshape(
            -1, *x_t.shape
        )

    def predict_noise(
        self, x_t: Batch, t: Times | None, embeddings: Prompts = None, cameras: Any = None
    ) -> Float[Tensor, "e b *event"]:
        """The noise prediction of a perfect network, eps_hat = E[eps | x_t, e] = -sigma_t grad log
        p_t(x_t | e).

        Computed as sigma_t sum_k g_k C_k^-1 (x_t - alpha_t mu_k): no difference of nearly equal
        numbers at small sigma_t. Differentiable in x_t and in the embeddings. This world has no
        cameras, they are ignored.

        Returns:
            Shape (E, B, *event), in units of the standard normal.
        """
        if t is None:
            raise TypeError("t must be given: noise can only be predicted for a noised sample")
        return self.schedule.eps_from_score(
            self.score(x_t, t, embeddings).transpose(0, 1), t
        ).transpose(0, 1)

    def denoise(
        self, x_t: Batch, t: Times | None, embeddings: Prompts = None
    ) -> Float[Tensor, "e b *event"]:
        """One-step denoised sample, x0_hat = E[x_0 | x_t, e] = sum_k g_k m_k, shape (E, B,
        *event)."""
        g, m, _ = self._posterior(x_t, t, embeddings)
        return torch.einsum("ebm,bmd->ebd", g, m).reshape(-1, *x_t.shape)

    def posterior_covariance(
        self, x_t: Batch, t: Times | None, embeddings: Prompts = None
    ) -> Float[Tensor, "e b d d"]:
        """Covariance of the clean sample given the noised one, over the flattened event, shape (E,
        B, d, d).

            Cov(x_0 | x_t) = sum_k g_k ( Lam_k + (m_k - x0_hat)(m_k - x0_hat)^T )

        It is also the denoiser's Jacobian: d x0_hat / d x_t = (alpha_t / sigma_t^2) Cov(x_0 | x_t).
        """
        g, m, lam = self._posterior(x_t, t, embeddings)
        root = self._root(lam)
        spread = m - torch.einsum("ebm,bmd->ebd", g, m)[:, :, None]
        within = torch.einsum("ebm,bmij->ebij", g, root @ root.mT)
        return within + torch.einsum("ebm,ebmi,ebmj->ebij", g, spread, spread)

    def _posterior(
        self, x_t: Batch, t: Times | None, embeddings: Prompts
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mixture p(x_0 | x_t, e): weights g (E,B,M), means m_k (B,M,d), eigenvalues of
        Lam_k (B,M,d)."""
        alpha_t, sigma_t, c, z, log_n = self._components(x_t, t)
        g = torch.softmax(self._log_weights(embeddings) + log_n, -1)
        # m_k = mu_k + alpha_t S_k C_k^-1 (x_t - alpha_t mu_k),  Lam_k = sigma_t^2 S_k C_k^-1
        m = self.means + self._from_eigenbasis(alpha_t * self.eigenvalues / c * z)
        return g, m, (sigma_t**2 * self.eigenvalues / c).expand_as(z)

    def sample(
        self, n: int, generator: torch.Generator, embedding: Real[Tensor, "m"] | None = None
    ) -> Float[Tensor, "n d"]:
        """n independent clean samples, shape (n, d): k ~ w(e), x = mu_k + U_k diag(l_k)^(1/2) z
        with z ~ N(0, I)."""
        at_least("n", n, 1)
        log_w = self._log_weights(None if embedding is None else embedding[None], "embedding")[0, 0]
        k = torch.multinomial(log_w.exp(), n, replacement=True, generator=generator)
        means = self.means[k]
        z = self.eigenvalues[k].sqrt() * torch.empty_like(means).normal_(generator=generator)
        return means + (
            z if self.eigenvectors is None else torch.einsum("nj,ndj->nd", z, self.eigenvectors[k])
        )

    def condition(self, embedding: Real[Tensor, "m"]) -> "GaussianMixture":
        """The world of one prompt as a mixture of its own: weights proportional to pi_k exp(e_k), e
        of shape (M,).

        An entry of -inf removes its component.
        """
        return self._reweighted(self._log_weights(embedding[None], "embedding")[0, 0])[0]

    def tilt_components(
        self, r: Float[Tensor, "m"], beta: float
    ) -> tuple["GaussianMixture", Float[Tensor, ""]]:
        """Optimum of "reward minus beta KL" when component k earns the reward r_k, whatever the
        point.

            log pi*_k = log pi_k + r_k / beta - log Z

        See tilt_linear for what is returned.
        """
        _check_beta(beta)
        return self._reweighted(
            self.log_weights + _checked("r", r, (len(self.means),), self.means) / beta
        )

    def tilt_linear(
        self, v: Float[Tensor, "d"], beta: float, c: float = 0.0
    ) -> tuple["GaussianMixture", Float[Tensor, ""]]:
        """Optimum of "reward minus beta KL" for the reward r(x) = v . x + c: p*(x) = p_0(x)
        exp(r(x)/beta) / Z.

        Complete the square in each component:

            S*_k = S_k,   mu*_k = mu_k + S_k v / beta,
            log pi*_k = log pi_k + (v . mu_k + c)/beta + v^T S_k v / (2 beta^2) - log Z

        Args:
            v: slope of the reward, reward units per unit of x, shape (d,).
            beta: temperature in reward units, positive: the smaller, the further p* may leave p_0.
            c: the reward at the origin; it shifts log Z only.

        Returns:
            The tilted mixture and log Z = log E_{p_0}[exp(r/beta)], a 0-d tensor. For a prompt e,
            tilt condition(e).

        Raises:
            ValueError: wrong shape, non-finite numbers, beta not positive.

        Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 4, for p*; the mixture by the algebra
        above."""
        _check_beta(beta)
        v = _checked("v", v, tuple(self.means.shape[1:]), self.means) / beta
        # S_k v in the eigenbasis, where v^T S_k v = sum_j eigenvalue_j (U^T v)_j^2
        rotated = self._to_eigenbasis(v.expand(1, *self.means.shape))[0]
        log_weights = (
            self.log_weights
            + self.means @ v
            + c / beta
            + 0.5 * (self.eigenvalues * rotated**2).sum(-1)
        )
        shift = self._from_eigenbasis((self.eigenvalues * rotated)[None])[0]
        return self._reweighted(log_weights, means=self.means + shift)

    def tilt_quadratic(
        self, b: Float[Tensor, "d"], Q: Float[Tensor, "_ _"], beta: float
    ) -> tuple["GaussianMixture", Float[Tensor, ""]]:
        """Optimum of "reward minus beta KL" for r(x) = -1/2 (x - b)^T Q (x - b); Q and S_k may be
        singular.

        With A = Q/beta = F^T F, S_k = R_k R_k^T and G = F R_k, completing the square gives

            S*_k = R_k (I + G^T G)^-1 R_k^T                     ( = (S_k^-1 + A)^-1 where S_k is regular )
            mu*_k = mu_k + R_k G^T (I + G G^T)^-1 F (b - mu_k)
            log pi*_k = log pi_k - 1/2 logdet(I + G G^T) - 1/2 |F (b - mu_k)|^2_{(I + G G^T)^-1} -
            log Z

        Args:
            b: the best point, shape (d,).
            Q: curvature, reward units per squared unit of x, shape (d, d), symmetric positive
                semidefinite.
            beta: temperature in reward units, positive.

        Returns, Raises, Source: as in tilt_linear.
        """
        _check_beta(beta)
        d = self.means.shape[1]
        b = _checked("b", b, (d,), self.means)
        values, vectors = _eigen("Q", _checked("Q", Q, (d, d), self.means))
        f = (values / beta).sqrt()[:, None] * vectors.mT
        root = self._root(self.eigenvalues)
        g = f @ root
        eye = torch.eye(d).to(g)
        gap = (b - self.means) @ f.mT
        solved = torch.linalg.solve(eye + g @ g.mT, gap)
        log_weights = self.log_weights - 0.5 * (
            torch.logdet(eye + g @ g.mT) + (gap * solved).sum(-1)
        )
        means = self.means + torch.einsum("mij,mkj,mk->mi", root, g, solved)
        # S* = X X^T with X = R L^-T and L L^T = I + G^T G: its eigenvalues are squares, so never
        # negative
        x = torch.linalg.solve_triangular(
            torch.linalg.cholesky(eye + g.mT @ g), root.mT, upper=False
        ).mT
        vectors, values, _ = torch.linalg.svd(x)
        return self._reweighted(
            log_weights, means=means, eigenvalues=values**2, eigenvectors=vectors
        )

    def _reweighted(
        self, log_weights: Float[Tensor, "m"], **changes: Tensor
    ) -> tuple["GaussianMixture", Tensor]:
        """A copy with other weights (and means, ...), and the log of the sum that normalised
        them."""
        log_z = torch.logsumexp(log_weights, -1)
        other = copy.copy(self)
        vars(other).update(changes, log_weights=log_weights - log_z)
        return other, log_z


def implicit_reward(
    prior: GaussianMixture,
    tilted: GaussianMixture,
    log_z: Tensor,
    beta: float,
    x_t: Batch,
    t: Times | None = None,
) -> Float[Tensor, "b"]:
    """The reward of a noised sample that is consistent with the optimum p* proportional to p_0
    exp(r/beta).

        V_t(x_t) = beta log E[ exp(r(x_0)/beta) | x_t ] = beta ( log p*_t(x_t) - log p_t(x_t) + log
        Z )

    Adding it to the prior's score gives that of the noised optimum: eps*_t = eps_hat -
    (sigma_t/beta) grad V_t. At t = None (no noise) it is the reward r itself.

    Args:
        prior, tilted, log_z, beta: p_0 and what one of its tilt_* methods returned for that beta.
        x_t: noised samples, shape (B, *event). t: timesteps, shape (B,), or None for clean samples.

    Returns:
        V_t in reward units, shape (B,). Digits: a difference of log-densities, so the error is beta
        times theirs.

    Source: p*_t(x_t) = integral of p*(x_0) N(x_t; alpha_t x_0, sigma_t^2 I) dx_0 = p_t(x_t)
    E[exp(r/beta) | x_t] / Z, by Bayes' rule, p_0(x_0) N(x_t; alpha_t x_0, sigma_t^2 I) = p_t(x_t)
    p(x_0 | x_t)."""
    _check_beta(beta)
    return beta * (tilted.log_prob(x_t, t)[0] - prior.log_prob(x_t, t)[0] + log_z)
