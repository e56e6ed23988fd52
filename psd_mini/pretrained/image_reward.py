"""ImageReward: what people prefer in pictures made from a text, learned from 137,000 comparisons.

    tokens  = BERT tokens of the prompt, padded to 35
    z       = ViT-L/16( (image resized to 224 x 224 - mean) / std )                     (B, 197, 1024)
    h       = BERT-base with cross-attention to z, its first token                      (B, 768)
    r       = (W_5 ... W_1 h + b - 0.1672) / 1.0333                                     five linear layers, none between them

r is about standard normal over pictures of Stable Diffusion 1.4. The networks are transformers' own
BLIP classes with the published weights under their new names. The package `image-reward` itself
does not import with transformers later than 4.55.4 and pulls in torchvision; here it is the oracle
of a test: same score, same gradient.

    reward = ImageReward.from_pretrained()        # 1.8 GB from the hub, or a path to ImageReward.pt
    reward(images, ["a corgi"] * len(images))     # (B,)

A reward of your own needs no more than this. PickScore (Kirstain et al. 2023) as an example:

    class PickScore:
        differentiable = True
        def __init__(self, id="yuvalkirstain/PickScore_v1",
            text="laion/CLIP-ViT-H-14-laion2B-s32B-b79K"): self.model =
            transformers.CLIPModel.from_pretrained(id).eval().requires_grad_(False) self.tokenizer =
            transformers.CLIPTokenizer.from_pretrained(text)
        def __call__(self, images, prompts):
            tokens = self.tokenizer(list(prompts), padding=True, truncation=True,
            return_tensors="pt") out = self.model(pixel_values=preprocess(images, 224), **tokens)
            return self.model.logit_scale.exp() * (out.image_embeds * out.text_embeds).sum(-1)  # both have norm 1

Reference: Xu et al. 2023, "ImageReward" (arXiv 2304.05977); BLIP: Li et al. 2022 (arXiv
2201.12086). Weights: Apache-2.0 by their model card.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from psd_mini.pretrained.failures import first_line, hub_is_offline, one_line
from psd_mini.pretrained.precision import choose_device, choose_dtype, scaled_gradients

HUB_IDS = (
    "zai-org/ImageReward",
    "THUDM/ImageReward",
)  # the same repository before and after its owner's renaming
HUB_FILE = "ImageReward.pt"
TOKENIZER_ID = "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw score, from the published code
PIXEL_MEAN, PIXEL_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # CLIP's
TOKENS = 35
REMEDY = "image-reward:FILE takes a downloaded one, and colorfulness needs none"
# inside of float16 networks: the gradient of a pixel is a thousandth of that of the score
GRADIENT_SCALE = 1024.0

# published name -> name in `ImageRewardNetwork`; the first pattern that matches counts
KEY_MAP = (
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.",
        r"vision.encoder.layers.\1.layer_norm\2.",
    ),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.",
        r"vision.encoder.layers.\1.self_attn.qkv.",
    ),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision.encoder.layers.\1.self_attn.projection.",
    ),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"blip\.text_encoder\.", "text."),
    (r"mlp\.layers\.", "head."),
)
UNUSED = r"blip\.(vision|text)_proj\.|.*\.position_ids$"  # BLIP's contrastive heads; a constant


class ImageRewardNetwork(nn.Module):
    """Image and text to the raw score, in transformers' BLIP classes.

    Args:
        vision, text: what differs from the published sizes (ViT-L/16 and BERT-base), for tests.
    """

    def __init__(
        self, vision: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None
    ):
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        large: dict[str, Any] = {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        }
        image: dict[str, Any] = {
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        }
        image = {**large, **image, **(vision or {})}
        vision_config = BlipVisionConfig(**image)
        base = {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        }
        words = {
            "vocab_size": 30524,
            "max_position_embeddings": 512,
            "layer_norm_eps": 1e-12,
            "is_decoder": True,
        }
        kind = {"hidden_act": "gelu", "encoder_hidden_size": vision_config.hidden_size}
        text_config = BlipTextConfig(**{**base, **words, **kind, **(text or {})})
        self.resolution = int(image["image_size"])
        self.vision = BlipVisionModel(vision_config)
        self.text = BlipTextModel(text_config, add_pooling_layer=False)
        widths = (text_config.hidden_size, 1024, 128, 64, 16, 1)
        linear = [nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        dropout = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        self.head = nn.Sequential(
            linear[0],
            dropout[0],
            linear[1],
            dropout[1],
            linear[2],
            dropout[2],
            linear[3],
            linear[4],
        )

    def forward(
        self, pixels: Float[Tensor, "b 3 s s"], tokens: Tensor, mask: Tensor
    ) -> Float[Tensor, " b"]:
        """Raw score of normalised pixels and token numbers (B, L) with their mask."""
        z = self.vision(pixels).last_hidden_state
        seen = torch.ones(z.shape[:2], dtype=torch.long, device=z.device)
        # is_decoder=True made the cross-attention; False keeps the self-attention free to look
        # ahead
        h = self.text(
            tokens, mask, encoder_hidden_states=z, encoder_attention_mask=seen, is_decoder=False
        )
        return self.head(h.last_hidden_state[:, 0])[:, 0]


def convert(state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Published weights under the names of `ImageRewardNetwork`, all of them and no others.

    Args:
        state: name -> weight, as published.
        wanted: the names that the network has.

    Raises:
        ValueError: names what nothing was made of, what is missing, or what is no tensor.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if re.match(UNUSED, name):
            continue
        for pattern, replacement in KEY_MAP:
            new, hits = re.subn(f"^{pattern}", replacement, name)
            if hits:
                break
        if not hits or new not in wanted or not isinstance(value, Tensor):
            raise ValueError(
                f"reward: ImageReward's file has {name!r}, which this network has no place for;"
                " another model?"
            )
        converted[new] = value
    missing = sorted(wanted - converted.keys())
    if missing:
        raise ValueError(
            f"reward: ImageReward's file lacks {len(missing)} weights, the first is {missing[0]!r};"
            " damaged?"
        )
    return converted


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a .pt file, read so that it cannot run code.

    Raises:
        ValueError: no such file, damaged, or a pickle of anything but tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"reward: there is no file {path}; give the path to {HUB_FILE}") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"reward: {path} holds more than tensors and could run code; it was not opened, get"
            " another copy"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"reward: {path} is damaged or no torch file ({first_line(error)}); get another copy"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(
            f"reward: {path} holds {type(state).__name__}, expected a dictionary of weights"
        )
    return state


def preprocess(
    images: Float[Tensor, "b 3 h w"], resolution: int
) -> Float[Tensor, "b 3 resolution resolution"]:
    """Pillow's bicubic resize of the shorter side and the middle square, then CLIP's normalisation;
    differentiable, float32.

    The filter widens with the reduction (antialias): without that, single pixels of a large picture
    would decide the score."""
    height, width = images.shape[-2:]
    scale = resolution / min(height, width)
    shape = max(resolution, round(height * scale)), max(resolution, round(width * scale))
    resized = F.interpolate(images.float(), shape, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = round((shape[0] - resolution) / 2), round((shape[1] - resolution) / 2)
    resized = resized[..., top : top + resolution, left : left + resolution]
    mean, std = (
        torch.tensor(values, device=images.device)[:, None, None]
        for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return (resized - mean) / std


class ImageReward:
    """ImageReward as a reward (equation: the module's docstring).

    Args:
        network: with its weights.
        tokenizer: BERT's (uncased), from transformers.
        device: default what there is. dtype: default float16 on a GPU, float32 elsewhere.

    Called with images (B, 3, H, W) in [0, 1] and B prompts, returns (B,) float32. Differentiable in
    the images."""

    differentiable = True

    def __init__(
        self,
        network: ImageRewardNetwork,
        tokenizer: Any,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ):
        self.device = choose_device(device)
        self.dtype = choose_dtype(
            self.device, dtype or ("float16" if self.device.type == "cuda" else None)
        )
        self.network = network.to(self.device, self.dtype).requires_grad_(False).eval()
        self.tokenizer = tokenizer

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
        path = None if source is None else Path(source).expanduser()
        if path is None or not (path.exists() or path.suffix):
            path = _download([str(source)] if source is not None else list(HUB_IDS))
        state = read_weights(path)
        with one_line("reward image-reward", REMEDY):
            from transformers import BertTokenizer

            offline = Path(tokenizer).is_dir() or hub_is_offline()
            words = BertTokenizer.from_pretrained(str(tokenizer), local_files_only=offline)
            network = network or ImageRewardNetwork()
        network.load_state_dict(convert(state, set(network.state_dict())))
        return cls(network, words, **settings)

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        words = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )
        tokens, mask = words.input_ids.to(self.device), words.attention_mask.to(self.device)

        def raw(images: Tensor) -> Tensor:
            pixels = preprocess(images.to(self.device), self.network.resolution)
            return self.network(pixels.to(self.dtype), tokens, mask)

        return ((scaled_gradients(raw, images, self.dtype, GRADIENT_SCALE) - MEAN) / STD).to(
            images.device
        )


def _download(ids: list[str]) -> Path:
    failures, offline = [], hub_is_offline()
    for model_id in ids:
        try:
            with one_line(f"reward {model_id}", REMEDY):
                from huggingface_hub import hf_hub_download

                return Path(hf_hub_download(model_id, HUB_FILE, local_files_only=offline))
        except ValueError as error:
            failures.append(error)
    raise failures[0]
