"""SDI, PDS and SDS with a velocity model: verdicts, and the formulas against an exact mixture."""

import re
from collections import Counter

import pytest
import torch
from submissions_kinds import KINDS

from psd_mini import GaussianMixture
from psd_mini.checks import exact_world
from psd_mini.checks.grading.grader import CHECKS
from psd_mini.checks.pds import C_0_ROOT, SLIPS, X0_HAT, published_row, ratio_row
from psd_mini.checks.reading import Group
from psd_mini.checks.sdi import _shares
from psd_mini.checks.tables import LEVELS

SCHEDULE = exact_world.SCHEDULE
QUICK = 11  # of each kind; the others are slow together


def params():
    seen = Counter()
    for name, (kind, *_) in KINDS.items():
        seen[kind] += 1
        yield pytest.param(name, marks=[pytest.mark.slow] if seen[kind] > QUICK else [])


@pytest.mark.parametrize("name", list(params()))
def test_verdict_and_words(name):
    kind, submission, status, words = KINDS[name]
    report = CHECKS[kind](submission)
    assert report.status == status, report
    for word in words:
        assert re.search(word, "; ".join(report.causes)), report


@pytest.mark.parametrize("kind", ["sdi", "pds", "flow"])
def test_there_are_many_wrong_ones_and_several_right_ones(kind):
    statuses = [status for of, _, status, _ in KINDS.values() if of == kind]
    assert statuses.count("wrong") >= 8 and len(statuses) - statuses.count("wrong") >= 4


def world(d=10):
    """An embedding, and the package's mixture with the means and variances that it stands for."""
    e = exact_world.normal(1, 3, exact_world.WIDTH, seed=1)
    law, mean = exact_world.law(d), exact_world.normal(1, 3, exact_world.WIDTH, seed=1).mean(1)
    variances = (law.variances * torch.exp(mean @ law.spread)[0]).expand(2, -1)
    weights = exact_world.LOG_WEIGHTS.exp()
    return e, GaussianMixture(weights, law.means + mean @ law.shift, variances, SCHEDULE)


@pytest.mark.parametrize("step", [5, 420, 950])
def test_the_velocity_is_that_of_the_mixture(step):
    """A point of rectified flow is one of the schedule's, of another length.

    alpha x + sigma eps = (alpha + sigma) ((1 - t) x + t eps) with t = sigma / (alpha + sigma), so
    E[eps - x | x_t] is the mixture's eps_hat - x0_hat there.
    """
    e, prior = world()
    at = torch.tensor([step])
    alpha, sigma = SCHEDULE.alpha_sigma(at, torch.zeros(1, 10, dtype=torch.float64))
    t = (sigma / (alpha + sigma)).flatten()
    x_t = exact_world.normal(1, 10, seed=3)
    eps_hat = prior.predict_noise((alpha + sigma) * x_t, at)[0]
    x0_hat = ((alpha + sigma) * x_t - sigma * eps_hat) / alpha
    v_hat = exact_world.exact_velocity(x_t, t, e)
    torch.testing.assert_close(v_hat, eps_hat - x0_hat, rtol=1e-10, atol=1e-10)


def test_the_residual_of_a_velocity_is_that_of_noise_with_another_weight():
    """eps_hat - eps = (1 - t) (v_hat - (eps - x)) and x - x0_hat = t (v_hat - (eps - x))."""
    e, prior = world()
    at = torch.tensor([420])
    alpha, sigma = SCHEDULE.alpha_sigma(at, torch.zeros(1, 10, dtype=torch.float64))
    t = sigma / (alpha + sigma)
    x, eps = (exact_world.normal(1, 10, seed=seed) for seed in (4, 5))
    v_hat = exact_world.exact_velocity((1 - t) * x + t * eps, t.flatten(), e)
    eps_hat = prior.predict_noise(alpha * x + sigma * eps, at)[0]
    x0_hat = (alpha * x + sigma * (eps - eps_hat)) / alpha
    residual = v_hat - (eps - x)
    torch.testing.assert_close(eps_hat - eps, (1 - t) * residual, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x - x0_hat, t * residual, rtol=1e-10, atol=1e-10)


