"""Stand-ins for the parts of a Stable Diffusion pipeline, with diffusers' signatures and exact
answers.

`UNet` predicts what `world.predict` says, `Scheduler` has Stable Diffusion's noise schedule, `VAE`
is linear, tokens and text encoder are deterministic. What they are asked while a `Trace` is open is
written down there. They cost milliseconds and need neither diffusers nor weights;
`offline.offline_diffusers` hands them out in place of the real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psd_mini.checks.trace import Call, current
from psd_mini.checks.world import SCALING, SCHEDULE, SHAPE, TOKENS, WIDTH, T, normal, predict


class Output(dict):
    """Answers as `.sample`, `["sample"]` or `[0]`, like diffusers' BaseOutput."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this output has {', '.join(self)}, not {name}")

    def __getitem__(self, key: Any) -> Any:
        return (
            list(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)
        )

    def to_tuple(self) -> tuple:
        return tuple(self.values())


class Part(nn.Module):
    """What all parts share: `from_pretrained`, dtype, device, and silence on switches such as
    enable_xformers_...()."""

    config: Any = SimpleNamespace()

    def __init__(self, *_: Any, **__: Any):
        super().__init__()
        self.gain = nn.Parameter(
            torch.ones(())
        )  # weights that ask for gradients, as the real ones do

    @classmethod
    def from_pretrained(cls, *_: Any, **kwargs: Any) -> Part:
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
        if name.startswith(
            ("enable_", "disable_", "set_", "fuse_", "unfuse_", "load_", "add_adapter", "upcast_")
        ):
            return lambda *_, **__: None
        return super().__getattr__(name)


class UNet(Part):
    """UNet2DConditionModel: unet(sample, timestep, encoder_hidden_states).sample is the exact noise
        prediction.

    Args:
        q: True answers for the law of the renders (VSD's second network) instead of the prior; it
            has a bias to train.
    """

    config = SimpleNamespace(
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        sample_size=SHAPE[1],
        cross_attention_dim=WIDTH,
        prediction_type="epsilon",
    )
    in_channels = SHAPE[0]

    def __init__(self, q: bool = False, **_: Any):
        super().__init__()
        self.q = q
        if q:
            self.bias = nn.Parameter(torch.zeros(1, *SHAPE))

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor | None = None,
        *_: Any,
        **kwargs: Any,
    ) -> Any:
        if sample.ndim != 4 or sample.shape[1] != SHAPE[0]:
            raise ValueError(
                f"the UNet expects latents (B, {SHAPE[0]}, h, w), got {tuple(sample.shape)}"
            )
        if encoder_hidden_states is None and not self.q:
            raise ValueError("the UNet needs encoder_hidden_states, the text embeddings")
        e = encoder_hidden_states
        if e is not None and (
            e.ndim != 3 or len(e) not in (1, len(sample)) or e.shape[-1] != WIDTH
        ):
            raise ValueError(
                f"encoder_hidden_states: expected ({len(sample)}, tokens, {WIDTH}), got"
                f" {tuple(e.shape)}"
            )
        with current().paused():
            asked = torch.as_tensor(timestep).detach().double().reshape(-1)
            if len(asked) not in (1, len(sample)):
                raise ValueError(f"timestep: expected 1 or {len(sample)} values, got {len(asked)}")
            asked = asked.expand(len(sample))
            e = e.expand(len(sample), -1, -1) if e is not None else None
            eps_hat = predict(sample, asked.round().clamp(0, T - 1).long(), e, self.q)
            eps_hat = (eps_hat * self.gain + (self.bias if self.q else 0)).to(sample.dtype)
            if eps_hat.requires_grad:
                eps_hat.retain_grad()
        current().calls.append(Call(sample, asked, e, eps_hat, "q" if self.q else "prior"))
        return Output(sample=eps_hat) if kwargs.get("return_dict", True) else (eps_hat,)


