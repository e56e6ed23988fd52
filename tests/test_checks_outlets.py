"""Where verdicts go: Gradescope's file, otter's tests, a notebook's table, a number in [0, 1]."""

import html.parser
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import submissions
from submissions_preference import psd_hard

from psd_mini.checks import Report, check_sds
from psd_mini.checks.grading.command import gradescope
from psd_mini.checks.report import no_answer
from psd_mini.pipelines.cli import main

GRADING = Path(__file__).parent.parent / "notebooks" / "grading"
RIGHT = """import torch
def sds(x, t, eps, unet, scheduler, cond, uncond, guidance_scale):
    x_t = scheduler.add_noise(x, eps, t)
    with torch.no_grad():
        c, u = (unet(x_t, t, e).sample for e in (cond, uncond))
    return u + guidance_scale * (c - u) - eps
"""
WRONG = RIGHT.replace(" - eps", " + eps")
ADDED = "the noise is added instead of subtracted"


def graded(folder, *options):
    """Exit status of `psd-mini check --gradescope`, and what it wrote."""
    file = folder / "results.json"
    file.unlink(missing_ok=True)
    command = ["check", str(folder / "submission"), "--gradescope", str(file), *options]
    try:
        main(command)
        status = 0
    except SystemExit as leaving:
        status = leaving.code
    return status, json.loads(file.read_text()) if file.exists() else None


@pytest.fixture
def hand_in(tmp_path, capsys):
    """Grades files, {name: source}, as the one submission in a folder."""

    def grade_them(files, *options):
        (tmp_path / "submission").mkdir()
        for name, source in files.items():
            (tmp_path / "submission" / name).write_text(source)
        return graded(tmp_path, *options)

    return grade_them


def test_gradescope_of_a_right_submission(hand_in):
    status, results = hand_in({"mine.py": RIGHT})
    assert status == 0 and results["score"] == pytest.approx(100)
    assert results["output"] == "check of SDS: right"
    names = [test["name"] for test in results["tests"]]
    assert {"gradient", "direction", "size", "guidance", "noise", "inputs"} <= set(names)
    assert {test["status"] for test in results["tests"]} == {"passed"}
    total = sum(test["score"] for test in results["tests"])
    # shares are rounded to two decimals
    assert total == pytest.approx(100, abs=0.01 * len(names))


def test_gradescope_of_a_slip(hand_in):
    """One test fails; it says the slip's sentence, and costs its row's share."""
    status, results = hand_in({"mine.py": WRONG})
    assert status == 0
    (failed,) = [test for test in results["tests"] if test["status"] == "failed"]
    # exact: a row that is wrong gives nothing
    assert failed["name"] == "direction" and failed["output"] == ADDED and failed["score"] == 0
    n = len(results["tests"])
    assert results["score"] == pytest.approx(100 * (n - 1) / n, abs=0.01)


def test_gradescope_has_the_published_fields(hand_in):
    """gradescope-autograders.readthedocs.io/specs; formats are text: code is quoted there."""
    _, results = hand_in({"mine.py": WRONG})
    known = {"score", "execution_time", "output", "output_format", "visibility", "tests"}
    assert set(results) <= known
    for test in results["tests"]:
        assert set(test) == {
            *("score", "max_score", "status", "name", "name_format"),
            *("output", "output_format", "visibility"),
        }
        assert test["visibility"] == "visible" and test["status"] in ("passed", "failed")
        assert test["output_format"] == test["name_format"] == "text"
        # exact: a row gives nothing or all
        assert test["score"] in (0.0, test["max_score"])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def sds(:\n", "SyntaxError"),
        ("def sds(x):\n    raise NotImplementedError('your code here')\n", "your code here"),
        ("import os\ndef sds(x):\n    os._exit(0)\n", "ended the process"),
        ("x = 1\n", "name it"),
    ],
)
def test_gradescope_of_code_that_gives_no_gradient(hand_in, source, words):
    status, results = hand_in({"mine.py": source})
    # exact: nothing ran
    assert status == 0 and results["score"] == 0
    (test,) = results["tests"]
    assert words in test["output"] and test["status"] == "failed"


def test_gradescope_without_a_submission(hand_in, tmp_path):
    status, results = hand_in({})
    # exact: there is nothing to grade
    assert (status, results["score"]) == (0, 0) and "no .py files" in results["tests"][0]["output"]
    (tmp_path / "submission").rmdir()
    status, results = graded(tmp_path)
    assert status == 0 and "there is no" in results["tests"][0]["output"]


def test_gradescope_takes_a_folder_for_one_submission(hand_in):
    helpers = {"a_helper.py": "def level(x):\n    return x\n", "utils.py": "LEARNING_RATE = 0.1\n"}
    status, results = hand_in({**helpers, "sd.py": RIGHT})
    assert status == 0 and results["score"] == pytest.approx(100)


