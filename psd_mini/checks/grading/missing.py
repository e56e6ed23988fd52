"""Stand-ins for libraries that are not installed: they answer everything, and calculate nothing.

Most submissions import far more than their gradient needs: logging, pictures, a trainer, their own
`utils`. Every name of a missing library is a class here, to derive from, to annotate and to
decorate with; names in lower case are objects of such classes. Objects are false, and answer every
attribute and call. What calculates with one has no answer, and the report says which one it was.
"""

from __future__ import annotations

import dis
import inspect
import re
import sys
import typing
from contextlib import suppress
from types import CodeType
from typing import Any

import torch
from torch import nn

from psd_mini.checks.grading.small_libraries import PARTS
from psd_mini.checks.report import Unreadable

# the package that a submission is in, for `from ..utils import seed`
PACKAGE = ("handed_in", "two_up", "one_up", "here")
CONSTANTS = {"device": torch.device("cpu"), "dtype": torch.float32, "Tensor": torch.Tensor}
# what is a base class of plain classes; all others may be parts of networks
PLAIN = re.compile("Config|Mixin|Arg|Option|Setting|Output|Data|Object")
OPERATIONS = "add radd sub rsub mul rmul truediv rtruediv matmul rmatmul pow rpow neg float int"


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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not is_made_up(type(self)):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        decorated = len(args) == 1 and callable(args[0]) and not kwargs
        return args[0] if decorated else self

    def __iter__(self) -> Any:
        frame = sys._getframe(1)
        operation, count = frame.f_code.co_code[frame.f_lasti : frame.f_lasti + 2]
        if dis.opname[operation] != "UNPACK_SEQUENCE":  # model, preprocess = clip.load(...)
            raise needed(self)
        return iter([self] * count)

    def __bool__(self) -> bool:
        return False

    def __getitem__(self, _: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __lt__(self, _: Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __contains__ = __lt__

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise needed(cls)


def needed(what: Any) -> Unreadable:
    """The error of a gradient that depends on a stand-in."""
    cls = what if isinstance(what, type) else type(what)
    name = shown(f"{cls.__module__}.{cls.__name__}")
    text = f"the gradient depends on {name}, which is not here: write it without, or put it beside"
    return Unreadable(text, verdict=False)


def shown(name: str) -> str:
    """A module's name as the submission has it, without `PACKAGE`."""
    return ".".join(part for part in name.split(".") if part not in PACKAGE)


def names_in(code: CodeType) -> set[str]:
    """Names of globals and attributes that a piece of code uses, functions within it too."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= names_in(constant)
    return found


def _calculate(self: Any, *_: Any) -> Any:
    raise needed(self)


for operation in OPERATIONS.split():
    setattr(Missing, f"__{operation}__", _calculate)


def is_made_up(cls: type) -> bool:
    """Is this a stand-in, and not a submission's class that is derived from one?"""
    return "made_up" in vars(cls)


def named(library: str, name: str) -> Any:
    """Whatever `library` has under this name."""
    if name in typing.__all__:  # which star imports bring
        return getattr(typing, name)
    known = CONSTANTS.get(name) or PARTS.get(library.split(".")[0], {}).get(name)
    if known is not None:
        return known
    network = not PLAIN.search(name)
    bases = (Missing, nn.Module) if network else (Missing,)
    made = Answering(name, bases, {"__module__": library, "made_up": True})
    return made if name[:1].isupper() else made()
