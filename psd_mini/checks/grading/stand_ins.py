"""Stand-ins for the parts of a Stable Diffusion pipeline, with diffusers' signatures.

Their answers are exact: `UNet` predicts what `exact_eps` says, `Scheduler` has Stable Diffusion's
noise schedule, `VAE` is linear, tokens and text encoder are deterministic. What they are asked
while a `Trace` is open is written down there. They cost milliseconds and need neither diffusers nor
weights; `offline.offline_diffusers` hands them out in place of the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psd_mini.checks.exact_world import (
    PROMPT_TOKENS,
    SCALING,
    SCHEDULE,
    SHAPE,
    WIDTH,
    T,
    exact_eps,
    normal,
)
from psd_mini.checks.grading.names import key_of
from psd_mini.checks.report import Unreadable
from psd_mini.checks.trace import Call, current

OTHER_POOLED = "text_embeds belong to another prompt than encoder_hidden_states"
SWITCHES = ("enable_", "disable_", "set_", "fuse_", "unfuse_", "load_", "add_adapter", "upcast_")


class Output(dict):
    """Answers as `.sample`, `["sample"]` or `[0]`, like diffusers' BaseOutput; configurations."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this output has {', '.join(self)}, not {name}")

    def __getitem__(self, key: Any) -> Any:
        return self.to_tuple()[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def to_tuple(self) -> tuple:
        return tuple(self.values())


class StandIn(nn.Module):
    """What all share: `from_pretrained`, dtype, device, and silence on SWITCHES."""

    config: Any = Output()

    def __init__(self, *_: Any, **__: Any):
        super().__init__()
        # weights that ask for gradients, as the real ones do
        self.gain = nn.Parameter(torch.ones(()))

    @classmethod
    def from_pretrained(cls, *_: Any, **kwargs: Any) -> StandIn:
        part, dtype = cls(), kwargs.get("torch_dtype", kwargs.get("dtype"))
        return part.to(dtype) if isinstance(dtype, torch.dtype) else part

    from_config = from_single_file = from_pretrained

    @property
    def dtype(self) -> torch.dtype:
        return self.gain.dtype

    @property
    def device(self) -> torch.device:
        return self.gain.device

    def __getattr__(self, name: str) -> Any:
        if name.startswith(SWITCHES):
            return lambda *_, **__: None
        return super().__getattr__(name)


class LoRA(StandIn):
    """LoRAAttnProcessor: an attention processor with an adapter."""


class UNet(StandIn):
    """UNet2DConditionModel: unet(sample, timestep, encoder_hidden_states).sample is exact.

    With adapters, switched as in diffusers and peft, it answers for the law of the renders (VSD's
    second network) while they are on, and for the prior while they are off.

    Args:
        q: True for a second network, with adapters from the start and a bias to train.
    """

    config = Output(sample_size=SHAPE[1], in_channels=SHAPE[0], out_channels=SHAPE[0])
    config |= dict(cross_attention_dim=WIDTH, prediction_type="epsilon")
    config |= dict(block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8)
    config |= dict.fromkeys(("addition_embed_type", "class_embed_type", "time_cond_proj_dim"))
    in_channels = SHAPE[0]

    def __init__(self, q: bool = False, **_: Any):
        super().__init__()
        self.q, self.on = q, True  # are there adapters, and are they on?
        if q:
            self.bias = nn.Parameter(torch.zeros(1, *SHAPE))
        blocks = ("down_blocks.0", "mid_block", "up_blocks.1")
        self.attn_processors = {
            f"{block}.attentions.0.transformer_blocks.0.{attention}.processor": StandIn()
            for block in blocks
            for attention in ("attn1", "attn2")
        }

    def add_adapter(self, *_: Any, **__: Any) -> None:
        self.q = self.on = True

    def set_attn_processor(self, processor: Any, *_: Any, **__: Any) -> None:
        """One for all layers or one for each; those called LoRA have adapters."""
        given = processor if isinstance(processor, dict) else {}
        self.attn_processors = {n: given.get(n, processor) for n in self.attn_processors}
        self.on = True
        self.q = any("lora" in type(p).__name__.lower() for p in self.attn_processors.values())

    def switch(self, on: bool) -> None:
        """Turn the adapters on or off. Where none was added, the caller of the code has done so."""
        current().adapted |= not self.q
        self.q, self.on = True, on

    def enable_adapters(self) -> None:
        self.switch(True)

    def disable_adapters(self) -> None:
        self.switch(False)

    enable_lora = enable_adapter_layers = enable_adapters
    disable_lora = disable_adapter_layers = disable_adapters

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        before = self.on
        self.switch(False)
        try:
            yield
        finally:
            self.on = before

    def set_adapters(self, names: Any, weights: Any = 1.0) -> None:
        self.switch(bool(names) and bool(torch.as_tensor(weights).any()))

    set_adapter = set_adapters

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor | None = None,
        *_: Any,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        **__: Any,
    ) -> Any:
        e, n = encoder_hidden_states, len(sample)
        off = (cross_attention_kwargs or {}).get("scale", 1) == 0
        if off and not self.q:
            self.switch(True)
        q = self.q and self.on and not off
        if sample.ndim != 4 or sample.shape[1] != SHAPE[0]:
            came = tuple(sample.shape)
            raise ValueError(f"the UNet expects latents (B, {SHAPE[0]}, h, w), got {came}")
        pooled = (added_cond_kwargs or {}).get("text_embeds")
        if e is not None and pooled is not None and pooled.shape == e[:, 0].shape:
            if not torch.allclose(pooled, e.mean(1), atol=1e-3):
                raise Unreadable(OTHER_POOLED, "wrong")
        if e is None and not q:
            raise ValueError("the UNet needs encoder_hidden_states, the text embeddings")
        if e is not None and (e.ndim != 3 or len(e) not in (1, n) or e.shape[-1] != WIDTH):
            expected, came = f"({n}, tokens, {WIDTH})", tuple(e.shape)
            raise ValueError(f"encoder_hidden_states: expected {expected}, got {came}")
        with current().paused():
            asked = torch.as_tensor(timestep).detach().double().reshape(-1)
            if len(asked) not in (1, n):
                raise ValueError(f"timestep: expected 1 or {n} values, got {len(asked)}")
            asked = asked.expand(n)
            e = None if e is None else e.expand(n, -1, -1)
            eps_hat = exact_eps(sample, asked.round().clamp(0, T - 1).long(), e, q)
            eps_hat = (eps_hat * self.gain + (self.bias if q and hasattr(self, "bias") else 0)).to(
                sample.dtype
            )
            if eps_hat.requires_grad:
                eps_hat.retain_grad()
        current().calls.append(Call(sample, asked, e, eps_hat, "q" if q else "prior"))
        return Output(sample=eps_hat) if return_dict else (eps_hat,)


