"""Views that agree: the exact prior of V pictures of one object, in float64."""

import math
from itertools import permutations

import pytest
import torch
from plain_mixture import close
from worlds import normal, same, small_world

from psd_mini import PSD, SDS, ToyWorldPrior, VoxelField, distill
from psd_mini._internal.identity import identity
from psd_mini.rewards import make_reward
from psd_mini.world import text
from psd_mini.world.isotropic import isotropic_given
from psd_mini.world.pool import make_views, pool_cameras

pytestmark = pytest.mark.algebra
VIEWS = make_views(pool_cameras(5), 8)
M = len(text.components())
TIMES = {"one t": (700,) * 4, "several t": (900, 650, 300, 800)}


def prior(n_views, conditioning="camera"):
    log_prior = normal(M, seed=3)
    return ToyWorldPrior(
        conditioning=conditioning, views=VIEWS, log_prior=log_prior, n_views=n_views
    )


def case(n=4, times=TIMES["several t"]):
    """Noised pictures near two different objects, so that views disagree; cameras, embeddings."""
    cameras = VIEWS.cameras[torch.arange(n) % 5]
    clean = 2 * VIEWS.pictures(torch.arange(n) % 5)[:, 3].double() - 1
    x = clean + 0.8 * normal(n, 3, 8, 8, seed=4)
    embeddings = prior(1).embed(["a mushroom", ""]).double()
    return x, torch.tensor(times)[:n], embeddings, cameras


def log_p(one, x_t, t, embedding, cameras):
    """log sum_k w_k prod_v sum_p w_p^v N(x^v; alpha mu_pk, C I), one component and view at a time.

    With the camera known p is it; else all five are as likely as the view words say."""
    a = one.schedule.alphas_cumprod[t]
    index = one.views.index_of(cameras)
    pictures = 2 * VIEWS.pictures(torch.arange(5)).double() - 1  # (P, M, 3, h, w)
    keys, views = text.component_keys().double(), text.view_keys(VIEWS.cameras).double()
    log_w = torch.log_softmax(keys @ embedding + one.log_prior, 0)
    total = []
    for k in range(M):
        parts = [log_w[k]]
        for v, picture in enumerate(x_t):
            c = a[v] * one.variance + 1 - a[v]
            square = (picture - a[v].sqrt() * pictures[:, k]).square().sum((1, 2, 3))
            log_n = -square / (2 * c) - 96 * torch.log(2 * math.pi * c)
            if one.conditioning == "camera":
                parts.append(log_n[index[v]])
            else:
                words = text.WORD_STRENGTH * views[index[v]] if one.conditioning == "words" else 0
                log_v = torch.log_softmax(views @ (embedding + words), 0)
                parts.append(torch.logsumexp(log_v + log_n, 0))
        total.append(sum(parts))
    return torch.logsumexp(torch.stack(total), 0)


