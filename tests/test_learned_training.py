"""The script that trains the learned checkpoint: its data, its objectives, and killed runs."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from learned import data, parts, train
from safetensors.torch import load_file

from psd_mini.pretrained.learned import VIEW_WORDS
from psd_mini.pretrained.stable_diffusion import StableDiffusionPrior
from psd_mini.schedule import scaled_linear_schedule
from psd_mini.world.objects import COLOURS
from psd_mini.world.text import DIRECTIONS, FILLERS, SYNONYMS, VOCABULARY

WORDS = [*VOCABULARY, *SYNONYMS, *FILLERS]


@pytest.fixture(scope="module")
def world():
    return data.view_layers(16, parts.RESOLUTION)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    parts.save_tokenizer(folder, WORDS)
    return parts.load_tokenizer(folder)


def test_every_word_is_one_token(tokenizer):
    """And no two are the same; a word that is not known falls into several."""
    ids = [tokenizer(word).input_ids for word in WORDS]
    assert all(len(row) == 3 for row in ids) and len({row[1] for row in ids}) == len(set(WORDS))
    assert len(tokenizer("zebra").input_ids) > 3
    text = "an orange doughnut seen from the front left"
    assert len(tokenizer(text).input_ids) == len(text.split()) + 2 <= parts.LENGTH


def test_merges_are_joined_most_frequent_first():
    """By hand: "low" twice over with "lo", so l+o comes first; equal counts in alphabetical
    order."""
    assert byte_pairs("low", "lot") == [("l", "o"), ("lo", "t</w>"), ("lo", "w</w>")]


def byte_pairs(*words):
    return parts.byte_pair_merges(list(words))


def test_pictures_are_base_plus_main_times_colour(world):
    _, layers = world
    items = torch.tensor([[2, 7], [1, 6], [5, 11]])
    for picture, (o, c, p) in zip(data.pictures(layers, items), items.T.tolist(), strict=True):
        base, main = layers[o, p, :3], layers[o, p, 3:]
        colour = torch.tensor(list(COLOURS.values())[c])
        assert (picture - (base + main * colour[:, None, None])).abs().max() < 1e-6


def test_captions_say_what_is_to_be_seen(world):
    """Directions agree with the azimuth to 22.5 degrees, and what is left out has the announced
    frequency (4 sigma)."""
    cameras, _ = world
    generator = torch.Generator().manual_seed(0)
    n = 4000
    items = data.draw_items(n, (12, 8, 16), generator)
    texts = data.captions(items, data.directions_of(cameras), generator)
    azimuth = torch.rad2deg(cameras.azimuth)
    others = {other: word for word, other in SYNONYMS.items()}
    full = 0
    for text, (o, c, p) in zip(texts, items.T.tolist(), strict=True):
        if not text:
            continue
        name, colour = data.NAMES[o], data.COLOUR_NAMES[c]
        assert name in text.split() or others[name] in text.split()
        if " seen from the " in text:
            direction = text.split(" seen from the ")[1]
            difference = (azimuth[p] - 45 * DIRECTIONS.index(direction) + 180) % 360 - 180
            assert abs(difference) <= 22.5
            full += colour in text.split() or others.get(colour, "?") in text.split()
    assert_share(texts.count(""), n, data.NULL)
    assert_share(full, n, (1 - data.NULL) * (1 - data.NO_COLOUR) * (1 - data.NO_DIRECTION))


def assert_share(count, n, p):
    assert abs(count / n - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_stage_1_minimises_the_evidence_bound(world):
    """2 s^2 / n (-ELBO) without constants, by torch.distributions, for the batch that the step
    draws."""
    _, layers = world
    vae = parts.seeded(parts.autoencoder, 3).double()
    value = train.autoencoder_loss(vae, layers.double(), 4, 0, 7)
    generator = train.generator_of(0, 7)
    p = data.pictures(layers.double(), data.draw_items(6, (12, 8, 16), generator))
    share = torch.rand(2, 1, 1, 1, generator=generator)
    p = 2 * torch.cat((p[:2], share * p[2:4] + (1 - share) * p[4:])) - 1
    mean, logvar = vae.quant_conv(vae.encoder(p)).chunk(2, dim=1)
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    z = mean + q.stddev * torch.randn(mean.shape, generator=generator)
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum()
    painted = torch.distributions.Normal(vae.decoder(vae.post_quant_conv(z)), 0.05)
    constant = torch.distributions.Normal(0.0, 0.05).log_prob(torch.zeros(())) * p.numel()
    bound = (-painted.log_prob(p).sum() + constant + kl) / 4
    assert abs(value - 2 * 0.05**2 / (3 * 64 * 64) * bound) < 1e-7 * value


def test_stage_3_is_zero_at_v_and_asks_with_the_right_caption(world):
    """A model that is told x and answers v = (alpha_t x_t - x) / sigma_t has no loss; one that
    answers -v has 4 E v^2."""
    cameras, _ = world
    schedule = scaled_linear_schedule()
    latents = torch.randn(
        12, 8, 16, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    x = []

    def told(sign):
        def model(x_t, t, texts):
            generator = train.generator_of(0, 5)
            items = data.draw_items(8, (12, 8, 16), generator)
            assert texts == data.captions(items, data.directions_of(cameras), generator)
            x[:] = [latents[o, c, p] for o, c, p in items.T.tolist()]
            alpha, sigma = schedule.alpha_sigma(t, x_t)
            return sign * (alpha * x_t - torch.stack(x)) / sigma

        return train.denoiser_loss(model, schedule, latents, data.directions_of(cameras), 8, 0, 5)

    assert told(1) < 1e-20
    assert told(-1) > 1.5  # E v^2 = 1


SMALL = {
    "autoencoder": {"batch": 2, "steps": 3, "lr": 1e-3},
    "denoiser": {"batch": 2, "steps": 3, "lr": 1e-3},
    "n_cameras": 1,
}


def weights(folder):
    return {
        f"{file.parent.name} {key}": v
        for file in sorted(folder.rglob("*.safetensors"))
        for key, v in load_file(file).items()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model after three steps, in one go."""
    folder = tmp_path_factory.mktemp("learned")
    train.train(folder / "model", folder / "work", **SMALL)
    return folder / "model"


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_bits(trained, tmp_path, monkeypatch):
    """Killed in each stage at step 2 (a checkpoint a step), then started again with the same
    command."""
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    for name in ("autoencoder_loss", "denoiser_loss"):
        original = getattr(train, name)

        def killed(*args, original=original):
            if args[-1] == 2:
                raise KeyboardInterrupt
            return original(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train, name, killed)
            train.train(tmp_path / "model", tmp_path / "work", **SMALL)
    train.train(tmp_path / "model", tmp_path / "work", **SMALL)
    expected, got = weights(trained), weights(tmp_path / "model")
    # exact: a run and its resumption, one machine and thread count
    assert expected.keys() == got.keys() and all(
        torch.equal(expected[key], got[key]) for key in expected
    )


