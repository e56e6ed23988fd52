"""The toy world's prior is an exact mixture: GaussianMixture on the same pictures, float64."""

import pytest
import torch

from psd_mini import SDS, Context, GaussianMixture, ToyWorldPrior, orbit
from psd_mini.schedule import NoiseSchedule
from psd_mini.world import prior as toy_world
from psd_mini.world import text
from psd_mini.world.pool import make_views, pool_cameras

pytestmark = pytest.mark.algebra

CAMERAS = orbit([0.0, 40.0, 95.0, 180.0, 260.0], [5.0, 30.0, 20.0, 10.0, 40.0])


LOG_PRIOR = torch.randn(96, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.fixture(scope="module")
def views():
    return make_views(CAMERAS, 8)


def double_mixture(prior, means):
    """The mixture N(mu_k, tau_x^2) of given pictures (M, 3, h, w), built by the general class."""
    variance = (2 * 0.05) ** 2
    return GaussianMixture(
        torch.ones(len(means)).double(),
        (2 * means.double() - 1).flatten(1),
        torch.full((len(means),), variance, dtype=torch.float64),
        prior.schedule,
    )


def noised(prior, views, t, component, seed=0):
    x = 2 * views.pictures(torch.arange(len(CAMERAS)))[:, component].double() - 1
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return prior.schedule.add_noise(x, eps, t)


@pytest.mark.parametrize("step", [0, 30, 300, 700, 999])
def test_camera_conditioning_is_the_mixture_of_that_cameras_pictures(views, step):
    """p(x | e, camera) = sum_k softmax(<e, key> + log pi)_k N(mu_k(camera), tau_x^2 I)."""
    prior = ToyWorldPrior(views=views, log_prior=LOG_PRIOR)
    embeddings = (
        0.3
        * torch.randn(2, len(text.VOCABULARY), generator=torch.Generator().manual_seed(1)).double()
    )
    t = torch.full((5,), step)
    x_t = noised(prior, views, t, 17)
    eps_hat = prior.predict_noise(x_t, t, embeddings, CAMERAS)
    log_p, clean = (
        prior.log_prob(x_t, embeddings, CAMERAS, t),
        prior.log_prob(x_t, embeddings, CAMERAS),
    )
    for b in range(5):
        mixture = double_mixture(prior, views.pictures(torch.tensor([b]))[0])
        log_weights = embeddings @ text.component_keys().double().T + LOG_PRIOR
        expected = mixture.predict_noise(x_t[b : b + 1], t[:1], log_weights)
        torch.testing.assert_close(eps_hat[:, b : b + 1], expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(
            log_p[:, b : b + 1],
            mixture.log_prob(x_t[b : b + 1], t[:1], log_weights),
            rtol=1e-10,
            atol=1e-8,
        )
        torch.testing.assert_close(
            clean[:, b : b + 1],
            mixture.log_prob(x_t[b : b + 1], None, log_weights),
            rtol=1e-10,
            atol=1e-8,
        )


@pytest.mark.parametrize("conditioning", ["none", "words"])
def test_pool_conditioning_is_the_mixture_over_cameras(views, conditioning):
    """Without the camera the mixture is over the pool.

    With its word, its quadrant is exp(WORD_STRENGTH) times as likely.
    """
    prior = ToyWorldPrior(views=views, conditioning=conditioning, log_prior=LOG_PRIOR)
    embeddings = text.embed(["a mushroom", ""]).double()
    t = torch.tensor([20, 100, 400, 700, 999])
    x_t = noised(prior, views, t, 30)
    eps_hat = prior.predict_noise(x_t, t, embeddings, CAMERAS)
    everything = views.pictures(torch.arange(5)).flatten(0, 1)
    mixture = double_mixture(prior, everything)
    same_word = text.view_keys(CAMERAS) @ text.view_keys(CAMERAS).T
    for b in range(5):
        log_weights = (embeddings @ text.component_keys().double().T + LOG_PRIOR).repeat(1, 5)
        if conditioning == "words":
            log_weights = log_weights + text.WORD_STRENGTH * same_word[
                b
            ].double().repeat_interleave(96)
        expected = mixture.predict_noise(x_t[b : b + 1], t[b : b + 1], log_weights)
        torch.testing.assert_close(eps_hat[:, b : b + 1], expected, rtol=1e-7, atol=1e-7)


def test_a_view_word_matters_only_without_the_camera(views):
    """ "seen from the left" selects pictures in the pool mixture, and nothing given the camera."""
    t = torch.full((5,), 600)
    embeddings = text.embed(["a red house", "a red house seen from the left"]).double()
    camera, none = ToyWorldPrior(views=views), ToyWorldPrior(views=views, conditioning="none")
    x_t = noised(camera, views, t, 3)
    without, with_word = camera.predict_noise(x_t, t, embeddings, CAMERAS)
    torch.testing.assert_close(without, with_word, rtol=0, atol=1e-12)
    x0_hat = none.denoise(x_t, t, embeddings[1:], CAMERAS)[0]
    left = int(text.view_keys(CAMERAS)[:, text.VOCABULARY.index("left")].argmax())
    target = (
        2
        * views.pictures(torch.tensor([left]))[
            0, text.components().index(("house", "red"))
        ].double()
        - 1
    )
    C = 0.1**2 * prior_abar(camera, 600) + 1 - prior_abar(camera, 600)
    kept = prior_abar(camera, 600).sqrt() * 0.1**2 / C
    torch.testing.assert_close(
        x0_hat,
        target + kept * (x_t - prior_abar(camera, 600).sqrt() * target),
        rtol=1e-8,
        atol=1e-8,
    )


def prior_abar(prior, step):
    return prior.schedule.alphas_cumprod[step]


def test_embedding_gradient_by_finite_differences(views):
    """d <u, eps_hat> / d e by autograd = (f(e + h) - f(e - h)) / 2h."""
    prior = ToyWorldPrior(views=views)
    generator = torch.Generator().manual_seed(3)
    embedding = torch.randn(1, len(text.VOCABULARY), generator=generator).double()
    t = torch.tensor([500, 700, 800, 900, 999])
    x_t = noised(prior, views, t, 5)
    probe = torch.randn(x_t.shape, generator=generator).double()

    def f(e):
        return (prior.predict_noise(x_t, t, e, CAMERAS)[0] * probe).sum()

    leaf = embedding.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf), leaf)
    assert gradient.abs().max() > 1e-4
    for w in range(0, len(text.VOCABULARY), 5):
        step = torch.zeros_like(embedding)
        step[0, w] = 1e-5
        numeric = (f(embedding + step) - f(embedding - step)) / 2e-5
        torch.testing.assert_close(gradient[0, w], numeric, rtol=1e-6, atol=1e-7)


