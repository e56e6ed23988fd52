"""The checkpoint that ships with the package: is it small, does it load like Stable Diffusion,
has it learnt the world?"""

import pytest
import torch
from learned import data

from psd_mini.cameras import orbit
from psd_mini.pretrained import learned, make_prior
from psd_mini.pretrained.sampling import ddim_sample
from psd_mini.world.metrics import judge_views, squared_distances
from psd_mini.world.text import DIRECTIONS, components


@pytest.fixture(scope="module")
def prior():
    return make_prior("learned", device="cpu")


@pytest.fixture(scope="module")
def truth():
    """The judge's cameras, none of which training saw, and the world from there."""
    return judge_views()


def test_it_is_small():
    files = [file for file in learned.FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8e6
    assert {file.suffix for file in files} == {
        ".json",
        ".txt",
        ".safetensors",
    }  # nothing that could run


def test_cameras_stand_where_its_pictures_were_taken(prior):
    cameras = prior.draw_cameras(200, torch.Generator().manual_seed(0))
    assert cameras.elevation.min() >= -1e-6 and cameras.elevation.max() <= torch.pi / 4 + 1e-6
    azimuths = torch.arange(0, 360, 10.0)
    assert prior.view_index(orbit(azimuths.tolist(), 20.0)).tolist() == [
        1 + DIRECTIONS.index(direction) for direction in map(direction_of, azimuths.tolist())
    ]


def direction_of(azimuth):
    """The direction within 22.5 degrees, by search."""
    return next(
        d for k, d in enumerate(DIRECTIONS) if abs((azimuth - 45 * k + 180) % 360 - 180) < 22.5
    )


def test_autoencoder(prior, truth):
    """Pictures from unseen cameras come back; a wrong scaling factor or offset would not."""
    pictures = truth.pictures(torch.arange(0, 24, 3))[:, ::7].flatten(0, 1)
    error = (prior.decode(prior.encode(pictures)) - pictures).square().mean((1, 2, 3)).sqrt()
    assert error.median() < 0.03 and error.max() < 0.08
    assert 0.8 < prior.encode(pictures).std() < 1.2


def predictions(prior, truth, t, prompts):
    """x, x0_hat (K, B, ...) for pictures of one red mushroom all around, noised to t."""
    index = components().index(("mushroom", "red"))
    x = prior.encode(truth.pictures(torch.arange(24))[:, index])
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
    times = torch.full((24,), t)
    x_t = prior.schedule.add_noise(x, eps, times)
    eps_hat = prior.predict_noise(x_t, times, prior.embed_views(prompts), truth.cameras)
    return x, torch.stack([prior.schedule.x0_from_eps(x_t, e, times) for e in eps_hat])


def test_the_right_words_predict_best(prior, truth):
    """At high noise the picture is all but gone: the prompt that names it comes closer than
    other objects, colours, none."""
    prompts = ["a red mushroom", "a mushroom", "a blue mushroom", "a red car", ""]
    x, x0_hat = predictions(prior, truth, 900, prompts)
    right, *others = (x0_hat - x).square().mean((1, 2, 3, 4)).tolist()
    assert right < 0.7 * min(others), (right, others)


def test_low_noise_needs_no_words(prior, truth):
    x, x0_hat = predictions(prior, truth, 100, ["a red mushroom", ""])
    assert (x0_hat - x).square().mean((1, 2, 3, 4)).max() < 0.02


@pytest.mark.parametrize("camera, right, wrong", [(12, "back", "left"), (18, "left", "back")])
def test_the_direction_is_heard(prior, truth, camera, right, wrong):
    """A house at t = 950, from its gable (azimuth 180) and from its eaves (270): the prompt for the
    side seen is nearer.

    Front and back of it, which differ in a door of some ten pixels, are not told apart at this
    level."""
    x = prior.encode(
        truth.pictures(torch.tensor([camera]))[:, components().index(("house", "yellow"))]
    ).repeat(16, 1, 1, 1)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    t = torch.full((16,), 950)
    x_t = prior.schedule.add_noise(x, eps, t)
    eps_hat = prior.predict_noise(
        x_t,
        t,
        prior.embed([learned.VIEW_WORDS[d].format("a yellow house") for d in (right, wrong)]),
    )
    near, far = ((prior.schedule.x0_from_eps(x_t, e, t) - x).square().mean() for e in eps_hat)
    assert near < 0.6 * far, (near, far)


@pytest.mark.parametrize(
    "prompt", ["a red mushroom", pytest.param("a blue chair", marks=pytest.mark.slow)]
)
def test_guided_samples_are_what_was_asked_for(prior, prompt):
    """Four samples from four sides: nearest, among all objects and colours at the cameras of the
    pool, to the prompt's."""
    views = data.view_layers(32, 32)
    from psd_mini.world.pool import WorldViews

    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    x = ddim_sample(
        prior,
        prompt,
        noise,
        cameras=orbit([0.0, 90.0, 180.0, 270.0], 20.0),
        guidance_scale=3.0,
        steps=12,
    )
    small = torch.nn.functional.avg_pool2d(prior.decode(x), 2)
    for image in small:
        squared = squared_distances(image.expand(32, 3, 32, 32), WorldViews(*views))
        assert " ".join(
            reversed(components()[int(squared.argmin()) % squared.shape[1]])
        ) == prompt.removeprefix("a ")


def test_a_prior_of_three_worlds_has_one_interface():
    """What the loop asks of a prior, the learned one has too; and the exact world's words are
    checked before it is loaded."""
    from psd_mini.pipelines.generate import generate

    with pytest.raises(ValueError, match="prompt: the toy world does not know 'zebra'"):
        generate("a zebra", prior="learned", steps=1, progress=False)
    result = generate("a red ball", prior="learned", method="sds", steps=2, progress=False)
    assert result.config["prior"] == result.config["model"] == "learned"
    assert result.config["guidance_scale"] == (1.0, 3.0)  # exact: settings
    assert result.config["method"].startswith("ByNoiseLevel(below=ImageResidual(base=SDS(")
    assert {"recognised", "oracle_distance", "true_view_distance"} <= result.metrics.keys()
