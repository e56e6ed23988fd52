"""What was once passed, or caught and not named; slips of an exercise; notebooks' own checkers."""

import pytest
import torch
from submissions_judgement import RIGHT, WRONG
from worlds import mostly_slow

from psd_mini.checks import check_gradient
from psd_mini.checks.grading.grader import CHECKS
from psd_mini.checks.guard import exercise


@pytest.mark.parametrize("name", mostly_slow(WRONG, 10))
def test_it_is_caught_and_named(name):
    kind, submission, words = WRONG[name]
    report = CHECKS[kind](submission)
    assert report.status == "wrong" and words in "; ".join(report.causes), report


@pytest.mark.parametrize("name", mostly_slow(RIGHT))
def test_it_is_right(name):
    kind, submission = RIGHT[name]
    CHECKS[kind](submission).require()


SLIPS = {
    "the mean is missing": lambda x: 6 * x,
    "coordinates are clamped": lambda x: x.clamp(max=1),
}


@pytest.mark.parametrize(
    "wrong, row, words",
    [
        (lambda x: 6 * x, "size", "the mean is missing"),
        (lambda x: -6 * x, "direction", "the mean is missing; the sign is flipped"),
        (lambda x: x.clamp(max=1), "direction", "coordinates are clamped"),
        (
            lambda x: -2 * x.clamp(max=1),
            "direction",
            "coordinates are clamped; the sign is flipped",
        ),
        (lambda x: -2 * x.clamp(max=1), "size", "the size is 2 times the reference"),
        (lambda x: x + torch.eye(2), "direction", "at [1, 1] -1 came, -4 is expected"),
        (lambda x: 4 * x, "size", "the size is 2 times the reference"),
    ],
)
def test_an_exercise_says_its_own_slips(wrong, row, words):
    x = torch.tensor([[3.0, 0.5], [0.25, -2.0]])
    check_gradient(lambda x: 2 * x, lambda x: 2 * x, x, slips=SLIPS).require()
    report = check_gradient(wrong, lambda x: 2 * x, x, slips=SLIPS)
    finding = next(finding for finding in report.findings if finding.name == row)
    assert finding.status == "wrong" and words in finding.cause, report


@exercise
def check_doubling(fn):
    return "right" if fn(2) == 4 else "WRONG"


@pytest.mark.slow
def test_a_notebooks_own_checker_answers_always():
    assert check_doubling(lambda x: 2 * x) == "right" and check_doubling(lambda x: x) == "WRONG"

    def my_answer(x):
        return torch.zeros(x) @ torch.zeros(3)

    def no_return(x):
        x * 2

    for wrong, status, words in (
        (my_answer, "could not run", "RuntimeError (line"),
        (no_return, "not answered", "is a return missing?"),
    ):
        report = check_doubling(wrong)
        assert report.status == status and words in "; ".join(report.causes), report
        assert wrong.__name__ in report.title
