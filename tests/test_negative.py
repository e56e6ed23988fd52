"""The negative embedding against closed forms and finite differences; state, trust region."""

import math
from types import SimpleNamespace

import pytest
import torch
from plain_mixture import finite_difference
from worlds import normal, small_world

from psd_mini import (
    SDS,
    Context,
    GaussianMixture,
    ToyWorldPrior,
    VoxelField,
    cfg,
    distill,
    scaled_linear_schedule,
)
from psd_mini.negative import NegativeEmbedding, negative_loss
from psd_mini.rewards import LinearReward, black_box, make_reward
from psd_mini.world import text
from psd_mini.world.pool import make_views, pool_cameras

pytestmark = pytest.mark.algebra

SCHEDULE = scaled_linear_schedule()
F64 = torch.float64
MEANS = torch.tensor([[0.4, -1.0, 0.7], [-0.5, 0.3, 1.0], [1.0, 1.0, -0.4]], dtype=F64)
COVARIANCES = torch.stack(
    [
        torch.diag(torch.tensor(d, dtype=F64))
        for d in ((0.5, 0.3, 0.8), (0.2, 0.9, 0.4), (0.6, 0.6, 0.3))
    ]
)
WORLD = GaussianMixture(torch.tensor([0.2, 0.5, 0.3], dtype=F64), MEANS, COVARIANCES, SCHEDULE)
V = torch.tensor([1.0, -0.5, 0.8], dtype=F64)


def setting(n=4, reward=None, step=600):
    x, t = normal(n, 3, 1, 1, seed=1), torch.full((n,), step)
    embeddings = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 0.0]], dtype=F64)
    return (
        x,
        t,
        normal(2, n, 3, 1, 1, seed=2),
        Context(WORLD, embeddings, None, [""] * n, reward or LinearReward(V)),
    )


def denoised(n, x, t, eps, context, g):
    """x0_hat(n), plain algebra on the prior's predictions."""
    x_t = SCHEDULE.add_noise(x, eps, t)
    cond, neg = WORLD.predict_noise(x_t, t, torch.stack((context.embeddings[0], n)))
    abar = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
    return (x_t - (1 - abar).sqrt() * (neg + g * (cond - neg))) / abar.sqrt()


# identity 44
@pytest.mark.parametrize("g", [0.0, 1.0, 2.0, 7.5])
def test_gradient_by_finite_differences(g):
    """dL/dn = -mean d<v, x0_hat(n)>/dn by central differences.

    It is exactly 0 at g = 1, and of opposite sign at g = 0 and g = 2.
    """
    x, t, eps, context = setting()
    n = normal(3, seed=5).requires_grad_()
    (gradient,) = torch.autograd.grad(negative_loss(n, x, t, eps, context, g), n)
    differences = finite_difference(
        lambda of: (denoised(of, x, t, eps[0], context, g).flatten(1) @ V).mean(), n.detach(), 1e-3
    )
    torch.testing.assert_close(gradient, -differences, rtol=1e-8, atol=1e-10)
    if g == 1.0:
        assert gradient.abs().max() == 0  # exact: G - 1 G
    (reference,) = torch.autograd.grad(negative_loss(n, x, t, eps, context, 2.0), n)
    torch.testing.assert_close(gradient, (g - 1) * reference, rtol=1e-9, atol=1e-12)


# identity 51
def test_gradient_is_a_covariance_in_a_mixture():
    """Weights exp(n_k), by hand.

    d x0_hat / dn = -(g - 1) Cov(x_0, key | x_t, n) = -(g - 1) resp_k (m_k - x0_hat(n))
    """
    g, step = 3.0, 600
    x, t, eps, context = setting(1, step=step)
    n = normal(3, seed=5).requires_grad_()
    (gradient,) = torch.autograd.grad(negative_loss(n, x, t, eps, context, g), n)
    abar = SCHEDULE.alphas_cumprod[step]
    x_t = (abar.sqrt() * x + (1 - abar).sqrt() * eps[0]).flatten()
    log_g, m = [], []
    for k in range(3):
        C = abar * COVARIANCES[k] + (1 - abar) * torch.eye(3, dtype=F64)
        away = x_t - abar.sqrt() * MEANS[k]
        log_g.append(
            WORLD.log_weights[k]
            + n[k]
            - 0.5 * away @ torch.linalg.solve(C, away)
            - 0.5 * torch.logdet(C)
        )
        m.append(MEANS[k] + abar.sqrt() * COVARIANCES[k] @ torch.linalg.solve(C, away))
    resp, m = torch.stack(log_g).softmax(0).detach(), torch.stack(m)
    covariance = resp[:, None] * (m - resp @ m)  # Cov(x_0, indicator of k)
    torch.testing.assert_close(gradient, (g - 1) * covariance @ V, rtol=1e-9, atol=1e-12)


