"""A world for tests of preference pairs: prior N(mu, S) in three dimensions, reward r = <v, x>.

Everything has a closed form there: C = alpha^2 S + sigma^2 I, J = alpha S C^-1 the denoiser's
Jacobian, s_R = sigma ||J v|| the deviation of R, u = J v / ||J v||. WORLD is a mixture of two such
Gaussians, whose denoiser is not linear."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from worlds import normal as normal

from psd_mini import SDS, Context, GaussianMixture, scaled_linear_schedule
from psd_mini.rewards import LinearReward

SCHEDULE = scaled_linear_schedule()
EYE = torch.eye(3, dtype=torch.float64)
S = torch.tensor([[0.8, 0.3, 0.0], [0.3, 0.6, -0.1], [0.0, -0.1, 0.5]], dtype=torch.float64)
MU = torch.tensor([0.4, -1.0, 0.7], dtype=torch.float64)
V = torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64)
X = torch.tensor([1.1, -0.3, 0.2], dtype=torch.float64)
STEP = 450
ABAR = SCHEDULE.alphas_cumprod[STEP]
ALPHA, SIGMA = ABAR.sqrt(), (1 - ABAR).sqrt()
C = ABAR * S + (1 - ABAR) * EYE
J = ALPHA * S @ torch.linalg.inv(C)
S_R, U = SIGMA * (J @ V).norm(), J @ V / (J @ V).norm()
GAUSS = GaussianMixture(torch.ones(1), MU[None], S[None], SCHEDULE)
WORLD = GaussianMixture(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.stack((MU, -MU)),
    torch.stack((S, S)),
    SCHEDULE,
)
N = 300_000
UNIFORM = {"base": SDS(weighting="uniform"), "over_views": False}


def picture(eps):
    """(n, 3) noises as (1, n, 3, 1, 1), one for each of n pictures."""
    return eps[None, ..., None, None]


def context(prior=GAUSS, reward=None, n=1):
    embeddings = torch.zeros(2, len(prior.means), dtype=torch.float64)
    if prior is WORLD:
        embeddings[0, 1] = embeddings[1, 0] = -2.0
    reward = LinearReward(V) if reward is None else reward
    return Context(prior, embeddings, None, [""] * n, reward)


def batch(n, seed=0, noises=2):
    """n renders at random places and times with their noises."""
    x = normal(n, 3, 1, 1, seed=seed)
    t = torch.randint(20, 980, (n,), generator=torch.Generator().manual_seed(seed))
    return x, t, normal(noises, n, 3, 1, 1, seed=seed + 1)


def weight(t):
    return (1 - SCHEDULE.alphas_cumprod[t]).view(-1, 1, 1, 1)


def expected_pair(method, seed=0, reward=None):
    """Samples (n, 3) of PSD minus its base at X and STEP, for w = lambda = 1.

    omega (h_1 - h_2)
    """
    x = X.view(1, 3, 1, 1).expand(N, -1, -1, -1)
    t = torch.full((N,), STEP)
    eps = normal(method.n_noises, *x.shape, seed=seed)
    method.preference_weight = 1.0 / SIGMA.item()  # the method multiplies sigma_t
    with_pair, _ = method(x, t, eps, context(reward=reward, n=N))
    method.preference_weight = 0.0
    without, _ = method(x, t, eps, context(reward=reward, n=N))
    return (with_pair - without).flatten(1)


def assert_mean(samples, expected, *others, uncertainty=0.0):
    """The mean is within 4 standard errors; flipped, doubled, halved or `others` is not.

    A standard error is at most 1% of the mean's length. uncertainty is that of `expected` itself,
    where it was sampled too.
    """
    mean, error = samples.mean(0), (samples.var(0) / len(samples) + uncertainty**2) ** 0.5
    assert error.max() < 0.01 * expected.norm(), error / expected.norm()

    def consistent(candidate):
        return bool(((mean - candidate).abs() < 4 * error).all())

    assert consistent(expected), (mean, expected, error)
    for wrong in (-expected, 2 * expected, 0.5 * expected, *others):
        assert not consistent(wrong), wrong


def noise_kept(expected):
    """E[omega (eps_hat_1 - eps_hat_2)] where E[omega (h_1 - h_2)] = expected.

    h_1 - h_2 = -alpha J (eps_1 - eps_2)
    """
    return expected - torch.linalg.solve(ALPHA * J, expected)


def e_sech2(scale):
    """E_z sech^2(scale z), z ~ N(0, 1), by the trapezoidal rule."""
    z = torch.linspace(-10, 10, 40_001, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return (density / torch.cosh(scale * z) ** 2).sum() * (z[1] - z[0])


@dataclass
class QuadraticReward:
    """r(x) = -(1/2) (x - b)^T Q (x - b); Q (d, d) positive semidefinite, b (d,)."""

    b: Tensor
    Q: Tensor
    differentiable = True

    def __call__(self, images, prompts=()):
        away = images.flatten(1) - self.b
        return -0.5 * torch.einsum("bi,ij,bj->b", away, self.Q, away)
