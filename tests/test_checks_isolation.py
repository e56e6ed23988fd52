"""Submissions that do damage: the table, the teacher's files and the machine survive them."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_checks_grader import GOOD, HEAD

from psd_mini.checks.grading import copies
from psd_mini.checks.grading.grader import grade

LINUX = sys.platform == "linux"
ENDLESS = "    while True:\n        time.sleep(0.1)\n"
DESCRIPTORS = (
    HEAD
    + """
def sds(x):
    for number in range(3, 100):
        try:
            os.write(number, b"\\0\\0\\x10\\0half" * 5)
        except OSError:
            pass
"""
)
DAMAGED = ("could not run", "missing or damaged")
BAD = {  # file name: source, status, words
    b"surrogate.py": (
        "raise ValueError('\\ud800')\n",
        "could not run",
        "ValueError (line 1 of <module>): \\ud800",
    ),
    b"\xff.py": ("def sds(x):\n    raise NotImplementedError\n", "not answered", ""),
    b"descriptors.py": (DESCRIPTORS + "    return x\n", "WRONG", "the UNet was never called"),
    b"half.py": (DESCRIPTORS + ENDLESS, "timed out", "did not return within 8 s"),
    b"json.py": (GOOD + "import json\njson.dumps = lambda *_, **__: '{\"title\": '\n", *DAMAGED),
    b"all_is_well.py": (
        GOOD + 'import json\njson.dumps = lambda *_, **__: \'{"title": "", "findings": []}\'\n',
        *DAMAGED,
    ),
    b"kills_its_parent.py": (HEAD + "os.kill(os.getppid(), 9)\nwhile True:\n    pass\n", *DAMAGED),
    b"ends_its_parent.py": (HEAD + "os.kill(os.getppid(), 15)\nwhile True:\n    pass\n", *DAMAGED),
    b"kills_its_group.py": (
        HEAD + "os.kill(0, 9)\n",
        "could not run",
        "ended the process (Killed)",
    ),
    b"crashes.py": (
        "import ctypes\nctypes.string_at(0)\n",
        "could not run",
        "ended the process (Segmentation fault)",
    ),
    b"interrupts.py": ("raise KeyboardInterrupt\n", "could not run", "KeyboardInterrupt"),
    b"mute.py": (
        "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\n"
        "def sds(x):\n    raise Mute\n",
        "could not run",
        "Mute",
    ),
    b"reads.py": ("input()\n", "could not run", "EOFError"),
    b"zz_right.py": (GOOD, "right", ""),
}


def psd_mini_check(*arguments, **options):
    """A process `psd-mini check` with strict output."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "psd_mini", "check", *map(os.fspath, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, **pipes, **options)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Lines of the table for all of BAD in one folder, and what stood on stderr."""
    folder = tmp_path_factory.mktemp("bad")
    for name, (source, *_) in BAD.items():
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(source)
    process = psd_mini_check(folder, "--timeout", "8")
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1, err.decode()
    return out.decode().splitlines(), err.decode()


@pytest.mark.parametrize("name", BAD, ids=os.fsdecode)
def test_one_submission_does_not_cost_the_table(table, name):
    _, status, words = BAD[name]
    shown = name.decode(errors="surrogateescape").encode(errors="backslashreplace").decode()
    (line,) = [
        line
        for line in table[0][:-1]
        if line.split("  ")[1].strip() == shown or f" {shown} " in line
    ]
    assert line.startswith(status + " ") and words in line
    assert len(table[0]) == len(BAD) + 1 and table[0][-1].startswith(
        f"1 of {len(BAD)} right, 1 wrong, 10 could not run"
    )


def test_progress_is_on_stderr(table):
    assert f"0/{len(BAD)} " in table[1] and "Traceback" not in table[1]