def test_settled_field_gives_no_gradient():
    """Small t at a picture of the world: x_t names its component, so the gradient is exactly 0."""
    views = make_views(pool_cameras(4), 16)
    prior = ToyWorldPrior(views=views)
    x = 2 * views.pictures(torch.arange(4))[:, 31] - 1
    context = Context(
        prior,
        prior.embed(["a mushroom", ""]),
        views.cameras,
        ["a mushroom"] * 4,
        make_reward("colorfulness"),
    )
    sizes = {}
    for step in (50, 900):
        n = prior.embed([""])[0].requires_grad_()
        eps = torch.randn(1, *x.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(
            negative_loss(n, x, torch.full((4,), step), eps, context, 2.0), n
        )
        sizes[step] = gradient.norm().item()
    assert sizes[50] < 1e-12 < 1e-5 < sizes[900]


# identity 45
def test_linear_gaussian_world():
    """Means mu(n) = M n: ascent moves M n away from the reward, guidance pulls the field to it.

    eps(x_t; n) = sigma C^-1 (x_t - alpha M n), so d<v, x0_hat>/dn = -(g - 1) sigma^2 M^T C^-1 v.
    After n <- n + eta dr/dn the guided prediction changes by
    -eta (g - 1)^2 sigma^3 alpha C^-1 M M^T C^-1 v.
    """
    M = torch.tensor([[1.0, 0.2], [0.0, 0.5], [-0.3, 0.4]], dtype=F64)
    step, g, eta = 500, 4.0, 0.01
    abar = SCHEDULE.alphas_cumprod[step]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    S = COVARIANCES[0]
    C = abar * S + (1 - abar) * torch.eye(3, dtype=F64)

    class LinearWorld:
        schedule = SCHEDULE

        def decode(self, x):
            return x

        def predict_noise(self, x_t, t, embeddings, cameras=None):
            away = x_t.flatten(1) - alpha * (embeddings @ M.T)[:, None]
            return (sigma * away @ torch.linalg.inv(C)).view(len(embeddings), *x_t.shape)

    x, t, eps = normal(1, 3, 1, 1, seed=1), torch.full((1,), step), normal(1, 1, 3, 1, 1, seed=2)
    context = Context(LinearWorld(), normal(2, 2, seed=3), None, [""], LinearReward(V))
    n = normal(2, seed=4).requires_grad_()
    (gradient,) = torch.autograd.grad(negative_loss(n, x, t, eps, context, g), n)
    ascent = -gradient
    torch.testing.assert_close(
        ascent, -(g - 1) * sigma**2 * M.T @ torch.linalg.solve(C, V), rtol=1e-9, atol=1e-12
    )
    x_t = SCHEDULE.add_noise(x, eps[0], t)

    def guided(of):
        cond, neg = LinearWorld().predict_noise(x_t, t, torch.stack((context.embeddings[0], of)))
        return cfg(cond, neg, g).flatten()

    change = guided(n.detach() + eta * ascent) - guided(n.detach())
    expected = (
        -eta
        * (g - 1) ** 2
        * sigma**3
        * alpha
        * torch.linalg.solve(C, M @ M.T @ torch.linalg.solve(C, V))
    )
    torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-12)
    assert V @ change < -1e-6  # descent along the guided prediction gains reward


# identity 46
def test_nothing_else_receives_a_gradient():
    """x, prompt embedding and means stay without gradient; a constant reward gives n none."""
    x, t, eps, context = setting()
    x.requires_grad_()
    context.embeddings.requires_grad_()
    n = normal(3, seed=5).requires_grad_()
    negative_loss(n, x, t, eps, context, 2.0).backward()
    assert n.grad.abs().max() > 1e-3 and x.grad is None and context.embeddings.grad is None
    n.grad = None
    context.reward = LinearReward(0 * V, 3.0)
    negative_loss(n, x.detach(), t, eps, context, 2.0).backward()
    assert n.grad.abs().max() == 0  # exact: products with 0


