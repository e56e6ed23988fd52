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
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from psd_mini.files import write_atomically

FORMAT = "psd-mini checkpoint 1"


def identity(thing: Any) -> str:
    """What tells methods, rewards and priors apart when a run goes on from a checkpoint, in this process or another.

    Of a function the name and a digest of its code (not of what it takes from outside itself), else what repr says, without
    memory addresses; a class that has no __repr__ of its own goes by its name alone. A long text becomes a digest.
    """
    code = getattr(thing, "__code__", None)
    if code is not None:
        constants = [value for value in code.co_consts if not isinstance(value, CodeType)]
        return f"{thing.__name__} {_digest(code.co_code + repr((constants, code.co_names)).encode())}"
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))
    return text if len(text) <= 400 else f"{type(thing).__name__} {_digest(text.encode())}"


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
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"resume: there is no checkpoint at {path}; start the run without resume") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(f"resume: {path} is damaged or not a checkpoint ({reason}); start again without resume") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"resume: {path} is not a '{FORMAT}'; start again without resume, or in another folder")
    saved = state["config"]
    for name in sorted(saved.keys() | config.keys()):
        if saved.get(name) != config.get(name):
            raise ValueError(
                f"resume: the checkpoint at {path} was made with {name} = {saved.get(name)!r}, this run has "
                f"{config.get(name)!r}; use the same, or another output folder"
            )
    return state
