"""SDS against closed forms: its expectation is a weighted KL gradient; float64.

Monte Carlo is within 4 standard errors.
"""

from types import SimpleNamespace

import pytest
import torch
from gaussian_world import GAUSS, MU, SCHEDULE, S, normal

from psd_mini import SDS, Context, GaussianMixture, sds_gradient
from psd_mini.schedule import scaled_linear_schedule
from psd_mini.sds import Method, Prior, predict
from psd_mini.world.pool import pool_cameras

pytestmark = pytest.mark.algebra


def context(prior, embeddings=None):
    if embeddings is None:
        embeddings = torch.zeros(2, len(prior.means), dtype=torch.float64)
    return Context(prior, embeddings)


def as_picture(x):
    """(B, d) points as (B, d, 1, 1) pictures, the shape that methods work in."""
    return x[..., None, None]


def sds_samples(x, step, n, method, prior=GAUSS, seed=0):
    """n independent SDS gradients at one x and one t, (n, d)."""
    xs = as_picture(x.expand(n, -1))
    gradient, _ = method(
        xs, torch.full((n,), step), normal(method.n_noises, *xs.shape, seed=seed), context(prior)
    )
    return gradient.flatten(1)


def test_expected_gradient_is_the_weighted_kl_gradient():
    """The expected gradient for a Gaussian prior; wrong signs, sizes and weights are refused.

    E[G] = w (sigma/alpha) grad_x KL(N(alpha x, sigma^2 I) || p_t) = w alpha sigma C^-1 (x - mu)
    """
    x, step = torch.tensor([1.5, 0.5, -0.8], dtype=torch.float64), 500
    abar = SCHEDULE.alphas_cumprod[step]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    C = abar * S + (1 - abar) * torch.eye(3, dtype=torch.float64)
    expected = sigma**2 * alpha * sigma * torch.linalg.solve(C, x - MU)
    samples = sds_samples(x, step, 400_000, SDS(weighting="sds"))
    error = samples.std(0) / len(samples) ** 0.5
    assert (error / expected.norm()).max() < 0.01

    def consistent(candidate):
        return ((samples.mean(0) - candidate).abs() < 4 * error).all()

    assert consistent(expected)
    for wrong in (-expected, 2 * expected, expected / sigma**2, expected / (alpha * sigma)):
        assert not consistent(wrong)


def test_expected_gradient_for_a_mixture_by_quadrature():
    """In a 1-D mixture both sides by quadrature, the KL differentiated numerically.

    E_eps[G] = w (sigma/alpha) d/dx KL(q_t || p_t)
    """
    prior = GaussianMixture(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[-1.5], [1.2]]).double(),
        torch.tensor([0.3, 0.5]).double(),
        SCHEDULE,
    )
    step, x0 = 420, 0.37
    abar = SCHEDULE.alphas_cumprod[step]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    eps = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    mass = torch.exp(-0.5 * eps**2) / (2 * torch.pi) ** 0.5 * (eps[1] - eps[0])

    def log_p(y):  # plain algebra
        parts = [
            w
            * torch.exp(-0.5 * (y - alpha * m) ** 2 / (abar * v + sigma**2))
            / (2 * torch.pi * (abar * v + sigma**2)) ** 0.5
            for w, m, v in ((0.3, -1.5, 0.3), (0.7, 1.2, 0.5))
        ]
        return torch.log(parts[0] + parts[1])

    def cross_entropy(x):  # KL up to the entropy of q_t, which does not depend on x
        return -(mass * log_p(alpha * x + sigma * eps)).sum()

    step_size = 1e-4
    derivative = (cross_entropy(x0 + step_size) - cross_entropy(x0 - step_size)) / (2 * step_size)
    xs = torch.full((len(eps), 1, 1, 1), x0, dtype=torch.float64)
    gradient, _ = SDS(weighting="uniform")(
        xs, torch.full((len(eps),), step), eps.view(1, -1, 1, 1, 1), context(prior)
    )
    torch.testing.assert_close(
        (mass * gradient.flatten()).sum(), sigma / alpha * derivative, rtol=1e-7, atol=1e-9
    )


