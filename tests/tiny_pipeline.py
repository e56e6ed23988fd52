"""A model of Stable Diffusion's shape with random weights, made at test time (files of one version
of transformers do not all load in another): tokenizer, CLIP text model, UNet, autoencoder and
scheduler, about 1 MB, 16 x 16 pixels."""

from pathlib import Path

import torch
from learned import parts


def tiny_tokenizer(folder: Path):
    """Single bytes, two words and CLIP's two special tokens, 16 tokens long."""
    parts.save_tokenizer(folder, ["red", "ball"])
    return parts.load_tokenizer(folder)


def tiny_components(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> dict:
    """The five parts of a StableDiffusionPipeline, by their names there."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(folder / "made")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    blocks = {"block_out_channels": (16, 32), "norm_num_groups": 8}
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        **blocks,
    )
    vae = AutoencoderKL(
        latent_channels=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.3,
        **blocks,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return {
        "unet": unet.eval(),
        "vae": vae.eval(),
        "text_encoder": CLIPTextModel(text).eval(),
        "tokenizer": tokenizer,
        "scheduler": scheduler,
    }


def tiny_pipeline(folder: Path, prediction_type: str = "epsilon", seed: int = 0):
    """Save the model in `folder` and return diffusers' own pipeline of it."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        **tiny_components(folder, prediction_type, seed),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline


def tiny_autoencoder(folder: Path, seed: int = 1):
    """Save an AutoencoderTiny with the same latents."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )
    model.save_pretrained(folder, safe_serialization=True)
    return model.eval()
