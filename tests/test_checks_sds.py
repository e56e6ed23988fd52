"""Right submissions pass in whatever style; wrong ones are told which mistake they made."""

from pathlib import Path

import pytest
import torch
from submissions import RIGHT, WRONG
from submissions_preference import psd_hard
from worlds import mostly_slow

from psd_mini.checks import check_csd, check_psd, check_sds, exact_world, sizes
from psd_mini.checks.grading.grader import CHECKS
from psd_mini.checks.report import in_capitals

BASIC = ("sds", "cfg", "csd", "vsd")
NO_ANSWER = {"returns_none": "not answered"} | dict.fromkeys(
    ("moves_to_cuda", "calls_exit", "PromptFirst"), "could not run"
)
# right up to a constant factor
SCALED = ("MeanInsteadOfSum", "MissingHalf", "PlainMSE")
TIMES = torch.tensor([90, 250, 500, 930])


@pytest.mark.parametrize("name", mostly_slow(n for n, (kind, _) in RIGHT.items() if kind in BASIC))
def test_no_false_alarm(name):
    kind, submission = RIGHT[name]
    CHECKS[kind](submission).require()


@pytest.mark.parametrize("name", mostly_slow(n for n, (kind, *_) in WRONG.items() if kind in BASIC))
def test_the_mistake_is_named(name):
    kind, submission, words = WRONG[name]
    report = CHECKS[kind](submission)
    status = "scaled" if name in SCALED else NO_ANSWER.get(name, "wrong")
    assert report.status == status
    for word in words:
        assert word in "; ".join(report.causes), f"{word!r} not in {report.causes}"
    if status == "scaled":
        report.require()
        return
    with pytest.raises(AssertionError, match=in_capitals(report.status)):
        report.require()


@pytest.mark.parametrize("wanted", sizes.W_FORMULAS)
@pytest.mark.parametrize("came", sizes.W_FORMULAS)
def test_a_weighting_is_told_from_the_others(wanted, came):
    """Sizes from the schedule's w(t), also with a mean for a sum: two mistakes, two causes."""
    for factor, slip in ((1.0, ""), (1 / 16384, "mean over elements")):
        measured = factor * exact_world.SCHEDULE.weight(
            TIMES, came, torch.zeros(4, dtype=torch.float64)
        )
        seen = [
            (t, 1, 7.5, k) for t, k in zip(TIMES.tolist(), measured.flatten().tolist(), strict=True)
        ]
        status, _, cause = sizes.size(seen, "gradient", 1e-2, sizes.Scale(wanted))
        assert status == ("wrong" if wanted != came else "scaled" if slip else "ok")
        assert ("is expected" in cause) is (wanted != came) and slip in cause
        assert sizes.size(seen, "gradient", 1e-2)[0] == ("scaled" if slip else "ok")


def test_a_weight_that_is_none_of_them_or_no_weight_at_all():
    odd = [(t, 1, 7.5, 1.5 + (t / 100) ** 2) for t in TIMES.tolist()]
    clipped = [(500, 1, 7.5, 1.0), (500, 1, 7.5, 2.0), (90, 1, 7.5, 1.0)]
    for seen in (odd, clipped):
        assert sizes.size(seen, "gradient", 1e-2)[0] == "note"
        assert sizes.size(seen, "gradient", 1e-2, sizes.Scale("sds"))[0] is False


@pytest.mark.slow
def test_checks_take_a_weighting():
    """plain_gradient and psd_hard have w = 1, csd_scaled too, with a factor g that CSD may have."""
    for check, fn in (
        (check_sds, RIGHT["plain_gradient"][1]),
        (check_csd, RIGHT["csd_scaled"][1]),
        (check_psd, psd_hard),
    ):
        check(fn, weighting="uniform").require()
        assert "w(t) = 1 came, w(t) = sigma_t^2 is expected" in "; ".join(
            check(fn, weighting="sds").causes
        )
    assert (
        "choose from sds, uniform, fantasia3d"
        in check_sds(RIGHT["plain_gradient"][1], weighting="sigma").causes[0]
    )


def test_cfg_in_place_is_not_blamed_on_guidance():
    report = CHECKS["cfg"](WRONG["cfg_in_place"][1])
    assert [finding.name for finding in report.findings if not finding.ok] == ["inputs"], report


def test_the_readme_shows_what_is_printed(capsys):
    section = (
        (Path(__file__).parent.parent / "README.md").read_text().partition("## Check a formula")[2]
    )
    _, code, _, shown, *_ = section.split("```")
    exec(code.removeprefix("python"), {})
    assert capsys.readouterr().out.endswith(shown)
