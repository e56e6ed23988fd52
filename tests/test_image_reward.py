"""ImageReward under its published names, loaded strictly and safely, differentiable; and, where
it is installed, its oracle."""

import importlib.util
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from psd_mini import ToyWorldPrior, VoxelField, distill, make_reward
from psd_mini.methods import make_method
from psd_mini.pretrained import image_reward
from psd_mini.pretrained.image_reward import MEAN, STD, ImageReward, ImageRewardNetwork, convert
from psd_mini.pretrained.published import PIXEL_MEAN, PIXEL_STD, preprocess, read_weights

sys.path.insert(0, str(Path(__file__).parent / "tools"))
from image_reward_oracle import SMALL_TEXT, SMALL_VISION, compare

PROMPTS = ["a red ball", "a ball"]


def small_network(seed=0):
    torch.manual_seed(seed)
    network = ImageRewardNetwork(SMALL_VISION, SMALL_TEXT)
    for parameter in network.parameters():  # initial ones give every picture the same score
        width = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.data += torch.randn_like(parameter) / width**0.5
    return network


def published(name):
    """The published name of one of our weights, written independently of the map under test."""
    if name.startswith("head."):
        return "mlp.layers." + name.removeprefix("head.")
    if name.startswith("text."):
        return "blip.text_encoder." + name.removeprefix("text.")
    for ours, theirs in {
        "vision.embeddings.class_embedding": "cls_token",
        "vision.embeddings.position_embedding": "pos_embed",
        "vision.embeddings.patch_embedding": "patch_embed.proj",
        "vision.encoder.layers": "blocks",
        "vision.post_layernorm": "norm",
        "layer_norm": "norm",
        "self_attn.projection": "attn.proj",
        "self_attn": "attn",
    }.items():
        name = name.replace(ours, theirs)
    return "blip.visual_encoder." + name


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(network, its weights in a file under published names with the unused ones, folder with a
    vocabulary)."""
    folder = tmp_path_factory.mktemp("reward")
    network = small_network()
    state = {published(name): value for name, value in network.state_dict().items()}
    state["blip.vision_proj.weight"] = state["blip.text_proj.bias"] = torch.zeros(3)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(state, folder / "ImageReward.pt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "ball", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return network, folder / "ImageReward.pt", folder


@pytest.fixture(scope="module")
def reward(files):
    return ImageReward.from_pretrained(
        files[1], tokenizer=files[2], network=small_network(1), device="cpu"
    )


def test_published_names_round_trip(files, reward):
    """Weights under the published names end where they came from, each of them; the full size
    has 620 of them."""
    assert "blip.visual_encoder.blocks.1.attn.qkv.weight" in torch.load(files[1], weights_only=True)
    for name, value in files[0].state_dict().items():
        assert torch.equal(reward.network.state_dict()[name], value), (
            name
        )  # exact: a file holds bits
    with torch.device("meta"):
        network = ImageRewardNetwork()
        full = network.state_dict()
    heads = network.vision.config.num_attention_heads, network.text.config.num_attention_heads
    assert heads == (16, 12)  # weights do not tell
    for config, eps in ((network.vision.config, 1e-6), (network.text.config, 1e-12)):
        assert (config.layer_norm_eps, config.hidden_act) == (eps, "gelu")
    assert len(full) == 620
    converted = convert({published(name): value for name, value in full.items()}, full)
    assert all(converted[name] is value for name, value in full.items())
    assert sum(value.numel() for value in full.values()) == pytest.approx(446.1e6, rel=2e-3)


def test_unknown_and_missing_weights_are_named(files):
    state, wanted = torch.load(files[1], weights_only=True), files[0].state_dict()
    with pytest.raises(
        ValueError, match="'blip.queue' of shape .2,. is not a weight of ImageReward; another file"
    ):
        convert({**state, "blip.queue": torch.zeros(2)}, wanted)
    with pytest.raises(
        ValueError,
        match="'blip.visual_encoder.blocks.7.norm1.weight' of shape .2,. is not a weight",
    ):
        convert({**state, "blip.visual_encoder.blocks.7.norm1.weight": torch.zeros(2)}, wanted)
    del state["blip.visual_encoder.cls_token"]
    with pytest.raises(
        ValueError, match="lacks 1 weights, the first is 'vision.embeddings.class_embedding'"
    ):
        convert(state, wanted)


def test_a_pickle_that_runs_code_is_refused_unopened(tmp_path):
    """The file would create another file when it is unpickled; it is refused in one line, and
    nothing is created."""
    victim = tmp_path / "victim"

    class Malice:
        def __reduce__(self):
            return (open, (str(victim), "w"))

    bad = tmp_path / "ImageReward.pt"
    torch.save({"weights": Malice()}, bad)
    with pytest.raises(ValueError, match="could run code; it was not opened") as refusal:
        read_weights(bad)
    assert not victim.exists() and "\n" not in str(refusal.value)
    bad.write_bytes(pickle.dumps(Malice()))
    with pytest.raises(ValueError, match="could run code"):
        read_weights(bad)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "is damaged or holds no weights"),
        (b"PK\x03\x04", "is damaged"),
    ],
)
def test_files_that_are_none(content, message, tmp_path):
    path = tmp_path / "ImageReward.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        make_reward(f"image-reward:{path}")
    assert "\n" not in str(refusal.value)


def test_without_network(monkeypatch):
    """The hub cannot be reached: one line, for the first id; both were tried."""
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = []

    def fail(repo, file, local_files_only):
        assert local_files_only
        asked.append((repo, file))
        raise ConnectionError("Name or service not known\nlong story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(
        ValueError, match="reward zai-org/ImageReward: cannot be loaded .ConnectionError"
    ) as refusal:
        make_reward("image-reward")
    assert "\n" not in str(refusal.value) and len(asked) == 2


def test_without_vocabulary(files, tmp_path, monkeypatch):
    """transformers from 5 on makes an empty tokenizer where it finds none: all words would be the
    same."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for tokenizer in (tmp_path, "google-bert/bert-base-uncased"):
        with pytest.raises(ValueError, match="reward image-reward: cannot be loaded") as refusal:
            ImageReward.from_pretrained(files[1], tokenizer, network=small_network(), device="cpu")
        assert "\n" not in str(refusal.value)


