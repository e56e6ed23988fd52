"""The exact prior: closed forms against brute-force integration, autograd and plain algebra."""

import math

import pytest
import torch
from plain_mixture import (
    SCHEDULE,
    T,
    close,
    finite_difference,
    gaussian_kernel,
    grid,
    levels,
    noisy,
    normal,
    plain_covariance,
    plain_density,
    plain_posterior,
    tensor,
    world,
)

from psd_mini.mixture import GaussianMixture, implicit_reward

pytestmark = pytest.mark.algebra


@pytest.mark.parametrize("d", [1, 2])
def test_against_brute_force_integration(d):
    """p_t = int p_0 N(x_t; a x, s^2) dx, and so E[x|x_t], for two prompts."""
    weights, means, covariances = world(d)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    embeddings = torch.stack([torch.zeros(len(weights)).double(), normal(1, len(weights))])
    x_t, t = noisy(2, 5, d)
    points, cell = grid(d)
    kernel = gaussian_kernel(x_t, points, t)
    for e, log_p, x0_hat in zip(
        embeddings,
        prior.log_prob(x_t, t, embeddings),
        prior.denoise(x_t, t, embeddings),
        strict=True,
    ):
        w = weights * e.exp() / (weights * e.exp()).sum()
        clean = plain_density(points, w, means, covariances)
        joint = clean * kernel * cell
        p_t = joint.sum(-1)
        mean = joint @ points / p_t[:, None]
        close(log_p, p_t.log(), 1e-11)
        close(x0_hat, mean, 1e-11)
        close(prior.log_prob(points[::500], None, e[None])[0].exp(), clean[::500])


@pytest.mark.parametrize("d", [1, 2, 4])
def test_posterior_against_plain_algebra(d):
    """Responsibilities, mean and noise by plain algebra.

    x0_hat = sum g_k m_k,    eps_hat = (x_t - a x0_hat) / s
    """
    weights, means, covariances = world(d)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    x_t, t = noisy(3, 6, d)
    a, s = levels(t)
    g, m, _ = plain_posterior(x_t, t, weights, means, covariances)
    mean = (g[..., None] * m).sum(1)
    close(prior.responsibilities(x_t, t)[0], g)
    close(prior.denoise(x_t, t)[0], mean)
    close(prior.predict_noise(x_t, t)[0], (x_t - a * mean) / s)


@pytest.mark.parametrize("form", ["full", "diagonal", "isotropic"])
@pytest.mark.parametrize("noised", [True, False])
def test_score_is_the_gradient_of_the_log_density(form, noised):
    """score = grad log p_t by autograd; eps_hat = -s score; x0_hat = (x_t + s^2 score) / a."""
    weights, means, full = world(3)
    covariances = {
        "full": full,
        "diagonal": full.diagonal(dim1=1, dim2=2),
        "isotropic": full[:, 0, 0],
    }[form]
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    embeddings = normal(4, 2, 3)
    x_t, t = noisy(5, 6, 3)
    x_t.requires_grad_()
    log_p = prior.log_prob(x_t, t if noised else None, embeddings)
    gradients = torch.stack(
        [torch.autograd.grad(row.sum(), x_t, retain_graph=True)[0] for row in log_p]
    )
    score = prior.score(x_t, t if noised else None, embeddings)
    close(score, gradients)
    if noised:
        a, s = levels(t)
        close(prior.predict_noise(x_t, t, embeddings), -s * gradients)
        close(prior.denoise(x_t, t, embeddings), (x_t + s**2 * gradients) / a, 1e-11)


