"""One submission in a process of its own: what it does to itself, it does to nobody else.

The worker is forked from the grader, runs the check in a copy of the submission's folder, and
writes its report as a file of JSON, whole or not at all. When it has ended, or its time is up, the
grader ends all processes of its session, and reads that file: it unpickles nothing.

On Linux a worker ends with the grader, and its memory has a limit. All of this is isolation from
accidents, not a security sandbox: a process that moves to a session of its own outlives its worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from psd_mini.checks.guard import describe
from psd_mini.checks.report import STATUSES, Finding, Report, no_answer

# writing more into one file is an error, so that endless printing does not fill the disk
OUTPUT_BYTES = 64 * 2**20
OUTPUT_KEPT = 2000  # characters of a submission's own output that are kept
# what is copied beside a submission, at most
FILE_BYTES, FOLDER_BYTES, ENTRIES = 4 * 2**20, 32 * 2**20, 100
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)

Work = Callable[[Path], Report]


@dataclass
class Confined:
    """A submission at work in a process of its own.

    folder: for report and output. status: as from waitpid, None until it has ended by itself.
    """

    pid: int
    folder: Path
    started: float
    status: int | None = None


def start(work: Work, folder: Path, memory: float) -> Confined:
    """Run work(folder) in a worker.

    Args:
        work: the check; what it raises becomes a report.
        folder: to be made, for this job alone.
        memory: GiB that the worker may take beyond what it starts with.

    Raises:
        OSError: the system has no process to give.
    """
    folder.mkdir()
    (folder / "output.txt").touch()
    sys.stdout.flush()  # otherwise what waits there is in the worker too
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _worker(work, folder, memory)
    return Confined(pid, folder, time.monotonic())


def ended(jobs: Mapping[int, Confined], timeout: float) -> list[int]:
    """Wait until a job has ended, or its time is up; the keys of these."""
    while True:
        found = []
        for i, job in jobs.items():
            pid, status = os.waitpid(job.pid, os.WNOHANG)
            if pid:
                job.status = status
            if pid or time.monotonic() > job.started + timeout:
                found.append(i)
        if found or not jobs:
            return found
        time.sleep(0.005)


def stop(job: Confined) -> None:
    """End the worker, if it has not ended, and all processes of its session."""
    with contextlib.suppress(OSError):
        os.killpg(job.pid, signal.SIGKILL)
    if job.status is None:
        with contextlib.suppress(OSError):  # it has no session yet
            os.kill(job.pid, signal.SIGKILL)
        os.waitpid(job.pid, 0)


def outcome(job: Confined, timeout: float) -> tuple[Report | None, float, str]:
    """Stop the job: its report, its seconds, and the end of what was printed.

    The report is None where it is damaged. The job's folder is removed.
    """
    stop(job)
    seconds, file = time.monotonic() - job.started, job.folder / "report.json"
    report = _report_in(file) if file.exists() else _silence(timeout, job.status)
    printed = (job.folder / "output.txt").read_text("utf-8", errors="replace")
    shutil.rmtree(job.folder, ignore_errors=True)
    return report, seconds, printed[-OUTPUT_KEPT:]


def _report_in(file: Path) -> Report | None:
    """The report that a worker wrote, None where it is damaged."""
    try:
        found = json.loads(file.read_bytes())
        report = Report(str(found["title"]), [Finding(**finding) for finding in found["findings"]])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    known = all(finding.status in STATUSES for finding in report.findings)
    return report if report.findings and known else None


def _silence(timeout: float, status: int | None) -> Report:
    """The report on a worker that wrote none; status as from waitpid, None if it was ended."""
    if status is None:
        return no_answer("timed out", f"it did not return within {timeout:g} s")
    code = os.waitstatus_to_exitcode(status)
    how = f"exit code {code}" if code >= 0 else signal.strsignal(-code)
    text = f"it ended the process ({how}): does it call os._exit, or crash?"
    return no_answer("could not run", text)


def _worker(work: Work, folder: Path, memory: float) -> NoReturn:
    """Run the check with nothing of the grader's in reach, and write its report."""
    try:
        me = os.getpid()
        os.setsid()  # Ctrl-C in the terminal is the grader's, a signal to the group the worker's
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            _redirect(folder / "output.txt")
            _limit(memory)
            report = work(folder)
        except BaseException as error:
            _limit(None)
            report = no_answer("could not run", describe(error))
        if os.getpid() == me:  # and not a copy that the submission forked
            _write(folder, report)
    finally:
        os._exit(0)


def _redirect(output: Path) -> None:
    """Input is empty, and what is printed goes into a file."""
    nothing, sink = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_APPEND)
    for number, file in enumerate((nothing, sink, sink)):
        os.dup2(file, number)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = sys.stderr = os.fdopen(1, "w", 1, "utf-8", "backslashreplace", closefd=False)


def _limit(memory: float | None) -> None:
    """Let the address space grow by `memory` GiB from now on (None: by any amount).

    Files may grow up to OUTPUT_BYTES.
    """
    import resource  # not on Windows, where nothing is forked either

    address, file = resource.RLIMIT_AS, resource.RLIMIT_FSIZE
    most, most_of_file = resource.getrlimit(address)[1], resource.getrlimit(file)[1]
    with contextlib.suppress(OSError, ValueError):  # no /proc, or the machine's own limit is lower
        resource.setrlimit(file, (OUTPUT_BYTES, most_of_file))
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        wanted = most if memory is None else now + int(memory * 2**30)
        resource.setrlimit(address, (wanted, most))


def _write(folder: Path, report: Report) -> None:
    """Whole or not at all; JSON escapes what is no ASCII, lone surrogates too."""
    partial = folder / "report.part"
    partial.write_bytes(json.dumps(report.to_dict()).encode())
    partial.replace(folder / "report.json")


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
