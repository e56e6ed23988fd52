"""The engine: tables, the fewest slips, new methods and mistakes, and the policy on factors."""

import pytest
import submissions
from submissions_tables import RENDERERS, TABLES, formula, three_predictions

from psd_mini.checks import check_psd, check_renderer, check_sds, directions, sizes
from psd_mini.checks.directions import Method
from psd_mini.checks.grading.grader import CHECKS
from psd_mini.checks.sds import check_method
from psd_mini.checks.tables import Row, fewest_slips, products_of, slips_of

MEAN = submissions.WRONG["MeanInsteadOfSum"][1]


@pytest.mark.parametrize("name", TABLES)
def test_verdict_and_words(name):
    kind, submission, status, words = TABLES[name]
    report = CHECKS[kind](submission)
    assert report.status == status, report
    for word in words:
        assert word in "; ".join(report.causes), report


@pytest.mark.parametrize("name", RENDERERS)
def test_renderers(name):
    submission, words = RENDERERS[name]
    report = check_renderer(submission)
    assert not report.ok and words in "; ".join(report.causes), report


def test_the_fewest_slips_win_and_several_are_found():
    """3 = 1 * 3 with one slip, though the rows of two slips, 2 * 1.5, come first."""
    left = [Row("1", lambda: 1.0), Row("2", lambda: 2.0, "doubled")]
    right = [
        Row("1", lambda: 1.0),
        Row("1.5", lambda: 1.5, "half more"),
        Row("3", lambda: 3.0, "x"),
    ]

    def found(value):
        return fewest_slips([left, right], lambda a, b: abs(a.value() * b.value() - value) < 1e-9)

    assert [row.name for row in found(3.0)] == ["1", "3"]
    assert [row.cause for row in found(6.0)] == ["doubled", "x"]
    assert found(1.0) == (left[0], right[0]) and found(7.0) is None


def test_products_count_their_slips():
    rows = products_of([Row("2", lambda: 2.0, "twice"), Row("5", lambda: 5.0, "five", 2)])
    # exact: products of small whole numbers
    assert [(row.name, row.value(), slips_of([row])) for row in rows] == [
        ("", 1.0, 0),
        ("2", 2.0, 1),
        ("5", 5.0, 2),
        ("2 x 5", 10.0, 3),
    ]


def prompted_minus_q(x, t, eps, unet, unet_lora, cond, uncond, scheduler):
    c, _, q = three_predictions(x, t, eps, unet, unet_lora, cond, uncond, scheduler)
    return c - q


def test_a_new_method_is_five_lines():
    """The VSD gradient without guidance, as the docstring of the checks has it."""
    toy = Method(
        name="toy", equation="G = w(t) (cond - eps_q)", predictions="cond", subtracted="- eps_q"
    )
    assert check_method(toy, prompted_minus_q).status == "right"
    for kind, name in (("vsd", "vsd_usual"), ("sds", "plain_gradient")):
        assert submissions.RIGHT[name][0] == kind
        assert check_method(toy, submissions.RIGHT[name][1]).status == "wrong"


@formula
def a_third_of_the_noise(c, u, eps, g, a, s, x):
    return u + g * (c - u) - eps / 3


def test_a_new_mistake_is_one_row(monkeypatch):
    row = Row("- eps / 3", lambda a, s, g: {"noise": -1 / 3}, "only a third is subtracted")
    report = check_sds(a_third_of_the_noise)
    assert not report.ok and row.cause not in "; ".join(report.causes)
    monkeypatch.setattr(directions, "SUBTRACTED", [*directions.SUBTRACTED, row])
    report = check_sds(a_third_of_the_noise)
    assert not report.ok and row.cause in "; ".join(report.causes)


@pytest.mark.parametrize(
    ("policy", "status"), [("ignore", "right"), ("report", "scaled"), ("require", "wrong")]
)
def test_a_constant_factor_is_what_the_policy_says(policy, status):
    report = check_sds(MEAN, gradient_scale=policy)
    assert report.status == status and report.ok == (status != "wrong"), report
    assert "mean over elements" in "; ".join(finding.cause for finding in report.findings)
    pair = TABLES["averaged_pair"][1]
    assert check_psd(pair, gradient_scale=policy).status == status


def test_a_policy_that_nobody_knows():
    causes = check_sds(MEAN, gradient_scale="never").causes
    assert causes == ["gradient_scale: 'never' is not known; choose from ignore, report, require"]


@pytest.mark.parametrize("factor", [2 / 16384, 1 / 32768, 4 / 16384])
def test_factors_are_named_as_two_or_as_their_product(factor):
    seen = [(t, 1, 7.5, factor * sizes.sigma_at(t) ** 2) for t in (90, 250, 500, 930)]
    status, came, cause = sizes.size(seen, "gradient", 1e-2)
    assert status == "scaled" and came.startswith("w(t) = sigma_t^2") and "mean over" in cause
    assert "the size is 2 times" not in cause
