"""Is our CLIP, loaded from open_clip's layout, open_clip's? open_clip_torch 3.3.0 answers.

    pip install --no-deps open_clip_torch==3.3.0 ftfy==6.3.1
    python tests/tools/clip_oracle.py           a small size
    python tests/tools/clip_oracle.py --full    and the published one (ViT-H/14; minutes, 12 GB)

On random weights: the package's own model is saved as HPSv2.1 is, with the package's own vocabulary
beside it, and loaded by `load_hpsv2`. It prints the largest differences of tokens, embeddings,
cosines and gradients with respect to the pictures, and fails if one is not tiny.

open_clip_torch needs torchvision, for pictures in files and for other kinds of networks. Where that
is not installed a stand-in takes its place.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from image_reward_oracle import stand_in
from torch import Tensor, nn

VISION = {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
SMALL: dict[str, Any] = {"embed_dim": 20, "vision_cfg": VISION, "text_cfg": TEXT}

PROMPTS = [
    "a corgi wearing a top hat",
    "A photo of a DSLR camera, 8k, highly-detailed; it's 50% off!",
    "une fenêtre ouverte sur l'océan, 日本の城, naïve café",
    "  two   spaces\tand a tab \n",
    "",
    " ".join(f"word{i}" for i in range(60)),  # more than 77 tokens
]


def import_open_clip():
    """The package, imported with a stand-in for torchvision where there is none."""
    import transformers  # noqa: F401  (it looks for torchvision when it is imported)
    from transformers import CLIPModel, CLIPTokenizer  # noqa: F401

    if "open_clip" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("open_clip")
    transforms = "Normalize Compose RandomResizedCrop InterpolationMode ToTensor Resize CenterCrop"
    contents = {name: MagicMock() for name in f"{transforms} ColorJitter Grayscale".split()}
    before = set(sys.modules)
    stand_in("torchvision")
    stand_in("torchvision.transforms", **contents)
    stand_in("torchvision.transforms.functional")
    stand_in("torchvision.ops")
    stand_in("torchvision.ops.misc", FrozenBatchNorm2d=nn.BatchNorm2d)
    package = importlib.import_module("open_clip")
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "torchvision":
            del sys.modules[name]
    return package


def random_model(config: dict[str, Any]) -> nn.Module:
    """The package's own CLIP with weights in which every part matters."""
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(**config, output_dict=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            wide = parameter.ndim > 1
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if wide else parameter + 0.1 * noise)
    return model.eval().requires_grad_(False)


def our_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The same architecture in the words of transformers' CLIPConfig."""
    both = {"hidden_act": "gelu"}
    v, t = config["vision_cfg"], config["text_cfg"]
    vision = {"hidden_size": v["width"], "num_attention_heads": v["width"] // v["head_width"]}
    vision |= {"intermediate_size": 4 * v["width"], "num_hidden_layers": v["layers"]}
    vision |= {"image_size": v["image_size"], "patch_size": v["patch_size"]}
    text = {"hidden_size": t["width"], "num_attention_heads": t["heads"]}
    text |= {"intermediate_size": 4 * t["width"], "num_hidden_layers": t["layers"]}
    return {
        "vision_config": vision | both,
        "text_config": text | both,
        "projection_dim": config["embed_dim"],
    }


def write_tokenizer(folder: Path) -> None:
    """The package's vocabulary in the two files that transformers reads."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    tokenizer = SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    numbers = {special.get(word, word): number for word, number in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    with gzip.open(default_bpe()) as file:
        merges = file.read().decode().split("\n")[1 : len(tokenizer.bpe_ranks) + 1]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def features(answer: Any) -> Tensor:
    """transformers from 5 on wraps the embeddings."""
    return getattr(answer, "pooler_output", answer)


def compare(full: bool = False) -> dict[str, float]:
    """Largest differences, divided by the largest number of their kind.

    Of the embeddings of pictures and of prompts, the cosines of all pairs, and their gradient; and
    how many tokens are different.
    """
    from psd_mini.pretrained import clip_rewards

    open_clip = import_open_clip()
    config = open_clip.get_model_config("ViT-H-14") if full else SMALL
    theirs = random_model(config)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "HPS.pt"
        torch.save({"epoch": 1, "state_dict": theirs.state_dict()}, path)
        write_tokenizer(path.parent)
        sizes = clip_rewards.VIT_H14 if full else our_sizes(config)
        with patch.object(clip_rewards, "VIT_H14", sizes):
            reward = clip_rewards.load_hpsv2(path, device="cpu")

    prompts = PROMPTS[:2] if full else PROMPTS
    tokens, ours = open_clip.tokenize(prompts), reward.tokens(prompts)
    different = (tokens[:, : ours.shape[1]] != ours).sum() + tokens[
        :, ours.shape[1] :
    ].count_nonzero()

    size = theirs.visual.image_size[0]
    images = torch.rand(len(prompts), 3, size, size, generator=torch.Generator().manual_seed(1))
    leaves = images.clone().requires_grad_(), images.clone().requires_grad_()
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    out = theirs((leaves[0] - mean) / std, tokens)
    cosines = (out["image_features"] * out["text_features"]).sum(1)
    our_cosines = reward(leaves[1], prompts)
    cosines.sum().backward()
    our_cosines.sum().backward()
    with torch.no_grad():
        pixels = (images - mean) / std
        pairs = {
            "pictures": (
                theirs.encode_image(pixels),
                features(reward.network.get_image_features(pixels)),
            ),
            "prompts": (
                theirs.encode_text(tokens),
                features(reward.network.get_text_features(ours)),
            ),
            "cosines": (cosines, our_cosines),
            "gradient": (leaves[0].grad, leaves[1].grad),
        }
        print(f"cosines {cosines.tolist()}, ours {our_cosines.tolist()}")
        print({kind: f"{pair[0].abs().max():.3g}" for kind, pair in pairs.items()}, "largest")
        relative = {
            kind: ((a - b).abs().max() / a.abs().max()).item() for kind, (a, b) in pairs.items()
        }
    return {"tokens": float(different)} | relative


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the published size too")
    for full in (False, True) if parser.parse_args().full else (False,):
        found = compare(full)
        shown = ", ".join(f"{kind} {value:.2e}" for kind, value in found.items())
        print(f"{'published size' if full else 'small'}: relative differences: {shown}")
        assert max(found.values()) < 1e-4, "our CLIP is not open_clip's"
