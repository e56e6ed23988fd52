"""VSD and models of the renders' law, in float64, against autograd, quadrature or algebra."""

import copy
import io
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from loop_world import World as LoopWorld
from loop_world import run
from plain_mixture import SCHEDULE, close, grid, levels, normal, plain_density, tensor, world

from psd_mini import PSD, SDS, Context, GaussianMixture
from psd_mini._internal.runs import deterministic
from psd_mini.methods import VSD, DreamDPO, Mixture, RewardSDS, RunningGaussian, ScoreModel
from psd_mini.rewards import LinearReward

sys.path.append(str(Path(__file__).parent / "tools"))

pytestmark = pytest.mark.algebra
W1, M1, S1 = world(1)
LINE = GaussianMixture(W1, M1, S1, SCHEDULE)
W3, M3, S3 = world(3)
SPACE = GaussianMixture(W3, M3, S3, SCHEDULE)


def picture(x):
    return x[..., None, None]


def context(prior=SPACE):
    return Context(prior, torch.zeros(2, len(prior.means), dtype=torch.float64))


def case(n=5, noises=2, t=500):
    """n particles in three dimensions at one noise level, and noises."""
    return picture(normal(1, n, 3)), torch.full((n,), t), picture(normal(2, noises, n, 3))


def own(model, x, t, eps):
    return model.noise(x, t, eps, context())


def different(a, b):
    return (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("width", [0.0, 0.4])
@pytest.mark.parametrize("t", [60, 500, 950])
def test_q_is_the_score_of_the_mixture_at_the_particles(width, t):
    """eps_q = -sigma_t grad log (1/n) sum_j N(x_t; alpha_t x_j, c I), c = alpha_t^2 kappa^2 +
    sigma_t^2."""
    x, t, eps = case(t=t)
    a, s = (level[0, 0] for level in levels(t))
    variance = a**2 * width**2 + s**2
    x_t = (a * x + s * eps).flatten(2).requires_grad_()
    squares = ((x_t[:, :, None] - a * x.flatten(1)) ** 2).sum(-1)
    log_q = torch.logsumexp(-squares / (2 * variance), -1).sum()
    expected = -s * torch.autograd.grad(log_q, x_t)[0]
    close(own(Mixture(width), x, t, eps).flatten(2), expected, 1e-10)
    if width:
        assert different(own(Mixture(0.0), x, t, eps).flatten(2), expected)


def test_particles_may_stand_at_different_noise_levels():
    """Each one's q_t is of its own level: as if all were asked at that level."""
    x, _, eps = case()
    t = torch.tensor([60, 300, 500, 700, 950])
    got = own(Mixture(0.2), x, t, eps)
    for i, level in enumerate(t):
        close(got[:, i], own(Mixture(0.2), x, level.repeat(5), eps)[:, i], 1e-10)


def test_one_particle_is_sds_bit_for_bit():
    """eps_q = eps, for every noise level, weighting and guidance, as long as the width is 0."""
    for model in (Mixture(), RunningGaussian(), RunningGaussian(width=0.0), ScoreModel()):
        for level in (0, 250, 500, 999):
            x, t, eps = case(1, t=level)
            model = copy.deepcopy(model)
            vsd, sds = (
                method(x, t, eps, context())[0]
                for method in (VSD(3.0, n_noises=2, own=model), SDS(3.0, n_noises=2))
            )
            # exact: the same operations on the same numbers
            assert torch.equal(vsd, sds)
    x, t, eps = case(1)
    assert different(own(Mixture(0.4), x, t, eps), eps)


def test_entropy_goes_from_sds_to_vsd_in_a_straight_line():
    x, t, eps = case()

    def gradient(entropy):
        return VSD(2.0, n_noises=2, own=Mixture(0.1), entropy=entropy)(x, t, eps, context())[0]

    sds = SDS(2.0, n_noises=2)(x, t, eps, context())[0]
    close(gradient(0.0), sds, 1e-10)
    close(gradient(0.3), 0.7 * sds + 0.3 * gradient(1.0), 1e-10)
    weight_t = SCHEDULE.weight(t, "sds", x)
    q = own(Mixture(0.1), x, t, eps)
    close(gradient(1.0), sds + weight_t * (eps - q).mean(0), 1e-10)


NODES, WEIGHTS = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(120))
WEIGHTS = WEIGHTS / WEIGHTS.sum()  # of a standard normal


