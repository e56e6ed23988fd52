"""Folders that hold runs: how they are called, and that no run writes over another.

    a-mushroom-psd-voxel-0                               prompt, method, field, seed
    a-mushroom-psd-voxel-reward-color-blue-steps-40-0    and every other setting that is not the default

Before anything costly is computed the folder is looked at (`look`). What stands in it decides:

    nothing of a run, or a run of these settings that was killed before its first checkpoint    go on
    a checkpoint or results of other settings                                                   refused
    an unfinished run of these settings                                                         refused; resume goes on
    a finished run of exactly these settings                                                    given back as it is
    anything, and overwrite                                                                     replaced after the first step

From its first step on a run has its settings in run.json, so that others see whose folder it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psd_mini._internal.files import write_atomically
from psd_mini._internal.identity import spelled
from psd_mini._internal.runs import open_checkpoint

FILES = (
    "checkpoint.pt",
    "run.json",
    "field.safetensors",
    "turntable.gif",
    "views.png",
    "curves.png",
    "mesh.glb",
)
LONGEST = (
    100  # characters of a name; some systems allow 143 for a file's name, and 260 for a whole path
)
ANEW = "overwrite=True (--overwrite) makes it anew"
REPLACE = "replace it with overwrite=True (--overwrite), or choose another out (--out)"


def folder_name(first: list[Any], others: Mapping[str, Any], last: list[Any] | None = None) -> str:
    """A name that is safe as a file's name on every system: small letters, digits, dots and dashes.

    Args:
        first, last: what always stands in it, before and after the others.
        others: settings that differ from their defaults: name -> value; True stands as the name
            alone.

    Returns:
        The parts joined by dashes. Where something was left out or is an object, a digest of all
        parts is added.
    """
    words_of = {
        name: value if isinstance(value, str) else spelled(value) for name, value in others.items()
    }
    named = [name if value == "True" else f"{name} {value}" for name, value in words_of.items()]
    parts = [*map(str, first), *named, *map(str, last or [])]
    words = [
        re.sub(r"[^a-z0-9.]+", "-", part.lower().replace("_", "-")).strip("-.") for part in parts
    ]
    name = "-".join(filter(None, words))
    plain = all(re.fullmatch(r"[a-z0-9.]+([ _:-][a-z0-9.]+)*", part) for part in parts)
    if plain and len(name) <= LONGEST:
        return name
    return (
        f"{name[: LONGEST - 9].strip('-.')}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"
    )


def writable_folder(out: str | Path | None) -> Path | None:
    """The output folder, made if need be, after trying that a file can be written there."""
    if out is None:
        return None
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another process may have tried at the same time
    except OSError as error:
        raise ValueError(
            f"out: cannot write into {folder} ({error.strerror}); choose another folder"
        ) from None
    return folder


def look(
    out: str | Path | None, settings: dict[str, Any], resume: bool = False, overwrite: bool = False
) -> dict[str, Any] | None:
    """Whether a run of these settings may use the folder.

    Args:
        out: the folder, which need not exist; None is no folder.
        settings: what decides the run's outcome, as far as it is known before the prior is loaded.
        resume: it is to go on from the folder's checkpoint.
        overwrite: it is to replace what is there.

    Returns:
        None: go on. Else the checkpoint of a finished run of these settings, whose results are all
            there.

    Raises:
        ValueError: the folder holds something that would be lost; in one line, with what to do.
    """
    if resume and out is None:
        raise ValueError("resume: needs `out`, the folder of the run to continue")
    if resume and overwrite:
        raise ValueError(
            "resume, overwrite: one goes on with what is in the folder, the other replaces it;"
            " choose one"
        )
    folder = Path(out or ".")
    if out is None or overwrite or not (resume or any((folder / name).exists() for name in FILES)):
        return None
    path, record = folder / "checkpoint.pt", read_record(folder)
    state = open_checkpoint(path) if resume or path.exists() else None
    saved = state["config"] if state else record.get("config")
    if saved is None:
        there = next(name for name in FILES if (folder / name).exists())
        raise ValueError(f"out: {folder} holds {there} of an unknown run; {REPLACE}")
    if difference := different(saved, settings):
        what = f"resume: the checkpoint at {path}" if resume else f"out: the run in {folder}"
        raise ValueError(f"{what} was made with {difference}; {REPLACE}")
    complete = "seconds" in record and (folder / "field.safetensors").exists()
    if resume or (state is None and not complete):
        return None
    if state is None:
        raise ValueError(f"out: {folder} holds a finished run whose checkpoint is gone; {REPLACE}")
    if (
        state["progress"]["steps"] < settings["steps"]
        or not complete
        or different(record.get("config", {}), settings)
    ):
        done = f"{state['progress']['steps']} of {settings['steps']} steps"
        raise ValueError(
            f"out: {folder} holds this run, unfinished ({done}); go on with resume=True (--resume),"
            f" {REPLACE}"
        )
    return state


def different(saved: dict[str, Any], settings: dict[str, Any]) -> str:
    """The first setting that is not the same, with both values; "" if all are. Values are
    compared as JSON holds them."""
    for name, value in settings.items():
        before, now = (json.loads(json.dumps(one, default=str)) for one in (saved.get(name), value))
        if before != now:
            return f"{name} = {saved.get(name)!r}, this run has {value!r}"
    return ""


def read_record(folder: Path) -> dict[str, Any]:
    """run.json, or an empty dictionary where there is none that can be read."""
    try:
        record = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("config"), dict) else {}


def claim(folder: Path, config: dict[str, Any], overwrite: bool = False) -> None:
    """Write a run's settings into its folder when it has begun, after taking away what it replaces.

    Raises:
        ValueError: meanwhile a run of other settings has begun there.
    """
    if overwrite:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    if (record := read_record(folder)) and (difference := different(record["config"], config)):
        raise ValueError(
            f"out: meanwhile another run has begun in {folder}, with {difference}; choose another"
            " out (--out)"
        )
    if not record:
        with contextlib.suppress(OSError):  # a full disk must not cost the run
            write_atomically(
                folder / "run.json", json.dumps({"config": config}, indent=2, default=str).encode()
            )
