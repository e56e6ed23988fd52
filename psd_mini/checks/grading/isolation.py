"""One submission in processes of its own: what it does to itself, it does to nobody else.

    the grader  --fork-->  a warden  --fork-->  the worker

The worker runs the check and writes its report as a file of JSON, whole or not at all. The warden
waits for it until the time is up, ends everything that the worker started, and writes a report
where there is none. The grader hears the end of the warden's pipe, on which nothing is ever sent,
and reads that file: it unpickles nothing.

On Linux nothing is left behind, whoever is killed: processes in a session of their own are found
(they become the warden's children), wardens and workers end with the grader, and the memory has a
limit. Other systems do not offer this: there the warden ends the worker's process group when its
time is up, and memory has no limit. All of this is isolation from accidents, not a security
sandbox.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import NoReturn

from psd_mini.checks.guard import describe
from psd_mini.checks.report import STATUSES, Finding, Report, no_answer

REPORT_BYTES = 4 * 2**20  # a longer one is damaged
# writing more into one file is an error, so that endless printing does not fill the disk
OUTPUT_BYTES = 64 * 2**20
OUTPUT_KEPT = 2000  # characters of a submission's own output that are kept
GRACE = 5.0  # seconds that a warden has to end everything
# what a warden waits for; Windows, where nothing is forked, has two of them
SIGNALS = ("SIGCHLD", "SIGALRM", "SIGTERM", "SIGHUP", "SIGINT")
HEARD = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
DIE_WITH_PARENT, ADOPT_ORPHANS = 1, 36  # PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of prctl(2)

Work = Callable[[Path], Report]


@dataclass
class Confined:
    """A submission at work in processes of its own.

    pid: the warden's process id; pipe: it ends with the warden; folder: for report and output.
    """

    pid: int
    pipe: int
    folder: Path
    started: float


def start(work: Work, folder: Path, timeout: float, memory: float) -> Confined:
    """Run work(folder) in a worker with a warden; within `signals_wait`, until it can hear them.

    Args:
        work: the check; what it raises becomes a report.
        folder: to be made, for this job alone. timeout: seconds.
        memory: GiB that the worker may take beyond what it starts with.

    Raises:
        OSError: the system has no process to give.
    """
    folder.mkdir()
    pipe, held = os.pipe()
    grader, started = os.getpid(), time.monotonic()
    sys.stdout.flush()  # otherwise what waits there is in the worker too
    sys.stderr.flush()
    try:
        pid = os.fork()
        if pid == 0:
            _warden(work, folder, timeout, memory, grader)
    except OSError:
        os.close(pipe)
        raise
    finally:
        os.close(held)
    return Confined(pid, pipe, folder, started)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Within, no Ctrl-C and no other signal of `HEARD` acts; it does so at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop(job: Confined) -> None:
    """End the job and all that it started, if it has not ended; then it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.pid, signal.SIGTERM)
    if not wait([job.pipe], GRACE):  # somebody stopped the warden
        os.kill(job.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored nobody has to wait
        os.waitpid(job.pid, 0)
    os.close(job.pipe)


def ended(jobs: Mapping[int, Confined], timeout: float) -> list[int]:
    """Wait until a job has ended, or its warden is so late that it hangs; the keys of these."""
    late = {i: job.started + timeout + 2 * GRACE - time.monotonic() for i, job in jobs.items()}
    gone = wait([job.pipe for job in jobs.values()], max(0, min(late.values(), default=0)))
    return [i for i, job in jobs.items() if job.pipe in gone or late[i] <= 0]


def outcome(job: Confined) -> tuple[Report | None, float, str]:
    """After its end: the report, its seconds, and the end of what was printed.

    The report is None where it is missing or damaged. The job's folder is removed.
    """
    seconds = time.monotonic() - job.started
    report = _report_in(_end_of(job.folder / "report.json"))
    printed = _end_of(job.folder / "output.txt").decode(errors="replace")
    shutil.rmtree(job.folder, ignore_errors=True)
    return report, seconds, printed[-OUTPUT_KEPT:]


def _report_in(raw: bytes) -> Report | None:
    """The report that a worker or warden wrote, None where it is damaged."""
    try:
        found = json.loads(raw)
        report = Report(str(found["title"]), [Finding(**finding) for finding in found["findings"]])
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    for finding in report.findings:
        if not all(isinstance(text, str) for text in vars(finding).values()):
            return None
        if finding.status not in STATUSES:
            return None
    return report if report.findings else None


def _warden(work: Work, folder: Path, timeout: float, memory: float, grader: int) -> NoReturn:
    """Wait for the worker, until its time is up or the grader ends; leave none of its processes."""
    try:
        os.setsid()  # Ctrl-C in the terminal is the grader's
        _prctl(DIE_WITH_PARENT, signal.SIGTERM)
        _prctl(ADOPT_ORPHANS, 1)
        for number in HEARD:
            signal.signal(number, lambda *_: None)  # they stay blocked; `sigwait` hears them
        if os.getppid() != grader:  # it ended before it could tell
            os._exit(0)
        worker = os.fork()
        if worker == 0:
            _worker(work, folder, memory)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        heard, status = signal.SIGCHLD, None
        # not every child that ended is the worker
        while heard == signal.SIGCHLD and status is None:
            heard = signal.Signals(signal.sigwait(HEARD))
            pid, ending = os.waitpid(worker, os.WNOHANG)
            status = ending if pid else None
        _end_all(worker)
        if heard in (signal.SIGCHLD, signal.SIGALRM) and not (folder / "report.json").exists():
            _write(folder, _silence(timeout, status))
    finally:
        os._exit(0)


def _silence(timeout: float, status: int | None) -> Report:
    """The report on a worker that wrote none; status as from waitpid, None if it was ended."""
    if status is None:
        return no_answer("timed out", f"it did not return within {timeout:g} s")
    code = os.waitstatus_to_exitcode(status)
    how = f"exit code {code}" if code >= 0 else signal.strsignal(-code)
    text = f"it ended the process ({how}): does it call os._exit, or crash?"
    return no_answer("could not run", text)


def _end_all(worker: int) -> None:
    """Kill what the worker started.

    A process that loses its parent becomes the warden's child, so a few rounds reach all.
    """
    late = time.monotonic() + GRACE
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(OSError):
            kill(worker, signal.SIGKILL)
    while time.monotonic() < late:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:  # nobody is left
            return
        for child in _children():
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _children() -> list[int]:
    """The process ids of this process's children, where the system has /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = stat.read_bytes().rpartition(b")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def _worker(work: Work, folder: Path, memory: float) -> NoReturn:
    """Run the check with nothing of the grader's in reach, and write its report."""
    try:
        me = os.getpid()
        os.setsid()  # so that a signal to its own group does not reach the warden
        _prctl(DIE_WITH_PARENT, signal.SIGKILL)
        for number in HEARD:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
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
    """Input is empty, what is printed goes into a file; every other open file now leads nowhere.

    Their numbers stay taken, so that an inherited object that closes its file late does not close
    one of the submission's.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in map(int, os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else range(256)):
        if number > 2 and number not in (nothing, sink):
            os.dup2(nothing, number, inheritable=False)
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


def _prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _write(folder: Path, report: Report) -> None:
    """Whole or not at all; JSON escapes what is no ASCII, lone surrogates too."""
    partial = folder / "report.part"
    partial.write_bytes(json.dumps(report.to_dict()).encode())
    partial.replace(folder / "report.json")


def _end_of(path: Path) -> bytes:
    """The last REPORT_BYTES of a file, none if it is missing; does not wait at a pipe."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - REPORT_BYTES))
            return file.read(REPORT_BYTES)
    except OSError:
        return b""