def test_it_runs_as_a_script(monkeypatch, capsys):
    """Where nothing but its own folder is on the path, as for a script."""
    script = Path(train.__file__)
    others = [folder for folder in sys.path if Path(folder).resolve() != script.parent.parent]
    monkeypatch.setattr(sys, "path", [str(script.parent), *others])
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    for name in list(sys.modules):
        if name.partition(".")[0] == "learned":
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: train.py") and "the same command goes on" in printed


def test_other_settings_do_not_continue_a_training(trained):
    other = {**SMALL, "autoencoder": {**SMALL["autoencoder"], "lr": 2e-3}}
    with pytest.raises(ValueError, match="autoencoder lr = 0.001, this run has 0.002"):
        train.train(trained, trained.parent / "work", **other)


@pytest.mark.slow
def test_latents_of_another_autoencoder_or_world_are_not_used(trained, tmp_path, monkeypatch):
    """The autoencoder's stage is begun anew with other settings: the model is the one of a fresh
    folder. And a world that was changed does not go on from the old one's stages."""
    shutil.copytree(trained.parent / "work", tmp_path / "work")
    for name in ("autoencoder.pt", "denoiser.pt"):
        (tmp_path / "work" / name).unlink()
    other = {**SMALL, "autoencoder": {**SMALL["autoencoder"], "lr": 2e-3}}
    train.train(tmp_path / "model", tmp_path / "work", **other)
    train.train(tmp_path / "fresh", tmp_path / "fresh work", **other)
    expected, got = weights(tmp_path / "fresh"), weights(tmp_path / "model")
    # exact: one machine with one thread count
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    view_layers = data.view_layers

    def other_world(*arguments):
        cameras, layers = view_layers(*arguments)
        return cameras, 1 - layers

    monkeypatch.setattr(data, "view_layers", other_world)
    with pytest.raises(ValueError, match="was made with pictures = '"):
        train.train(tmp_path / "model", tmp_path / "work", **other)


def test_what_is_saved_loads_as_stable_diffusion_does(trained):
    """Half precision, names that old versions of transformers need, and a prior that predicts v
    on 16 x 16 latents."""
    assert all(v.dtype == torch.float16 for v in weights(trained).values())
    assert all(
        key.split(" ")[1].startswith("text_model.")
        for key in weights(trained)
        if key.startswith("text_encoder")
    )
    assert (
        json.loads((trained / "scheduler" / "scheduler_config.json").read_text())["prediction_type"]
        == "v_prediction"
    )
    prior = StableDiffusionPrior.from_pretrained(trained, view_words=VIEW_WORDS)
    x = prior.encode(torch.rand(2, 3, 64, 64))
    assert prior.prediction_type == "v_prediction" and x.shape == (2, 4, 16, 16)
    assert (
        prior.predict_noise(x, torch.tensor([1, 999]), prior.embed_views(["a red ball"]))
        .isfinite()
        .all()
    )
