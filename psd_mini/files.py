"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: into a temporary neighbour first, which then takes the name in one step.

    Raises:
        OSError: the folder does not exist, cannot be written or is full; an older file of this name stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; choose a folder that exists and is writable", str(path)) from None
    finally:
        partial.unlink(missing_ok=True)
