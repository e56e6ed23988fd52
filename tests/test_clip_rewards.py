"""HPSv2.1 and PickScore: open_clip's layout becomes a CLIPModel weight by weight, the score is
CLIP's cosine computed by other code, and bad files end in one line. Where open_clip is installed,
it is the oracle."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from psd_mini import ToyWorldPrior, VoxelField, distill, make_reward
from psd_mini.methods import make_method
from psd_mini.pretrained import clip_rewards
from psd_mini.pretrained.clip_rewards import cosine, load_hpsv2
from psd_mini.pretrained.published import PIXEL_MEAN, PIXEL_STD, preprocess

sys.path.insert(0, str(Path(__file__).parent / "tools"))
from clip_oracle import compare
from tiny_pipeline import tiny_tokenizer

PROMPTS = ["a red ball", "a ball"]
LENGTH = 20  # tokens that the small text network reads
HEADS = 2
BOTH = {"num_attention_heads": HEADS, "num_hidden_layers": 2, "hidden_act": "gelu"}
VISION = {"hidden_size": 32, "intermediate_size": 48, "image_size": 28, "patch_size": 14}
TEXT = {"hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": LENGTH}


def sizes(vocabulary):
    text = {"vocab_size": vocabulary, "bos_token_id": vocabulary - 2}
    text |= {"eos_token_id": vocabulary - 1}
    return {"vision_config": BOTH | VISION, "text_config": BOTH | TEXT | text, "projection_dim": 20}


def small_network(vocabulary, seed=0):
    """A CLIPModel with weights in which every part matters."""
    torch.manual_seed(seed)
    network = CLIPModel(CLIPConfig(**sizes(vocabulary)))
    for parameter in network.parameters():
        width = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.data += torch.randn_like(parameter) / width**0.5
    return network.eval().requires_grad_(False)


def in_layout_of_open_clip(network):
    """The state dict that open_clip would save, written without the map under test."""
    own, state = network.state_dict(), {}
    for tower, theirs in (("vision_model", "visual."), ("text_model", "")):
        for i in range(len(getattr(network, tower).encoder.layers)):
            layer, block = f"{tower}.encoder.layers.{i}", f"{theirs}transformer.resblocks.{i}"
            for kind in ("weight", "bias"):
                q, k, v = (own[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv")
                state[f"{block}.attn.in_proj_{kind}"] = torch.cat([q, k, v])
                state[f"{block}.attn.out_proj.{kind}"] = own[f"{layer}.self_attn.out_proj.{kind}"]
                state[f"{block}.ln_1.{kind}"] = own[f"{layer}.layer_norm1.{kind}"]
                state[f"{block}.ln_2.{kind}"] = own[f"{layer}.layer_norm2.{kind}"]
                state[f"{block}.mlp.c_fc.{kind}"] = own[f"{layer}.mlp.fc1.{kind}"]
                state[f"{block}.mlp.c_proj.{kind}"] = own[f"{layer}.mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        state[f"visual.ln_pre.{kind}"] = own[f"vision_model.pre_layrnorm.{kind}"]
        state[f"visual.ln_post.{kind}"] = own[f"vision_model.post_layernorm.{kind}"]
        state[f"ln_final.{kind}"] = own[f"text_model.final_layer_norm.{kind}"]
    embeddings = "vision_model.embeddings"
    state["visual.class_embedding"] = own[f"{embeddings}.class_embedding"]
    state["visual.conv1.weight"] = own[f"{embeddings}.patch_embedding.weight"]
    state["visual.positional_embedding"] = own[f"{embeddings}.position_embedding.weight"]
    state["visual.proj"] = own["visual_projection.weight"].T.contiguous()
    state["token_embedding.weight"] = own["text_model.embeddings.token_embedding.weight"]
    state["positional_embedding"] = own["text_model.embeddings.position_embedding.weight"]
    state["text_projection"] = own["text_projection.weight"].T.contiguous()
    state["logit_scale"] = own["logit_scale"]
    return state


def plain_tower(state, prefix, x, mask=None):
    """open_clip's transformer from its own names, with torch's attention."""
    width, i = x.shape[-1], 0
    while f"{prefix}transformer.resblocks.{i}.ln_1.weight" in state:
        start = f"{prefix}transformer.resblocks.{i}."
        part = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        y = F.layer_norm(x, (width,), part["ln_1.weight"], part["ln_1.bias"]).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            *(y, y, y, width, HEADS, part["attn.in_proj_weight"], part["attn.in_proj_bias"]),
            *(None, None, False, 0.0, part["attn.out_proj.weight"], part["attn.out_proj.bias"]),
            attn_mask=mask,
            need_weights=False,
        )
        x = x + attended.transpose(0, 1)
        y = F.layer_norm(x, (width,), part["ln_2.weight"], part["ln_2.bias"])
        y = F.gelu(F.linear(y, part["mlp.c_fc.weight"], part["mlp.c_fc.bias"]))
        x = x + F.linear(y, part["mlp.c_proj.weight"], part["mlp.c_proj.bias"])
        i += 1
    return x


def plain_cosine(state, images, tokens):
    """CLIP's cosine in open_clip's words, of pictures that have the network's own size."""
    mean, std = (
        torch.tensor(v, dtype=images.dtype)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD)
    )
    x = F.conv2d((images - mean) / std, state["visual.conv1.weight"], stride=14).flatten(2).mT
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + state["visual.positional_embedding"]
    x = F.layer_norm(x, x.shape[-1:], state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
    x = plain_tower(state, "visual.", x)[:, 0]
    x = F.layer_norm(x, x.shape[-1:], state["visual.ln_post.weight"], state["visual.ln_post.bias"])
    z = x @ state["visual.proj"]

    y = state["token_embedding.weight"][tokens] + state["positional_embedding"][: tokens.shape[1]]
    future = torch.full((tokens.shape[1],) * 2, float("-inf"), dtype=y.dtype).triu(1)
    y = plain_tower(state, "", y, future)
    y = F.layer_norm(y, y.shape[-1:], state["ln_final.weight"], state["ln_final.bias"])
    ends = [row.tolist().index(len(state["token_embedding.weight"]) - 1) for row in tokens]
    y = torch.stack([row[end] for row, end in zip(y, ends, strict=True)]) @ state["text_projection"]
    return (z * y).sum(1) / (z.square().sum(1) * y.square().sum(1)).sqrt()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(network, folder): in the folder HPS.pt in open_clip's layout, and a vocabulary."""
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = len(tiny_tokenizer(folder))
    network = small_network(vocabulary)
    state = in_layout_of_open_clip(network)
    torch.save({"epoch": 3, "state_dict": state}, folder / "HPS.pt")
    save_file({name: value.clone() for name, value in state.items()}, folder / "HPS.safetensors")
    return network, folder


@pytest.fixture(autouse=True)
def small(files, monkeypatch):
    """HPSv2.1 is small here, and no test asks the hub."""
    vocabulary = files[0].config.text_config.vocab_size
    monkeypatch.setattr(clip_rewards, "VIT_H14", sizes(vocabulary))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def reward(files, small):
    return load_hpsv2(files[1] / "HPS.pt", device="cpu")


@pytest.fixture
def double(reward):
    """The reward's network in float64, and the tokens of the prompts."""
    tokens, network = reward.tokens(PROMPTS), reward.network.double()
    torch.set_default_dtype(torch.float64)  # transformers 4 makes its mask in this one
    yield network, tokens
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("file", ["HPS.pt", "HPS.safetensors"])
def test_layout_of_open_clip(files, file):
    """Every weight ends where it came from, from either kind of file."""
    network = make_reward(f"hpsv2:{files[1] / file}", "cpu").network
    for name, value in files[0].state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name  # exact: a file holds bits


def test_published_size(monkeypatch):
    """ViT-H/14 has 986.11 million parameters (README of open_clip), all of which are found."""
    monkeypatch.undo()
    with torch.device("meta"):
        full = CLIPModel(CLIPConfig(**clip_rewards.VIT_H14))
    state = full.state_dict()
    converted = clip_rewards.convert(in_layout_of_open_clip(full), state)
    assert converted.keys() == state.keys()
    assert all(converted[name].shape == value.shape for name, value in state.items())
    assert sum(value.numel() for value in state.values()) == pytest.approx(986.11e6, abs=5e3)
    for part, heads in ((full.config.vision_config, 16), (full.config.text_config, 16)):
        # weights do not tell
        assert (part.num_attention_heads, part.hidden_act) == (heads, "gelu")
        assert part.layer_norm_eps == pytest.approx(1e-5)
    assert full.config.text_config.max_position_embeddings == 77


def test_score_is_clips_cosine(double):
    """Another implementation, from open_clip's names with torch's attention, in float64."""
    network, tokens = double
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    expected = plain_cosine(in_layout_of_open_clip(network), images, tokens)
    torch.testing.assert_close(cosine(network, images, tokens), expected, rtol=0, atol=1e-10)
    assert expected.std() > 1e-3


def test_lengths_of_embeddings_and_what_follows_the_end_do_not_matter(double):
    network, tokens = double
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    before = cosine(network, images, tokens)
    assert before.abs().max() < 1 + 1e-10
    network.visual_projection.weight.mul_(3)
    network.text_projection.weight.mul_(0.2)
    torch.testing.assert_close(cosine(network, images, tokens), before, rtol=0, atol=1e-10)
    longer = F.pad(tokens, (0, LENGTH - tokens.shape[1]), value=5)
    torch.testing.assert_close(cosine(network, images, longer), before, rtol=0, atol=1e-10)


def test_gradient_by_finite_differences(double):
    """Through resizing, cutting, network and cosine; away from 0 and 1, where pictures are
    clipped."""
    network, tokens = double
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.4 * torch.rand(2, 3, 40, 35, generator=generator)
    direction = torch.randn(images.shape, generator=generator)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cosine(network, leaf, tokens).sum(), leaf)
    h = 1e-5
    ahead, behind = (cosine(network, images + s * direction, tokens).sum() for s in (h, -h))
    slope = (ahead - behind) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-10)
    assert slope.abs() > 1e-4


