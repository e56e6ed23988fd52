"""Many submissions, each in a process of its own: what `psd-mini check` runs.

    results = grade(["a.py:my_sds", "b.py"], kind="sds")       # one row each, whatever they do

The processes are forked from one that has imported torch, so a submission costs milliseconds to
start, in a copy of its folder with a limit of time and of memory; its output is caught. What it
executes it executes with your rights: this is isolation from accidents, not a security sandbox.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from psd_mini import checks
from psd_mini.checks.grading.copies import copy_folder
from psd_mini.checks.grading.isolation import Confined, ended, outcome, signals_wait, start, stop
from psd_mini.checks.grading.missing import PACKAGE
from psd_mini.checks.grading.offline import offline_diffusers, stood_in
from psd_mini.checks.grading.submission import COURSE
from psd_mini.checks.guard import describe, status_of
from psd_mini.checks.report import STATUSES, Report, Unreadable, in_capitals, no_answer
from psd_mini.checks.sizes import Scale

Result = dict[str, Any]

KINDS = (
    *("sds", "cfg", "csd", "vsd", "psd", "sdi", "pds", "flow"),
    *("negative-embedding", "renderer", "schedule"),
)
CHECKS: dict[str, Callable[..., Report]] = {  # by kind
    kind: getattr(checks, f"check_{kind.replace('-', '_')}") for kind in KINDS
}
HAVE_WEIGHT = ("sds", "csd", "vsd", "psd", "sdi")  # w(t)
HINTS = {  # words in a submission's name; otherwise the kind itself
    "negative-embedding": ("negative",),
    "renderer": ("render", "composit", "raymarch"),
    "schedule": ("noise", "schedule", "alpha"),
}
DAMAGED = "its report is missing or damaged: does it end its parent, or change json?"


def find(module: Any, name: str | None, kind: str, options: Mapping[str, Any] = {}) -> Any:
    """The submission in a module: what is named, what is called like `kind`, or the likely one.

    It is likely with `kind` (or one of `HINTS`) in its name or a method's, or with a method of
    `COURSE`, or alone. Of several, it is the only one that a check has something to say about.

    Raises:
        Unreadable: nothing, or several; the message lists what there is.
    """
    if name:
        try:
            return attrgetter(name)(module)
        except AttributeError as error:
            raise Unreadable(f"it has no {name!r}") from error
    own = {}
    for key, value in vars(module).items():
        written_here = getattr(value, "__module__", None) == module.__name__
        if callable(value) and written_here and not key.startswith("_"):
            own[key] = value
    own = {key: value for key, value in own.items() if not _is_a_part(value)} or own
    called, hints = kind.replace("-", "_"), HINTS.get(kind, (kind,))
    likely = _like(own, hints) or _like(own, COURSE) or list(own)
    classes = [key for key in likely if isinstance(own[key], type)]
    for chosen in ([key for key in own if key == called], likely, classes):
        if len(chosen) == 1:
            return own[chosen[0]]
    judged = [key for key in likely if len(CHECKS[kind](own[key], **options).findings) > 1]
    if len(judged) == 1:
        return own[judged[0]]
    there = f"there are: {', '.join(own) or 'none'}"
    raise Unreadable(f"which one is it? Call it {called} or name it as file.py:name; {there}")


def _is_a_part(value: Any) -> bool:
    """A class that others use: a function for autograd, or options."""
    if not isinstance(value, type) or issubclass(value, torch.autograd.Function):
        return isinstance(value, type)
    return dataclasses.is_dataclass(value) and all(name.startswith("_") for name in vars(value))


def _like(own: Mapping[str, Any], hints: Sequence[str]) -> list[str]:
    """Those with one of the hints in their name, or in a method's."""
    found = []
    for key, value in own.items():
        names = " ".join((key, *getattr(value, "__dict__", {}))).lower()
        found += [key] if any(hint in names for hint in hints) else []
    return found


def check_file(path: str, kind: str, **options: Any) -> Report:
    """Import "file.py" or "file.py:name" and check it, in this process, with these options.

    Where it stops at a module that is not there, it starts again with a stand-in for that one.
    """
    name, file = split(path)[1], Path(split(path)[0]).resolve()
    with stood_in(file.parent) as absent:
        while True:
            report = _check_once(file, name, kind, options)
            stop = re.search(r"No module named '(\w+)", "; ".join(report.causes))
            if stop is None or stop[1] in absent:
                break
            absent.add(stop[1])
    if absent:
        libraries = ", ".join(sorted(absent)).replace(PACKAGE[0], "its neighbours")
        report.add("note", "not installed", f"stood in for: {libraries}")
    return report


