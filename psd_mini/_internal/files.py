"""Files that are whole or not there."""

import contextlib
import errno
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_archive(path: str | Path) -> Any:
    """What torch.save wrote, after a look at its checksums. It is read so that it runs no code.

    Raises:
        Exception: of one of many kinds, where it is no such file, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if part := archive.testzip():
            raise zipfile.BadZipFile(f"{part} does not fit its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def checksum(tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> str:
    """SHA-256 of tensors and settings, as safetensors lays them out."""
    from safetensors.torch import save

    return hashlib.sha256(save(tensors, {"settings": json.dumps(settings)})).hexdigest()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: into a temporary neighbour first, which then takes the name
    in one step.

    Raises:
        OSError: the folder does not exist, cannot be written or is full; an older file of this name
            stays as it was.
    """
    path = Path(path)
    if not path.name:  # "" and "."
        raise IsADirectoryError(errno.EISDIR, "a path to a file is needed, not a folder", str(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        remedy = "choose a path in a folder that exists and is writable"
        raise OSError(error.errno, f"{error.strerror}; {remedy}", str(path)) from None
    finally:
        with contextlib.suppress(OSError):  # it has its name, or the error above says what is wrong
            partial.unlink()