def test_reward_is_the_scaled_cosine(files, reward):
    """One score per picture in float32; picture and prompt matter; no gradients of weights."""
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    tokens = reward.tokens(PROMPTS)
    scores = reward(images, PROMPTS)
    assert scores.shape == (2,) and scores.dtype == torch.float32 and reward.differentiable
    torch.testing.assert_close(scores, cosine(reward.network, images, tokens))
    torch.testing.assert_close(reward(images[1:], PROMPTS[1:]), scores[1:], rtol=1e-5, atol=1e-6)
    assert (reward(images, PROMPTS[::-1]) - scores).abs().min() > 1e-4
    leaf = images.clone().requires_grad_()
    reward(leaf, PROMPTS).sum().backward()
    assert leaf.grad.abs().max() > 1e-6
    assert all(parameter.grad is None for parameter in reward.network.parameters())


def test_pickscore_multiplies_by_its_own_scale(files, reward, tmp_path):
    """r = exp(s) cos, loaded by name from a folder as transformers saves one."""
    network = small_network(files[0].config.text_config.vocab_size)
    network.logit_scale.fill_(math.log(37.0))
    network.save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    pickscore = make_reward(f"pickscore:{tmp_path}", "cpu")
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pickscore(images, PROMPTS), 37.0 * reward(images, PROMPTS))