def test_found_by_name(monkeypatch):
    seen = []
    monkeypatch.setattr(
        image_reward.ImageReward,
        "from_pretrained",
        lambda source, device=None: seen.append((source, device)),
    )
    make_reward("image-reward")
    make_reward("image-reward:C:/models/ImageReward.pt", "cuda")
    assert seen == [(None, None), ("C:/models/ImageReward.pt", "cuda")]


def photo(height, width):
    """Stripes, edges, a checkerboard of single pixels and noise: what resizing filters disagree
    about."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack(
        [(x // 3) % 2 * 255, (x + y) % 2 * 255, np.hypot(y - height / 2, x - width / 3) % 40 * 6],
        -1,
    )
    noise = np.random.default_rng(0).normal(0, 20, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(512, 512), (300, 451), (64, 64)])
def test_preprocessing_is_pillows(shape):
    """Resize to 224, bicubic, middle square, normalised: within half a grey level of Pillow's on
    average."""
    from PIL import Image

    pixels = photo(*shape)
    # torchvision's Resize: the shorter side is 224, the other one rounded down
    size = [int(224 * side / min(shape)) for side in shape[::-1]]
    left, top = ((side - 224) // 2 for side in size)
    resized = (
        Image.fromarray(pixels)
        .resize(size, Image.Resampling.BICUBIC)
        .crop((left, top, left + 224, top + 224))
    )
    expected = torch.from_numpy(np.asarray(resized).copy()).movedim(-1, 0)
    ours = preprocess(torch.from_numpy(pixels).movedim(-1, 0)[None] / 255, 224)[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    difference = (255 * (ours * std + mean) - expected).abs()
    print(shape, difference.mean(), difference.max())
    assert (
        difference.mean() < 0.5 and difference.max() < 30
    )  # Pillow rounds and clips once more, between the two axes


def test_score_and_gradient(reward):
    """One score per picture, standardised; the picture and the prompt matter; d r / d image by
    finite differences."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 40, 40, generator=generator)
    scores = reward(images, PROMPTS)
    assert scores.shape == (2,) and reward.differentiable
    words = reward.tokenizer(
        PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    assert words.input_ids.shape == (2, 35) and words.input_ids[0, :6].tolist() == [
        2,
        5,
        6,
        8,
        3,
        0,
    ]
    raw = reward.network(preprocess(images, 32), words.input_ids, words.attention_mask)
    torch.testing.assert_close(scores, (raw - MEAN) / STD)
    torch.testing.assert_close(reward(images[1:], PROMPTS[1:]), scores[1:], rtol=1e-5, atol=1e-5)
    long = [
        " ".join(["red", *["ball"] * 31, last, "a"]) for last in ("red", "a")
    ]  # tokens 1 to 33 of 35, then one too many
    assert (reward(images, long)[0] - reward(images, long[::-1])[0]).abs() > 1e-6
    beyond = [text + " red ball" for text in long]
    # exact: the same tokens, so the same code on the same numbers
    torch.testing.assert_close(
        reward(images, beyond), reward(images, [text[:-2] + " a" for text in long]), rtol=0, atol=0
    )
    assert (reward(images, PROMPTS[::-1]) - scores).abs().min() > 1e-4
    leaf, direction = (
        images.clone().requires_grad_(),
        torch.randn(images.shape, generator=generator),
    )
    (gradient,) = torch.autograd.grad(reward(leaf, PROMPTS).sum(), leaf)
    with torch.no_grad():
        ahead, behind = (
            reward(0.1 + 0.8 * images + h * direction, PROMPTS).sum() for h in (1e-3, -1e-3)
        )
    leaf = (0.1 + 0.8 * images).requires_grad_()  # away from the clamp at 0 and 1
    (inside,) = torch.autograd.grad(reward(leaf, PROMPTS).sum(), leaf)
    torch.testing.assert_close(
        (inside * direction).sum(), (ahead - behind) / 2e-3, rtol=2e-2, atol=2e-3
    )
    assert gradient.abs().max() > 1e-6 and all(p.grad is None for p in reward.network.parameters())


def test_half_precision(files, reward):
    """In float16 the score moves by less than 0.05, and its gradient keeps its direction though
    the loss is 1e-7 of it."""
    half = ImageReward.from_pretrained(
        files[1], tokenizer=files[2], network=small_network(1), device="cpu", dtype="float16"
    )
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    leaves = [images.clone().requires_grad_() for _ in range(2)]
    scores = [each(leaf, PROMPTS) for each, leaf in zip((reward, half), leaves, strict=True)]
    assert scores[1].dtype == torch.float32 and (scores[0] - scores[1]).abs().max() < 0.05
    for score in scores:
        (1e-7 * score.sum()).backward()
    assert (
        torch.nn.functional.cosine_similarity(*(leaf.grad.flatten() for leaf in leaves), dim=0)
        > 0.99
    )


def test_in_the_loop(reward):
    """As a black box for PSD and by its gradient, on the exact world."""
    for method in ("psd", "pixel-clean"):
        settings = {"steps": 2, "resolution": 8, "reward": reward, "progress": False}
        run = distill(
            VoxelField(8), ToyWorldPrior(8), make_method(method), "a red ball", **settings
        )
        assert len(run.history) == 2


def test_names_of_the_package_that_it_replaces():
    """Nothing of what image-reward drags in is imported by our module."""
    source = Path(image_reward.__file__).read_text()
    assert not re.search(
        r"^\s*(import|from) (torchvision|timm|fairscale|clip|ImageReward)", source, re.MULTILINE
    )


def oracle_folder():
    """Where image-reward is: the folder in PSD_MINI_IMAGE_REWARD, or installed beside the other
    packages; else None."""
    if "PSD_MINI_IMAGE_REWARD" in os.environ:
        return Path(os.environ["PSD_MINI_IMAGE_REWARD"])
    spec = importlib.util.find_spec("ImageReward")
    return Path(next(iter(spec.submodule_search_locations))).parent if spec else None


@pytest.mark.oracle
@pytest.mark.skipif(
    oracle_folder() is None,
    reason="image-reward is not installed: pip install --no-deps image-reward==1.5",
)
def test_the_package_itself_agrees():
    """Score and image gradient of the published code on the same random weights."""
    score, gradient, size = compare(oracle_folder())
    assert score < 1e-5 and gradient < 1e-5 * size
