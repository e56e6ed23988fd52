"""SDI, PDS and SDS with a velocity model: verdicts, and the formulas against exact mixtures."""

import re

import pytest
import torch
from submissions_kinds import KINDS

from psd_mini.checks.grading.grader import CHECKS


@pytest.mark.parametrize("name", KINDS)
def test_verdict_and_words(name):
    kind, submission, status, words = KINDS[name]
    report = CHECKS[kind](submission)
    assert report.status == status, report
    for word in words:
        assert re.search(word, "; ".join(report.causes)), report


@pytest.mark.parametrize("kind", ["sdi", "pds", "flow"])
def test_there_are_many_wrong_ones_and_several_right_ones(kind):
    statuses = [status for of, _, status, _ in KINDS.values() if of == kind]
    assert statuses.count("wrong") >= 8 and len(statuses) - statuses.count("wrong") >= 4