def test_tokens_are_padded_with_zeros_and_cut(reward):
    """start ... end, then 0 and not the end token; what is too long is cut before the end."""
    end = reward.tokenizer.eos_token_id
    long = "red " * 40
    tokens = reward.tokens([*PROMPTS, long])
    assert tokens.shape == (3, LENGTH)
    for row in tokens.tolist():
        assert row[0] == end - 1 and row.count(end) == 1
        assert set(row[row.index(end) + 1 :]) <= {0}
    assert tokens[2, -1] == end and tokens[1].tolist().index(end) < LENGTH - 1
    assert reward.tokenizer.pad_token_id == end  # so the zeros are not the tokenizer's own doing


def test_half_precision(files, reward):
    """In float16 the cosine moves by less than 0.01, and its gradient keeps its direction though
    the loss is 1e-7 of it."""
    half = load_hpsv2(files[1] / "HPS.pt", device="cpu", dtype="float16")
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    leaves = [images.clone().requires_grad_() for _ in range(2)]
    scores = [each(leaf, PROMPTS) for each, leaf in zip((reward, half), leaves, strict=True)]
    assert scores[1].dtype == torch.float32 and (scores[0] - scores[1]).abs().max() < 0.01
    for score in scores:
        (1e-7 * score.sum()).backward()
    full, rounded = (leaf.grad.flatten() for leaf in leaves)
    assert F.cosine_similarity(full, rounded, dim=0) > 0.99


def filter_matrix(before, after):
    """Rows of weights of an antialiased bicubic reduction (Keys 1981, a = -1/2).

    out_i = sum_j k((j + 1/2 - c_i) / s) in_j / sum_j k(...),   c_i = (i + 1/2) before / after
    s = max(1, before / after)
    """
    centre = (np.arange(after)[:, None] + 0.5) * before / after
    x = np.abs(np.arange(before)[None] + 0.5 - centre) / max(1, before / after)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    k = np.where(x < 1, near, np.where(x < 2, far, 0))
    return k / k.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(37, 52), (60, 37), (31, 31), (9, 16)])
