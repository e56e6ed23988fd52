"""The image residual: whose target it decodes, where it enters, and by noise level, in float64."""

from dataclasses import replace

import loop_world
import pytest
import torch
from plain_mixture import SCHEDULE, close
from worlds import normal, same, small_world

from psd_mini import PSD, SDS, Context, Regression, VoxelField, distill, generate
from psd_mini.methods import METHODS, WITH_NETWORK, ByNoiseLevel, ImageResidual, make_method
from psd_mini.methods.negative_words import make_negative
from psd_mini.pipelines.generate import with_defaults
from psd_mini.rewards import make_reward

pytestmark = pytest.mark.algebra


@pytest.fixture(scope="module")
def toy():
    return small_world()


def case(prior, noises=2, times=(150, 620, 930)):
    """Gray pictures of three views, their x, timesteps and noises; a context that has them."""
    cameras = prior.draw_cameras(3, torch.Generator().manual_seed(0))
    images = 0.5 + 0.1 * normal(3, 3, 8, 8, seed=1)
    x, t = prior.encode(images), torch.tensor(times)
    eps = normal(noises, 3, 3, 8, 8, seed=2)
    embeddings = prior.embed(["a mushroom", ""]).double()
    context = Context(prior, embeddings, cameras, ["a mushroom"] * 3, make_reward("colorfulness"))
    return x, t, eps, replace(context, images=images)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("exact", *WITH_NETWORK)])
def test_in_the_exact_world_it_is_a_factor(toy, name):
    """Without an autoencoder G = (sigma_t / (alpha_t w)) G_z for every method, where no target
    leaves [-1, 1], and the target is clamped elsewhere. HiFA's own has w (x - x0_hat): 1 / w."""
    method = make_method(name, 2.0)
    x, t, eps, context = case(toy, method.n_noises, (620,) * 3)
    latent, metrics = method(x, t, eps, context)
    picture, own = make_method(name, 2.0, residual="image")(x, t, eps, context)
    a, s = SCHEDULE.alpha_sigma(t, x)
    step = latent if name == "hifa" else latent * (s / a) / s**2
    close(picture, x - (x - step).clamp(-1, 1), 1e-10)
    assert own.keys() == metrics.keys()
    rms = picture.square().mean().sqrt().item()
    assert own["gradient_rms"] == pytest.approx(rms, rel=1e-9)


@pytest.mark.parametrize("weighting", ["sds", "uniform", "fantasia3d"])
def test_sds_goes_to_its_own_denoised_picture(toy, weighting):
    """G = x - E[x | x_t], computed from the prior alone, for every w(t) and several t at once."""
    x, t, eps, context = case(toy, 1)
    x_t = SCHEDULE.add_noise(x, eps[0], t)
    x0_hat = toy.denoise(x_t, t, context.embeddings[:1], context.cameras)[0]
    got = ImageResidual(SDS(weighting=weighting))(x, t, eps, context)[0]
    close(got, x - x0_hat.clamp(-1, 1), 1e-10)


def test_psd_goes_to_the_mean_plus_winner_minus_loser(toy):
    """x0_hat = mean + weight sigma_t (winner's - loser's), from the two denoised pictures."""
    x, t, eps, context = case(toy, 1, (620,) * 3)
    x0_hat = [
        toy.denoise(SCHEDULE.add_noise(x, e, t), t, context.embeddings[:1], context.cameras)[0]
        for e in (eps[0], -eps[0])
    ]
    rewards = [context.reward(toy.decode(one), context.prompts).mean() for one in x0_hat]
    winner, loser = x0_hat if rewards[0] > rewards[1] else x0_hat[::-1]
    sigma_t = SCHEDULE.alpha_sigma(t, x)[1]
    wanted = (winner + loser) / 2 + 3.0 * sigma_t * (winner - loser)
    method = PSD(SDS(), preference_weight=3.0)
    gradient = method(x, t, eps, context)[0]
    close(ImageResidual(method).target(x, t, gradient, context), wanted, 1e-9)


class Coded(loop_world.World):
    """The loop's world; it remembers what it was given to encode."""

    given = None

    def encode(self, images):
        self.given = images
        return super().encode(images)


def test_the_loop_lets_it_in_at_the_picture():
    """No graph reaches the encoder, and a colour moves by mean_b < G_b, d (2 rgb_b) / d colour >,
    with G from the world's own formulas."""
    world = Coded()
    method = ImageResidual(SDS())
    background = loop_world.BACKGROUND
    options = {"steps": 1, "entropy_weight": 0.5, "background": background}
    _, _, seen = loop_world.run(method, world, **options)
    info, schedule = seen[0], loop_world.SCHEDULE
    assert not world.given.requires_grad and not info["x"].requires_grad
    x_t = schedule.add_noise(info["x"], info["eps"][0], info["t"])
    yes = loop_world.embedding("yes")
    eps_hat = world.predict_noise(x_t, info["t"], yes, info["cameras"])[0]
    small = world.decode(schedule.x0_from_eps(x_t, eps_hat, info["t"])).clamp(0, 1)
    large = torch.nn.functional.interpolate(small, (4, 4), mode="bilinear", antialias=True)
    wanted = 2 * (info["rendering"].rgb.detach() - large)
    close(info["gradient"], wanted, 1e-10)

    def pull(field):
        """mean_b < G_b, 2 rgb_b > + 0.5 * 3 * 4 * 4 * H(opacity), at the loop's own places."""
        rgb, opacity, _ = loop_world.drawn(field, info["cameras"], info["rendering"].z)
        o = opacity.clamp(1e-3, 1 - 1e-3)
        entropy = -(o * o.log() + (1 - o) * (1 - o).log()).mean()
        return (wanted * 2 * rgb).sum() / len(rgb) + 0.5 * 48 * entropy

    slopes = loop_world.slope(pull, info["before"])
    for slope, gradient in zip(slopes, info["gradients"], strict=True):
        torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-7)


