"""A small world to run submissions of tests/corpus in, independent of the package's checker.

It knows nothing of `psd_mini`. Networks are smooth functions with fixed random weights, so that
predictions for two prompts are no multiples of each other; libraries that a submission imports are
replaced by parts that do nothing, or the little that these submissions ask of them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
import typing
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

T, SHAPE, SCALING, WIDTH = 1000, (4, 64, 64), 0.18215, 16
BETAS = torch.from_numpy(np.linspace(0.00085**0.5, 0.012**0.5, T) ** 2)
ABAR = torch.from_numpy(np.cumprod(1 - BETAS.numpy()))
LOG = SimpleNamespace(calls=[], draws=[], encoded=[], shown=[])


def fixed(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x: torch.Tensor, t: torch.Tensor, e: torch.Tensor, q: bool) -> torch.Tensor:
    """What a network predicts: smooth in x and the embedding e, another one for q."""
    kind, x, e = int(q), x.double(), e.double().mean(1)
    shift = (e @ fixed(WIDTH, 4, seed=1 + kind)).view(-1, 4, 1, 1)
    spread = (1 + 0.3 * torch.tanh(e @ fixed(WIDTH, 4, seed=3 + kind))).view(-1, 4, 1, 1)
    mixed = torch.einsum("kc,bchw->bkhw", fixed(4, 4, seed=5 + kind) / 2, x)
    time = torch.cos(t.double() / 90).view(-1, 1, 1, 1)
    return torch.tanh(mixed * spread + shift + time) + 0.4 * spread * x.roll(1, -1)


class Part(nn.Module):
    """Stands for whatever a library has: takes everything, gives back its first argument."""

    def __init__(self, *_, **__):
        super().__init__()

    def forward(self, *args, **_):
        return args[0] if args else self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return lambda *_, **__: self

    @classmethod
    def from_pretrained(cls, *_, **__):
        return cls()

    from_config = from_pretrained


class Out(SimpleNamespace):
    """A model's output: `.sample`, ["sample"] and [0]."""

    def __getitem__(self, key):
        return vars(self)[key] if isinstance(key, str) else list(vars(self).values())[key]


class UNet(Part):
    """One network, with an adapter that turns it into q while it is on."""

    config = SimpleNamespace(in_channels=4, sample_size=64, cross_attention_dim=WIDTH)

    def __init__(self, is_q=False):
        super().__init__()
        self._parameters["gain"] = nn.Parameter(torch.ones(()))
        self.is_q, self.has_adapter, self.on = is_q, False, True
        self.attn_processors = {"mid.attn1.processor": None}

    def forward(self, x, t, encoder_hidden_states=None, cross_attention_kwargs=None, **kwargs):
        t = torch.as_tensor(t).reshape(-1).expand(len(x))
        e = encoder_hidden_states.expand(len(x), -1, -1)
        scale = (cross_attention_kwargs or {}).get("scale", 1)
        q = self.is_q or (self.has_adapter and self.on and scale != 0)
        out = (network(x, t, e, q) * self.gain).to(x.dtype)
        LOG.calls.append((x.detach().double(), t.double()))
        return Out(sample=out) if kwargs.get("return_dict", True) else (out,)

    def add_adapter(self, *_, **__):
        self.has_adapter = self.on = True

    def set_attn_processor(self, processors):
        self.has_adapter = isinstance(processors, dict)  # LoRA for each layer, not one for all

    def disable_adapters(self):
        self.on = False

    def enable_adapters(self):
        self.on = True

    @contextmanager
    def disable_adapter(self):
        before, self.on = self.on, False
        yield
        self.on = before


class VAE(Part):
    config = SimpleNamespace(scaling_factor=SCALING)
    mix = fixed(4, 3, seed=9)

    def encode(self, image):
        z = torch.einsum("kc,bchw->bkhw", self.mix.to(image), F.avg_pool2d(image, 8)) / SCALING
        if z.requires_grad:
            z.retain_grad()
        LOG.encoded.append(z)
        law = SimpleNamespace(mean=z, sample=lambda *_: z, mode=lambda: z)
        return Out(latent_dist=law)

    def decode(self, z):
        return Out(sample=torch.einsum("kc,bkhw->bchw", self.mix.to(z), z * SCALING))


