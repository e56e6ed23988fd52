"""A copy of a submission's folder, to work in: what it deletes or overwrites there is no loss."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

# what is copied beside a submission, at most
FILE_BYTES, FOLDER_BYTES, ENTRIES = 4 * 2**20, 32 * 2**20, 100


def copy_folder(file: Path, to: Path) -> Path:
    """Copy a submission and its neighbours: it finds its helpers and data, and harms only the copy.

    In every folder, what the submission names comes first, then modules before data. Files above
    FILE_BYTES, what is hidden, __pycache__ and links that lead out of the folder are left out. It
    ends at FOLDER_BYTES or after ENTRIES: a folder may hold hundreds of submissions.

    Returns:
        The submission's copy in the new folder `to`.
    """
    home, room, bytes_left = file.absolute().parent, ENTRIES, FOLDER_BYTES
    if file.stat().st_size > FILE_BYTES:
        raise OSError(f"it has {file.stat().st_size} bytes, expected at most {FILE_BYTES}")
    source = file.read_bytes()

    def least_needed_last(name: str) -> tuple[bool, bool, str]:
        named = os.fsencode(name).removesuffix(b".py") in source
        return not named, not name.endswith(".py"), name

    def left_out(folder: str, names: list[str]) -> list[str]:
        nonlocal room, bytes_left
        others = []
        for name in sorted(names, key=least_needed_last):
            path = Path(folder, name)
            size = path.stat().st_size if path.is_file() else 0
            hidden = name.startswith(".") or name == "__pycache__"
            if path.is_dir():
                usable = not path.is_symlink() and not to.is_relative_to(path)
            else:  # neither a pipe nor a link that leads out
                usable = path.is_file() and path.resolve().is_relative_to(home.resolve())
            if hidden or not usable or room <= 0 or size > min(FILE_BYTES, bytes_left):
                others.append(name)
            else:
                room, bytes_left = room - 1, bytes_left - size
        return others

    with contextlib.suppress(OSError):  # what cannot be read cannot be used there either
        shutil.copytree(home, to, ignore=left_out, copy_function=shutil.copyfile)
    to.mkdir(exist_ok=True)
    shutil.copyfile(file, to / file.name)
    return to / file.name
