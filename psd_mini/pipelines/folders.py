"""Folders that hold runs: how they are named, and that no run writes over another.

    a-mushroom-psd-voxel-0                               prompt, method, field, seed
    a-mushroom-psd-voxel-reward-color-blue-steps-40-0    and settings that are not the default

Before anything costly is computed, `look` decides whether a run may use its folder:

    there is nothing of a run                               go on
    this run, killed before its first checkpoint            go on
    a run of other settings, or files of an unknown one     refused
    this run, unfinished                                    refused; resume goes on with it
    this run, finished                                      refused; look at its results
    anything, and overwrite is given                        replaced after the first step

After its first step a run writes its settings to run.json. Other runs then see whose folder it is.
"""

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psd_mini._internal.arguments import named
from psd_mini._internal.files import write_atomically
from psd_mini._internal.identity import spelled
from psd_mini._internal.runs import different, fixed, open_checkpoint

PICTURES = ("turntable.gif", "views.png", "curves.png")
FILES = ("checkpoint.pt", "run.json", "field.safetensors", "mesh.glb", *PICTURES)
LONGEST = 100  # characters of a name; some systems allow 143, and 260 for a whole path
PLAIN = re.compile(r"[a-z0-9.]+([ _:-][a-z0-9.]+)*")
REPLACE = "replace it with overwrite=True (--overwrite), or choose another out (--out)"


def folder_name(first: Sequence[Any], others: Mapping[str, Any], last: Sequence[Any] = ()) -> str:
    """A name that is safe on every system: small letters, digits, dots and dashes.

    Args:
        first, last: what always stands in it, before and after the others.
        others: settings that differ from their defaults, by name; True stands as its name alone.

    Returns:
        The parts joined by dashes. If a part had to be changed or is an object, or if the name is
        too long, a digest of all parts is added.
    """
    parts = [str(part) for part in first]
    for name, value in others.items():
        words = value if isinstance(value, str) else spelled(value)
        parts.append(name if value is True else f"{name} {words}")
    parts += [str(part) for part in last]
    name = re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower())
    plain = all(PLAIN.fullmatch(part) for part in parts) and name == name.strip(".")
    if len(name) <= LONGEST and plain:
        return name
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
    return f"{name.lstrip('-.')[: LONGEST - 9].rstrip('-.')}-{digest}"


def writable_folder(out: str | Path | None) -> Path | None:
    """The output folder, made if need be, after trying that a file can be written there."""
    if out is None:
        return None
    folder = Path(out)
    with named(f"out: cannot write into {folder}", "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


def not_both(resume: bool, overwrite: bool) -> None:
    """Refuse two wishes that contradict each other."""
    if resume and overwrite:
        what = "one goes on with what is in the folder, the other replaces it"
        raise ValueError(f"resume, overwrite: {what}; choose one")


def look(
    out: str | Path | None, settings: dict[str, Any], resume: bool = False, overwrite: bool = False
) -> None:
    """Refuse a folder that holds something which a run of these settings would replace.

    Args:
        out: the folder, which need not exist; None is no folder.
        settings: what decides the run's outcome, as far as it is known before the prior is loaded.
        resume: the run is to go on from the folder's checkpoint.
        overwrite: the run is to replace what is there.

    Raises:
        ValueError: in one line, with what to do.
    """
    not_both(resume, overwrite)
    if resume and out is None:
        raise ValueError("resume: needs `out`, the folder of the run to continue")
    if out is None or overwrite:
        return
    folder = Path(out)
    checkpoint, record = folder / "checkpoint.pt", read_record(folder)
    there = [name for name in FILES if (folder / name).exists()]
    if resume:
        open_checkpoint(checkpoint)  # it is there and knows its own settings
    elif there and not record:
        raise ValueError(f"out: {folder} holds {there[0]} of an unknown run; {REPLACE}")
    kept = fixed(settings)
    if record and (difference := different(record["config"], kept if resume else settings)):
        longer = "" if different(record["config"], kept) else "resume=True (--resume) goes on, or "
        what = f"the run in {folder} was made with {difference}"
        raise ValueError(f"out: {what}; {longer}{REPLACE}")
    if resume:
        return
    if "seconds" in record:
        results = f"look at {folder / 'turntable.gif'}; overwrite=True (--overwrite) makes it anew"
        raise ValueError(f"out: {folder} holds this run, finished: {results}")
    if checkpoint.exists():
        how = f"go on with resume=True (--resume), {REPLACE}"
        raise ValueError(f"out: {folder} holds this run, unfinished; {how}")


def read_record(folder: Path) -> dict[str, Any]:
    """run.json, or an empty dictionary where there is none that can be read."""
    try:
        record = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("config"), dict) else {}


def claim(folder: Path, config: dict[str, Any], overwrite: bool = False) -> None:
    """Write a run's settings into its folder after its first step; take away what it replaces.

    Raises:
        ValueError: meanwhile a run of other settings has begun there.
    """
    if overwrite:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    record = read_record(folder)
    if record and (difference := different(record["config"], config)):
        begun = f"meanwhile another run has begun in {folder}, with {difference}"
        raise ValueError(f"out: {begun}; choose another out (--out)")
    if not record:
        with contextlib.suppress(OSError):  # a full disk must not cost the run
            text = json.dumps({"config": config}, indent=2, default=str)
            write_atomically(folder / "run.json", text.encode())
