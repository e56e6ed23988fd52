"""ImageReward: what people prefer in pictures made from a text, learned from 137,000 comparisons.

    tokens = BERT tokens of the prompt, padded to 35
    z      = ViT-L/16( (image resized to 224 x 224 - mean) / std )       (B, 197, 1024)
    h      = BERT-base with cross-attention to z, its first token        (B, 768)
    r      = (W_5 ... W_1 h + b - 0.1672) / 1.0333                       five linear layers

r is about standard normal over pictures of Stable Diffusion 1.4. The networks are transformers' own
BLIP classes with the published weights under their new names. The package `image-reward` itself
does not import with transformers later than 4.55.4 and pulls in torchvision; here it is the oracle
of a test: same score, same gradient.

    reward = ImageReward.from_pretrained()        # 1.8 GB from the hub, or a path to ImageReward.pt
    reward(images, ["a corgi"] * len(images))     # (B,)

Reference: Xu et al. 2023, "ImageReward" (arXiv 2304.05977); BLIP: Li et al. 2022 (arXiv
2201.12086). Weights: Apache-2.0 by their model card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psd_mini.pretrained.failures import hub_is_offline, one_line
from psd_mini.pretrained.loading import load_tokenizer
from psd_mini.pretrained.precision import GRADIENT_SCALE, freeze, scaled_gradients
from psd_mini.pretrained.published import find_file, preprocess, read_weights, rename_weights

Images = Float[Tensor, "b 3 h w"]

# the same repository after and before its owner was renamed
HUB_IDS = ("zai-org/ImageReward", "THUDM/ImageReward")
HUB_FILE = "ImageReward.pt"
TOKENIZER_ID = "google-bert/bert-base-uncased"
REMEDY = "image-reward:FILE takes a downloaded one, and colorfulness needs none"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw score, from the published code
TOKENS = 35

# the published ViT-L/16, where it is not transformers' default
VISION: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
VISION |= {"num_attention_heads": 16, "image_size": 224, "layer_norm_eps": 1e-6}

# parts of published names -> names in `ImageRewardNetwork`, replaced one after the other
NAMES = {
    "mlp.layers.": "head.",
    "blip.text_encoder.": "text.",
    "blip.visual_encoder.": "vision.",
    "vision.cls_token": "vision.embeddings.class_embedding",
    "vision.pos_embed": "vision.embeddings.position_embedding",
    "vision.patch_embed.proj.": "vision.embeddings.patch_embedding.",
    "vision.norm.": "vision.post_layernorm.",
    "vision.blocks.": "vision.encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
# published and not used: the heads of BLIP's contrastive loss, and constants
UNUSED_HEADS, UNUSED_CONSTANT = ("blip.vision_proj.", "blip.text_proj."), ".position_ids"


class ImageRewardNetwork(nn.Module):
    """Image and text to the raw score, in transformers' BLIP classes.

    Args:
        vision, text: what differs from the published sizes, for tests.
    """

    def __init__(self, vision: dict | None = None, text: dict | None = None):
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        vision = VISION | (vision or {})
        bert = {"num_attention_heads": 12, "encoder_hidden_size": vision["hidden_size"]}
        text_config = BlipTextConfig(**bert | (text or {}))
        self.resolution = int(vision["image_size"])
        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        self.text = BlipTextModel(text_config, add_pooling_layer=False)
        # the published layers have numbers; nn.Identity stands where training had dropout
        self.head = nn.Sequential(
            *(nn.Linear(text_config.hidden_size, 1024), nn.Identity()),
            *(nn.Linear(1024, 128), nn.Identity()),
            *(nn.Linear(128, 64), nn.Identity()),
            *(nn.Linear(64, 16), nn.Linear(16, 1)),
        )

    def forward(self, pixels: Images, tokens: Tensor, mask: Tensor) -> Float[Tensor, " b"]:
        """Raw score of normalised pixels and token numbers (B, L) with their mask."""
        z = self.vision(pixels).last_hidden_state
        seen = torch.ones(z.shape[:2], dtype=torch.long, device=z.device)
        # the configuration's is_decoder=True made the cross-attention; False here lets every token
        # see those after it
        h = self.text(
            tokens, mask, encoder_hidden_states=z, encoder_attention_mask=seen, is_decoder=False
        )
        return self.head(h.last_hidden_state[:, 0])[:, 0]


def convert(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the names of `ImageRewardNetwork`, all of them and no others.

    Args:
        state: name -> weight, as published.
        wanted: the network's own state dict.

    Raises:
        ValueError: a weight that the network has no place for, or one that is missing.
    """
    used: dict[str, Tensor] = {}
    for name, weight in state.items():
        if not (name.startswith(UNUSED_HEADS) or name.endswith(UNUSED_CONSTANT)):
            used[name] = weight
    return rename_weights(used, NAMES, wanted, "ImageReward")


class ImageReward:
    """ImageReward as a reward (equation: the module's docstring).

    Args:
        network: with its weights.
        tokenizer: BERT's (uncased), from transformers.
        device: default what there is.
        dtype: default float16 on a GPU, float32 elsewhere.

    Called with images (B, 3, H, W) in [0, 1] and B prompts, returns (B,) float32. Differentiable in
    the images.
    """

    differentiable = True

    def __init__(
        self,
        network: ImageRewardNetwork,
        tokenizer: Any,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ):
        self.device, self.dtype = freeze(network, device, dtype)
        self.network, self.tokenizer = network, tokenizer

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        tokenizer: str | Path = TOKENIZER_ID,
        network: ImageRewardNetwork | None = None,
        **settings: Any,
    ) -> ImageReward:
        """Load the published weights.

        Args:
            source: path to ImageReward.pt, or a hub id; None is `HUB_IDS`.
            tokenizer: folder or hub id of BERT's uncased vocabulary.
            network: of another size, for tests.
            settings: device, dtype.

        Raises:
            ValueError: in one line, what is missing and what to do.
        """
        state = read_weights(find_file(source, HUB_IDS, HUB_FILE, REMEDY))
        with one_line("reward image-reward", REMEDY):
            from transformers import BertTokenizer

            offline = Path(tokenizer).is_dir() or hub_is_offline()
            words = load_tokenizer(BertTokenizer, str(tokenizer), local_files_only=offline)
            network = network or ImageRewardNetwork()
        network.load_state_dict(convert(state, network.state_dict()))
        return cls(network, words, **settings)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        lengths = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
        words = self.tokenizer(list(prompts), return_tensors="pt", **lengths)
        tokens, mask = words.input_ids.to(self.device), words.attention_mask.to(self.device)

        def raw(images: Tensor) -> Tensor:
            pixels = preprocess(images.to(self.device), self.network.resolution)
            return self.network(pixels.to(self.dtype), tokens, mask)

        score = scaled_gradients(raw, images, self.dtype, GRADIENT_SCALE)
        return ((score - MEAN) / STD).to(images.device)