def test_jacobian_of_the_denoiser_is_the_posterior_covariance():
    """J = d x0_hat/d x_t = (a/s^2) Cov(x_0|x_t), and d eps_hat/d x_t = (I - a J)/s.

    J is symmetric and positive definite.
    """
    weights, means, covariances = world(3)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    x_t, t = noisy(6, 5, 3)
    a, s = (level[..., None] for level in levels(t))
    posterior = plain_posterior(x_t, t, weights, means, covariances)
    jacobian = (a / s**2) * plain_covariance(*posterior)
    for i in range(len(t)):
        close(
            jacobian[i],
            finite_difference(lambda x, i=i: prior.denoise(x[None], t[[i]])[0, 0], x_t[i]),
            1e-9,
        )
        d_eps = finite_difference(lambda x, i=i: prior.predict_noise(x[None], t[[i]])[0, 0], x_t[i])
        close(d_eps, (torch.eye(3).double() - a[i] * jacobian[i]) / s[i], 1e-9)
    close(jacobian, jacobian.mT, 1e-14)
    assert bool((torch.linalg.eigvalsh(jacobian) > 1e-3).all())


def test_full_diagonal_and_isotropic_are_one_distribution():
    """Covariances v I in four forms give the same answers and tilts; events are only flattened."""
    weights, means, _ = world(6)
    v = tensor(0.3, 0.3, 0.3)
    eye = torch.eye(6).double()
    forms = [0.3, v, v[:, None].expand(3, 6), v[:, None, None] * eye]
    x_t, t = noisy(7, 4, 6)
    embeddings, slope = normal(8, 2, 3), normal(9, 6)
    answers = []
    for covariances in forms:
        prior = GaussianMixture(weights, means, covariances, SCHEDULE)
        assert prior.predict_noise(x_t.reshape(4, 2, 3), t, embeddings).shape == (2, 4, 2, 3)
        tilted, log_z = prior.tilt_linear(slope, 0.7)
        answers.append(
            [
                prior.covariances,
                prior.log_prob(x_t, None, embeddings),
                prior.log_prob(x_t, t, embeddings),
                prior.predict_noise(x_t.reshape(4, 2, 3), t, embeddings).flatten(2),
                prior.denoise(x_t.reshape(4, 2, 3), t, embeddings).flatten(2),
                log_z,
                tilted.denoise(x_t, t),
            ]
        )
    for other in answers[1:]:
        for got, expected in zip(other, answers[0], strict=True):
            close(got, expected)
    close(answers[0][0], v[:, None, None] * eye)


@pytest.mark.parametrize("form", ["full", "diagonal", "isotropic"])
def test_samples_have_the_mixtures_moments(form):
    """mean = sum w mu, Cov = sum w (S + mu mu^T) - mean mean^T, within 4 standard errors."""
    n, (weights, means, full) = 200_000, world(3)
    diagonal = full.diagonal(dim1=1, dim2=2)
    given = {"full": full, "diagonal": diagonal, "isotropic": diagonal[:, :1]}[form]
    covariances = {
        "full": full,
        "diagonal": torch.diag_embed(diagonal),
        "isotropic": diagonal[:, :1, None] * torch.eye(3),
    }
    embedding = tensor(1.0, -0.5, 0.2)
    prior = GaussianMixture(weights, means, given, SCHEDULE)
    x = prior.sample(n, torch.Generator().manual_seed(0), embedding)
    w = weights * embedding.exp() / (weights * embedding.exp()).sum()
    mean = w @ means
    offset = means - mean
    cov = torch.einsum("m,mij->ij", w, covariances[form] + offset[:, :, None] * offset[:, None, :])
    assert bool(((x.mean(0) - mean).abs() < 4 * (cov.diagonal() / n).sqrt()).all())
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert bool(((products.mean(0) - cov).abs() < 4 * products.std(0) / math.sqrt(n)).all())
    # exact: one seed, one machine
    assert torch.equal(x, prior.sample(n, torch.Generator().manual_seed(0), embedding))