@pytest.mark.parametrize("conditioning", ["camera", "words", "none"])
@pytest.mark.parametrize("times", TIMES)
def test_the_joint_score_is_the_slope_of_the_joint_density(conditioning, times):
    """eps_hat^v = -sigma_v d log p(x^1 .. x^4) / d x^v; log_prob is that density."""
    x, t, embeddings, cameras = case(times=TIMES[times])
    one = prior(4, conditioning)
    x.requires_grad_()
    eps_hat = one.predict_noise(x, t, embeddings, cameras)
    densities = one.log_prob(x, embeddings, cameras, t)
    sigma = (1 - one.schedule.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    for e, embedding in enumerate(embeddings):
        value = log_p(one, x, t, embedding, cameras)
        slope = torch.autograd.grad(value, x)[0]
        close(eps_hat[e].detach(), -sigma * slope, 1e-10)
        close(densities[e].detach(), value.detach()[None], 1e-9)


@pytest.mark.parametrize("conditioning", ["camera", "words", "none"])
def test_one_view_is_the_plain_prior(conditioning):
    """The joint formula with V = 1: log sum_k w_k p(x | k) is the plain prior's density."""
    x, t, embeddings, cameras = case()
    plain = prior(1, conditioning)
    means, of_view, of_component = plain._mixture(embeddings, cameras, len(x))
    level = plain.variance, *plain.schedule.alpha_sigma(t, x.flatten(1))
    given_k = isotropic_given(x.flatten(1), means, of_view, *level)
    joint = torch.logsumexp(of_component.log_softmax(-1) + given_k, -1)
    close(joint, plain.log_prob(x, embeddings, cameras, t), 1e-9)
    assert "views of one object" not in repr(plain) and repr(prior(2)) != repr(plain)
    assert identity(prior(2)) != identity(prior(4))


def test_two_equal_views_count_twice():
    """Two copies of a view have the evidence of both: g_k is that of one view with log-likelihoods
    doubled, which the plain prior gives with the likelihood as its log_prior."""
    x, t, embeddings, cameras = case(1)
    twice = (torch.cat((x, x)), t.repeat(2), embeddings, cameras[torch.tensor([0, 0])])
    got = prior(2).denoise(*twice)
    plain = prior(1)
    a = plain.schedule.alphas_cumprod[t][0]
    c = a * plain.variance + 1 - a
    pictures = 2 * VIEWS.pictures(torch.tensor([0]))[0].double() - 1
    more = -(x[0] - a.sqrt() * pictures).square().sum((1, 2, 3)) / (2 * c)
    plain.log_prior = plain.log_prior + more
    close(got[:, :1], plain.denoise(x, t, embeddings, cameras), 1e-10)
    close(got[:, 1:], got[:, :1], 1e-12)


def test_the_order_of_views_means_nothing():
    x, t, embeddings, cameras = case()
    one = prior(4)
    wanted = one.predict_noise(x, t, embeddings, cameras)
    for order in map(torch.tensor, list(permutations(range(4)))[1::5]):
        got = one.predict_noise(x[order], t[order], embeddings, cameras[order])
        close(got, wanted[:, order], 1e-12)


def test_blocks_do_not_mix():
    """Six pictures with V = 2 are three objects: each block as if it were alone."""
    x, t, embeddings, cameras = case(6, (900, 650, 300, 800, 500, 700))
    together = prior(2).predict_noise(x, t, embeddings, cameras)
    for start in (0, 2, 4):
        block = torch.arange(start, start + 2)
        alone = prior(2).predict_noise(x[block], t[block], embeddings, cameras[block])
        close(together[:, block], alone, 1e-12)


def test_a_decided_component_leaves_nothing_to_agree_on():
    """One component with all the weight: views are independent given it, the plain prior."""
    x, t, embeddings, cameras = case()
    sure = torch.full((M,), -1e6, dtype=torch.float64)
    sure[7] = 0.0
    joint, plain = prior(4), prior(1)
    joint.log_prior = plain.log_prior = sure
    close(
        joint.predict_noise(x, t, embeddings, cameras),
        plain.predict_noise(x, t, embeddings, cameras),
        1e-10,
    )


def test_the_number_of_cameras_must_fit():
    world = small_world()
    joint = ToyWorldPrior(views=world.views, n_views=4)
    options = {"resolution": 8, "n_samples": 4, "steps": 1, "progress": False}
    message = "^cameras_per_step: expected a multiple of the prior's n_views=4, got 3 pictures$"
    with pytest.raises(ValueError, match=message):
        distill(VoxelField(8), joint, SDS(), "a ball", cameras_per_step=3, **options)
    with pytest.raises(ValueError, match="^n_views: expected"):
        ToyWorldPrior(views=world.views, n_views=0)


def test_psd_runs_on_a_joint_prior():
    """N noises of B cameras: each noise's views are blocks of their own. The tilted prior keeps
    n_views, and the field is another one than the plain prior's."""
    world = small_world()
    joint = ToyWorldPrior(views=world.views, n_views=2)
    reward = make_reward("colorfulness")
    assert joint.tilted(reward, 0.1).n_views == 2
    fields = []
    for one in (world, joint):
        fields.append(VoxelField(8))
        options = {"resolution": 8, "n_samples": 4, "steps": 2, "progress": False}
        options |= {"cameras_per_step": 4, "t_min": (0.9, 0.9), "t_max": (1.0, 1.0)}
        distill(fields[-1], one, PSD(), "a mushroom", reward=reward, **options)
    assert not same(*fields)
