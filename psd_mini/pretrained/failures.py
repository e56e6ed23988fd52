"""What fails outside of the package's power (network, hub, memory, a missing package) ends in
one line that says what to do."""

from __future__ import annotations

import os
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import torch

REMEDY = "a downloaded folder works too, and the exact world needs none of this: prior='exact'"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type's name where there
    is none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextmanager
def one_line(what: str, remedy: str = REMEDY) -> Iterator[None]:
    """Turn anything that loading `what` fails with into a ValueError of one line that says what
    to do, such as `remedy`."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*local_dir_use_symlinks"
            )  # diffusers' affair
            yield
    except ImportError as error:
        missing = (
            f"{what}: a package is missing ({first_line(error)}); pip install diffusers"
            f" transformers; {remedy}"
        )
        raise ValueError(missing) from None
    except (torch.OutOfMemoryError, MemoryError):
        raise ValueError(
            f"{what}: not enough memory; stop what else uses it, or choose device='cpu'; {remedy}"
        ) from None
    except (
        Exception
    ) as error:  # the hub, diffusers, transformers and safetensors raise two dozen different ones
        reason = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
        hint = "is there a network, and does it still exist?"
        raise ValueError(f"{what}: cannot be loaded ({reason}); {hint} {remedy}") from None


@contextmanager
def memory_error_in_one_line() -> Iterator[None]:
    """A GPU that is too small is the user's to mend, not a bug to be traced."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ValueError(
            "memory: the GPU has too little; use one camera a step, or an id or folder of a smaller"
            " model, or prior='exact'"
        ) from None


def hub_is_offline() -> bool:
    """Whether the hub is out of reach, found out in seconds; its own client retries for half a
    minute, file by file.

    Then only what was downloaded before can be used. Behind a proxy the client is left to find out
    for itself."""
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
