"""The networks of the learned checkpoint before training, its vocabulary, and how they are saved.

Everything is written so that each supported version of transformers and diffusers reads it: the
text encoder with the names `text_model.*`, the tokenizer as vocab.json and merges.txt. Weights are
stored in half precision and used in single."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

SIZE = 64  # pixels per side
LATENT_SIZE = 16
LENGTH = 16  # tokens; the longest caption has 12 with its two ends
WIDTH = 64  # numbers per token
SCHEDULER = {  # Stable Diffusion's, for a model that predicts v
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_pair_merges(words: list[str]) -> list[tuple[str, str]]:
    """The merges that turn every word into one token: join the most frequent pair of neighbours
    until none is left.

    Source: Sennrich, Haddow & Birch 2016 (arXiv 1508.07909), algorithm 1, with "</w>" at a word's
    end."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges = []
    while pairs := Counter(pair for parts in split for pair in zip(parts, parts[1:], strict=False)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in split:
            k = 0
            while k < len(parts) - 1:
                if (parts[k], parts[k + 1]) == best:
                    parts[k : k + 2] = ["".join(best)]
                k += 1
    return merges


def save_tokenizer(folder: Path, words: list[str]) -> None:
    """Write a CLIP tokenizer that knows single bytes, as any, and these words as one token each."""
    folder.mkdir(parents=True, exist_ok=True)
    # byte-level BPE writes bytes as printable characters (Radford et al. 2019): 188 stand for
    # themselves
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(b) for b in printable] + [chr(256 + k) for k in range(256 - len(printable))]
    merges = byte_pair_merges(words)
    tokens = [
        *characters,
        *(c + "</w>" for c in characters),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    files = {
        "vocab.json": {token: k for k, token in enumerate(tokens)},
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": LENGTH,
            **{"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END},
        },
        "special_tokens_map.json": {
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=0))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""])
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(folder))


def autoencoder() -> Any:
    """AutoencoderKL, 64 x 64 pixels to 4 x 16 x 16 numbers, 0.4 million parameters, random
    weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=SIZE,
        latent_channels=4,
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
    )


def text_encoder(vocabulary: int) -> nn.Module:
    """CLIPTextModel with two layers of width 64, 0.1 million parameters, random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def unet() -> Any:
    """UNet2DConditionModel on 16 x 16 latents, attention at 8 x 8 only (there it is cheap), 3.2
    million parameters."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 112),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def save_checkpoint(folder: Path, networks: dict[str, nn.Module]) -> None:
    """Write the networks (unet, vae, text_encoder) and the schedule beside the tokenizer, in
    diffusers' format."""
    for part, network in networks.items():
        network.save_pretrained(str(folder / part), safe_serialization=True)  # type: ignore[operator]
        weights = {
            name: value.half().contiguous()
            for name, value in network.state_dict().items()
            if value.is_floating_point()
        }
        name = "diffusion_pytorch_model.safetensors"
        if part == "text_encoder":
            name = "model.safetensors"
            # newer versions drop the prefix that older ones need, and all read it
            weights = {
                "text_model." + key.removeprefix("text_model."): value
                for key, value in weights.items()
            }
        save_file(weights, folder / part / name, metadata={"format": "pt"})
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=1))
    index = {
        "_class_name": "StableDiffusionPipeline",
        **{"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]},
        **{
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
        },
        "scheduler": ["diffusers", "DDIMScheduler"],
        **{
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
        },
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def seeded(build: Any, seed: int, *args: Any) -> nn.Module:
    """A network whose random weights depend on the seed alone; the global generator is left as
    it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args)
