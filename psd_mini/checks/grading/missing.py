"""Stand-ins for libraries that are not installed: they answer everything, and calculate nothing.

Most submissions import far more than their gradient needs: logging, pictures, a trainer, their own
`utils`. Every name of a missing library is a class here, to derive from, to annotate and to
decorate with; names in lower case are objects of such classes. Objects are false, and answer every
attribute and call. What calculates with one has no answer, and the report says which one it was.
The few parts that gradients do go through are in `PARTS`; they do what they should.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from functools import partial
from types import CodeType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from functorch.einops import rearrange as torchs_rearrange
from torch import Tensor, nn

from psd_mini.checks.grading.names import option
from psd_mini.checks.report import Unreadable

# the package that a submission is in, for `from ..utils import seed`
PACKAGE = ("handed_in", "two_up", "one_up", "here")
# names of plain classes; all others may be parts of networks
PLAIN = re.compile("Config|Mixin|Arg|Option|Setting|Output|Data|Object|^args$")
OPERATIONS = "add radd sub rsub mul rmul truediv rtruediv matmul rmatmul pow rpow neg float int"
QUESTIONS = "bool contains lt le gt ge exit"


class Answering(type):
    """Classes with every attribute, and with an index that changes nothing: Float[Tensor, "B"]."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{cls.__name__} has no {name}")
        return named(f"{cls.__module__}.{cls.__name__}", name)

    def __getitem__(cls, _: Any) -> Any:
        return cls


class Missing(metaclass=Answering):
    """Something of a missing library, or a submission's class that is derived from it."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, *_: Any, **__: Any):
        super().__init__()
        if inspect.getattr_static(self, "configure", None):  # threestudio's objects
            self.cfg = type(self).Config()
            self.configure()

    def __getattr__(self, name: str) -> Any:
        if isinstance(self, nn.Module):
            with suppress(AttributeError):
                return nn.Module.__getattr__(self, name)
        return Answering.__getattr__(type(self), name)

    def register_buffer(self, name: str, value: Any, **_: Any) -> None:
        self._buffers[name] = value  # nn.Module's refuses a name that something answers to

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not is_made_up(type(self)):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        decorated = len(args) == 1 and callable(args[0])
        return args[0] if decorated else self

    def __getitem__(self, name: Any) -> Any:
        return getattr(self, name) if isinstance(name, str) else self

    def get(self, name: str, default: Any = None) -> Any:
        return default

    def __enter__(self) -> Any:
        return self

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        parts = [part for part in cls.__module__.split(".") if part not in PACKAGE]
        name = ".".join((*parts, cls.__name__))
        text = f"the gradient depends on {name}, which is not here: is it needed?"
        raise Unreadable(text, verdict=False)


for operation in OPERATIONS.split():
    setattr(Missing, f"__{operation}__", lambda self, *_: self.__torch_function__())
for question in QUESTIONS.split():
    setattr(Missing, f"__{question}__", lambda *_: False)


def is_made_up(cls: type) -> bool:
    """Is this a stand-in, and not a submission's class that is derived from one?"""
    return isinstance(cls, Answering) and "made_up" in vars(cls)


def named(library: str, name: str) -> Any:
    """Whatever `library` has under this name."""
    root = library.split(".")[0]
    if name in typing.__all__ or name == "Tensor":  # which star imports bring
        return getattr(typing, name, Tensor)
    known = option(name) if root == "options" else PARTS.get(root, {}).get(name)
    if known is not None:
        return known
    bases = (Missing,) if PLAIN.search(name) else (Missing, nn.Module)
    made = Answering(name, bases, {"__module__": library, "made_up": True})
    return made if name[:1].isupper() else made()


def names_in(code: CodeType) -> set[str]:
    """Names of globals and attributes that a piece of code uses, functions within it too."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= names_in(constant)
    return found


def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """einops' rearrange and repeat: axes that are on the right only are new."""
    left, right = pattern.split("->")
    new = [name for name in re.findall(r"[a-z]\w*", right) if not re.search(rf"\b{name}\b", left)]
    x = x.expand(*(sizes.pop(name) for name in new), *x.shape)
    return torchs_rearrange(x, f"{' '.join(new)} {left} -> {right}", **sizes)


def resize(x: Tensor, size: Any, *_: Any, **__: Any) -> Tensor:
    """(B, 3, H, W) in another size; one number is the shorter side."""
    if isinstance(size, int):
        size = [side * size // min(x.shape[-2:]) for side in x.shape[-2:]]
    return F.interpolate(x, tuple(size), mode="bilinear", antialias=True)


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float], **_: Any) -> Tensor:
    """(B, 3, H, W), each channel by its own mean and standard deviation."""
    centre, width = (torch.tensor(values).to(x).view(-1, 1, 1) for values in (mean, std))
    return (x - centre) / width


class Settings(dict):
    """omegaconf's settings: nested dictionaries with attributes; of several, the last counts."""

    def __init__(self, *parts: Any):
        for part in parts:
            part = vars(part() if isinstance(part, type) else part) if is_dataclass(part) else part
            for name, value in dict(part or {}).items():
                value = Settings(value) if is_dataclass(value) else value
                nested = isinstance(value, dict)
                self[name] = Settings(self.get(name), value) if nested else value

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"these settings have no {name}")
        return self[name]


PARTS: dict[str, dict[str, Any]] = {  # by library
    "einops": {"rearrange": rearrange, "repeat": rearrange},
    "torchvision": {
        **{"resize": resize, "normalize": normalize},
        "Resize": lambda size, **_: partial(resize, size=size),
        "Normalize": lambda mean, std, **_: partial(normalize, mean=mean, std=std),
    },
    "omegaconf": {
        "OmegaConf": SimpleNamespace(create=Settings, merge=Settings, structured=Settings)
    },
    "peft": {"get_peft_model": lambda unet, *rest, **kw: (unet.add_adapter(*rest, **kw), unet)[1]},
}