def test_a_base_without_a_weight_is_refused():
    message = "^base: expected SDS or a method with SDS as its base, got Regression$"
    with pytest.raises(ValueError, match=message):
        ImageResidual(Regression(("ball", "red")))


def test_without_pictures_it_says_so(toy):
    x, t, eps, context = case(toy, 1)
    with pytest.raises(ValueError, match="^context: the image residual needs images, the renders"):
        ImageResidual(SDS())(x, t, eps, replace(context, images=None))


def constant(value, noises=1, pictures=False):
    def method(x, t, eps, context):
        assert len(eps) == noises
        return torch.full_like(context.images if pictures else x, value), {"value": value}

    method.n_noises, method.on_pictures = noises, pictures
    return method


def test_by_noise_level_asks_one_part_a_step(toy):
    """From switch (T - 1) = 599.4 on it is `above`; each part gets as many noises as it wants."""
    both = ByNoiseLevel(constant(1.0, 1), constant(2.0, 3))
    assert both.n_noises == 3 and both.shared_timestep and not both.on_pictures
    for time, value in ((0, 1.0), (599, 1.0), (600, 2.0), (999, 2.0)):
        x, t, eps, context = case(toy, 3, (time,) * 3)
        gradient, metrics = both(x, t, eps, context)
        assert metrics == {"value": value}
        close(gradient, torch.full_like(x, value), 0.0)
    x, t, eps, context = case(toy, 1, (0,) * 3)
    always = ByNoiseLevel(constant(1.0), constant(2.0), switch=0.0)(x, t, eps, context)[1]
    assert always == {"value": 2.0}
    with pytest.raises(ValueError, match="^below, above: one is on pictures, the other is not"):
        ByNoiseLevel(SDS(), ImageResidual(SDS()))
    with pytest.raises(ValueError, match=r"^switch: expected a fraction in \[0, 1\], got 2.0"):
        ByNoiseLevel(SDS(), SDS(), 2.0)


def test_a_pair_of_scales_makes_a_method_by_noise_level():
    """g below and above; a preference speaks above only; in pictures both parts are."""
    made = make_method("psd", (3.0, 1.0), 4.0, "image")
    expected = ByNoiseLevel(
        ImageResidual(SDS(3.0, n_noises=2)), ImageResidual(PSD(SDS(1.0), preference_weight=4.0))
    )
    assert made == expected and made.on_pictures and made.n_noises == 2
    assert make_method("csd", (3.0, 1.0)) == ByNoiseLevel(
        make_method("csd", 3.0), make_method("csd", 1.0)
    )


def test_a_killed_run_goes_on_bit_for_bit(toy, tmp_path):
    """Two methods by noise level, both on pictures, with PSD's running median in the checkpoint."""

    def run(**options):
        field, method = VoxelField(8), make_method("psd", (3.0, 1.0), residual="image")
        small = {"cameras_per_step": 2, "resolution": 8, "n_samples": 8, "progress": False}
        times = {"t_min": (0.5, 0.5), "t_max": (0.8, 0.8), "reward": make_reward("colorfulness")}
        distill(field, toy, method, "a mushroom", steps=8, **small, **times, **options)
        return field, method.parts["above"].base.median_gap

    def stop(info):
        if info["step"] == 4:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pt"
    whole, median = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, callback=stop)
    resumed, again = run(checkpoint=path, resume=True)
    # exact: a run and its resumption, one machine and thread count
    assert same(whole, resumed) and median == again > 0


def test_generate_passes_it_on():
    """residual and a pair of scales reach the method; without them it is what it was."""
    small = {"steps": 2, "resolution": 8, "n_samples": 4, "progress": False}
    result = generate("a ball", guidance_scale=(2.0, 1.0), residual="image", **small)
    assert result.config["method"].startswith("ByNoiseLevel(below=ImageResidual(base=SDS(")
    assert with_defaults("exact", "voxel", False, False, {"residual": None}).get("residual") is None
    with pytest.raises(
        ValueError, match="^residual: 'pixels' is not known; choose from latent, image"
    ):
        generate("a ball", residual="pixels", **small)


@pytest.mark.parametrize(
    ("guidance", "expected"), [((1.0, 3.0), 3.0), ((3.0, 1.0), 3.0), (2.0, 2.0)]
)
@pytest.mark.parametrize("negative", [True, "random"])
def test_of_a_pair_of_guidance_scales_a_negative_embedding_takes_one_that_acts(
    negative, guidance, expected
):
    """At 1 it has no effect and is refused: `--prior learned --negative`, whose default is a pair,
    has to work."""
    made = make_negative(negative, small_world(), "a mushroom", "", guidance)
    assert made.guidance_scale == expected