def _check_once(file: Path, name: str, kind: str, options: dict[str, Any]) -> Report:
    """`check_file`, with the modules that there are."""
    try:
        with offline_diffusers():
            spec = importlib.util.spec_from_file_location(".".join((*PACKAGE, file.stem)), file)
            if spec is None or spec.loader is None:
                raise Unreadable(f"{file.name} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            target = find(module, name or None, kind, options)
        return CHECKS[kind](target, **options)
    except Unreadable as error:
        return no_answer(error.status, str(error), f"check of {kind}")
    except (Exception, SystemExit) as error:
        said = f"it does not import: {describe(error)}"
        return no_answer(status_of(error), said, f"check of {kind}")


def _in_a_copy(path: str, kind: str, folder: Path, options: dict[str, Any]) -> Report:
    """`check_file` on a copy of the submission's folder, from within that copy."""
    file, name = split(path)
    copy = copy_folder(Path(file), folder / "copy")
    os.chdir(copy.parent)
    return check_file(f"{copy}:{name}" if name else str(copy), kind, **options)


def grade(
    paths: Sequence[str],
    kind: str = "sds",
    timeout: float = 20.0,
    workers: int | None = None,
    weighting: str | None = None,
    memory: float = 2.0,
    gradient_scale: str = "report",
    on_result: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Check a formula in other people's files, and name the mistakes.

    Each file is checked in a process of its own and in a copy of its folder, a few at a time.
    KeyboardInterrupt ends it with the results so far. What is checked is executed: this is
    isolation from accidents, not a security sandbox. The command's exit status is 1 if anything is
    not right, and 130 after Ctrl-C.

    Args:
        paths: file.py, file.py:function or file.py:Class (for the command, a folder stands for all
            of its .py files).
        kind: sds, cfg, csd, vsd, psd, sdi, pds, flow, negative-embedding, renderer or schedule.
        timeout: seconds for each file.
        workers: files at once; default one a core.
        weighting: the name of w(t) if only that one is right; by default any is.
        memory: GiB for each file, beyond what torch and the check take (Linux; elsewhere there is
            no limit).
        gradient_scale: what a constant factor is (a mean for a sum, a missing 1/2), for kinds with
            a w(t): ignore calls it right, report scaled (exit status 0), require wrong.
        on_result: called with the place in `paths` and the result, as they come.

    Returns:
        One dictionary each, in order: path, ok, status ("right", or a status of `report.Finding`:
        "wrong", "could not run", "not answered", "timed out", "not run"), score (see `Report`),
        causes, findings, seconds, output (the end of what it printed).

    Raises:
        ValueError: a weighting that nobody knows, or for a kind without one; no time or no memory.
        OSError: this system cannot fork (Windows): call the check itself, `check_sds(fn)`, there.
    """
    options = _options(kind, Scale(weighting, gradient_scale), timeout, memory)
    waiting, running = deque(enumerate(paths)), dict[int, Confined]()
    results: dict[int, Result] = {}

    def keep(i: int, report: Report | None, seconds: float = 0.0, printed: str = "") -> None:
        report = report or no_answer("could not run", DAMAGED)
        report.title = report.title or f"check of {kind}"
        measured = {"path": paths[i], "seconds": round(seconds, 2), "output": printed}
        results[i] = report.to_dict() | measured
        if on_result is not None:
            on_result(i, results[i])

    def begin(i: int, path: str, folder: Path) -> None:
        work = partial(_in_a_copy, path, kind, options=options)
        try:
            running[i] = start(work, folder, timeout, memory)
        except OSError as error:
            text = f"no process could be started: {error.strerror}"
            keep(i, no_answer("could not run", text))

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _one_thread():
        try:
            # each step is done or not: no process and no result is lost between two
            while waiting or running:
                while waiting and len(running) < (workers or os.cpu_count() or 1):
                    i, path = waiting.popleft()
                    with signals_wait():
                        begin(i, path, Path(folder, str(i)))
                for i in ended(running, timeout):
                    with signals_wait():
                        job = running.pop(i)
                        stop(job)
                        keep(i, *outcome(job))
        except KeyboardInterrupt:
            pass
        finally:
            for job in running.values():
                stop(job)
        for i in sorted(set(range(len(paths))) - set(results)):
            keep(i, no_answer("not run", "the checking was stopped before"))
    return [results[i] for i in range(len(paths))]


def _options(kind: str, scale: Scale, timeout: float, memory: float) -> dict[str, Any]:
    """What the check of a kind is told about sizes; raises what `grade` raises."""
    if not hasattr(os, "fork"):
        raise OSError("files are graded in forks, which this system has not: call check_sds(fn)")
    for name, value, unit in (("timeout", timeout, "seconds"), ("memory", memory, "GiB")):
        if not 0 < value <= 86400:
            expected = f"more than 0 and at most 86400 {unit}"
            raise ValueError(f"{name}: expected {expected}, got {value:g}")
    if kind in HAVE_WEIGHT:
        return {"weighting": scale.weighting, "gradient_scale": scale.policy}
    if scale.weighting is not None:
        raise ValueError(f"weighting: expected none for kind {kind}, got {scale.weighting!r}")
    return {}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """torch's threads do not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def split(path: str) -> tuple[str, str]:
    """ "file.py:name" as file and name, the name empty where there is none."""
    file, _, name = path.rpartition(":")
    return (path, "") if os.path.exists(path) or not file else (file, name)


def expand(path: str) -> Iterator[str]:
    """A file as it is, a folder as all its .py files in order (no hidden ones, as "._x.py").

    Raises:
        ValueError: for what is not there.
    """
    if not os.path.exists(split(path)[0]):
        raise ValueError(f"path: there is no {path!r}; expected file.py, file.py:name or a folder")
    if os.path.isdir(path):
        yield from (str(p) for p in sorted(Path(path).glob("[!.]*.py")) if p.is_file())
    else:
        yield path


def line(result: Result, width: int) -> str:
    """One submission: verdict, name, seconds, what is likely wrong."""
    verdict, causes = in_capitals(result["status"]), "; ".join(result["causes"])
    name = Path(result["path"]).name
    return f"{verdict:<13}  {name:<{width}}  {result['seconds']:5.1f} s  {causes}".rstrip()


def counts(results: Sequence[Result]) -> str:
    """For example "3 of 5 right, 1 wrong, 1 timed out"."""
    found = Counter(result["status"] for result in results)
    others = [f"{found[status]} {status}" for status in STATUSES if found[status]]
    return ", ".join([f"{found['right']} of {len(results)} right", *others])