def test_prompt_outweighs_the_picture(views):
    """A pink mushroom at t = 20 under the prompt "a red mushroom" is denoised towards red."""
    prior = ToyWorldPrior(views=views)
    t = torch.full((5,), 20)
    x_t = noised(prior, views, t, text.components().index(("mushroom", "pink")))
    means, _, log_weights = prior._mixture(
        prior.embed(["a red mushroom"]).double(), CAMERAS, len(x_t)
    )
    abar = prior_abar(prior, 20)
    C = abar * prior.variance + 1 - abar
    squared = (x_t.flatten(1)[:, None] - abar.sqrt() * means).square().sum(-1)
    responsibility = (log_weights[0] - squared / (2 * C)).softmax(-1)
    assert responsibility[:, text.components().index(("mushroom", "red"))].min() > 0.999


def test_float32_agrees_with_float64(views):
    """float32 predictions, which the loop uses, are within 1e-3 of float64 at every level."""
    prior = ToyWorldPrior(views=views)
    for step in (0, 20, 200, 600, 999):
        t = torch.full((5,), step)
        x_t = noised(prior, views, t, 40)
        embeddings = prior.embed(["a mushroom"])
        single = prior.predict_noise(x_t.float(), t, embeddings, CAMERAS)
        double = prior.predict_noise(x_t, t, embeddings.double(), CAMERAS)
        assert (single - double).abs().max() < 1e-3
    for conditioning in (
        "camera",
        "none",
    ):  # x_t decides, not the embedding's type nor the weights'
        mixed = ToyWorldPrior(views=views, conditioning=conditioning, log_prior=LOG_PRIOR)
        args = x_t.float(), embeddings.double(), CAMERAS
        assert (
            mixed.predict_noise(args[0], t, *args[1:]).dtype
            == mixed.log_prob(*args, t).dtype
            == torch.float32
        )


def test_encode_decode_and_drawing(views):
    """encode(decode(x)) = x on [-1, 1], and decode clamps.

    Cameras are drawn from the pool without repetition, by the generator.
    """
    prior = ToyWorldPrior(views=views)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior.decode(prior.encode(images)), images, rtol=0, atol=1e-6)
    # exact: clamped
    assert (
        prior.decode(torch.full((1, 3, 8, 8), 1.7)).max() == 1.0
        and prior.decode(torch.full((1, 3, 8, 8), -1.7)).max() == 0
    )
    drawn = prior.draw_cameras(5, torch.Generator().manual_seed(4))
    assert sorted(views.index_of(drawn).tolist()) == [0, 1, 2, 3, 4]
    assert (
        len(prior.draw_cameras(1, torch.Generator())) == 1
        and len(prior.draw_cameras(7, torch.Generator())) == 5
    )
    again = prior.draw_cameras(5, torch.Generator().manual_seed(4))
    assert torch.equal(drawn.azimuth, again.azimuth)  # exact: one seed, copies of the pool