def test_prompts_are_reweighted_components():
    """eps_y - eps_null = -s grad log p(y|x_t) with p(y|x_t) = sum_k g_k p(y|k)."""
    weights, means, covariances = world(2)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    x_t, t = noisy(11, 5, 2)
    _, s = levels(t)
    p_y_given_k = tensor([0.9, 0.2, 0.4], [1.0, 1.0, 0.0])
    eps_y = prior.predict_noise(x_t, t, p_y_given_k.log())
    eps_null = prior.predict_noise(x_t, t)[0]
    for row, eps in zip(p_y_given_k, eps_y, strict=True):
        for i in range(len(t)):

            def log_p_y(x, row=row, i=i):
                g = plain_posterior(x[None], t[[i]], weights, means, covariances)[0]
                return (g @ row).log()[0]

            close(eps[i] - eps_null[i], -s[i] * finite_difference(log_p_y, x_t[i]), 1e-8)
    close(prior.condition(p_y_given_k[0].log()).predict_noise(x_t, t)[0], eps_y[0])
    two = GaussianMixture(weights[:2], means[:2], covariances[:2], SCHEDULE)
    close(two.predict_noise(x_t, t)[0], eps_y[1])
    close(two.log_prob(x_t, t)[0], prior.condition(p_y_given_k[1].log()).log_prob(x_t, t)[0])


def test_responsibilities_of_a_prompt():
    """g_k(x_t | e) is proportional to g_k(x_t) exp(e_k)."""
    weights, means, covariances = world(2)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    embeddings, (x_t, t) = normal(25, 2, 3), noisy(26, 4, 2)
    joint = plain_posterior(x_t, t, weights, means, covariances)[0] * embeddings.exp()[:, None]
    close(prior.responsibilities(x_t, t, embeddings), joint / joint.sum(-1, keepdim=True))


def test_predictions_are_differentiable_in_the_embedding():
    """d x0_hat/d e_k = g_k (m_k - x0_hat); d eps_hat/d e and d log p/d e by finite differences."""
    weights, means, covariances = world(2)
    prior = GaussianMixture(weights, means, covariances, SCHEDULE)
    e, (x_t, t) = normal(12, 3), noisy(13, 4, 2)
    jacobian = torch.autograd.functional.jacobian(lambda e: prior.denoise(x_t, t, e[None])[0], e)
    g, m, _ = plain_posterior(x_t, t, weights * e.exp(), means, covariances)
    close(jacobian, torch.einsum("bm,bmd->bdm", g, m - (g[..., None] * m).sum(1, keepdim=True)))
    for f in (
        lambda e: prior.predict_noise(x_t, t, e[None])[0],
        lambda e: prior.log_prob(x_t, t, e[None])[0],
    ):
        close(torch.autograd.functional.jacobian(f, e), finite_difference(f, e), 1e-9)


def test_degenerate_worlds_stay_exact_and_finite():
    """Weight 0 is no component; a singular S keeps x0_hat on its line; all finite at the ends."""
    weights, means, covariances = world(2)
    x_t, t = noisy(19, 4, 2)
    with_zero = GaussianMixture(tensor(0.4, 0.6, 0.0), means, covariances, SCHEDULE)
    without = GaussianMixture(tensor(0.4, 0.6), means[:2], covariances[:2], SCHEDULE)
    close(with_zero.log_prob(x_t, t), without.log_prob(x_t, t), 1e-14)
    close(with_zero.predict_noise(x_t, t), without.predict_noise(x_t, t), 1e-14)

    line, normal_to_line = tensor(0.6, 0.8), tensor(-0.8, 0.6)
    for width in (0.0, 1e-12):
        thin = torch.outer(line, line) + width * torch.outer(normal_to_line, normal_to_line)
        prior = GaussianMixture([1.0], means[:1], thin[None], SCHEDULE)
        for x in (x_t, 1e4 * x_t):
            close(
                ((prior.denoise(x, t)[0] - means[0]) @ normal_to_line) / x.norm(),
                torch.zeros(4).double(),
                1e-11,
            )
        # a reward of slope 2 along the line moves the mean by 2 / beta there, and none across it
        tilted, _ = prior.tilt_linear(2 * line + 3 * normal_to_line, 0.5)
        close(tilted.means[0] - means[0], 4 * line, 1e-11)

    rank_one = torch.outer(line, line).expand(3, 2, 2)
    for dtype, far in ((torch.float64, 1e6), (torch.float32, 1e3)):
        prior = GaussianMixture(
            tensor(1.0, 0.0, 1e-300).to(dtype), means.to(dtype), rank_one.to(dtype), SCHEDULE
        )
        x = (far * normal(20, 2, 2)).to(dtype).requires_grad_()
        e = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
        ends = torch.tensor([0, T - 1])
        outputs = [f(x, ends, e) for f in (prior.predict_noise, prior.denoise, prior.log_prob)]
        gradients = torch.autograd.grad(torch.stack([out.sum() for out in outputs]).sum(), (x, e))
        assert all(
            bool(out.isfinite().all()) and out.dtype == dtype for out in [*outputs, *gradients]
        )