def gone(pid):
    """Has a process ended within ten seconds? One that nobody has waited for has ended, too."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


LEAVES = """
import pathlib, signal, subprocess
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
command = "setsid sleep 600 > /dev/null & echo $!"
orphan = subprocess.check_output(command, shell=True, text=True)
told = pathlib.Path(TOLD)
told.with_suffix(".part").write_text(f"{os.getpid()} {child.pid} {orphan}")
told.with_suffix(".part").rename(told)
"""


def leaves_processes(told):
    """Source that starts a process in a session of its own, and one that is an orphan.

    It writes all process ids into the file `told`.
    """
    return HEAD + LEAVES.replace("TOLD", repr(str(told)))


def wait_for(file):
    for _ in range(600):
        if file.exists():
            return [int(pid) for pid in file.read_text().split()]
        time.sleep(0.1)
    raise AssertionError(f"{file} was not written")


@pytest.mark.skipif(not LINUX, reason="other systems end the process group only")
@pytest.mark.parametrize(
    "ending", ["sys.exit(0)\n", "os._exit(0)\n", "while True:\n    time.sleep(1)\n"]
)
def test_nothing_is_left_of_a_submission(tmp_path, ending):
    """Whether it returns, ends its process or is too late."""
    file, told = tmp_path / "mine.py", tmp_path / "told"
    file.write_text(leaves_processes(told) + ending)
    (result,) = grade([str(file)], timeout=6)
    assert result["status"] == ("timed out" if "while" in ending else "could not run")
    assert all(gone(pid) for pid in wait_for(told))


@pytest.mark.skipif(not LINUX, reason="other systems end the process group only")
@pytest.mark.parametrize(
    "number",
    [
        *(signal.SIGINT, signal.SIGTERM, signal.SIGKILL),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),  # handled as SIGTERM is
    ],
)
def test_a_signal_leaves_results_and_no_process(tmp_path, number):
    """When it comes, the first submission is done and the second at work.

    After kill -9 the lines that were printed are left.
    """
    told = tmp_path / "told"
    sources = {
        "a.py": "def sds(x):\n    raise NotImplementedError\n",
        "b.py": leaves_processes(told) + "while True:\n    pass\n",
    }
    folder = tmp_path / "handed_in"
    folder.mkdir()
    for name, source in sources.items():
        (folder / name).write_text(source)

    def heard():
        """A shell in the background, and nohup, have the tests ignore these two."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    process = psd_mini_check(folder, "--timeout", "300", preexec_fn=heard)
    try:
        assert select.select([process.stdout], [], [], 90)[0], "no line was printed"
        assert process.stdout.readline().startswith(b"not answered   a.py")
        pids = wait_for(told)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert all(gone(pid) for pid in pids)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number and not err, err.decode()
        assert out.startswith(b"not run        b.py") and out.endswith(
            b"0 of 2 right, 1 not answered, 1 not run\n"
        )


def test_an_interrupt_gives_what_there_is(tmp_path):
    """It comes with the first result: that is kept; the second submission, which would take a
    minute, has no result."""
    file, slow = tmp_path / "mine.py", tmp_path / "slow.py"
    file.write_text("def sds(x):\n    raise NotImplementedError\n")
    slow.write_text("import time\n\ntime.sleep(60)\n\n\ndef sds(x):\n    return x\n")
    # a shell that starts the tests in the background has them ignore SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        results = grade(
            [str(file), str(slow)],
            workers=1,
            on_result=lambda i, _: i == 0 and os.kill(os.getpid(), signal.SIGINT),
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert [result["status"] for result in results] == ["not answered", "not run"]


@pytest.mark.skipif(not LINUX, reason="no limit of memory elsewhere")
def test_memory_has_a_limit(tmp_path):
    """Filled in Python, or asked for at once of torch; the right one has enough."""
    sources = {
        "fills.py": (
            "def sds(x):\n    kept = []\n    while True:\n        kept.append(bytes(10**7))\n"
        ),
        "asks.py": "import torch\n\n\ndef sds(x):\n    return torch.ones(10**10)\n",
        "right.py": GOOD,
    }
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    process = psd_mini_check(tmp_path, "--memory", "0.25", "--json")
    results = json.loads(process.communicate(timeout=120)[0])
    assert [result["status"] for result in results] == ["could not run", "could not run", "right"]
    assert all(
        "takes more memory than a submission is given" in result["causes"][0]
        for result in results[:2]
    )


VANDAL = """
import os, shutil
from pathlib import Path
import torch
from helper import NUMBER
beside = Path(__file__).with_name("data.txt")
assert NUMBER == 1 and Path("data.txt").read_text() == beside.read_text() == "data"
assert os.listdir("inner") == ["module.py"]
assert not os.path.exists("outside") and not os.path.exists("large.bin")
Path("data.txt").write_text("changed")
shutil.rmtree(Path(__file__).parent)


def sds(x):
    raise NotImplementedError("all is gone")
"""


def test_a_submission_works_in_a_copy_of_its_folder(tmp_path):
    """It finds helpers and data; it deletes its folder, and the teacher's stays as it was."""
    folder = tmp_path / "handed_in"
    for name in ("inner/__pycache__", ".git"):
        (folder / name).mkdir(parents=True)
    (tmp_path / "secret").write_text("not handed in")
    (folder / "outside").symlink_to(tmp_path / "secret")
    (folder / "large.bin").write_bytes(bytes(copies.FILE_BYTES + 1))
    for name, text in (
        ("helper.py", "NUMBER = 1\n"),
        ("data.txt", "data"),
        ("inner/module.py", ""),
        (".git/config", ""),
    ):
        (folder / name).write_text(text)
    file = folder / "mine.py"
    file.write_text(VANDAL)
    before = sorted(folder.rglob("*"))
    (result,) = grade([str(file)])
    assert result["path"] == str(file) and "all is gone" in result["causes"][0], result
    assert sorted(folder.rglob("*")) == before and (folder / "data.txt").read_text() == "data"