def test_small_steps_raise_the_reward():
    """Gradient ascent with a small step never lowers the reward of the same denoised image."""
    x, t, eps, context = setting()
    n, last = torch.zeros(3, dtype=F64), math.inf
    for _ in range(30):
        leaf = n.clone().requires_grad_()
        loss = negative_loss(leaf, x, t, eps, context, 2.0)
        assert loss.item() <= last + 1e-12
        last = loss.item()
        n = n - 0.1 * torch.autograd.grad(loss, leaf)[0]


def test_inversion_describes_the_loser():
    """Inversion; the loser by the reward of the guided denoised image, which may be a black box.

    L = ||eps(x_t^loser; n) - eps_loser||^2
    """
    x, t, eps, context = setting()
    n, g = normal(3, seed=5), 2.0
    got = negative_loss(n, x, t, eps, context, g, "inversion")
    images = [denoised(n, x, t, e, context, g) for e in eps]
    total = 0.0
    for b in range(4):
        loser = 0 if images[0][b].flatten() @ V < images[1][b].flatten() @ V else 1
        x_t = SCHEDULE.add_noise(x[b : b + 1], eps[loser][b : b + 1], t[:1])
        total += (
            (WORLD.predict_noise(x_t, t[:1], n[None])[0] - eps[loser][b : b + 1])
            .square()
            .sum()
            .item()
        )
    assert got.item() == pytest.approx(total / 12, rel=1e-10)
    context.reward = black_box(lambda images, prompts: (images.flatten(1) @ V).tolist())
    assert negative_loss(n, x, t, eps, context, g, "inversion").item() == pytest.approx(
        got.item(), rel=1e-10
    )


def test_a_black_box_has_no_gradient_to_climb():
    """Objective "reward" with scores that carry no gradient: one line that names the way out."""
    x, t, eps, context = setting(reward=black_box(lambda images, prompts: [1.0] * len(images)))
    with pytest.raises(
        ValueError,
        match="^reward: the negative embedding climbs its gradient.*objective='inversion'",
    ):
        negative_loss(normal(3, seed=5).requires_grad_(), x, t, eps, context, 2.0)


def test_trust_region_and_runaway():
    """||n - n_0|| <= radius always; an infinite radius lets n run past it; radius 0 freezes n."""
    x, _, _, context = setting()
    norms = {}
    for radius in (0.0, 1.0, math.inf):
        negative = NegativeEmbedding(torch.zeros(3, dtype=F64), 2.0, lr=0.3, radius=radius)
        generator = torch.Generator().manual_seed(0)
        for _ in range(25):
            norm = negative.step(0.5, x, context, generator)["negative_norm"]
            assert norm <= radius + 1e-12
        norms[radius] = norm
    assert norms[0.0] == 0 and norms[math.inf] > 3 * norms[1.0] > 0


@pytest.mark.parametrize("radius", [0.1, math.inf])
@pytest.mark.parametrize("objective", ["reward", "inversion"])
def test_a_step_is_one_of_adam_and_a_projection(objective, radius):
    """Adam's first step n_0 - lr g / (|g| + 1e-8), projected along the ray from n_0.

    t and noises are drawn in this order. The prior is asked once for each prompt and noise, and the
    reward with the prompts.
    """
    x, _, _, context = setting()
    start, seen, B = torch.tensor([0.7, -0.4, 0.2], dtype=F64), [], len(x)

    def asked(x_t, t, embeddings, cameras):
        seen.append(len(embeddings))
        return WORLD.predict_noise(x_t, t, embeddings)

    def reward(images, prompts):
        seen.append(prompts)
        return LinearReward(V)(images)

    context.prior = SimpleNamespace(schedule=SCHEDULE, decode=WORLD.decode, predict_noise=asked)
    context.reward, context.prompts, context.cost.prior_evaluations = reward, list("abcd"), 5
    negative = NegativeEmbedding(start, 2.0, objective, lr=0.3, radius=radius, t_range=(1.0, 1.0))
    metrics = negative.step(0.5, x, context, torch.Generator().manual_seed(3))
    noises = 2 if objective == "inversion" else 1
    assert seen == ([1, 1] * noises + [list("abcd")] * noises)
    assert context.cost.prior_evaluations == 5 + 2 * B * noises

    generator = torch.Generator().manual_seed(3)
    t = torch.randint(999, 1000, (B,), generator=generator)
    eps = torch.randn(noises, *x.shape, generator=generator).double()
    leaf = start.clone().requires_grad_()
    loss = negative_loss(leaf, x, t, eps, context, 2.0, objective)
    (g,) = torch.autograd.grad(loss, leaf)
    away = -0.3 * g / (g.abs() + 1e-8)
    away = away * min(1.0, radius / away.norm().item())
    torch.testing.assert_close(negative.embedding.detach(), start + away, rtol=1e-9, atol=1e-12)
    assert metrics == pytest.approx(
        {"negative_loss": loss.item(), "negative_norm": away.norm().item()}, rel=1e-9
    )


