"""Stand-ins for the parts of a Stable Diffusion pipeline, with diffusers' signatures.

Their answers are exact: `UNet` predicts what `exact_eps` says, `Scheduler` has Stable Diffusion's
noise schedule, `VAE` is linear, tokens and text encoder are deterministic. What they are asked
while a `Trace` is open is written down there. They cost milliseconds and need neither diffusers nor
weights; `offline.offline_diffusers` hands them out in place of the real ones.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from psd_mini.checks.exact_world import PROMPT_TOKENS, SCALING, SCHEDULE, SHAPE, WIDTH, T, normal
from psd_mini.checks.grading.names import key_of
from psd_mini.checks.grading.unet import LoRA as LoRA
from psd_mini.checks.grading.unet import Output, StandIn, UNet
from psd_mini.checks.trace import current


class Scheduler:
    """DDPM/DDIM scheduler with Stable Diffusion's betas."""

    config = Output(num_train_timesteps=T, prediction_type="epsilon", steps_offset=1)
    config |= dict(beta_schedule="scaled_linear", clip_sample=False)
    prediction_type, upward = "epsilon", False
    num_train_timesteps, init_noise_sigma, order = T, 1.0, 1

    def __init__(self, *_: Any, **__: Any):
        abar = SCHEDULE.alphas_cumprod
        self.alphas_cumprod = abar.float()
        self.alphas = (abar / torch.cat((torch.ones(1), abar[:-1]))).float()
        self.betas = 1 - self.alphas
        self.final_alpha_cumprod = self.alphas_cumprod[0]
        self.timesteps = torch.arange(T - 1, -1, -1)

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Scheduler:
        return cls()

    from_config = from_pretrained

    def __len__(self) -> int:
        return T

    def to(self, *_: Any, **__: Any) -> Scheduler:
        return self

    def set_timesteps(self, steps: int, *_: Any, **__: Any) -> None:
        upward = torch.arange(0, T, T // steps)
        self.timesteps = upward if self.upward else upward.flip(0)

    def scale_model_input(self, sample: Tensor, *_: Any) -> Tensor:
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps."""
        t = torch.as_tensor(timesteps).long()
        abar = self.alphas_cumprod.to(original_samples)[t].reshape(-1, 1, 1, 1)
        return abar.sqrt() * original_samples + (1 - abar).sqrt() * noise

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any
    ) -> Output:
        """One deterministic DDIM step along `timesteps`; its pred_original_sample is x0_hat."""
        t = int(timestep)
        earlier = self.timesteps[self.timesteps < t]
        start = self.alphas_cumprod[t]
        end = self.alphas_cumprod[earlier.max()] if len(earlier) else torch.tensor(1.0)
        if self.upward:
            start, end = end, start
        x0_hat = (sample - (1 - start).sqrt() * model_output) / start.sqrt()
        previous = end.sqrt() * x0_hat + (1 - end).sqrt() * model_output
        return Output(prev_sample=previous, pred_original_sample=x0_hat)


class InverseScheduler(Scheduler):
    """DDIMInverseScheduler: its steps add noise."""

    upward = True


class VAE(StandIn):
    """AutoencoderKL as a linear map: 8 x 8 pixels are averaged, 3 channels become 4, and back."""

    config = Output(scaling_factor=SCALING, latent_channels=SHAPE[0], shift_factor=None)
    config |= dict(block_out_channels=(1,) * 4)
    mix = torch.linalg.qr(normal(4, 3, seed=41))[0]

    def latents(self, x: Tensor) -> Tensor:
        return torch.einsum("lc,bchw->blhw", self.mix.to(x), F.avg_pool2d(x, 8)) / SCALING

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        latents = self.latents(x)
        if latents.requires_grad:
            latents.retain_grad()
        current().encoded.append(latents)
        current().scaling = self.config.scaling_factor
        law = SimpleNamespace(mean=latents, std=torch.zeros_like(latents))
        law.sample = law.mode = lambda *_: latents
        return Output(latent_dist=law) if return_dict else (law,)

    def decode(self, z: Tensor, return_dict: bool = True, **_: Any) -> Any:
        current().decoded.append(z)
        image = torch.einsum("lc,blhw->bchw", self.mix.to(z), z * SCALING)
        image = F.interpolate(image, scale_factor=8)
        return Output(sample=image) if return_dict else (image,)


class Tokenizer(StandIn):
    """CLIPTokenizer: characters as numbers."""

    model_max_length = PROMPT_TOKENS

    def __call__(self, text: str | list[str], *_: Any, **__: Any) -> Output:
        texts = [text] if isinstance(text, str) else list(text)
        padded = [f"{s:<{PROMPT_TOKENS}}"[:PROMPT_TOKENS] for s in texts]
        ids = torch.tensor([[ord(c) % 997 for c in s] for s in padded])
        return Output(input_ids=ids, attention_mask=torch.ones_like(ids))


class TextEncoder(StandIn):
    """CLIPTextModel: a fixed table of numbers."""

    config = Output(hidden_size=WIDTH, use_attention_mask=False)
    table = normal(997, WIDTH, seed=42).float()

    def forward(self, input_ids: Tensor, *_: Any, **__: Any) -> Output:
        hidden = self.table.to(self.dtype)[input_ids]
        return Output(last_hidden_state=hidden, pooler_output=hidden.mean(1))


class Pipeline(StandIn):
    """StableDiffusionPipeline: the parts above under their usual names. It does not sample."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()
        self.unet, self.vae, self.scheduler = UNet(), VAE(), Scheduler()
        self.text_encoder, self.tokenizer = TextEncoder(), Tokenizer()
        self.enable_lora, self.disable_lora = self.unet.enable_lora, self.unet.disable_lora
        self.set_adapters = self.unet.set_adapters
        self.vae_scale_factor, self.safety_checker, self.feature_extractor = 8, None, None

    @classmethod
    def from_pretrained(cls, *name: Any, **kwargs: Any) -> StandIn:
        xl = cls is Pipeline and "xl" in str(name[:1]).lower()
        return super(Pipeline, PipelineXL if xl else cls).from_pretrained(*name, **kwargs)

    def encode_prompt(
        self, prompt: Any, *_: Any, negative_prompt: Any = "", **__: Any
    ) -> tuple[Tensor, Tensor]:
        prompts = (prompt or "", negative_prompt or "")
        return tuple(self.text_encoder(self.tokenizer(p).input_ids)[0] for p in prompts)  # type: ignore[return-value]


class PipelineXL(Pipeline):
    """StableDiffusionXLPipeline: its prompts have pooled embeddings beside."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()
        self.unet.config = Output(UNet.config, addition_embed_type="text_time")
        self.vae.config = Output(VAE.config, scaling_factor=0.13025)
        self.text_encoder_2, self.tokenizer_2 = self.text_encoder, self.tokenizer

    def encode_prompt(self, *prompt: Any, **more: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        cond, uncond = super().encode_prompt(*prompt, **more)
        return cond, uncond, cond.mean(1), uncond.mean(1)

    def _get_add_time_ids(self, *sizes: Any, dtype: Any = None, **__: Any) -> Tensor:
        return torch.tensor([[number for size in sizes for number in size]], dtype=dtype)


def name_second(owner: Any) -> None:
    """A UNet of its own under one of q's names (unet_lora, pipe_q, ...) is the second network."""
    parts = getattr(owner, "__dict__", {})
    unets = {}
    for name, part in [*parts.items(), *parts.get("_modules", {}).items()]:
        unet = part.unet if isinstance(part, Pipeline) else part
        if isinstance(unet, UNet):
            unets[name] = unet
    first = [unet for name, unet in unets.items() if key_of(name) != "q"]
    for unet in unets.values():
        unet.q = unet.q or unet not in first
