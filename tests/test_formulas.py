"""Identities of the shared algebra, float64: the package against plain algebra."""

import pytest
import torch
from worlds import normal

from psd_mini import (
    SDS,
    Context,
    GaussianMixture,
    cfg,
    guidance_from_dreamfusion,
    scaled_linear_schedule,
    surrogate_loss,
)

pytestmark = pytest.mark.algebra

SCHEDULE = scaled_linear_schedule()


def test_cfg_ends_and_affinity():
    """cfg at g = 1 is eps_cond, at g = 0 eps_neg, and it is affine in g.

    eps(g) = (1 - g) eps(0) + g eps(1)
    """
    cond, neg = normal(2, 5, seed=1), normal(2, 5, seed=2)
    assert torch.equal(cfg(cond, neg, 0.0), neg)  # exact: neg + 0 is neg
    torch.testing.assert_close(cfg(cond, neg, 1.0), cond, rtol=0, atol=1e-15)
    for g in (-3.0, 0.3, 7.5, 100.0):
        torch.testing.assert_close(
            cfg(cond, neg, g), (1 - g) * neg + g * cond, rtol=1e-13, atol=1e-13
        )


def test_cfg_and_the_weights_of_papers():
    """DreamFusion's w is g = 1 + w; Imagen's w is g.

    (1 + w) eps_cond - w eps_neg,  w eps_cond + (1 - w) eps_neg
    """
    cond, neg, w = normal(7, seed=1), normal(7, seed=2), 6.5
    dreamfusion, imagen = (1 + w) * cond - w * neg, w * cond + (1 - w) * neg
    torch.testing.assert_close(
        cfg(cond, neg, guidance_from_dreamfusion(w)), dreamfusion, rtol=1e-13, atol=1e-13
    )
    torch.testing.assert_close(cfg(cond, neg, w), imagen, rtol=1e-13, atol=1e-13)
    assert (dreamfusion - imagen).abs().max() > 0.1  # off by one
    # exact: 1 + 0 is 1 in every format
    assert guidance_from_dreamfusion(0.0) == 1.0  # no guidance


def test_cfg_with_equal_embeddings_does_not_depend_on_g():
    """eps_neg = eps_cond => eps_cfg = eps_cond for all g."""
    cond = normal(3, 4)
    for g in (0.0, 1.0, 50.0):
        torch.testing.assert_close(cfg(cond, cond, g), cond, rtol=0, atol=1e-15)


def test_cfg_split():
    """Two ways to split the guided residual.

    eps_cfg - eps = (eps_cond - eps) + (g - 1)(eps_cond - eps_neg)
                  = (eps_neg - eps) + g (eps_cond - eps_neg)
    """
    cond, neg, eps, g = normal(9, seed=1), normal(9, seed=2), normal(9, seed=3), 7.5
    h = cfg(cond, neg, g) - eps
    torch.testing.assert_close(h, (cond - eps) + (g - 1) * (cond - neg), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(h, (neg - eps) + g * (cond - neg), rtol=1e-13, atol=1e-13)


def test_cfg_shifts_the_mean_of_equal_covariance_gaussians():
    """For p(.|y) = N(mu_y, S), p(.|n) = N(mu_n, S) guidance shifts the mean.

    The guided prediction is that of N(mu_n + g (mu_y - mu_n), S) at every t, and this mean is where
    SDS comes to rest.
    """
    S = torch.tensor([[0.7, 0.2], [0.2, 0.4]], dtype=torch.float64)
    mu_y, mu_n, g = torch.tensor([1.0, -0.5]).double(), torch.tensor([-0.3, 0.8]).double(), 3.0
    world = GaussianMixture(torch.ones(2), torch.stack((mu_y, mu_n)), torch.stack((S, S)), SCHEDULE)
    only = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]], dtype=torch.float64)
    for step in (5, 400, 900):
        t = torch.full((6,), step)
        x_t = normal(6, 2, seed=step)
        eps_y, eps_n = world.predict_noise(x_t, t, only)
        abar = SCHEDULE.alphas_cumprod[step]
        C = abar * S + (1 - abar) * torch.eye(2, dtype=torch.float64)
        mean = mu_n + g * (mu_y - mu_n)
        expected = (1 - abar).sqrt() * torch.linalg.solve(C, (x_t - abar.sqrt() * mean).T).T
        torch.testing.assert_close(cfg(eps_y, eps_n, g), expected, rtol=1e-10, atol=1e-10)
        # SDS rests there at every t: with eps and -eps its noise cancels
        x, eps = mean.view(1, 2, 1, 1).expand(6, -1, -1, -1), normal(1, 6, 2, 1, 1, seed=step)
        rest, _ = SDS(g, "uniform", 2)(x, t, torch.cat((eps, -eps)), Context(world, only))
        torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-10)
        moved, _ = SDS(g + 1, "uniform", 2)(x, t, torch.cat((eps, -eps)), Context(world, only))
        assert moved.abs().amax() > 1e-2


