"""Is our ImageReward the published one? The package image-reward 1.5 answers, on random weights.

    python tests/tools/image_reward_oracle.py FOLDER           the small size
    python tests/tools/image_reward_oracle.py FOLDER --full    and the published one (ViT-L/16 and
                                                               BERT-base; minutes, 8 GB)

The package is in FOLDER, or is installed there first.
It prints the largest differences of scores and of gradients with respect to the image, and fails if
one is not tiny.

The package cannot be a dependency: it pins timm 0.6.13 and needs torchvision, fairscale and an
undeclared clip, and imports only with transformers up to 4.55.4. So it is installed without what it
asks for, and imported with stand-ins for those parts of its dependencies that scoring does not use
or that have moved since.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import nn

VERSION = "1.5"
SMALL_VISION = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
SMALL_TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}
FULL_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30524,
    "max_position_embeddings": 512,
}


def install(folder: Path) -> None:
    """pip install the package alone, without its dependencies, into a folder of its own."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    command = [*pip, "--target", str(folder), f"image-reward=={VERSION}"]
    subprocess.run(command, check=True)


class PatchEmbed(nn.Module):
    """timm's: a convolution that cuts the image into patches."""

    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=768):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def stand_in(name: str, **contents) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    module.__path__ = []
    sys.modules[name] = module


def import_package(folder: Path):
    """The package's module `ImageReward.ImageReward`, imported from a folder with the stand-ins.

    Raises:
        ModuleNotFoundError: it is not there.
    """
    root = folder / "ImageReward"
    if not (root / "ImageReward.py").is_file():
        command = f"python tests/tools/image_reward_oracle.py {folder}"
        raise ModuleNotFoundError(f"image-reward is not in {folder}; run {command}")
    # transformers looks for torchvision when it is imported, so before the stand-in
    from transformers import BertConfig, BertTokenizer, file_utils, modeling_utils, pytorch_utils  # noqa: F401

    before = set(sys.modules)
    for name in ("", ".models", ".models.BLIP"):
        # a path, and no __init__: the package's own ones import everything
        stand_in(f"ImageReward{name}")
        sys.modules[f"ImageReward{name}"].__path__ = [str(root.joinpath(*name.split(".")))]
    unused = ("_cfg", "register_model", "named_apply", "adapt_input_conv", "download_cached_file")
    used = {"trunc_normal_": nn.init.trunc_normal_, "DropPath": nn.Identity}
    timm = ("vision_transformer", "registry", "layers", "helpers", "hub")
    for part in ("timm", "timm.models", *(f"timm.models.{name}" for name in timm)):
        stand_in(part, PatchEmbed=PatchEmbed, **dict.fromkeys(unused), **used)
    for part in ("", ".nn", ".nn.checkpoint", ".nn.checkpoint.checkpoint_activations"):
        stand_in(f"fairscale{part}", checkpoint_wrapper=None)
    if importlib.util.find_spec("torchvision") is None:

        def nothing(*_, **__):
            return None

        names = ("Compose", "Resize", "CenterCrop", "ToTensor", "Normalize")
        stand_in("torchvision")
        stand_in("torchvision.transforms", **dict.fromkeys(names, nothing))
    replaced = ("timm", "fairscale", "torchvision")
    stand_ins = {name for name in sys.modules if name.split(".")[0] in replaced} - before

    moved = ["apply_chunking_to_forward", "prune_linear_layer", "find_pruneable_heads_and_indices"]
    for name in moved:
        if not hasattr(modeling_utils, name):
            setattr(modeling_utils, name, getattr(pytorch_utils, name, None))
    module = importlib.import_module("ImageReward.ImageReward")
    for name in stand_ins:
        del sys.modules[name]

    med = sys.modules["ImageReward.models.BLIP.med"]

    class BertModel(med.BertModel):
        """With what transformers has dropped since."""

        def init_weights(self):
            pass  # the weights are drawn below

        def get_head_mask(self, head_mask, layers, is_attention_chunked=False):
            return [None] * layers

        def invert_attention_mask(self, mask):
            # the published formula: 0 where seen, the lowest number where not
            mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
            return (1.0 - mask.to(self.dtype)) * torch.finfo(self.dtype).min

    pretrain = sys.modules["ImageReward.models.BLIP.blip_pretrain"]
    pretrain.BertModel = BertModel
    pretrain.init_tokenizer = lambda: None  # tokens are given as numbers here
    return module