def test_preprocessing_is_torchvisions(shape):
    """Resize(24, BICUBIC), CenterCrop(24), Normalize, by hand: the longer side is rounded down,
    the corner of the square to the nearest number; larger and smaller pictures, float64."""
    pixels = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0)).double()
    height, width = shape
    tall = height > width
    size = (int(24 * height / width), 24) if tall else (24, int(24 * width / height))
    rows, columns = filter_matrix(height, size[0]), filter_matrix(width, size[1])
    resized = np.clip(rows @ pixels[0].numpy() @ columns.T, 0, 1)
    top, left = int(round((size[0] - 24) / 2)), int(round((size[1] - 24) / 2))
    square = resized[:, top : top + 24, left : left + 24]
    mean = np.array([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    expected = torch.from_numpy((square - mean) / std)[None]
    torch.testing.assert_close(preprocess(pixels, 24), expected, rtol=0, atol=1e-10)


def refused(match, name):
    """Making the reward fails in one line that says so."""
    with pytest.raises(ValueError, match=match) as refusal:
        make_reward(name, "cpu")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda s: s.pop("visual.ln_pre.bias"),
            "lacks 1 weights.*'vision_model.pre_layrnorm.bias'",
        ),
        (
            lambda s: s.pop("transformer.resblocks.1.attn.in_proj_weight"),
            "HPSv2.1's file lacks 3 weights",
        ),
        (
            lambda s: s.update({"score_predictor.weight": torch.zeros(2)}),
            "'score_predictor.weight' of shape .2,. is not a weight of HPSv2.1; another file",
        ),
        (
            lambda s: s.update({"visual.proj": torch.zeros(8, 20)}),
            "'visual.proj' of shape .20, 8. is not a weight of HPSv2.1; another file",
        ),
        (lambda s: s.update(step=3), "holds no weights .not only names and tensors"),
    ],
)
def test_other_weights_are_refused(files, tmp_path, change, match):
    state = in_layout_of_open_clip(files[0])
    change(state)
    torch.save({"state_dict": state}, tmp_path / "HPS.pt")
    tiny_tokenizer(tmp_path)
    refused(match, f"hpsv2:{tmp_path / 'HPS.pt'}")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "reward: there is no file .*give the path to a downloaded one"),
        (b"", "is damaged or holds no weights"),
        (b"PK\x03\x04 and no zip archive", "is damaged or holds no weights"),
    ],
)
def test_files_that_are_none(tmp_path, suffix, content, match):
    path = tmp_path / f"HPS{suffix}"
    if content is not None:
        path.write_bytes(content)
    refused(match, f"hpsv2:{path}")


def test_a_file_that_runs_code_is_refused_unopened(tmp_path):
    victim = tmp_path / "victim"

    class Malice:
        def __reduce__(self):
            return (open, (str(victim), "w"))

    torch.save({"state_dict": {"logit_scale": Malice()}}, tmp_path / "HPS.pt")
    refused("could run code; it was not opened", f"hpsv2:{tmp_path / 'HPS.pt'}")
    assert not victim.exists()


def test_what_is_missing_is_named(files, tmp_path):
    """No hub and no tokenizer beside the file; a folder with a pickle only, or with nothing."""
    save_file(in_layout_of_open_clip(files[0]), tmp_path / "HPS.safetensors")
    name = f"hpsv2:{tmp_path / 'HPS.safetensors'}"
    refused("reward hpsv2: cannot be loaded .*hpsv2:FILE", name)
    refused("reward xswu/HPSv2: cannot be loaded .*hpsv2:FILE", "hpsv2")
    refused("reward pickscore: cannot be loaded .*pickscore:FOLDER", "pickscore")
    refused("reward pickscore: cannot be loaded", f"pickscore:{tmp_path}")
    files[0].config.save_pretrained(tmp_path)
    torch.save(files[0].state_dict(), tmp_path / "pytorch_model.bin")
    refused("reward pickscore: cannot be loaded .*safetensors", f"pickscore:{tmp_path}")
    (tmp_path / "pytorch_model.bin").unlink()
    files[0].save_pretrained(tmp_path)
    name = f"pickscore:{tmp_path}"
    refused("reward pickscore: cannot be loaded .*hpsv2:FILE", name)


def test_found_by_name(monkeypatch):
    seen = []
    for name in ("hpsv2", "pickscore"):
        loader = lambda source, device, name=name: seen.append((name, source, device))  # noqa: E731
        monkeypatch.setitem(clip_rewards.LOADERS, name, loader)
    make_reward("hpsv2")
    make_reward("pickscore:C:/models/PickScore", "cuda")
    assert seen == [("hpsv2", None, None), ("pickscore", "C:/models/PickScore", "cuda")]


def test_in_the_loop(reward):
    """As a black box for PSD and by its gradient, on the exact world."""
    for method in ("psd", "pixel-clean"):
        settings = {"steps": 2, "resolution": 8, "reward": reward, "progress": False}
        run = distill(
            VoxelField(8), ToyWorldPrior(8), make_method(method), "a red ball", **settings
        )
        assert len(run.history) == 2


@pytest.mark.oracle
@pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None,
    reason="pip install --no-deps open_clip_torch==3.3.0 ftfy==6.3.1",
)
def test_open_clip_itself_agrees(monkeypatch):
    """Tokens, embeddings, cosines and picture gradients of the package on the same random
    weights."""
    monkeypatch.undo()
    found = compare()
    assert found.pop("tokens") == 0 and set(found) == {"pictures", "prompts", "cosines", "gradient"}
    assert max(found.values()) < 1e-5
