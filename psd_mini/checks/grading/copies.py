"""A copy of a submission's folder, to work in: what it deletes or overwrites there is no loss."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path

FILE_BYTES, FOLDER_BYTES, ENTRIES = (
    4 * 2**20,
    32 * 2**20,
    1000,
)  # what is copied beside a submission, at most


def copy_folder(file: Path, to: Path) -> Path:
    """Copy a submission and its neighbours, so that it finds its helpers and data, and can harm
    only the copy.

    The nearest files come first, modules before data; files above FILE_BYTES, what is hidden,
    __pycache__ and links that lead out of the folder are left out, and it ends at FOLDER_BYTES or
    after ENTRIES.

    Returns:
        The submission's copy in the new folder `to`.
    """
    home, left = file.absolute().parent, FOLDER_BYTES
    to.mkdir()
    shutil.copyfile(file, to / file.name)
    for path in _files(home, to):
        copy = to / path.relative_to(home)
        with contextlib.suppress(OSError):  # what cannot be read cannot be used there either
            size = path.stat().st_size
            if size <= min(FILE_BYTES, left) and not copy.exists():
                left -= size
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
    return to / file.name


def _files(home: Path, to: Path) -> Iterator[Path]:
    """The files that a copy of `home` may hold, in their order; not those on the way to the copy
    itself."""
    folders, left = deque([home]), ENTRIES
    while folders and left > 0:
        with contextlib.suppress(OSError), os.scandir(folders.popleft()) as found:
            entries = sorted(
                itertools.islice(found, left),
                key=lambda entry: (not entry.name.endswith(".py"), entry.name),
            )
            left -= len(entries)
            for entry in entries:
                path = Path(entry.path)
                if (
                    entry.name.startswith(".")
                    or entry.name == "__pycache__"
                    or to.is_relative_to(path)
                ):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file() and (
                    not entry.is_symlink() or path.resolve().is_relative_to(home.resolve())
                ):
                    yield path
