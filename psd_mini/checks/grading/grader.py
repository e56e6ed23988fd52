"""Many submissions, each in a process of its own: what `psd-mini check` runs.

    results = grade(["a.py:my_sds", "b.py"], kind="sds")       # one row each, whatever they do

The processes are forked from one that has imported torch and holds light stand-ins for diffusers and transformers, so a
submission costs milliseconds to start. Each has a time limit; its output is caught. What it executes it executes with
your rights: this is isolation from accidents (endless loops, exit, crashes), not a security sandbox.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from psd_mini.checks.diagnosis import WEIGHTINGS
from psd_mini.checks.negative_embedding import check_negative_embedding
from psd_mini.checks.grading.offline import offline_diffusers
from psd_mini.checks.preference import check_psd
from psd_mini.checks.probe import describe
from psd_mini.checks.report import Report, in_capitals
from psd_mini.checks.sds import check_cfg, check_csd, check_sds, check_vsd
from psd_mini.checks.grading.submission import Unreadable
from psd_mini.checks.world_checks import check_renderer, check_schedule

KINDS: dict[str, Callable[..., Report]] = {
    "sds": check_sds,
    "cfg": check_cfg,
    "csd": check_csd,
    "vsd": check_vsd,
    "psd": check_psd,
    "negative-embedding": check_negative_embedding,
    "renderer": check_renderer,
    "schedule": check_schedule,
}
WEIGHTED = ("sds", "csd", "vsd", "psd")  # have a weight w(t)
HINTS = {
    "negative-embedding": ("negative",),
    "renderer": ("render", "composit", "raymarch"),
    "schedule": ("noise", "schedule", "alpha"),
}
OUTPUT_KEPT = 2000  # characters of a submission's own output that are kept


def find(module: Any, name: str | None, kind: str) -> Any:
    """The submission in a module: what is named, or what is called like `kind`, or the only one that looks like it.

    It looks like it if `kind` (or another of `HINTS`) is in its name, or in a method's; or if there is only one in the file.

    Raises:
        Unreadable: nothing, or several; the message lists what there is.
    """
    if name:
        target = module
        for part in name.split("."):
            if not hasattr(target, part):
                raise Unreadable(f"it has no {name!r}")
            target = getattr(target, part)
        return target
    own = {k: v for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__}
    own = {k: v for k, v in own.items() if not k.startswith("_")}
    hints = HINTS.get(kind, (kind,))
    likely = {k: v for k, v in own.items() if any(h in name.lower() for h in hints for name in (k, *vars(v)))} or own
    classes = {k: v for k, v in likely.items() if isinstance(v, type)}
    called = kind.replace("-", "_")
    for chosen in ({k: v for k, v in own.items() if k == called}, likely, classes):
        if len(chosen) == 1:
            return next(iter(chosen.values()))
    there = ", ".join(own) or "none"
    raise Unreadable(f"which one is it? Call it {called} or name it as file.py:name; there are: {there}")


def check_file(path: str, kind: str, **options: Any) -> Report:
    """Import "file.py" or "file.py:name" and check it, in this process; options are the check's own."""
    file, _, name = path.partition(":") if not os.path.exists(path) else (path, "", "")
    report = Report(f"check of {kind}")
    try:
        with offline_diffusers():
            spec = importlib.util.spec_from_file_location(f"submission_{abs(hash(file))}", file)
            if spec is None or spec.loader is None:
                raise Unreadable(f"{file} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            sys.path.insert(0, str(Path(file).resolve().parent))
            spec.loader.exec_module(module)
            target = find(module, name or None, kind)
        return KINDS[kind](target, **options)
    except Unreadable as error:
        report.add(False, "found", str(error), "a submission", str(error))
    except (Exception, SystemExit) as error:
        report.add(False, "import", describe(error), "an import without errors", f"it does not import: {describe(error)}")
    return report


class _Job:
    """One submission in a forked process: own group, own output, one thread."""

    def __init__(self, path: str, kind: str, output: Path, options: dict[str, Any]):
        context: Any = multiprocessing.get_context("fork")
        self.path, self.kind, self.output, self.started = path, kind, output, time.monotonic()
        self.options = options
        self.receiver, self.sender = context.Pipe(duplex=False)
        self.process = context.Process(target=self._work, daemon=True)
        self.process.start()
        self.sender.close()

    def _work(self) -> None:
        os.setsid()
        with self.output.open("w") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            sys.stdout = sys.stderr = sink
            self.sender.send(check_file(self.path, self.kind, **self.options).to_dict())
            self.sender.close()
            os._exit(0)

    def result(self, timeout: float) -> dict[str, Any] | None:
        """What it answered, or the verdict on its silence, and then it is gone, with its children; None if it still works."""
        seconds, report, answer = time.monotonic() - self.started, Report(f"check of {self.kind}"), None
        if not self.receiver.poll() and seconds < timeout:
            return None
        try:
            if self.receiver.poll():
                answer = self.receiver.recv()
            else:
                text = f"it did not return within {timeout:g} s"
                report.add("timed out", "runs", text, "an answer", text)
        except (EOFError, OSError):
            self.process.join(1)
            came = f"it ended the process (exit code {self.process.exitcode})"
            report.add(False, "runs", came, "an answer", f"{came}: does it call os._exit, or crash?")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.receiver.close()
        printed = self.output.read_text(errors="replace")[-OUTPUT_KEPT:] if self.output.exists() else ""
        return (answer or report.to_dict()) | {"path": self.path, "seconds": round(seconds, 2), "output": printed}


def grade(
    paths: Sequence[str], kind: str = "sds", timeout: float = 20.0, workers: int | None = None, weighting: str | None = None
) -> list[dict[str, Any]]:
    """Check every path ("file.py" or "file.py:name"), a few at a time.

    Args:
        paths: submissions. kind: a key of `KINDS`. timeout: seconds for each. workers: processes at once; default one a core.
        weighting: the name of w(t) if only that one is right, see `check_sds`.

    Returns:
        One dictionary each, in order: path, ok, status ("right", "wrong", "not answered" for a stub that raises
        NotImplementedError, "timed out"), causes, findings, seconds, output (the end of what it printed).

    Raises:
        ValueError: a weighting that nobody knows, or for a kind without one.
        OSError: this system cannot fork (Windows): call the check itself, `check_sds(fn)`, there.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise OSError("files are graded in forked processes, which this system has not: call check_sds(fn) itself")
    if weighting is not None and (kind not in WEIGHTED or weighting not in WEIGHTINGS):
        known = f"choose from {', '.join(WEIGHTINGS)}" if kind in WEIGHTED else f"kind {kind} has none"
        raise ValueError(f"weighting: {weighting!r} is not known; {known}")
    options = {"weighting": weighting} if weighting else {}
    torch.set_num_threads(1)  # threads do not survive a fork
    waiting = list(enumerate(paths))[::-1]
    running: dict[int, _Job] = {}
    results: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < (workers or os.cpu_count() or 1):
                i, path = waiting.pop()
                running[i] = _Job(path, kind, Path(folder) / f"{i}.txt", options)
            left = min(job.started for job in running.values()) + timeout - time.monotonic()
            wait([job.receiver for job in running.values()], timeout=max(left, 0))
            done = {i: result for i, job in running.items() if (result := job.result(timeout)) is not None}
            results |= done
            running = {i: job for i, job in running.items() if i not in done}
    return [results[i] for i in range(len(paths))]


def expand(path: str) -> Iterator[str]:
    """A file as it is, a folder as all its .py files in order. Raises ValueError for what is not there."""
    if not (os.path.exists(path) or os.path.exists(path.partition(":")[0])):
        raise ValueError(f"path: there is no {path!r}; expected file.py, file.py:name or a folder")
    if os.path.isdir(path):
        yield from (str(p) for p in sorted(Path(path).glob("*.py")))
    else:
        yield path


def summary(results: Sequence[dict[str, Any]]) -> str:
    """One line per submission: verdict, seconds, what is likely wrong."""
    shown = [in_capitals(r["status"]) for r in results]
    name, verdict = max((len(Path(r["path"]).name) for r in results), default=0), max(map(len, shown), default=0)
    lines = []
    for r, status in zip(results, shown, strict=True):
        file, causes = Path(r["path"]).name, "; ".join(r["causes"])
        lines.append(f"{status:<{verdict}}  {file:<{name}}  {r['seconds']:5.1f} s  {causes}".rstrip())
    return "\n".join([*lines, f"{sum(r['ok'] for r in results)} of {len(results)} right"])