def test_covariance_with_and_without_the_noise():
    """Subtracting eps lowers the variance only where alpha^2 S < sigma^2.

        E[h] = alpha sigma C^-1 (x - mu)
        Cov(h) = (alpha^2 S C^-1)^2,  Cov(eps_hat) = (sigma^2 C^-1)^2

    Exact: for a Gaussian prior h is affine in eps, so its matrix is read off at unit noises.
    """
    for step in (100, 500, 900):
        abar = SCHEDULE.alphas_cumprod[step]
        C = abar * S + (1 - abar) * torch.eye(3, dtype=torch.float64)
        basis = torch.cat((torch.zeros(1, 3), torch.eye(3))).double()
        x, t = as_picture(normal(1, 3, seed=1).expand(4, -1)), torch.full((4,), step)
        h, _ = SDS(weighting="uniform")(x, t, as_picture(basis)[None], context(GAUSS))
        matrix = (h[1:] - h[:1]).flatten(1).T
        mean = (abar * (1 - abar)).sqrt() * torch.linalg.solve(C, x[0].flatten() - MU)
        torch.testing.assert_close(h[0].flatten(), mean, rtol=1e-10, atol=1e-10)
        gain = abar * S @ torch.linalg.inv(C)
        torch.testing.assert_close(matrix @ matrix.T, gain @ gain.T, rtol=1e-10, atol=1e-10)
        raw = matrix + torch.eye(3, dtype=torch.float64)  # eps_hat = h + eps
        gain = (1 - abar) * torch.linalg.inv(C)
        torch.testing.assert_close(raw @ raw.T, gain @ gain.T, rtol=1e-10, atol=1e-10)


def test_two_noises_average_and_keep_the_mean():
    """SDS with N noises is the mean of N one-noise gradients, exactly."""
    x, t = as_picture(normal(5, 3, seed=4)), torch.tensor([10, 200, 400, 700, 950])
    eps = normal(2, *x.shape, seed=5)
    both, _ = SDS(n_noises=2)(x, t, eps, context(GAUSS))
    first, _ = SDS()(x, t, eps[:1], context(GAUSS))
    second, _ = SDS()(x, t, eps[1:], context(GAUSS))
    torch.testing.assert_close(both, (first + second) / 2, rtol=1e-12, atol=1e-12)


def test_guidance_of_one_never_asks_for_the_negative_prompt():
    """g = 1: half the prior evaluations, same gradient; g = 0: the negative prompt's own."""
    prior = GaussianMixture(torch.ones(2), torch.stack((MU, -MU)), torch.stack((S, S)), SCHEDULE)
    embeddings = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]], dtype=torch.float64)
    x, t = as_picture(normal(4, 3)), torch.tensor([50, 300, 600, 900])
    eps = normal(1, *x.shape, seed=9)
    plain, counted = context(prior, embeddings), context(prior, embeddings)
    g1, _ = SDS(1.0)(x, t, eps, plain)
    SDS(2.0)(x, t, eps, counted)
    assert (plain.cost.prior_evaluations, counted.cost.prior_evaluations) == (4, 8)
    x_t = SCHEDULE.add_noise(x, eps[0], t)
    eps_cond, eps_neg = prior.predict_noise(x_t, t, embeddings)
    weight = (1 - SCHEDULE.alphas_cumprod[t]).view(-1, 1, 1, 1)
    torch.testing.assert_close(g1, weight * (eps_cond - eps[0]), rtol=1e-12, atol=1e-12)
    g0, _ = SDS(0.0)(x, t, eps, context(prior, embeddings))
    torch.testing.assert_close(g0, weight * (eps_neg - eps[0]), rtol=1e-12, atol=1e-12)


def test_gradient_function_is_the_formula():
    """G = w (eps_neg + g (eps_cond - eps_neg) - eps)."""
    cond, neg, eps = normal(2, 3, seed=1), normal(2, 3, seed=2), normal(2, 3, seed=3)
    torch.testing.assert_close(
        sds_gradient(cond, neg, eps, 7.5, 0.3),
        0.3 * (neg + 7.5 * cond - 7.5 * neg - eps),
        rtol=1e-12,
        atol=1e-12,
    )


def test_fixed_point_and_collapse_to_the_mean():
    """Descent along E[G] of a Gaussian prior ends in mu, the mode, whatever the start.

    With eps and -eps the noise cancels.
    """
    x = torch.tensor([[3.0, 3.0, -3.0]], dtype=torch.float64)
    t = torch.full((1,), 300)
    method = SDS(weighting="uniform", n_noises=2)
    eps = normal(1, 1, 3, seed=2)
    for _ in range(400):
        gradient, _ = method(
            as_picture(x), t, torch.cat((as_picture(eps), -as_picture(eps))), context(GAUSS)
        )
        x = x - 0.5 * gradient.flatten(1)
    torch.testing.assert_close(x, MU[None], rtol=1e-9, atol=1e-9)