def name_second(owner: Any) -> None:
    """A UNet of its own under one of q's names (unet_lora, pipe_lora, ...) is the second network."""
    parts = dict(getattr(owner, "__dict__", {}))
    named: dict[bool, set[UNet]] = {True: set(), False: set()}
    for name, part in {**parts, **parts.get("_modules", {})}.items():
        unet = part.unet if isinstance(part, Pipeline) else part
        if isinstance(unet, UNet):
            named[key_of(name) == "q"].add(unet)
    for unet in named[True] - named[False]:
        unet.q = True


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

    def enable_lora(self) -> None:
        self.unet.switch(True)

    def disable_lora(self) -> None:
        self.unet.switch(False)

    def set_adapters(self, names: Any, adapter_weights: Any = 1.0) -> None:
        self.unet.set_adapters(names, adapter_weights)


class PipelineXL(Pipeline):
    """StableDiffusionXLPipeline: its prompts have pooled embeddings beside."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()
        self.unet.config = Output(UNet.config, addition_embed_type="text_time")
        self.vae.config = Output(VAE.config, scaling_factor=0.13025)
        self.text_encoder_2, self.tokenizer_2 = self.text_encoder, self.tokenizer

    def encode_prompt(self, *prompt: Any, **more: Any) -> tuple[Tensor, ...]:
        cond, uncond = super().encode_prompt(*prompt, **more)
        return cond, uncond, cond.mean(1), uncond.mean(1)

    def _get_add_time_ids(self, *sizes: Any, dtype: Any = None, **__: Any) -> Tensor:
        return torch.tensor([[number for size in sizes for number in size]], dtype=dtype)