class Scheduler(Part):
    config = SimpleNamespace(num_train_timesteps=T, prediction_type="epsilon")

    def __init__(self):
        super().__init__()
        self.alphas_cumprod, self.betas = ABAR.float(), BETAS.float()
        self.alphas = 1 - self.betas
        self.timesteps = torch.arange(T - 1, -1, -1)

    def __len__(self):
        return T

    def set_timesteps(self, n):
        self.timesteps = torch.arange(0, T, T // n).flip(0)

    def add_noise(self, x, eps, t):
        a = ABAR.to(x)[t].reshape(-1, 1, 1, 1)
        return a.sqrt() * x + (1 - a).sqrt() * eps

    def scale_model_input(self, x, t):
        return x

    def step(self, e, t, x):
        return SimpleNamespace(prev_sample=x + 0.1 * e)


class Tokenizer(Part):
    model_max_length = 77

    def forward(self, text, **_):
        rows = [text] if isinstance(text, str) else text
        ids = [[ord(c) % 300 for c in row.ljust(77)[:77]] for row in rows]
        return SimpleNamespace(input_ids=torch.tensor(ids))


class TextEncoder(Part):
    def forward(self, ids, **_):
        return (3 * fixed(300, WIDTH, seed=12).float()[ids],)


class Pipeline(Part):
    def __init__(self):
        super().__init__()
        self.unet, self.vae, self.scheduler = UNet(), VAE(), Scheduler()
        self.tokenizer, self.text_encoder = Tokenizer(), TextEncoder()

    def encode_prompt(self, prompt, *_, **__):
        pos, neg = (self.text_encoder(self.tokenizer(p).input_ids)[0] for p in (prompt, ""))
        return pos, neg, pos.mean(1), neg.mean(1)


class Configured(nn.Module):
    """threestudio's base classes: a nested Config, made from a dictionary, and `configure`."""

    device = torch.device("cpu")

    class Config:
        pass

    def __init__(self, cfg=None, **_):
        super().__init__()
        self.cfg = self.Config(**(cfg or {}))
        self.configure()


class Settings(SimpleNamespace):
    """omegaconf's nested settings."""

    def __init__(self, values=None):
        pairs = (values or {}).items()
        super().__init__(**{k: Settings(v) if isinstance(v, dict) else v for k, v in pairs})

    create = classmethod(lambda cls, values=None: cls(values))

    @classmethod
    def merge(cls, first, second):
        out = cls()
        vars(out).update(vars(first) | (second if isinstance(second, dict) else vars(second)))
        return out


EINOPS = {
    "h w c -> 1 c h w": lambda x, **_: x.permute(2, 0, 1)[None],
    "1 c h w -> (n 1) c h w": lambda x, n: x.repeat(n, 1, 1, 1),
    "(h w) c -> 1 c h w": lambda x, h, w: x.T.reshape(1, -1, h, w),
    "b -> b 1 1 1": lambda x: x.view(-1, 1, 1, 1),
}
KNOWN = {
    ("einops", "rearrange"): lambda x, pattern, **sizes: EINOPS[pattern](x, **sizes),
    ("einops", "repeat"): lambda x, pattern, **sizes: EINOPS[pattern](x, **sizes),
    ("peft", "get_peft_model"): lambda unet, *_, **__: (unet.add_adapter(), unet)[1],
    ("omegaconf", "OmegaConf"): Settings,
    ("threestudio", "register"): lambda _: lambda cls: cls,
    ("threestudio", "BaseObject"): Configured,
    ("threestudio", "BaseModule"): Configured,
    ("pytorch_lightning", "LightningModule"): Part,
    ("torchvision", "Resize"): lambda size: lambda x: F.interpolate(x, (512, 512)),
}
KINDS = {"Pipeline": Pipeline, "Scheduler": Scheduler, "UNet2DConditionModel": UNet}
KINDS |= {"AutoencoderKL": VAE, "CLIPTokenizer": Tokenizer, "CLIPTextModel": TextEncoder}
LIBRARIES = "accelerate clip cv2 diffusers einops kornia loguru nerf nerfacc omegaconf open_clip"
LIBRARIES += " peft pytorch_lightning threestudio torchvision transformers utils wandb handed_in"


class Shaped:
    """Float[Tensor, "B 3 H W"]"""

    def __class_getitem__(cls, _):
        return torch.Tensor


class FakeModule(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name):
        if name == "__all__":
            return ["Any", "Optional", "Float", "Tensor"]
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("Any", "Optional"):
            return getattr(typing, name)
        if name in ("Float", "Tensor"):
            return Shaped
        known = KNOWN.get((self.__name__.split(".")[0], name))
        if known is None and self.__name__ == "diffusers":
            known = next((part for end, part in KINDS.items() if name.endswith(end)), None)
        if known is None and self.__name__ == "transformers":
            known = KINDS.get(name)
        if known is not None:
            return known
        return Part if name[:1].isupper() else Part()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in LIBRARIES.split():
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return FakeModule(spec.name)

    def exec_module(self, module):
        pass


def install() -> None:
    """Put the libraries in place, and write down every normal number that is drawn."""
    for name in [n for n in sys.modules if n.split(".")[0] in LIBRARIES.split()]:
        del sys.modules[name]
    sys.meta_path.insert(0, Finder())
    for owner, name in ((torch, "randn"), (torch, "randn_like"), (torch.Tensor, "normal_")):
        setattr(owner, name, remembering(getattr(owner, name)))


def remembering(draw):
    def drawn(*args, **kwargs):
        out = draw(*args, **kwargs)
        LOG.draws.append(out.detach().double().clone())
        return out

    return drawn


def reward(images: torch.Tensor, *_, **__) -> torch.Tensor:
    """(B,), linear in the picture; what it is shown is written down."""
    LOG.shown.append(images.detach().double())
    direction = fixed(*images.shape[1:], seed=20).to(images)
    return 3 * (images * direction).flatten(1).sum(1) / direction.norm()