@pytest.mark.parametrize("form", [(), (3,), (3, 2), (3, 2, 2)])
def test_a_world_of_points(form):
    """S_k = 0: x0_hat = sum_k g_k mu_k, g = softmax(log pi_k - |x_t - a mu_k|^2 / (2 s^2))."""
    weights, means, _ = world(2)
    prior, (x_t, t) = GaussianMixture(weights, means, torch.zeros(form), SCHEDULE), noisy(29, 5, 2)
    a, s = levels(t)
    g = (weights.log() - ((x_t[:, None] - a[:, None] * means) ** 2).sum(-1) / (2 * s**2)).softmax(
        -1
    )
    close(prior.denoise(x_t, t)[0], g @ means)


def test_a_singular_covariance_has_no_clean_density():
    """det S = 0: there is no p_0, although rounding leaves tiny eigenvalues of either sign."""
    for seed in range(10):
        root = normal(seed, 1, 4, 3)
        prior = GaussianMixture([1.0], torch.zeros(1, 4).double(), root @ root.mT, SCHEDULE)
        with pytest.raises(ValueError, match="^t must be given: a singular covariance"):
            prior.log_prob(torch.zeros(1, 4))


def test_each_covariance_has_its_own_rounding():
    """An error that is rounding beside 1e8 is accepted there; beside 1 a smaller one is refused."""
    small, large = tensor([1, 0], [0, 1]), tensor([1e8, 0], [0, 1e8])
    crooked, negative = tensor([0, 1e-8], [0, 0]), tensor([0, 0], [0, -1e8 - 1e-8])
    weights, means = tensor(0.5, 0.5), torch.zeros(2, 2).double()
    for error in (crooked, negative):
        close(
            GaussianMixture(
                weights, means, torch.stack((large + error, small)), SCHEDULE
            ).covariances[1],
            small,
        )
    for error, message in (
        (crooked / 100, "symmetric"),
        (tensor([0, 0], [0, -1 - 1e-10]), "positive semidefinite"),
    ):
        with pytest.raises(ValueError, match=f"^covariances must be {message}"):
            GaussianMixture(weights, means, torch.stack((large, small + error)), SCHEDULE)


def test_everything_comes_in_the_type_of_the_means():
    """float64 weights, covariances, prompts and samples beside float32 means become float32."""
    prior = GaussianMixture(tensor(0.2, 0.8), torch.zeros(2, 3), tensor(1.0, 2.0), SCHEDULE)
    x, e = normal(27, 4, 3), normal(28, 1, 2)
    assert {
        prior.log_weights.dtype,
        prior.log_prob(x, None, e).dtype,
        prior.score(x, torch.tensor([9]), e).dtype,
    } == {torch.float32}
    assert (
        prior.sample(1, torch.Generator()).shape == (1, 3)
        and prior.sample(1, torch.Generator()).dtype == torch.float32
    )


PRIOR = GaussianMixture(tensor(0.5, 0.5), torch.zeros(2, 3), 1.0, SCHEDULE)
X = torch.zeros(4, 3)
TWO = torch.zeros(2, 1)