def test_it_moves_only_in_its_steps():
    x, _, _, context = setting()
    negative = NegativeEmbedding(
        torch.zeros(3, dtype=F64), 2.0, steps=(0.1, 0.6), t_range=(0.5, 0.5)
    )
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert (
        negative.step(0.05, x, context, generator)
        == negative.step(0.7, x, context, generator)
        == {}
    )
    assert (
        torch.equal(state, generator.get_state()) and negative.embedding.abs().max() == 0
    )  # exact: nothing was done
    for progress in (0.3, 0.1, 0.6):
        before = negative.embedding.detach().clone()
        assert (
            negative.step(progress, x, context, generator)
            and (negative.embedding - before).abs().max() > 1e-3
        )


def test_it_is_read_back_as_words():
    """Words by the distance from the start, to three digits; repr names all settings."""
    negative = NegativeEmbedding(torch.tensor([9.0, 0.5, 0.0, 1.0]), 2.0)
    with torch.no_grad():
        negative.embedding.copy_(torch.tensor([9.1, -2.5, 0.0, 3.12345]))
    assert negative.read(["a", "b", "c", "d"], 2) == [("b", -3.0), ("d", 2.123)]  # exact: decimals
    assert repr(negative) == "NegativeEmbedding(2.0, 'reward', 0.2, 6.0, (0.5, 0.98), (0.0, 1.0))"


def test_guidance_of_one_says_why():
    with pytest.raises(
        ValueError,
        match=(
            r"^guidance_scale: at 1 the negative embedding has no effect.*g - 1 = 0\); use for"
            r" example 2$"
        ),
    ):
        NegativeEmbedding(torch.zeros(3), 1.0)
    for settings, message in (
        ({"objective": "magic"}, "objective: 'magic' is not known; choose from reward, inversion"),
        ({"t_range": (0.9, 0.1)}, "t_range: expected 0 <= low <= high <= 1"),
        ({"t_range": (0.5, 1.5)}, "t_range: expected 0 <= low <= high <= 1"),
        ({"steps": (-0.1, 0.5)}, "steps: expected 0 <= low <= high <= 1"),
        ({"radius": -1.0}, "radius, lr: expected"),
        ({"lr": 0.0}, "radius, lr: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            NegativeEmbedding(torch.zeros(3), 2.0, **settings)


def test_resume_with_a_negative_embedding_is_bit_for_bit(tmp_path):
    """Stopped after step 5, resumed from step 3: field, embedding, history of the unbroken run."""
    prior = small_world()

    def run(resume=False, stop=None, path=None):
        field, negative = VoxelField(8), NegativeEmbedding(prior.embed([""])[0], 2.0)

        def callback(info):
            if info["step"] == stop:
                raise KeyboardInterrupt

        result = distill(
            *(field, prior, SDS(2.0), "a mushroom"),
            **{
                "reward": make_reward("colorfulness"),
                "negative": negative,
                "steps": 8,
                "resolution": 8,
                "n_samples": 8,
            },
            **{
                "cameras_per_step": 2,
                "progress": False,
                "checkpoint": path,
                "checkpoint_every": 3,
                "resume": resume,
            },
            callback=callback,
        )
        return field, negative, result

    field, negative, result = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop=5, path=tmp_path / "c.pt")
    again = run(resume=True, path=tmp_path / "c.pt")
    # exact: a run and its resumption, one machine and thread count
    assert (
        torch.equal(negative.embedding, again[1].embedding) and negative.embedding.abs().max() > 0.1
    )
    assert (
        result.history == again[2].history and "negative_norm" in result.history[0]
    )  # exact: as above
    # exact: as above
    assert all(
        torch.equal(a, b) for a, b in zip(field.parameters(), again[0].parameters(), strict=True)
    )
    assert len(negative.read(text.VOCABULARY)) == 5
