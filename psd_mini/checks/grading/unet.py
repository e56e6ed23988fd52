"""The stand-in for diffusers' UNet, and what all stand-ins share.

The UNet predicts what `exact_eps` says: of the prior, or of q, the law of the renders, which is
VSD's second network. Which of them is asked is decided as in diffusers and peft: by adapters that
are added, switched on and off, or scaled to zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, nn

from psd_mini.checks.exact_world import SHAPE, WIDTH, T, exact_eps, exact_velocity
from psd_mini.checks.report import Unreadable
from psd_mini.checks.trace import Call, current

SWITCHES = "enable_ disable_ set_ fuse_ unfuse_ load_ add_adapter upcast_ print_"
PROCESSORS = [  # names of some of the attention layers
    f"{block}.attentions.0.transformer_blocks.0.{attention}.processor"
    for block in ("down_blocks.0", "mid_block", "up_blocks.1")
    for attention in ("attn1", "attn2")
]


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
        if name.startswith(tuple(SWITCHES.split())):
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
    time_unit: float = 1  # of the time that whoever takes t is given

    def __init__(self, q: bool = False, **_: Any):
        super().__init__()
        self.q, self.on = q, True  # are there adapters, and are they on?
        self.bias = nn.Parameter(torch.zeros(1, *SHAPE)) if q else 0
        self.attn_processors: dict[str, Any] = {name: StandIn() for name in PROCESSORS}

    def switch(self, on: bool, *_: Any, **__: Any) -> None:
        """Turn the adapters on or off. Where none was added, the caller of the code has done so."""
        current().adapted |= not self.q
        self.q, self.on = True, on
        # an adapter has weights of its own: they ask for gradients, be the rest frozen or not
        if not isinstance(self.bias, nn.Parameter):
            self.bias = nn.Parameter(torch.zeros(()))

    add_adapter = enable_adapters = enable_adapter_layers = partialmethod(switch, True)
    disable_adapters = disable_adapter_layers = partialmethod(switch, False)
    enable_lora, disable_lora = enable_adapters, disable_adapters

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        self.switch(False)
        try:
            yield
        finally:
            self.switch(True)

    def set_adapters(self, names: Any, weights: Any = 1.0) -> None:
        self.switch(bool(names) and bool(torch.as_tensor(weights).any()))

    set_adapter = set_adapters

    def set_attn_processor(self, processor: Any, *_: Any, **__: Any) -> None:
        """One for all layers or one for each; those called LoRA are adapters."""
        each = processor if isinstance(processor, dict) else dict.fromkeys(PROCESSORS, processor)
        self.attn_processors = self.attn_processors | each
        kinds = [type(one).__name__.lower() for one in self.attn_processors.values()]
        self.q, self.on = any("lora" in kind for kind in kinds), True

    def predict(self, sample: Tensor, t: Tensor, e: Tensor | None, q: bool) -> Tensor:
        """The exact prediction at times (B,)."""
        return exact_eps(sample, t.round().clamp(0, T - 1).long(), e, q)

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
        if off and not self.q:  # it has adapters, then
            self.switch(True)
        q = self.q and self.on and not off
        _look_at(sample, e, (added_cond_kwargs or {}).get("text_embeds"))
        if e is None and not q:
            raise ValueError("the UNet needs encoder_hidden_states, the text embeddings")
        with current().paused():
            asked = torch.as_tensor(timestep).detach().double().reshape(-1)
            if len(asked) not in (1, n):
                raise ValueError(f"timestep: expected 1 or {n} values, got {len(asked)}")
            asked = asked.expand(n)
            e = None if e is None else e.expand(n, -1, -1)
            eps_hat = self.predict(sample, asked, e, q)
            eps_hat = (eps_hat * self.gain + (self.bias if q else 0)).to(sample.dtype)
            if eps_hat.requires_grad:
                eps_hat.retain_grad()
        current().calls.append(Call(sample, asked, e, eps_hat, "q" if q else "prior"))
        return Output(sample=eps_hat) if return_dict else (eps_hat,)


class Velocity(UNet):
    """SD3Transformer2DModel, or any velocity model of rectified flow: it predicts eps - x.

    Times are in [0, 1], or in [0, T] as diffusers scales them.
    """

    time_unit = 1 / T

    def predict(self, sample: Tensor, t: Tensor, e: Tensor | None, q: bool) -> Tensor:
        return exact_velocity(sample, flow_time(t), e)

    def forward(self, *args: Any, hidden_states: Tensor | None = None, **kwargs: Any) -> Any:
        first = () if hidden_states is None else (hidden_states,)
        return super().forward(*first, *args, **kwargs)


def flow_time(t: Any) -> Any:
    """Times of either scale in [0, 1]: numbers above 1 are steps of T."""
    t = torch.as_tensor(t, dtype=torch.float64)
    return torch.where(t > 1, t / T, t).clamp(0, 1)


def _look_at(sample: Tensor, e: Tensor | None, pooled: Tensor | None) -> None:
    """Raise for latents or embeddings that no UNet takes, and pooled ones of another prompt."""
    n, latents = len(sample), tuple(sample.shape)
    if sample.ndim != 4 or sample.shape[1] != SHAPE[0]:
        raise ValueError(f"the UNet expects latents (B, {SHAPE[0]}, h, w), got {latents}")
    if e is None:
        return
    if e.ndim != 3 or len(e) not in (1, n) or e.shape[-1] != WIDTH:
        expected = f"({n}, tokens, {WIDTH})"
        raise ValueError(f"encoder_hidden_states: expected {expected}, got {tuple(e.shape)}")
    if pooled is None or pooled.shape != e[:, 0].shape:
        return
    if not torch.allclose(pooled, e.mean(1), atol=1e-3):
        raise Unreadable("text_embeds belong to another prompt than encoder_hidden_states", "wrong")