def test_a_teachers_mistake_is_no_students_zero(hand_in, tmp_path, capsys):
    assert hand_in({"mine.py": RIGHT}, "--weighting", "nonsense") == (2, None)
    assert graded(tmp_path, "--kind", "nonsense") == (2, None)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path / "submission"), "--gradescope", "no/such/folder/r.json"])
    assert capsys.readouterr().err.startswith("psd-mini: gradescope: 'no/such/folder/r.json'")


@pytest.mark.slow
def test_the_template_calls_what_there_is(tmp_path):
    """run_autograder, with its places in a folder of ours and a `psd-mini` of this tree."""
    script = (GRADING / "run_autograder").read_text()
    assert os.access(GRADING / "run_autograder", os.X_OK)
    tool = tmp_path / "venv" / "bin" / "psd-mini"
    tool.parent.mkdir(parents=True)
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m psd_mini "$@"\n')
    tool.chmod(0o755)
    (tmp_path / "results").mkdir()
    (tmp_path / "submission").mkdir()
    (tmp_path / "submission" / "mine.py").write_text(RIGHT)
    script = script.replace("/autograder", str(tmp_path))
    root = {"PYTHONPATH": str(GRADING.parent.parent)}
    subprocess.run(["bash", "-c", script], check=True, env=os.environ | root)
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["score"] == pytest.approx(100)
    setup = (GRADING / "setup.sh").read_text()
    assert "/autograder/venv" in setup and "psd_mini" in setup


@pytest.mark.parametrize("file", sorted((GRADING / "otter").glob("*.py")), ids=lambda f: f.stem)
def test_otter_files(file, monkeypatch):
    """Within a stand-in for otter, whose decorator keeps a function under its name."""
    cases = {}
    library, tests = ModuleType("otter"), ModuleType("otter.test_files")
    tests.test_case = lambda name, points: lambda function: cases.setdefault(name, function)
    monkeypatch.setitem(sys.modules, "otter", library)
    monkeypatch.setitem(sys.modules, "otter.test_files", tests)
    exec(file.read_text(), scope := {})
    kind = file.stem.removeprefix("q_")
    # exact: the format is marked by False itself
    assert scope["OK_FORMAT"] is False and scope["name"] == file.stem
    most, all_of_it = cases.values()
    (own,) = [name for name in most.__code__.co_varnames if name == kind]
    right = next((fn for of, fn in submissions.RIGHT.values() if of == own), psd_hard)
    for case in (most, all_of_it):
        case(right)
        with pytest.raises(AssertionError, match="could not run"):
            case(SimpleNamespace())


def test_score_is_the_share_of_right_rows():
    report = Report("check")
    for status in (True, "note", "scaled", False):
        report.add(status, "row", "came", "wanted", "cause")
    assert report.score == pytest.approx(3 / 4) and not report.ok
    assert report.to_dict()["score"] == pytest.approx(3 / 4)
    # exact: no row is right
    assert no_answer("timed out", "too slow").score == 0
    # exact: all are
    assert check_sds(submissions.RIGHT["plain_gradient"][1]).score == 1


class Parts(html.parser.HTMLParser):
    """The tags of a page and the texts between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_a_notebook_shows_failing_rows_first_and_nothing_is_interpreted():
    """A submission's texts may hold HTML; the tags of the page are ours alone."""
    bad = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">&amp;"
    report = Report(bad)
    report.add(True, "first", bad)
    report.add(False, bad, bad, bad, bad, bad)
    report.add("note", "last", "x" * 500)
    parts = Parts(report._repr_html_())
    assert {tag for tag, _ in parts.tags} == {"b", "table", "col", "tr", "th", "td"}
    assert all(set(attributes) <= {"style"} for _, attributes in parts.tags)
    assert any(text.startswith(bad) for text in parts.texts)
    statuses = [text for text in parts.texts if text in ("ok", "wrong", "note")]
    assert statuses == ["wrong", "ok", "note"]


def test_a_notebooks_table_fits_the_page():
    page = no_answer("could not run", "x" * 2000)._repr_html_()
    (table,) = [attributes["style"] for tag, attributes in Parts(page).tags if tag == "table"]
    assert "table-layout:fixed" in table and "width:100%" in table
    # exact: the columns share the whole width
    assert sum(map(int, re.findall(r"width:(\d+)%'", page.partition("<tr>")[0])[1:])) == 100
    cells = [attributes["style"] for tag, attributes in Parts(page).tags if tag in ("td", "th")]
    assert cells and all("overflow-wrap:anywhere" in style for style in cells)


def test_the_best_of_several_files_counts():
    """And among those without an answer, the first."""
    of = [no_answer("could not run", word).to_dict() for word in ("first", "second")]
    assert gradescope(of)["tests"][0]["output"] == "first"
    better = Report("better")
    better.add(True, "a", "")
    better.add(False, "b", "", cause="slip")
    results = gradescope([*of, better.to_dict()])
    assert [test["output"] for test in results["tests"]][1] == "slip"
    assert results["score"] == pytest.approx(50)
