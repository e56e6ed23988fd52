"""Folders full of submissions, and ones that do odd things: one row each, the rest unharmed."""

import os
import sys

import pytest
from test_checks_grader import GOOD
from test_checks_isolation import psd_mini_check

from psd_mini.checks.grading import copies
from psd_mini.checks.grading.copies import copy_folder
from psd_mini.checks.grading.grader import grade

UNIX = pytest.mark.skipif(sys.platform == "win32", reason="no such names and no forks")
STUB = "def sds(x):\n    raise NotImplementedError\n"


def test_the_work_of_a_copy_has_a_limit(tmp_path):
    """Of a folder with hundreds of submissions few are copied: what this one names is there."""
    folder = tmp_path / "handed_in"
    (folder / "zz_package").mkdir(parents=True)
    for i in range(4 * copies.ENTRIES):
        (folder / f"student_{i:03}.py").write_text(STUB)
    for name in ("zz_helper.py", "zz_table.csv", "zz_package/inner.py", "zz_unnamed.csv"):
        (folder / name).write_text("")
    source = 'import zz_helper\nfrom zz_package import inner\nopen("zz_table.csv")\n'
    file = folder / "student_007.py"
    file.write_text(source)
    copy = copy_folder(file, tmp_path / "copy")
    there = {p.relative_to(copy.parent).as_posix() for p in copy.parent.rglob("*") if p.is_file()}
    assert copy.read_text() == source and len(there) <= copies.ENTRIES + 1
    assert {"zz_helper.py", "zz_table.csv"} <= there and "zz_unnamed.csv" not in there


@UNIX
def test_what_is_a_submission(tmp_path):
    """Neither hidden files nor folders nor pipes are; odd names are, and have one row each."""
    names = [b"my sds (final).py", b"two\nlines.py", b"\xfe bytes.py", b"tab\t.py", b"colon:a.py"]
    for name in (*names, b"._x.py"):
        path = os.fsencode(tmp_path) + b"/" + name
        with open(path, "w") as file:
            file.write(STUB)
    (tmp_path / "x.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    process = psd_mini_check(tmp_path)
    out, err = process.communicate(timeout=120)
    lines = out.decode().splitlines()
    assert lines[-1] == f"0 of {len(names)} right, {len(names)} not answered", out + err
    shown = ("colon:a.py", "my sds (final).py", r"tab\t.py", r"two\nlines.py", r"\udcfe bytes.py")
    for name in shown:
        assert sum(f"not answered   {name} " in line for line in lines) == 1, (name, out)


ODD = {  # file: source, status, words of the cause
    "prints.py": (
        'def sds(x):\n    while True:\n        print("x" * 2**20)\n',
        ("could not run", "prints or writes more"),
    ),
    "patches.py": (
        "import torch\n\ntorch.allclose = lambda *_, **__: True\n\n\n"
        + GOOD.replace("- eps", "+ eps"),
        ("wrong", "added instead of subtracted"),
    ),
    "interrupts.py": ("def sds(x):\n    raise KeyboardInterrupt\n", ("could not run", "Interrupt")),
    "large.py": (f"# {'x' * copies.FILE_BYTES}\n{GOOD}", ("could not run", "expected at most")),
    "right.py": (GOOD, ("right", "")),
}


@UNIX
def test_odd_ones_have_a_row_each(tmp_path):
    for name, (source, _) in ODD.items():
        (tmp_path / name).write_text(source)
    results = grade([str(tmp_path / name) for name in ODD], timeout=60)
    for result, (_, (status, words)) in zip(results, ODD.values(), strict=True):
        causes = "; ".join(result["causes"])
        assert result["status"] == status and words in causes, (result["path"], causes)
        assert len(result["output"]) <= 2000
