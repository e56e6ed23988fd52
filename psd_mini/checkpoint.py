"""Checkpoints: everything that decides how a run goes on, written so that a killed process loses nothing.

A checkpoint is a dictionary of tensors, numbers and strings. It is written to a temporary file beside its place, flushed to
the disk and then renamed over the old one, which the operating system does at once or not at all. It is read with
torch's `weights_only=True`: a file that would run code when unpickled is refused, not executed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from dataclasses import is_dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from psd_mini.files import write_atomically

FORMAT = "psd-mini checkpoint 1"
ANEW = "delete it to start anew"
ADDRESS = r" at 0x[0-9a-fA-F]+"


def identity(thing: Any) -> str:
    """What tells methods, rewards and priors apart when a run goes on from a checkpoint, in this process or another.

    Of a function the name and a digest of its code and of what it encloses (not of the global names that it uses), else what
    repr says, without memory addresses; a class that has no __repr__ of its own goes by its name alone. A long text, or one
    with the rounded numbers of a tensor in it, becomes a digest.
    """
    if isinstance(thing, FunctionType):
        return f"{thing.__name__} {_digest(spelled(thing).encode())}"
    text = re.sub(ADDRESS, "", repr(thing))
    return text if len(text) <= 400 and "tensor(" not in text else f"{type(thing).__name__} {_digest(spelled(thing).encode())}"


def spelled(thing: Any, inside: tuple = ()) -> str:
    """A value in full, in words that are the same in every process; a function by its code, its defaults and what it encloses.

    Args:
        thing: the value.
        inside: what it is a part of, so that a function that encloses itself comes to an end.
    """
    if any(thing is one for one in inside):
        return "itself"
    parts: Any
    if isinstance(thing, FunctionType):
        parts = thing.__code__, thing.__defaults__, thing.__kwdefaults__, [c.cell_contents for c in thing.__closure__ or ()]
    elif isinstance(thing, CodeType):
        parts = thing.co_code, thing.co_names, thing.co_consts  # functions within it are among its constants
    elif isinstance(thing, Tensor):
        parts = str(thing.dtype), thing.tolist()
    elif is_dataclass(thing) and not isinstance(thing, type):
        parts = list(vars(thing).items())
    elif isinstance(thing, dict):
        parts = list(thing.items())
    elif isinstance(thing, set | frozenset):
        return f"set({sorted(spelled(part) for part in thing)})"  # its own order is another one in every process
    elif isinstance(thing, list | tuple):
        parts = thing
    else:
        return re.sub(ADDRESS, "", repr(thing))
    return f"{type(thing).__name__}({', '.join(spelled(part, (*inside, thing)) for part in parts)})"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path` by `state` in one step; a failing write leaves the old one as it was.

    Args:
        path: the file.
        state: tensors, numbers, strings, lists and dictionaries.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def read_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint and make sure that it continues the run described by `config`.

    Args:
        path: the file.
        config: names and values that must be the same as when it was written.

    Returns:
        The state that `write_checkpoint` was given.

    Raises:
        ValueError: no checkpoint there, damaged, foreign, or of another run; names the first setting that differs.
    """
    state = open_checkpoint(path)
    saved = state["config"]
    for name in sorted(saved.keys() | config.keys()):
        if saved.get(name) != config.get(name):
            raise ValueError(
                f"resume: the checkpoint at {path} was made with {name} = {saved.get(name)!r}, this run has "
                f"{config.get(name)!r}; use the same, or another output folder"
            )
    return state


def open_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, whichever run it is of; ValueError where there is none, or it is damaged or foreign."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"resume: there is no checkpoint at {path}; start the run without resume") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(f"resume: {path} is damaged or not a checkpoint ({reason}); {ANEW}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or not isinstance(state.get("config"), dict):
        raise ValueError(f"resume: {path} is not a '{FORMAT}'; {ANEW}")
    return state
