"""The corpus of submissions: a verdict for each, and an independent run that confirms it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import corpus
import pytest

from psd_mini.checks.grading.grader import CHECKS

ROWS = json.loads((corpus.CORPUS / "verdicts.json").read_text())
VERDICTS = {"right", "scaled", "wrong", "could not run", "timed out"}


def test_every_file_has_a_row():
    files = {path.relative_to(corpus.CORPUS).as_posix() for path in corpus.CORPUS.glob("*/*.py")}
    assert files == set(ROWS)


def test_rows_are_complete():
    for name, row in ROWS.items():
        assert row["kind"] in CHECKS and row["expected"] in VERDICTS, name
        assert bool(row["words"]) == (row["expected"] not in ("right", "timed out")), name
        assert row["doors"] and row["style"] and set(row["truth"]) & {"call", "skip"}, name
        for words in row["words"]:
            re.compile(words)


def test_templates_write_what_is_there():
    made = corpus.sds_submissions() | corpus.psd_submissions() | corpus.vsd_submissions()
    for name, (source, row) in made.items():
        assert (corpus.CORPUS / name).read_text() == source, name
        assert ROWS[name] == row, name


@pytest.mark.parametrize(
    "name, said",
    [
        ("sds/missing_half_pow.py", "scaled"),
        ("vsd/scale_zero_keyword.py", "right"),
        ("psd/winner_by_where.py", "wrong"),
    ],
)
def test_an_independent_run_agrees(name, said):
    tool = Path(corpus.__file__).with_name("corpus_truth.py")
    command = [sys.executable, tool, "--verbose", name]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"{name}: {said}" in answer.stdout
