"""A copy of a submission's folder, to work in: what it deletes or overwrites there is no loss."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path

# what is copied beside a submission, at most
FILE_BYTES, FOLDER_BYTES, ENTRIES = 4 * 2**20, 32 * 2**20, 100
LISTED = 10_000  # entries of a folder that are looked at


def copy_folder(file: Path, to: Path) -> Path:
    """Copy a submission and its neighbours: it finds its helpers and data, and harms only the copy.

    The nearest files come first, of these what the submission names, then modules before data.
    Files above FILE_BYTES, what is hidden, __pycache__ and links that lead out of the folder are
    left out. It ends at FOLDER_BYTES or after ENTRIES: a folder may hold hundreds of submissions.

    Returns:
        The submission's copy in the new folder `to`.
    """
    home, left = file.absolute().parent, FOLDER_BYTES
    if file.stat().st_size > FILE_BYTES:
        raise OSError(f"it has {file.stat().st_size} bytes, expected at most {FILE_BYTES}")
    to.mkdir()
    shutil.copyfile(file, to / file.name)
    for path in _files(home, to, file.read_bytes()):
        copy = to / path.relative_to(home)
        with contextlib.suppress(OSError):  # what cannot be read cannot be used there either
            size = path.stat().st_size
            if size <= min(FILE_BYTES, left) and not copy.exists():
                left -= size
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
    return to / file.name


def _files(home: Path, to: Path, source: bytes) -> Iterator[Path]:
    """The files that a copy of `home` in `to` may hold, in their order."""

    def least_needed_last(entry: os.DirEntry) -> tuple[bool, bool, str]:
        named = os.fsencode(entry.name).removesuffix(b".py") in source
        return not named, not entry.name.endswith(".py"), entry.name

    folders, left = deque([home]), ENTRIES
    while folders and left > 0:
        with contextlib.suppress(OSError), os.scandir(folders.popleft()) as found:
            listed = itertools.islice(found, LISTED)
            entries = sorted(listed, key=least_needed_last)[:left]
            left -= len(entries)
            for entry in entries:
                path = Path(entry.path)
                hidden = entry.name.startswith(".") or entry.name == "__pycache__"
                if hidden or to.is_relative_to(path):  # not the way to the copy itself
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file():
                    inside = path.resolve().is_relative_to(home.resolve())
                    if inside or not entry.is_symlink():
                        yield path
