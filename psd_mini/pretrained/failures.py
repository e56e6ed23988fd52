"""Failures outside the package (network, hub, memory) end in one line that says what to do."""

import os
import socket
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import torch

from psd_mini._internal.arguments import first_line

REMEDY = "a downloaded folder works too, and the exact world needs none of this: prior='exact'"

# what hub clients say of a file that was never downloaded, when they may not ask the network
NOT_HERE = ("local_files_only", "to have a file named", "cached files")


@contextmanager
def one_line(what: str, remedy: str = REMEDY) -> Iterator[None]:
    """Whatever loading `what` fails with becomes a ValueError of one line, with `remedy`."""
    try:
        with warnings.catch_warnings():
            # diffusers still passes this argument, huggingface_hub ignores it
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    except Exception as error:  # the hub, diffusers, transformers and safetensors raise many kinds
        reason = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
        hint = "is there a network, and does it still exist?"
        not_here = any(words in str(error) for words in NOT_HERE)
        if isinstance(error, ImportError):
            hint = "a package is missing: pip install diffusers transformers;"
        elif isinstance(error, torch.OutOfMemoryError | MemoryError):
            hint = "not enough memory: stop what else uses it, or choose device='cpu';"
        elif not_here and not os.path.exists(what.partition(" ")[2]) and hub_is_offline():
            reason, hint = "there is no network", "and it was not downloaded before;"
        raise ValueError(f"{what}: cannot be loaded ({reason}); {hint} {remedy}") from None


@contextmanager
def memory_error_in_one_line() -> Iterator[None]:
    """A GPU with too little memory ends in a ValueError of one line, with the remedies."""
    try:
        yield
    except torch.OutOfMemoryError:
        remedy = "use one camera a step, a smaller model, or prior='exact'"
        raise ValueError(f"memory: the GPU has too little; {remedy}") from None


def first_loaded(ids: Sequence[str], load: Callable[[str], Any]) -> Any:
    """What `load` makes of the first id that it can load.

    Raises:
        ValueError: it can load none of them; the error of the first.
    """
    reasons = []
    for model_id in ids:
        try:
            return load(model_id)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(f"{reasons[0]} (tried: {', '.join(ids)})")


def hub_is_offline() -> bool:
    """Whether the hub is out of reach; takes at most five seconds.

    If it is, only what was downloaded before can be used. The hub's own client would retry for half
    a minute, file by file. Behind a proxy this cannot be found out here, and the answer is False.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return True
    if urllib.request.getproxies():
        return False
    try:
        from huggingface_hub.constants import ENDPOINT

        address = urlsplit(ENDPOINT)
        port = address.port or {"http": 80}.get(address.scheme, 443)
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except ImportError:
        return False  # the loader will say so
    except OSError:
        return True
    return False