def test_residual_points_from_the_denoised_image():
    """h = eps_hat - eps = (alpha_t / sigma_t) (x - x0_hat)."""
    x, eps, eps_hat = normal(4, 3, seed=1), normal(4, 3, seed=2), normal(4, 3, seed=3)
    t = torch.tensor([3, 200, 500, 990])
    x_t = SCHEDULE.add_noise(x, eps, t)
    abar = SCHEDULE.alphas_cumprod[t][:, None]
    x0_hat = (x_t - (1 - abar).sqrt() * eps_hat) / abar.sqrt()
    torch.testing.assert_close(
        (eps_hat - eps), (abar / (1 - abar)).sqrt() * (x - x0_hat), rtol=1e-12, atol=1e-12
    )


def test_regression_to_the_denoised_image_is_sds_of_another_weight():
    """The "reconstruction loss" of MVDream.

        d/dx 0.5 || x - stopgrad(x0_hat) ||^2 = x - x0_hat = (sigma_t / alpha_t) h

    Source: MVDream (Shi et al. 2023, arXiv 2308.16512), without its rescaling.
    """
    x, eps, eps_hat = (
        normal(4, 3, seed=1).requires_grad_(),
        normal(4, 3, seed=2),
        normal(4, 3, seed=3),
    )
    t = torch.tensor([3, 200, 500, 990])
    abar = SCHEDULE.alphas_cumprod[t][:, None]
    x0_hat = (abar.sqrt() * x + (1 - abar).sqrt() * (eps - eps_hat)) / abar.sqrt()
    (gradient,) = torch.autograd.grad(0.5 * (x - x0_hat.detach()).square().sum(), x)
    h = eps_hat - eps
    torch.testing.assert_close(gradient, ((1 - abar) / abar).sqrt() * h, rtol=1e-12, atol=1e-12)
    through_surrogate = torch.autograd.grad(
        4 * surrogate_loss(x, ((1 - abar) / abar).sqrt() * h), x
    )[0]
    torch.testing.assert_close(gradient, through_surrogate, rtol=1e-12, atol=1e-12)
    assert (gradient - (abar / (1 - abar)).sqrt() * h).abs().amin(
        0
    ).max() > 1e-3  # the fraction upside down


def test_surrogate_loss_injects_the_gradient():
    """L = (1/B) 0.5 ||x - stopgrad(x - G)||^2 => dL/dx = G / B, and nothing flows into G."""
    x, gradient = (
        normal(4, 3, 2, 2, seed=1).requires_grad_(),
        normal(4, 3, 2, 2, seed=2).requires_grad_(),
    )
    surrogate_loss(x, gradient).backward()
    torch.testing.assert_close(x.grad, gradient.detach() / 4, rtol=1e-14, atol=1e-15)
    assert gradient.grad is None


@pytest.mark.parametrize("way", ["by hand", "inner product", "target"])
def test_other_ways_to_inject_are_equal(way):
    """x.backward(G), <x, stopgrad(G)> and 0.5 ||x - target||^2, target = x - G: one gradient."""
    theta, gradient = normal(6, seed=1).requires_grad_(), normal(2, 6, seed=2)
    mixing = normal(2, 6, seed=3)

    def picture():
        return torch.sin(theta) * mixing

    (expected,) = torch.autograd.grad(2 * surrogate_loss(picture(), gradient), theta)
    x = picture()
    if way == "by hand":
        (got,) = torch.autograd.grad(x, theta, grad_outputs=gradient)
    elif way == "inner product":
        (got,) = torch.autograd.grad((x * gradient).sum(), theta)
    else:
        target = (x - gradient).detach()
        (got,) = torch.autograd.grad(
            0.5 * torch.nn.functional.mse_loss(x, target, reduction="sum"), theta
        )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_gradient_left_attached_would_vanish():
    """Without stopgrad 0.5 ||x - (x - G)||^2 has no gradient in x, the commonest mistake."""
    x, gradient = normal(3, 4, seed=1).requires_grad_(), normal(3, 4, seed=2)
    (wrong,) = torch.autograd.grad(0.5 * (x - (x - gradient)).square().sum(), x)
    (right,) = torch.autograd.grad(surrogate_loss(x, gradient), x)
    assert wrong.abs().max() < 1e-12 < right.abs().max()