def test_a_context_starts_empty_and_counts():
    """Context and Cost have defaults; predict asks for both prompts and counts what it asks.

    It adds pictures x noises x prompts and the seconds, and leaves its answer for those who watch.
    """
    ctx = context(GAUSS)
    assert (ctx.cameras, ctx.prompts, ctx.reward, ctx.predictions) == (None, [], None, None)
    assert (ctx.cost.prior_evaluations, ctx.cost.renders, ctx.cost.seconds) == (0, 0, {})
    x, t = as_picture(normal(3, 3)), torch.tensor([10, 400, 950])
    for calls in (1, 2):
        answer = predict(x, t, normal(2, *x.shape), ctx)
        assert (
            ctx.predictions is answer
            and ctx.cost.prior_evaluations == calls * 3 * 2 * 2
            and ctx.cost.renders == 0
        )
    assert list(ctx.cost.seconds) == ["prior"] and ctx.cost.seconds["prior"] > 0  # exact: a clock


def test_seconds_are_added_by_part(monkeypatch):
    """`timed` adds what the clock says, each part to its own sum."""
    clock = iter([10.0, 10.5, 20.0, 22.0, 30.0, 30.25])
    cost = context(GAUSS).cost
    with monkeypatch.context() as patch:
        patch.setattr("psd_mini.sds.time", SimpleNamespace(perf_counter=lambda: next(clock)))
        for part in ("prior", "render", "prior"):
            with cost.timed(part):
                pass
    assert cost.seconds == {"prior": 0.75, "render": 2.0}


def test_what_does_not_belong_together_is_named():
    """One t and one column of noises per render; a prior has a schedule and predicts noise."""
    x, t, eps = as_picture(normal(3, 3)), torch.tensor([1, 2, 3]), normal(1, 3, 3, 1, 1)
    with pytest.raises(
        ValueError,
        match=r"^t: expected an integer tensor \(b\), got \(2,\) int64 beside x \(3, 3, 1, 1\)",
    ):
        SDS()(x, t[:2], eps, context(GAUSS))
    with pytest.raises(
        ValueError,
        match=r"^eps: expected a floating-point tensor \(n, b, c, h, w\), got \(1, 2, 3, 1, 1\)",
    ):
        SDS()(x, t, eps[:, :2], context(GAUSS))
    for prior, missing in (
        (SimpleNamespace(predict_noise=0), "schedule"),
        (SimpleNamespace(schedule=0), "predict_noise"),
    ):
        with pytest.raises(
            ValueError,
            match=f"^prior: expected an object with schedule, predict_noise; .* has no {missing}",
        ):
            Context(prior, torch.zeros(2, 3))


def test_one_noise_needs_no_copies_of_the_cameras():
    """The prior sees the cameras N times over, in the noises' order; with one noise unchanged."""
    seen, views = [], pool_cameras(3)

    def asked(x_t, t, embeddings, cameras):
        seen.append(cameras)
        return GAUSS.predict_noise(x_t, t, embeddings)

    ctx = Context(
        SimpleNamespace(schedule=SCHEDULE, predict_noise=asked), torch.zeros(2, 1).double(), views
    )
    for n in (1, 2):
        predict(as_picture(normal(3, 3)), torch.tensor([1, 2, 3]), normal(n, 3, 3, 1, 1), ctx)
    assert seen[0] is views and torch.equal(
        seen[1].azimuth, torch.cat((views.azimuth, views.azimuth))
    )  # exact: copies


class Plain:
    """A prior of another class, which has only what every prior must have."""

    schedule = scaled_linear_schedule()

    def embed(self, prompts):
        if "unheard" in prompts:
            raise ValueError("prompt: 'unheard' is no word")
        return torch.arange(len(prompts))[:, None]

    def predict_noise(self, x_t, t, embeddings, cameras):
        raise NotImplementedError


def test_a_prior_of_another_class_gets_the_defaults():
    prior = Prior.of(Plain())
    assert prior.keeps_graph is True
    assert prior.embed_views(["a", "b"]).flatten().tolist() == [0, 1]
    assert prior.negative_settings(torch.zeros(1), torch.zeros(1)) == {}
    with pytest.raises(ValueError, match="^negative_prompt: 'unheard' is no word"):
        prior.embed_negative("unheard")


def test_a_method_of_another_class_keeps_its_noises_and_its_state():
    class Own:
        n_noises, shared_timestep = 3, True

        def __call__(self, x, t, eps, context):
            return x

        def state_dict(self):
            return {"steps": 7}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    own = Own()
    method = Method.of(own)
    assert (method.n_noises, method.shared_timestep) == (3, True)
    assert method.state_dict() == {"steps": 7}
    method.load_state_dict({"steps": 9})
    assert own.steps == 9
