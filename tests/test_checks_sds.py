"""Right submissions pass in whatever style; wrong ones are told which mistake they made."""

import pytest
from submissions import RIGHT, WRONG

from psd_mini.checks.grader import KINDS

BASIC = ("sds", "cfg", "csd", "vsd")


@pytest.mark.parametrize("name", [name for name, (kind, _) in RIGHT.items() if kind in BASIC])
def test_no_false_alarm(name):
    kind, submission = RIGHT[name]
    KINDS[kind](submission).require()


@pytest.mark.parametrize("name", [name for name, (kind, *_) in WRONG.items() if kind in BASIC])
def test_the_mistake_is_named(name):
    kind, submission, words = WRONG[name]
    report = KINDS[kind](submission)
    assert not report.ok
    for word in words:
        assert word in "; ".join(report.causes), f"{word!r} not in {report.causes}"
    with pytest.raises(AssertionError, match="WRONG"):
        report.require()
