"""HPSv2.1 and PickScore: what people prefer, as the angle between a picture and its prompt.

Each is one CLIP of size ViT-H/14, trained further on people's choices between two pictures:

    z   = image network( (middle square at 224 x 224 - mean) / std )        (B, 1024)
    y   = text network( start, tokens of the prompt, end, 0, 0, ... )       (B, 1024)
    cos = <z, y> / (||z|| ||y||)
    r   = cos               HPSv2.1
    r   = exp(s) cos        PickScore, with its own trained number s (CLIP's logit scale)

Only differences between pictures of one prompt mean something.

    reward = make_reward("hpsv2")        # or "pickscore": from the hub, a few GB
    reward(images, ["a corgi"] * len(images))     # (B,)

Both run in transformers' CLIPModel. PickScore is published as one. HPSv2.1 is published in the
layout of open_clip: `convert` gives its weights their other names. The package open_clip_torch is
the oracle of a test: same tokens, same embeddings.

Tested on random weights of the same layout; never run on the published weights here.

Where published codes differ from each other:
- HPSv2's own script returns the cosine without a scale. Tables often show 100 times it. PickScore's
  model card multiplies by exp(s).
- HPSv2's own script fits the longer side into 224 and adds black bars; CLIP, PickScore and this
  module fit the shorter side and cut the middle. For square pictures, which renders are, that is
  the same.
- HPSv2's own script resizes float pictures: what bicubic overshoots is not clipped, and torchvision
  before 0.17 does not antialias them. Pillow, which PickScore's code uses, antialiases, clips and
  rounds to 256 levels. Here: antialiased, clipped, not rounded.
- open_clip mends a prompt with ftfy first (curly quotes, "&amp;"); transformers does not. Plain
  text gives the same tokens.

References: HPSv2: Wu et al. 2023 (arXiv 2306.09341); PickScore: Kirstain et al. 2023 (arXiv
2305.01569); CLIP: Radford et al. 2021 (arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini.pretrained.failures import hub_is_offline, one_line
from psd_mini.pretrained.loading import load_part, load_tokenizer
from psd_mini.pretrained.precision import GRADIENT_SCALE, freeze, scaled_gradients
from psd_mini.pretrained.published import find_file, preprocess, read_weights, rename_weights

Images = Float[Tensor, "b 3 h w"]

HPSV2_ID, HPSV2_FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
PICKSCORE_ID = "yuvalkirstain/PickScore_v1"
TOKENIZER_ID = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
REMEDY = "hpsv2:FILE and pickscore:FOLDER take downloaded ones, and colorfulness needs none"

# ViT-H/14, where it is not transformers' default
VISION = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
BOTH: dict[str, Any] = {"num_attention_heads": 16, "hidden_act": "gelu"}
VIT_H14: dict = {"vision_config": BOTH | VISION, "text_config": BOTH | TEXT, "projection_dim": 1024}

# parts of open_clip's names -> names in CLIPModel, replaced one after the other
NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",  # so spelled in transformers
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    ".attn.": ".self_attn.",
    ".ln_": ".layer_norm",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def convert(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's weights under the names of a CLIPModel, all of them and no others.

        in_proj (3 d, ...) = rows of q, of k, of v          three layers in CLIPModel
        x @ projection                                      a layer computes x @ weight.T

    Args:
        state: name -> weight, as open_clip saves them.
        wanted: the network's own state dict.

    Raises:
        ValueError: a weight that the network has no place for, or one that is missing.
    """
    split: dict[str, Tensor] = {}
    for name, weight in state.items():
        if ".in_proj_" in name:
            for part, rows in zip("qkv", weight.tensor_split(3), strict=True):
                split[name.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            split[name] = weight.T if name in ("visual.proj", "text_projection") else weight
    return rename_weights(split, NAMES, wanted, "HPSv2.1")


def cosine(network: Any, images: Images, tokens: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
    """The cosine between the embeddings of pictures in [0, 1] and of token numbers.

    In float32 or better outside of the networks. The text network is causal and is read at the end
    token, so what stands after that does not matter.
    """
    pixels = preprocess(images, network.config.vision_config.image_size)
    z = network.visual_projection(network.vision_model(pixels.to(network.dtype)).pooler_output)
    states = network.text_model(tokens).last_hidden_state
    # the end token has the largest number
    y = network.text_projection(states[torch.arange(len(tokens)), tokens.argmax(1)])
    return torch.cosine_similarity(z.to(pixels.dtype), y.to(pixels.dtype))


class CLIPReward:
    """The angle between a picture and its prompt as a reward (equation: the module's docstring).

    Args:
        network: transformers' CLIPModel, with its weights.
        tokenizer: CLIP's, from transformers.
        scale: what the cosine is multiplied by.
        settings: device, by default what there is, and dtype, by default float16 on a GPU and
            float32 elsewhere.

    Called with images (B, 3, H, W) in [0, 1] and B prompts, returns (B,) float32. Differentiable in
    the images.
    """

    differentiable = True

    def __init__(self, network: Any, tokenizer: Any, scale: float = 1.0, **settings: Any):
        self.device, self.dtype = freeze(network, **settings)
        self.network, self.tokenizer, self.scale = network, tokenizer, scale

    def tokens(self, prompts: Sequence[str]) -> Int[Tensor, "b l"]:
        """Start, words, end, and 0 after that as in open_clip; at most 77 with start and end."""
        most = self.network.config.text_config.max_position_embeddings
        lengths = {"padding": True, "truncation": True, "max_length": most}
        words = self.tokenizer(list(prompts), return_tensors="pt", **lengths)
        return words.input_ids * words.attention_mask

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        compare = partial(cosine, self.network, tokens=self.tokens(prompts).to(self.device))
        cosines = scaled_gradients(compare, images.to(self.device), self.dtype, GRADIENT_SCALE)
        return (self.scale * cosines).to(images.device)


def find_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer: from a folder that has one, else from the hub."""
    from transformers import CLIPTokenizer

    here = (folder / "vocab.json").is_file()
    source = folder.as_posix() if here else TOKENIZER_ID
    return load_tokenizer(CLIPTokenizer, source, local_files_only=here or hub_is_offline())


def load_hpsv2(source: str | Path | None = None, **settings: Any) -> CLIPReward:
    """HPSv2.1 as a reward.

    Args:
        source: path to HPS_v2.1_compressed.pt or a .safetensors copy, or a hub id. A tokenizer
            beside the file is used, else the hub's.
        settings: device, dtype.

    Raises:
        ValueError: in one line, what is missing and what to do.
    """
    path = find_file(source, (HPSV2_ID,), HPSV2_FILE, REMEDY)
    state = read_weights(path)
    with one_line("reward hpsv2", REMEDY):
        from transformers import CLIPConfig, CLIPModel

        tokenizer = find_tokenizer(path.parent)
        network = CLIPModel(CLIPConfig(**VIT_H14))
    network.load_state_dict(convert(state, network.state_dict()))
    return CLIPReward(network, tokenizer, **settings)


def load_pickscore(source: str | Path | None = None, **settings: Any) -> CLIPReward:
    """PickScore as a reward.

    Args:
        source: folder or hub id of a CLIPModel in safetensors. A tokenizer in the folder is used,
            else the hub's.
        settings: device, dtype.

    Raises:
        ValueError: in one line, what is missing and what to do.
    """
    folder = Path(source or PICKSCORE_ID).expanduser()
    with one_line("reward pickscore", REMEDY):
        from transformers import CLIPModel

        network: Any = load_part(CLIPModel, folder.as_posix(), offline=hub_is_offline())
        tokenizer = find_tokenizer(folder)
    return CLIPReward(network, tokenizer, network.logit_scale.double().exp().item(), **settings)


LOADERS = {"hpsv2": load_hpsv2, "pickscore": load_pickscore}