def mixture(weights, means=TWO, covariances=1.0):
    return GaussianMixture(weights, means, covariances, SCHEDULE)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: mixture([1.0], means=[[0.0]]),
            r"means: expected .*, got \[\[0.0\]\]; use torch.tensor",
        ),
        (
            lambda: mixture([1.0], means=torch.zeros(3)),
            r"means: expected a floating-point tensor \(m, d\), got \(3,\)",
        ),
        (
            lambda: mixture([1.0], means=torch.full((1, 1), math.nan)),
            "means: expected finite numbers",
        ),
        (lambda: mixture([1.0]), r"weights must have shape \(2,\), got \(1,\)"),
        (lambda: mixture([1.5, -0.5]), "weights must be nonnegative"),
        (lambda: mixture([0.0, 0.0]), "weights must be nonnegative with a positive sum"),
        (lambda: mixture(["a", "b"]), r"weights: expected real numbers, got \['a', 'b'\]"),
        (
            lambda: mixture([1.0, 1.0], covariances="wide"),
            "covariances: expected real numbers, got 'wide'",
        ),
        (
            lambda: mixture([1.0, 1.0], covariances=torch.eye(3)),
            (
                r"covariances must have shape \(\), \(2,\), \(2, 1\) or \(2, 1, 1\) for means \(2,"
                r" 1\), got \(3, 3\)"
            ),
        ),
        (
            lambda: mixture([1.0, 1.0], covariances=-1.0),
            "covariances must be positive semidefinite",
        ),
        (lambda: mixture([1.0, 1.0], covariances=math.inf), "covariances must be finite"),
        (lambda: mixture([1.0, 1.0], covariances=-math.inf), "covariances must be finite"),
        (
            lambda: mixture([1.0], torch.zeros(1, 2), tensor([[1, 2], [2, 1]])),
            "covariances .* an eigenvalue of -1",
        ),
        (
            lambda: mixture([1.0], torch.zeros(1, 2), tensor([[1, 0.5], [0, 1]])),
            "covariances must be symmetric",
        ),
        (lambda: PRIOR.log_prob(torch.zeros(4, 2)), "x_t must hold 3 numbers per sample"),
        (lambda: PRIOR.log_prob(X / 0), "x_t: expected finite numbers"),
        (
            lambda: PRIOR.predict_noise(X, torch.zeros(2).long()),
            r"t: expected .*, got \(2,\) int64 beside x_t \(4, 3\)",
        ),
        (lambda: PRIOR.predict_noise(X, None), "t: expected an integer tensor .*, got None"),
        (lambda: PRIOR.score(X, None, torch.zeros(1, 3)), r"embeddings must have shape \(1, 2\)"),
        (
            lambda: PRIOR.score(X, None, tensor([0, math.nan])),
            "embeddings: expected numbers, got NaN",
        ),
        (
            lambda: PRIOR.score(X, None, tensor([0, 0], [-math.inf] * 2)),
            "embeddings must leave at least one",
        ),
        (
            lambda: PRIOR.sample(0, torch.Generator()),
            "n: expected a whole number of at least 1, got 0",
        ),
        (
            lambda: PRIOR.sample(1, torch.Generator(), tensor(-math.inf, -math.inf)),
            "embedding must leave at least one",
        ),
        (
            lambda: PRIOR.condition(tensor(-math.inf, -math.inf)),
            "embedding must leave at least one",
        ),
        (lambda: PRIOR.tilt_linear(torch.zeros(2), 1.0), r"v must have shape \(3,\)"),
        (lambda: PRIOR.tilt_linear(torch.zeros(3), 0.0), "beta must be positive"),
        (lambda: PRIOR.tilt_components(torch.zeros(3), 1.0), r"r must have shape \(2,\)"),
        (lambda: implicit_reward(PRIOR, PRIOR, X[0, 0], 0.0, X), "beta must be positive"),
        (lambda: implicit_reward(PRIOR, PRIOR, X[0, 0], math.nan, X), "beta: expected a finite"),
        (lambda: implicit_reward(PRIOR, PRIOR, X[0, 0], math.inf, X), "beta: expected a finite"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    """The error names the argument, says what came, and fits on one line."""
    with pytest.raises((ValueError, TypeError), match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)
