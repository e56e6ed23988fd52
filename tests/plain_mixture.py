"""A Gaussian mixture in plain algebra for tests: explicit inverses, brute-force integration."""

import math

import torch
from torch import Tensor

from psd_mini.mixture import GaussianMixture
from psd_mini.schedule import scaled_linear_schedule

SCHEDULE = scaled_linear_schedule()
T = SCHEDULE.num_timesteps


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(*rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def levels(t: Tensor) -> tuple[Tensor, Tensor]:
    abar = SCHEDULE.alphas_cumprod[t]
    return abar.sqrt()[:, None], (1 - abar).sqrt()[:, None]


def world(d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and full covariances of a small mixture in d dimensions.

    Whatever the seed: |mean| <= 2.5 in each direction and standard deviations from 0.2 to 1.03, so
    that `grid` holds it.
    """
    if d == 1:
        return tensor(0.3, 0.7), tensor([-1.5], [1.2]), tensor([[0.3]], [[0.5]])
    root = 0.5 * normal(10 + d, 3, d, d) + 0.3 * torch.eye(d)
    root = root / torch.linalg.matrix_norm(root, 2).clamp(min=1)[:, None, None]
    means = (1.5 * normal(20 + d, 3, d)).clamp(-2.5, 2.5)
    return tensor(0.2, 0.5, 0.3), means, root @ root.mT + 0.05 * torch.eye(d)


def plain_density(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """sum_k w_k N(x; mu_k, S_k) at x (N, d), with explicit inverses and determinants."""
    total = torch.zeros(len(x), dtype=x.dtype)
    for w, mean, cov in zip(weights, means, covariances, strict=True):
        y = x - mean
        exponent = -0.5 * torch.einsum("ni,ij,nj->n", y, torch.linalg.inv(cov), y)
        total = total + w * exponent.exp() / torch.sqrt(torch.linalg.det(2 * math.pi * cov))
    return total


def plain_posterior(x_t: Tensor, t: Tensor, weights: Tensor, means: Tensor, covariances: Tensor):
    """g (B,M), m (B,M,d), Lam (B,M,d,d) of p(x_0 | x_t), one sample and one component at a time."""
    a, s = levels(t)
    eye = torch.eye(means.shape[1], dtype=torch.float64)
    g, m, lam = [], [], []
    for x, a_i, s_i in zip(x_t, a, s, strict=True):
        inv = [torch.linalg.inv(a_i**2 * cov + s_i**2 * eye) for cov in covariances]
        joint = [
            w
            * torch.sqrt(torch.linalg.det(i))
            * torch.exp(-0.5 * (x - a_i * mu) @ i @ (x - a_i * mu))
            for w, mu, i in zip(weights, means, inv, strict=True)
        ]
        g.append(torch.stack(joint) / sum(joint))
        m.append(
            torch.stack(
                [
                    mu + a_i * S @ i @ (x - a_i * mu)
                    for mu, S, i in zip(means, covariances, inv, strict=True)
                ]
            )
        )
        lam.append(torch.stack([s_i**2 * S @ i for S, i in zip(covariances, inv, strict=True)]))
    return torch.stack(g), torch.stack(m), torch.stack(lam)


def plain_covariance(g: Tensor, m: Tensor, lam: Tensor) -> Tensor:
    """Cov(x_0 | x_t) = sum_k g_k (Lam_k + (m_k - x0_hat)(m_k - x0_hat)^T): shape (B, d, d)."""
    spread = m - (g[..., None] * m).sum(1, keepdim=True)
    return torch.einsum("bm,bmij->bij", g, lam + spread[..., None] * spread[..., None, :])


def tilt_quadratic(prior: GaussianMixture, b: Tensor, Q: Tensor, beta: float):
    """The mixture p_0 exp(r / beta) / Z for r(x) = -1/2 (x - b)^T Q (x - b), and log Z.

    With A = Q / beta, completing the square gives

        S*_k = (I + S_k A)^-1 S_k,    mu*_k = mu_k + S*_k A (b - mu_k)
        log pi*_k = log pi_k - 1/2 log det(I + S_k A)
                    - 1/2 (b - mu_k)^T A (I + S_k A)^-1 (b - mu_k) - log Z
    """
    a, eye = Q / beta, torch.eye(len(b), dtype=b.dtype)
    log_weights, means, covariances = [], [], []
    for log_pi, mu, S in zip(prior.log_weights, prior.means, prior.covariances, strict=True):
        inverse = torch.linalg.inv(eye + S @ a)
        star, away = inverse @ S, b - mu
        exponent = torch.logdet(eye + S @ a) + away @ a @ inverse @ away
        log_weights.append(log_pi - 0.5 * exponent)
        means.append(mu + star @ a @ away)
        covariances.append((star + star.mT) / 2)
    log_z = torch.stack(log_weights).logsumexp(0)
    weights = (torch.stack(log_weights) - log_z).exp()
    tilted = GaussianMixture(weights, torch.stack(means), torch.stack(covariances), prior.schedule)
    return tilted, log_z


def grid(d: int) -> tuple[Tensor, float]:
    """Points of a regular grid over the worlds' support, and the cell volume (trapezoid rule)."""
    if d == 1:
        return torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None], 24 / 24_000
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (24 / 480) ** 2


def gaussian_kernel(x_t: Tensor, points: Tensor, t: Tensor) -> Tensor:
    """N(x_t; alpha_t x_0, sigma_t^2 I) for x_t (B, d) and x_0 on the grid (N, d): shape (B, N)."""
    a, s = levels(t)
    squares = ((x_t[:, None] - a[:, None] * points) ** 2).sum(-1)
    return torch.exp(-squares / (2 * s**2)) / (2 * math.pi * s**2) ** (points.shape[1] / 2)


def noisy(seed: int, b: int, d: int) -> tuple[Tensor, Tensor]:
    """b points between and around the components, from nearly clean to nearly noise."""
    return 1.3 * normal(seed, b, d), torch.linspace(150, T - 1, b).long()


def close(got: Tensor, expected: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=tol, atol=tol)


def finite_difference(f, x: Tensor, h: float = 1e-4) -> Tensor:
    """Fourth-order central differences of f at x (n,): shape (*f.shape, n)."""
    columns = []
    for i in range(len(x)):
        e = torch.zeros_like(x)
        e[i] = h
        columns.append((8 * (f(x + e) - f(x - e)) - (f(x + 2 * e) - f(x - 2 * e))) / (12 * h))
    return torch.stack(columns, -1)