def test_the_mean_is_the_gradient_of_kl_for_every_particle():
    """(alpha_t / (n sigma_t)) E[eps_hat - eps_q] = d KL(q_t || p_t) / d x_i, in one dimension: E by
    Gauss-Hermite quadrature, KL by the trapezoidal rule and autograd. SDS's mean is another."""
    start = tensor(-1.0, -0.6, 0.5, 0.9)
    level = 600
    a, s = (number[0, 0] for number in levels(torch.tensor([level])))
    leaf = start.clone().requires_grad_()
    points, cell = grid(1)
    q_t = (torch.exp(-0.5 * ((points - a * leaf) / s) ** 2) / (s * (2 * torch.pi) ** 0.5)).mean(-1)
    p_t = plain_density(points, W1, a * M1, a**2 * S1 + s**2)
    kl = (q_t * ((q_t + 1e-300).log() - (p_t + 1e-300).log())).sum() * cell
    slope = torch.autograd.grad(kl, leaf)[0]
    x = start.view(-1, 1, 1, 1)
    t = torch.full((len(x),), level)
    eps = NODES.view(-1, 1, 1, 1, 1).expand(-1, *x.shape)
    line = context(LINE)
    predictions = SDS().predict(x, t, eps, line)
    for model, right in ((Mixture(), True), (ScoreModel(), False), (Mixture(0.3), False)):
        residual = predictions.eps_cond - model.noise(x, t, eps, line)
        mean = torch.einsum("n,nb...->b...", WEIGHTS, residual).flatten()
        error = (a / (s * len(x)) * mean - slope).abs().max()
        assert (error < 1e-8) == right and (right or error > 1e-4)


def test_the_entropy_moves_no_mean():
    """E_{q_t}[eps_q] = 0: the particles' pushes cancel, whatever the width; each alone does not."""
    x = tensor(-1.0, -0.6, 0.5, 0.9).view(-1, 1, 1, 1)
    t = torch.full((len(x),), 600)
    eps = NODES.view(-1, 1, 1, 1, 1).expand(-1, *x.shape)
    mean = torch.einsum("n,nb...->b...", WEIGHTS, Mixture().noise(x, t, eps, context(LINE)))
    assert mean.sum().abs() < 1e-9 and mean.abs().max() > 0.05


def test_order_and_duplicates_do_not_matter():
    x, t, eps = case()
    q = own(Mixture(0.2), x, t, eps)
    order = torch.tensor([3, 0, 4, 1, 2])
    close(own(Mixture(0.2), x[order], t, eps[:, order]), q[:, order], 1e-10)
    twice = own(Mixture(0.2), torch.cat((x, x)), torch.cat((t, t)), torch.cat((eps, eps), 1))
    close(twice, torch.cat((q, q), 1), 1e-10)


def test_far_apart_each_is_alone_and_close_together_all_are_one():
    """Far: eps_q = eps. A level near pure noise, or a width beyond all distances: a Gaussian at the
    mean, eps_q = sigma_t (x_t - alpha_t mean) / c."""
    x, t, eps = case()
    close(own(Mixture(), 1e4 * x, t, eps), eps, 1e-10)
    width = 1e6
    a, s = SCHEDULE.alpha_sigma(t, x)
    at_mean = s * (a * (x - x.mean(0)) + s * eps) / (a**2 * width**2 + s**2)
    error = (own(Mixture(width), x, t, eps) - at_mean).abs().max()
    assert error < 1e-6 * at_mean.abs().max()


# the running Gaussian


def test_a_running_mean_pushes_the_render_on_along_its_way():
    """m <- m + rho (x - m) after each step; eps_q = eps + (alpha_t / sigma_t) (x - m) at width 0.

    So G_VSD = G_SDS - w (alpha_t / sigma_t) (x - m), with x - m by algebra: rho-weighted past.
    """
    rho, past = 0.3, [picture(normal(seed, 1, 3)) for seed in range(4)]
    t, eps = torch.tensor([700]), picture(normal(9, 2, 1, 3))
    vsd = VSD(2.0, "uniform", 2, own=RunningGaussian(rho, 0.0))
    a, s = SCHEDULE.alpha_sigma(t, past[0])
    for i, x in enumerate(past):
        got, _ = vsd(x, t, eps, context())
        # m_i = (1 - rho)^(i-1) x_0 + sum_{0 < j < i} rho (1 - rho)^(i-1-j) x_j, and x_0 at first
        shares = [(1 - rho) ** (i - 1), *(rho * (1 - rho) ** (i - 1 - j) for j in range(1, i))]
        mean = sum(share * y for share, y in zip(shares, past, strict=False)) if i else x
        expected = SDS(2.0, "uniform", 2)(x, t, eps, context())[0] - a / s * (x - mean)
        close(got, expected, 1e-10)