def published_model(folder: Path, full: bool) -> nn.Module:
    """The package's own ImageReward with random weights, of published or small size."""
    module = import_package(folder)
    torch.manual_seed(0)
    pretrain = sys.modules["ImageReward.models.BLIP.blip_pretrain"]
    text = dict(FULL_TEXT if full else SMALL_TEXT)
    text |= {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "add_cross_attention": True}
    published = pretrain.create_vit, module.MLP
    if not full:
        vision = SMALL_VISION
        transformer = sys.modules["ImageReward.models.BLIP.vit"].VisionTransformer

        def create_vit(*_):
            made = transformer(
                img_size=vision["image_size"],
                patch_size=vision["patch_size"],
                embed_dim=vision["hidden_size"],
                depth=vision["num_hidden_layers"],
                num_heads=vision["num_attention_heads"],
            )
            return made, vision["hidden_size"]

        pretrain.create_vit = create_vit
        module.MLP = lambda _: published[1](text["hidden_size"])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        rest = {"type_vocab_size": 2, "pad_token_id": 0, "fusion_layer": 0, "encoder_width": 768}
        json.dump(text | rest, file)
        file.flush()
        model = module.ImageReward(med_config=file.name)
    pretrain.create_vit, module.MLP = published
    # weights in which every part matters: with initialised ones the scores of all pictures agree to
    # five digits
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            parameter.copy_(noise / fan_in**0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)
            if name.endswith("embeddings.weight"):
                parameter.copy_(noise)
    return model.eval().requires_grad_(False)


def compare(folder: Path, full: bool = False) -> tuple[float, float, float]:
    """Largest |score difference|, largest |gradient difference|, and the largest gradient.

    They are of two pictures and prompts.
    """
    from psd_mini.pretrained.image_reward import MEAN, STD, ImageRewardNetwork, convert

    theirs = published_model(folder, full)
    ours = ImageRewardNetwork() if full else ImageRewardNetwork(SMALL_VISION, SMALL_TEXT)
    ours.load_state_dict(convert(theirs.state_dict(), ours.state_dict()))
    ours.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, ours.resolution, ours.resolution, generator=generator)
    tokens = torch.randint(1, 60, (2, 35), generator=generator)
    mask = (torch.arange(35) < torch.tensor([[7], [20]])).long()
    answers = []
    for model in (
        lambda x: theirs.score_gard(tokens, mask, x)[:, 0],
        lambda x: (ours(x, tokens, mask) - MEAN) / STD,
    ):
        leaf = pixels.clone().requires_grad_()
        score = model(leaf)
        answers.append((score.detach(), torch.autograd.grad(score.sum(), leaf)[0]))
    (score, gradient), (our_score, our_gradient) = answers
    print(f"scores {score.tolist()}, ours {our_score.tolist()}")
    size = gradient.abs().max().item()
    differences = score - our_score, gradient - our_gradient
    return differences[0].abs().max().item(), differences[1].abs().max().item(), size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the package is, or is installed")
    parser.add_argument("--full", action="store_true", help="the published size too")
    arguments = parser.parse_args()
    if not (arguments.folder / "ImageReward").exists():
        install(arguments.folder)
    for full in (False, True) if arguments.full else (False,):
        score, gradient, size = compare(arguments.folder, full)
        name = "published size" if full else "small"
        print(f"{name}: max |score difference| {score:.2e}, ", end="")
        print(f"max |gradient difference| {gradient:.2e} (of {size:.2e})")
        assert score < 1e-4 and gradient < 1e-4 * size, "our ImageReward is not the published one"