def latents(prior, x, t, jump, eps, eps_before):
    """z_t by the definition, in the mixture, and its eps_hat: steps of `jump`, one step's beta."""
    abar, before = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod[t - jump]
    beta = 1 - abar / SCHEDULE.alphas_cumprod[t - 1]
    x_t = abar.sqrt() * x + (1 - abar).sqrt() * eps
    eps_hat = prior.predict_noise(x_t, torch.tensor([t]))[0]
    x0_hat = (x_t - (1 - abar).sqrt() * eps_hat) / abar.sqrt()
    mu = before.sqrt() * beta / (1 - abar) * x0_hat
    mu = mu + (1 - beta).sqrt() * (1 - before) / (1 - abar) * x_t
    scale = ((1 - before) / (1 - abar) * beta).sqrt()
    return (before.sqrt() * x + (1 - before).sqrt() * eps_before - mu) / scale, eps_hat


@pytest.mark.parametrize("jump", [1, 2, 20])
@pytest.mark.parametrize("t", [60, 420, 950])
def test_what_pds_is_beside_the_difference_of_two_predictions(t, jump):
    """G = chi (eps_tgt - eps_src) + psi (x - x_src), and psi = 0 with steps of one."""
    _, prior = world()
    x, x_src, *noises = (exact_world.normal(1, 10, seed=seed) for seed in (4, 5, 6, 7))
    (z, eps_hat), (z_src, eps_src) = (latents(prior, p, t, jump, *noises) for p in (x, x_src))
    alpha, sigma = exact_world.alpha_sigma(t)
    before = LEVELS["abar"](t - jump)
    scale = ((1 - before) / sigma**2 * LEVELS["beta"](t)) ** 0.5
    chi = before**0.5 * LEVELS["beta"](t) / (alpha * sigma) / scale
    ratio = published_row(jump).value(t)
    torch.testing.assert_close(
        z - z_src, chi * (eps_hat - eps_src + ratio * (x - x_src)), rtol=1e-9, atol=1e-9
    )
    if jump == 1:
        assert abs(chi * ratio) < 1e-10
    else:
        # half of beta_t at least, next to chi: it holds x at x_src
        assert ratio > 0.5 * alpha * sigma


@pytest.mark.parametrize("cause", SLIPS)
def test_a_slip_in_pds_is_no_step(cause):
    """At some t it differs from the right one, from every published one, and from other slips.

    Two name each other, because they are nearly the same: sqrt(abar) and abar for c_0.
    """
    others = [published_row(k) for k in (1, 2, 4, 5, 10, 20)]
    for name, slip in SLIPS.items():
        if name != cause and {name, cause} != {C_0_ROOT, X0_HAT}:
            others.append(ratio_row(slip))
    for other in others:
        row = ratio_row(SLIPS[cause])
        differences = [abs(row.value(t) - other.value(t)) for t in range(60, 950, 50)]
        assert max(differences) > 0.05


@pytest.mark.parametrize("above", [0, 15])
def test_a_ddim_step_is_taken_apart(above):
    """x_v = alpha_v x0_hat + sigma_v eps_hat, also where its noise is carried to another level."""
    x, e = exact_world.picture(1, 0), exact_world.embedding("cond", 1)
    u, t, v = 200, 400, 400 + above

    def at(point, step):
        eps_hat = exact_world.exact_eps(point, torch.tensor([step]), e)
        return Group(step, point[0], {"cond": eps_hat[0]})

    def ddim(group, step):
        alpha, sigma = exact_world.alpha_sigma(round(group.t))
        eps_hat = group.eps_hat["cond"]
        new_alpha, new_sigma = exact_world.alpha_sigma(step)
        return (new_alpha * (group.x_t - sigma * eps_hat) / alpha + new_sigma * eps_hat)[None]

    start = at(ddim(at(x, 0), u), u)
    alpha_v, sigma_v = exact_world.alpha_sigma(v)
    kappa = (ddim(start, v) - alpha_v * x) / sigma_v
    alpha_t, sigma_t = exact_world.alpha_sigma(t)
    b, p, q, fresh = _shares(x[0], start, at(alpha_t * x + sigma_t * kappa, t), [])
    alpha_u, sigma_u = exact_world.alpha_sigma(u)
    assert b + p * alpha_u == pytest.approx(alpha_t, abs=1e-9)
    assert q + p * sigma_u == pytest.approx(sigma_t, abs=1e-9) and fresh < 1e-9
    # the step's own x0_hat where it ends at t, and in part x where it does not
    assert b == pytest.approx(0, abs=1e-9) if above == 0 else b > 1e-3