def test_the_rate_is_that_of_gradient_descent_on_the_network():
    """eps_psi = (x_t - alpha_t m) / sigma_t: - eta d E||eps_psi - eps||^2 / dm = rho (x - m), rho =
    2 eta alpha_t^2 / sigma_t^2. E over eps and -eps is exact, the gradient being linear."""
    x, t, eps = case(1, 1)
    a, s = SCHEDULE.alpha_sigma(t, x)
    mean, eta = picture(normal(5, 1, 3)).requires_grad_(), 0.05
    loss = sum(((a * x + s * e - a * mean) / s - e).square().sum() for e in (eps[0], -eps[0])) / 2
    move = -eta * torch.autograd.grad(loss, mean)[0]
    rho = (2 * eta * a**2 / s**2).item()
    model = RunningGaussian(rho, 0.0)
    model.parameters[0] = mean.detach()[0]
    close(model.step(x, t, eps, context())[0], move[0], 1e-10)


def test_each_camera_has_a_mean_of_its_own_and_all_have_one_variance():
    """Means by camera; the variance follows the mean square about them; both enter c and eps_q."""
    prior = LoopWorld()
    cameras = prior.draw_cameras(4, torch.Generator().manual_seed(0)).numbered()
    x, y = normal(3, 4, 2, 2, 2), normal(4, 4, 2, 2, 2)
    t, eps = torch.tensor([50, 100, 200, 399]), normal(5, 1, 4, 2, 2, 2)
    model, rho = RunningGaussian(0.25), 0.25

    def see(renders, picked):
        seen = Context(prior, torch.zeros(2, 2).double(), cameras[torch.tensor(picked)])
        q = model.noise(renders, t[: len(picked)], eps[:, : len(picked)], seen)
        model.update(model.step(renders, t[: len(picked)], eps[:, : len(picked)], seen))
        return q

    close(see(x, [0, 1, 2, 3]), eps, 1e-10)  # never seen: eps
    see(y[:2], [1, 3])
    variance = rho * ((y[0] - x[1]).square().mean() + (y[1] - x[3]).square().mean()) / 2
    assert model.parameters["variance"].item() == pytest.approx(variance.item(), rel=1e-6)
    means = torch.stack((x[0], x[1] + rho * (y[0] - x[1]), x[2], x[3] + rho * (y[1] - x[3])))
    a, s = prior.schedule.alpha_sigma(t, x)
    x_t = a * y + s * eps
    expected = s * (x_t - a * means) / (a**2 * variance + s**2)
    close(see(y, [0, 1, 2, 3]), expected, 1e-6)


def test_without_camera_indices_there_is_one_gaussian():
    """It follows the mean over the batch and the mean square about it: a Gaussian fitted to q."""
    x, t, eps = case()
    model = RunningGaussian(1.0)
    model.update(model.step(x, t, eps, context()))
    model.update(model.step(x, t, eps, context()))
    a, s = SCHEDULE.alpha_sigma(t, x)
    variance = (x - x.mean(0)).square().mean()
    expected = s * (a * (x - x.mean(0)) + s * eps) / (a**2 * variance + s**2)
    close(own(model, x, t, eps), expected, 1e-6)


def test_a_model_is_part_of_the_checkpoint():
    """A method that was saved, read with weights_only and went on ends as one that was not."""
    x, t, eps = case()
    for method in (VSD(2.0, own=RunningGaussian(0.3)), VSD(2.0, own=Mixture(0.1))):
        method(x, t, eps, context())
        buffer = io.BytesIO()
        torch.save(method.state_dict(), buffer)
        buffer.seek(0)
        other = VSD(2.0, own=type(method.own)())
        other.own = type(method.own)(
            **{k: v for k, v in vars(method.own).items() if k != "parameters"}
        )
        other.load_state_dict(torch.load(buffer, weights_only=True))
        for _ in range(2):
            # exact: the same numbers
            assert torch.equal(method(x, t, eps, context())[0], other(x, t, eps, context())[0])


