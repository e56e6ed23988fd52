"""Preference pairs, negative embeddings, renderers, schedules: right or a named mistake."""

import pytest
import submissions_preference as more
from submissions import RIGHT, WRONG
from worlds import mostly_slow

from psd_mini.checks import check_negative_embedding, check_psd, check_renderer
from psd_mini.checks.grading.grader import CHECKS

KINDS_HERE = ("psd", "renderer", "schedule")


def verdict(report, words):
    """Right where no words are expected; otherwise wrong (or a constant factor), with these."""
    assert (report.status == "right") == (not words), report
    assert words in "; ".join(report.causes), report


@pytest.mark.parametrize(
    "name", mostly_slow(n for n, (kind, _) in RIGHT.items() if kind in KINDS_HERE)
)
def test_no_false_alarm(name):
    kind, submission = RIGHT[name]
    CHECKS[kind](submission).require()


@pytest.mark.parametrize(
    "name", mostly_slow(n for n, (kind, *_) in WRONG.items() if kind in KINDS_HERE)
)
def test_the_mistake_is_named(name):
    kind, submission, words = WRONG[name]
    report = CHECKS[kind](submission)
    for word in words:
        verdict(report, word)


@pytest.mark.parametrize("name", mostly_slow(more.ONE_RESIDUAL))
def test_base_of_one_residual(name):
    submission, words = more.ONE_RESIDUAL[name]
    report = check_psd(submission)
    verdict(report, words)
    base = name.split(",")[0] + " residual"
    assert f"{base} instead of the mean of both" in "; ".join(f.cause for f in report.findings)


def test_omega_of_ones_own_is_a_note_where_there_is_one():
    """Without a preference term the omega is not the news."""
    assert [
        f.status for f in check_psd(more.OWN_OMEGA).require().findings if f.name == "strength"
    ] == ["note"]
    assert "strength" not in [f.name for f in check_psd(more.psd_without_preference).findings]


@pytest.mark.parametrize("words", more.IN_A_BATCH)
def test_what_only_a_batch_shows_is_a_note(words):
    report = check_psd(more.IN_A_BATCH[words]).require()
    assert [(f.name, words in f.cause) for f in report.findings if f.status == "note"] == [
        ("batch of 2", True)
    ]


@pytest.mark.slow
def test_other_weights():
    """DreamDPO has no base, RewardSDS more noises than a pair."""
    verdict(check_psd(more.dreamdpo_formula), "base is missing")
    verdict(check_psd(more.of_four_noises), "two noises are to be compared, 4 came")


@pytest.mark.slow
def test_dreamdpo():
    verdict(check_psd(more.dreamdpo_formula, form="dreamdpo"), "")
    verdict(check_psd(more.dreamdpo_small_gap_branch, form="dreamdpo"), "no noise is subtracted")
    verdict(check_psd(more.psd_hard, form="dreamdpo"), "there is a base")


@pytest.mark.parametrize("name", mostly_slow(more.NEGATIVE))
def test_negative_embedding(name):
    submission, words = more.NEGATIVE[name]
    verdict(check_negative_embedding(submission), words)


@pytest.mark.parametrize("name", mostly_slow(more.RENDERERS))
def test_renderer(name):
    submission, words = more.RENDERERS[name]
    verdict(check_renderer(submission), words)
