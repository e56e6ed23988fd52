"""`psd-mini check`: many submissions on the command line, with progress, interrupts and a table.

Gradescope reads results.json, in the format of gradescope-autograders.readthedocs.io/specs: a score
for the submission, and a list of tests with a score, a status and an output each. Texts are marked
as text, not as HTML: they quote code that nobody has read.
"""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from json import dumps
from pathlib import Path
from typing import Any

from tqdm import tqdm

from psd_mini.checks.grading.grader import CHECKS, Result, counts, expand, grade, line
from psd_mini.checks.report import Finding, Report, no_answer

SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
POINTS = 100.0  # of a submission that is right, whatever the number of its rows


def add_outlets(command: ArgumentParser) -> None:
    """The options that say where the verdicts go."""
    command.add_argument("--json", action="store_true", help="print all findings as JSON")
    text = "write them for Gradescope, as its results.json; the exit status is 0 once that is done"
    command.add_argument("--gradescope", metavar="FILE", help=f"{text}; a folder is one submission")


def check(
    paths: Sequence[str], kind: str, json: bool = False, gradescope: str = "", **options: Any
) -> None:
    """Check submissions and print a report, a table or JSON, or write Gradescope's file.

    Args:
        paths: files, file.py:name or folders.
        kind: a key of `CHECKS`; options: of `grade`.

    Raises:
        SystemExit: 1 if any is not right, 128 + its number if a signal stopped the checking.
        ValueError: an unknown kind, no files.
    """
    if kind not in CHECKS:
        raise ValueError(f"kind: {kind!r} is not known; choose from {', '.join(CHECKS)}")
    try:
        files = _files(paths)
    except ValueError as error:
        if not gradescope:
            raise
        nothing = no_answer("could not run", str(error), f"check of {kind}")
        write_gradescope([nothing.to_dict()], gradescope)
        return
    table = not json and len(files) > 1
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may be no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    with _stop_signals() as stopped, _progress(files, table) as on_result:
        results = grade(files, kind, on_result=on_result, **options)
    if gradescope:
        write_gradescope(results, gradescope)
    if table:
        print(counts(results))
    elif json:
        print(dumps(results, indent=1))
    else:
        findings = [Finding(**finding) for finding in results[0]["findings"]]
        print(Report(results[0]["title"], findings))
    if stopped or not (gradescope or all(result["ok"] for result in results)):
        raise SystemExit(128 + stopped[0] if stopped else 1)


def _files(paths: Sequence[str]) -> list[str]:
    """All files that these paths stand for; ValueError where there is none."""
    files = [file for path in paths for file in expand(path)]
    if not files:
        raise ValueError(f"path: no .py files in {', '.join(paths)}")
    return files


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Within it, SIGTERM and SIGHUP act as Ctrl-C does: the results so far are printed.

    Only the first signal acts; the list holds all that came.
    """
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        if len(stopped) == 1:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number in SIGNALS if before[number] != signal.SIG_IGN]  # nohup ignores one
    try:
        for number in heard:
            signal.signal(number, stop)
        yield stopped
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def _progress(paths: Sequence[str], table: bool) -> Iterator[Callable[[int, Result], None]]:
    """A function to be called with each result.

    It moves a bar on stderr, and prints the table's lines in the order of the paths.
    """
    width, shown = max(len(Path(path).name) for path in paths), 0
    done: dict[int, Result] = {}
    tqdm.monitor_interval = 0  # no thread of its own: the grader forks

    def on_result(i: int, result: Result) -> None:
        nonlocal shown
        done[i] = result
        bar.update()
        while table and shown in done:
            row = line(done[shown], width)  # one row, whatever characters are in the file's name
            row = "".join(c if c.isprintable() else repr(c)[1:-1] for c in row)
            bar.write(row, file=sys.stdout)
            sys.stdout.flush()
            shown += 1

    with tqdm(total=len(paths), unit="file", leave=False, disable=len(paths) <= 3) as bar:
        yield on_result


def gradescope(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One submission for Gradescope: a test for each row of its report.

    Each row that is right gives an equal share of the POINTS.

    Args:
        results: of `grader.grade`, for all files of the submission. The one with the highest score
            counts: the others are taken for its helpers.
    """
    best = max(results, key=lambda result: (result["score"], len(result["findings"])))
    share = round(POINTS / len(best["findings"]), 2)
    tests = []
    for finding in [Finding(**row) for row in best["findings"]]:
        test: dict[str, Any] = {"score": share if finding.ok else 0.0, "max_score": share}
        test |= {"name": finding.name, "status": "passed" if finding.ok else "failed"}
        test |= {"output": finding.sentence, "output_format": "text", "name_format": "text"}
        tests.append(test | {"visibility": "visible"})
    head = {"score": round(POINTS * best["score"], 2), "execution_time": best.get("seconds", 0)}
    text = f"{best['title']}: {best['status']}"
    return head | {"output": text, "output_format": "text", "tests": tests}


def write_gradescope(results: Sequence[Mapping[str, Any]], file: str) -> None:
    """Write `gradescope(results)`; ValueError where the file cannot be written."""
    try:
        Path(file).write_text(dumps(gradescope(results), indent=1))
    except OSError as error:
        raise ValueError(f"gradescope: {file!r} cannot be written: {error.strerror}") from None