def test_a_resumed_run_with_a_model_is_bit_identical(tmp_path):
    """Four steps, and two and two: field and model are equal in every bit."""
    path = tmp_path / "run.pt"
    with deterministic():
        whole = VSD(own=RunningGaussian(0.3))
        field, _, _ = run(whole, steps=4)

        def stop(info):
            if info["step"] == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(VSD(own=RunningGaussian(0.3)), steps=4, checkpoint=path, callback=stop)
        resumed = VSD(own=RunningGaussian(0.3))
        again, _, _ = run(resumed, steps=4, checkpoint=path, resume=True)
    for one, other in zip(field.parameters(), again.parameters(), strict=True):
        # exact: the same run
        assert torch.equal(one, other)
    assert whole.own.parameters.keys() == resumed.own.parameters.keys()


def test_particles_cover_two_modes_where_sds_falls_into_one():
    """64 particles, prior 0.3 N(-1.5, 0.05) + 0.7 N(1.2, 0.05): the table of
    tests/results/relatives.md, one seed. The light mode keeps its weight within 4 binomial standard
    errors, the spread is the prior's within a half (five seeds: 0.25, standard deviation 0.02); SDS
    has less than two thirds of the light mode, and is three times as far."""
    from points import descend, measures

    w2, light, spread = measures(descend(VSD(own=Mixture()), 64, 0, 400, 1.0))
    assert abs(light - 0.3) < 4 * (0.3 * 0.7 / 64) ** 0.5 and abs(spread - 0.05**0.5) < 0.11
    lost, few, _ = measures(descend(SDS(), 64, 0, 400, 1.0))
    assert few < 0.2 and lost > 3 * w2


@dataclass
class Half(ScoreModel):
    def noise(self, x, t, eps, context, moved=None):
        return eps / 2


def test_a_model_of_your_own():
    x, t, eps = case()
    got = VSD(2.0, "uniform", 2, own=Half())(x, t, eps, context())[0]
    close(got, SDS(2.0, "uniform", 2)(x, t, eps, context())[0] + eps.mean(0) / 2, 1e-10)


def test_methods_with_a_base_keep_its_model():
    """PSD, RewardSDS and DreamDPO on VSD: the base's state is in theirs, and comes back."""
    x, t, eps = case()
    seen = Context(
        SPACE, torch.zeros(2, 3).double(), None, [""] * 5, LinearReward(tensor(1.0, 0.0, 0.0))
    )
    for make in (partial(PSD, tau=None), partial(RewardSDS, n_noises=2), DreamDPO):
        method, other = (make(base=VSD(own=RunningGaussian(0.3))) for _ in range(2))
        method(x, t, eps[: method.n_noises], seen)
        other.load_state_dict(copy.deepcopy(method.state_dict()))
        moved = 2 * x
        # exact: the same numbers
        assert torch.equal(
            method(moved, t, eps[: method.n_noises], seen)[0],
            other(moved, t, eps[: method.n_noises], seen)[0],
        )
        assert {"median_gap"} < method.state_dict().keys() or not isinstance(method, PSD)


def test_psd_on_vsd_is_vsd_plus_the_preference():
    """G = w { VSD on the pair's noises + lambda omega (h_1 - h_2) }, h from the prior alone."""
    x, t, eps = case(noises=1)
    seen = Context(
        SPACE, torch.zeros(2, 3).double(), None, [""] * 5, LinearReward(tensor(1.0, 0.0, 0.0))
    )
    pair = torch.cat((eps, -eps))
    vsd = VSD(2.0, n_noises=2, own=Mixture(0.3))
    close(PSD(vsd, 0.0)(x, t, eps, seen)[0], vsd(x, t, pair, seen)[0], 1e-10)
    preference = [
        PSD(base, 2.0)(x, t, eps, seen)[0] - PSD(base, 0.0)(x, t, eps, seen)[0]
        for base in (vsd, SDS(2.0))
    ]
    close(preference[0], preference[1], 1e-10)
    assert different(preference[0], 0 * x)