@pytest.mark.parametrize("conditioning", ["camera", "none"])
def test_tilting_adds_the_mean_reward_over_beta(views, conditioning):
    """log pi*_k = log pi_k + mean over the pool of r(picture of k, prompt) / beta.

    Pictures, cameras and noise levels stay.
    """
    asked = []

    def reward(images, prompts):
        asked.append((prompts, torch.is_grad_enabled()))
        return images[:, 0].mean((1, 2))  # how red

    other = NoiseSchedule(torch.tensor([0.9, 0.5, 0.1]))
    prior = ToyWorldPrior(
        views=views, conditioning=conditioning, log_prior=LOG_PRIOR, schedule=other
    )
    tilted = prior.tilted(reward, 0.1, "a cat")
    red = views.pictures(torch.arange(5))[:, :, 0].double().mean((0, 2, 3))
    torch.testing.assert_close(tilted.log_prior, LOG_PRIOR + 10 * red, rtol=1e-5, atol=1e-5)
    assert (tilted.conditioning, tilted.schedule, tilted.views) == (conditioning, other, views)
    assert asked == 5 * [(96 * ["a cat"], False)]
    prior.tilted(reward, 0.1)
    assert asked[-1] == (96 * [""], False)


def test_what_a_method_hands_on_is_looked_at(views):
    """A Context says nothing of the prior's embeddings and cameras; the prior does, in one line."""
    prior, x, t = ToyWorldPrior(views=views), torch.zeros(5, 3, 8, 8), torch.full((5,), 500)
    good, n = prior.embed(["a chair", ""]), len(text.VOCABULARY)
    for embeddings, cameras, message in (
        (
            good[:, :3],
            CAMERAS,
            (
                rf"embeddings: expected finite numbers \(E, {n}\), as `embed` gives them, got \(1,"
                r" 3\) float32"
            ),
        ),
        (
            good[None],
            CAMERAS,
            rf"embeddings: expected a floating-point tensor \(e, v\), got \(1, 2, {n}\) float32",
        ),
        (
            good[None, :, :3],
            CAMERAS,
            r"embeddings: expected a floating-point tensor \(e, v\), got \(1, 2, 3\) float32",
        ),
        (good.log(), CAMERAS, "embeddings: expected finite numbers"),
        (good, None, "cameras: expected Cameras, got None"),
        (good, CAMERAS[:4], "cameras: expected 5 of the pool, one per picture, got 4"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            SDS()(x, t, x[None], Context(prior, embeddings, cameras))


def test_default_views_are_the_pools(views, monkeypatch):
    """Without `views`: the shared pool's pictures, 32 pixels per side or as many as asked for."""
    asked = []
    monkeypatch.setattr(
        toy_world,
        "make_views",
        lambda cameras, resolution: asked.append((cameras, resolution)) or views,
    )
    for size in ({}, {"resolution": 8}):
        assert ToyWorldPrior(**size).views is views
    assert [size for _, size in asked] == [32, 8]
    # exact: the same code on the same numbers
    assert all(torch.equal(cameras.positions(), pool_cameras().positions()) for cameras, _ in asked)


def test_errors_name_the_argument(views):
    with pytest.raises(
        ValueError, match="conditioning: 'telepathy' is not known; choose from camera, words, none"
    ):
        ToyWorldPrior(views=views, conditioning="telepathy")
    with pytest.raises(ValueError, match="^n: expected a whole number of at least 1, got 0"):
        ToyWorldPrior(views=views).draw_cameras(0, torch.Generator())
    with pytest.raises(ValueError, match=r"log_prior: expected \(96,\), got \(3,\)"):
        ToyWorldPrior(views=views, log_prior=torch.zeros(3))
    with pytest.raises(
        ValueError,
        match=(
            r"images: expected \(B, 3, 8, 8\), got \(1, 3, 32, 32\); render at the prior's"
            r" resolution"
        ),
    ):
        ToyWorldPrior(views=views).encode(torch.zeros(1, 3, 32, 32))


def test_repr_tells_priors_apart(views):
    """`resume` compares resolution, conditioning, number of cameras, and weights other than 0."""
    assert (
        repr(ToyWorldPrior(views=views))
        == f"ToyWorldPrior({views.resolution}, 'camera', {len(views.cameras)} cameras)"
    )
    weighted = repr(ToyWorldPrior(views=views, conditioning="none", log_prior=LOG_PRIOR))
    assert "'none'" in weighted and weighted.endswith(f", log_prior={LOG_PRIOR.tolist()})")