class Scheduler:
    """DDPM/DDIM scheduler with Stable Diffusion's betas."""

    config = SimpleNamespace(
        num_train_timesteps=T,
        prediction_type="epsilon",
        beta_schedule="scaled_linear",
        steps_offset=1,
    )
    num_train_timesteps, init_noise_sigma, order = T, 1.0, 1

    def __init__(self, *_: Any, **__: Any):
        self.alphas_cumprod = SCHEDULE.alphas_cumprod.float()
        self.alphas = (
            SCHEDULE.alphas_cumprod / torch.cat((torch.ones(1), SCHEDULE.alphas_cumprod[:-1]))
        ).float()
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
        self.timesteps = torch.arange(0, T, T // steps).flip(0)

    def scale_model_input(self, sample: Tensor, *_: Any) -> Tensor:
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps."""
        abar = self.alphas_cumprod.to(original_samples)[torch.as_tensor(timesteps).long()].reshape(
            -1, 1, 1, 1
        )
        return abar.sqrt() * original_samples + (1 - abar).sqrt() * noise

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any
    ) -> Output:
        """One deterministic DDIM step along `timesteps`; its pred_original_sample is x0_hat."""
        t = int(timestep)
        earlier = self.timesteps[self.timesteps < t]
        abar, before = (
            self.alphas_cumprod[t],
            (self.alphas_cumprod[earlier.max()] if len(earlier) else torch.tensor(1.0)),
        )
        x0_hat = (sample - (1 - abar).sqrt() * model_output) / abar.sqrt()
        return Output(
            prev_sample=before.sqrt() * x0_hat + (1 - before).sqrt() * model_output,
            pred_original_sample=x0_hat,
        )


class VAE(Part):
    """AutoencoderKL as a linear map: 8 x 8 pixels are averaged, three channels become four, and
    back."""

    config = SimpleNamespace(
        scaling_factor=SCALING,
        latent_channels=SHAPE[0],
        shift_factor=None,
        block_out_channels=(1,) * 4,
    )
    mix = torch.linalg.qr(normal(4, 3, seed=41))[0]

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        latents = torch.einsum("lc,bchw->blhw", self.mix.to(x), F.avg_pool2d(x, 8)) / SCALING
        if latents.requires_grad:
            latents.retain_grad()
        current().encoded.append(latents)
        law = SimpleNamespace(
            sample=lambda *_: latents,
            mode=lambda: latents,
            mean=latents,
            std=torch.zeros_like(latents),
        )
        return Output(latent_dist=law) if return_dict else (law,)

    def decode(self, z: Tensor, return_dict: bool = True, **_: Any) -> Any:
        current().decoded.append(z)
        image = F.interpolate(
            torch.einsum("lc,blhw->bchw", self.mix.to(z), z * SCALING), scale_factor=8
        )
        return Output(sample=image) if return_dict else (image,)


class Tokenizer(Part):
    """CLIPTokenizer: characters as numbers."""

    model_max_length = TOKENS

    def __call__(self, text: str | list[str], *_: Any, **__: Any) -> Output:
        texts = [text] if isinstance(text, str) else list(text)
        ids = torch.tensor([[ord(c) % 997 for c in f"{s:<{TOKENS}}"[:TOKENS]] for s in texts])
        return Output(input_ids=ids, attention_mask=torch.ones_like(ids))


class TextEncoder(Part):
    """CLIPTextModel: a fixed table of numbers."""

    config = SimpleNamespace(hidden_size=WIDTH, use_attention_mask=False)
    table = normal(997, WIDTH, seed=42).float()

    def forward(self, input_ids: Tensor, *_: Any, **__: Any) -> Output:
        hidden = self.table.to(self.dtype)[input_ids]
        return Output(last_hidden_state=hidden, pooler_output=hidden.mean(1))


class Pipeline(Part):
    """StableDiffusionPipeline: the parts above under their usual names. It distils; it does not
    sample."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()
        self.unet, self.vae, self.text_encoder, self.tokenizer = (
            UNet(),
            VAE(),
            TextEncoder(),
            Tokenizer(),
        )
        self.scheduler, self.vae_scale_factor, self.safety_checker, self.feature_extractor = (
            Scheduler(),
            8,
            None,
            None,
        )

    def encode_prompt(
        self, prompt: Any, *_: Any, negative_prompt: Any = "", **__: Any
    ) -> tuple[Tensor, Tensor]:
        return tuple(
            self.text_encoder(self.tokenizer(p or "").input_ids)[0]
            for p in (prompt, negative_prompt)
        )  # type: ignore
