"""What tells methods, rewards, priors and cached files apart, in this process or another."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor

ADDRESS = r" at 0x[0-9a-fA-F]+"


def identity(thing: Any) -> str:
    """A short name for a method, reward or prior: the same one where it would do the same.

    A function goes by its name and a digest of its code and of what it encloses (not of the global
    names that it uses). Anything else goes by its repr without memory addresses, so a class without
    a __repr__ of its own goes by its name alone. A long text, or one with a tensor's rounded
    numbers in it, becomes a digest.
    """
    if isinstance(thing, FunctionType):
        return f"{thing.__name__} {_digest(spelled(thing))}"
    text = re.sub(ADDRESS, "", repr(thing))
    if len(text) <= 400 and "tensor(" not in text:
        return text
    return f"{type(thing).__name__} {_digest(spelled(thing))}"


def in_config(part: Any) -> Any:
    """What a part of a run is called in its config: a name, True, False or None as it is."""
    return part if isinstance(part, str | bool | None) else identity(part)


def spelled(thing: Any, inside: tuple = ()) -> str:
    """A value in full, in words that are the same in every process.

    Args:
        thing: the value; a function is spelled by its code, its defaults and what it encloses.
        inside: what it is a part of, so that a function that encloses itself comes to an end.
    """
    if any(thing is one for one in inside):
        return "itself"
    parts: Any
    if isinstance(thing, FunctionType):
        enclosed = [cell.cell_contents for cell in thing.__closure__ or ()]
        parts = thing.__code__, thing.__defaults__, thing.__kwdefaults__, enclosed
    elif isinstance(thing, CodeType):
        # functions within it are among its constants
        parts = thing.co_code, thing.co_names, thing.co_consts
    elif isinstance(thing, Tensor):
        parts = str(thing.dtype), thing.tolist()
    elif is_dataclass(thing) and not isinstance(thing, type):
        parts = list(vars(thing).items())
    elif isinstance(thing, dict):
        parts = list(thing.items())
    elif isinstance(thing, set | frozenset):  # its own order is another one in every process
        return f"set({sorted(spelled(part) for part in thing)})"
    elif isinstance(thing, list | tuple):
        parts = thing
    else:
        return re.sub(ADDRESS, "", repr(thing))
    inner = (spelled(part, (*inside, thing)) for part in parts)
    return f"{type(thing).__name__}({', '.join(inner)})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def made_of(modules: Iterable[ModuleType], *values: Any) -> str:
    """A digest for a cached file's name: of the source of the modules that make it, and of values.

    Everything that can change the file's content has to be named, or an old file is taken for new.
    """
    digest = hashlib.sha256(repr(values).encode())
    for module in modules:
        digest.update(Path(module.__file__ or "").read_bytes())
    return digest.hexdigest()[:16]
