"""What fails outside of the package's power (network, hub, memory, a missing package) ends in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

REMEDY = "the exact world needs none of this: prior='exact'"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type's name where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn anything that loading `what` fails with into a ValueError of one line that says what to do."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{what}: a package is missing ({first_line(error)}); pip install diffusers transformers; {REMEDY}"
        ) from None
    except (torch.OutOfMemoryError, MemoryError):
        raise ValueError(f"{what}: not enough memory; restart what else uses the GPU, or device='cpu'; {REMEDY}") from None
    except Exception as error:  # the hub, diffusers, transformers and safetensors raise two dozen different ones
        raise ValueError(
            f"{what}: cannot be loaded ({type(error).__name__}: {first_line(error)}); is there a network, and does the model "
            f"still exist? A downloaded folder works too; {REMEDY}"
        ) from None


@contextmanager
def memory_error_in_one_line() -> Iterator[None]:
    """A GPU that is too small is the user's to mend, not a bug to be traced."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ValueError(
            "memory: the GPU has too little; use one camera a step, or an id or folder of a smaller model, or prior='exact'"
        ) from None
