"""The engine: tables, the fewest slips, new methods and mistakes, and the policy on factors."""

import ast
import textwrap

import pytest
import submissions
import torch
from submissions_preference import OWN_OMEGA, psd_args, psd_hard
from submissions_tables import RENDERERS, TABLES, formula, three_predictions
from worlds import mostly_slow

from psd_mini import checks
from psd_mini.checks import (
    check_cfg,
    check_psd,
    check_renderer,
    check_sds,
    directions,
    exact_world,
    sizes,
)
from psd_mini.checks.grading.grader import CHECKS
from psd_mini.checks.sds import check_method
from psd_mini.checks.tables import Row, fewest_slips, formulas, products_of, slips_of

MEAN = submissions.WRONG["MeanInsteadOfSum"][1]


@pytest.mark.parametrize("name", mostly_slow(TABLES))
def test_verdict_and_words(name):
    kind, submission, status, words = TABLES[name]
    report = CHECKS[kind](submission)
    assert report.status == status, report
    for word in words:
        assert word in "; ".join(report.causes), report


@pytest.mark.parametrize("name", mostly_slow(RENDERERS))
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


def indented(first):
    """The indented lines of the page in `psd_mini.checks` from the one that begins so."""
    lines = checks.__doc__.partition("    " + first)[2].partition("\n\n")[0]
    return textwrap.dedent("    " + first + lines)


def test_a_new_method_is_five_lines(capsys):
    """The VSD gradient without guidance, as the docstring of the checks has it."""
    code = indented("from psd_mini.checks.directions import Method")
    assert len(code.splitlines()) == 5
    scope = {"my_function": prompted_minus_q}
    exec(code, scope)
    assert capsys.readouterr().out.startswith("check of toy: right")
    for kind, name in (("vsd", "vsd_usual"), ("sds", "plain_gradient")):
        assert submissions.RIGHT[name][0] == kind
        assert check_method(scope["toy"], submissions.RIGHT[name][1]).status == "wrong"


@formula
def a_third_of_the_noise(c, u, eps, g, a, s, x):
    return u + g * (c - u) - eps / 3


def test_a_new_mistake_is_one_row(monkeypatch):
    """The line in the docstring of the checks, put into its table."""
    row = ast.literal_eval("{" + indented('"- eps / 3"') + "}")
    ((_, words),) = row.items()
    report = check_sds(a_third_of_the_noise)
    assert not report.ok and words not in "; ".join(report.causes)
    rows = formulas("alpha, sigma, g", row, directions.VECTORS)
    monkeypatch.setattr(directions, "SUBTRACTED", [*directions.SUBTRACTED, *rows])
    assert words in "; ".join(check_sds(a_third_of_the_noise).causes)


def test_formulas_are_computed_as_they_are_written():
    names = {"alpha": lambda t: 2.0 + t, "total": sum}
    for formula_, value in (
        ("- g alpha_t^2", -48.0),  # exact: small whole numbers
        ("(g - 1) alpha_{t-1} + 2 g", 12.0),
        ("1 / (g - 1)", 0.5),
        ("g total((1, 2)) (2 g)", 54.0),
    ):
        (row,) = formulas("t, g", {formula_: ""}, names)
        assert (row.name, row.value(2, 3)) == (formula_, value)


@pytest.mark.parametrize("omega, status", [(None, "right"), ("hard", "right"), ("gap", "wrong")])
def test_one_omega_may_be_asked_for(omega, status):
    report = check_psd(psd_hard, omega=omega)
    assert report.status == status, report
    assert ("omega is hard, gap is asked for" in "; ".join(report.causes)) == (status == "wrong")
    own = check_psd(OWN_OMEGA, omega=omega)
    assert own.ok == (omega is None), own


def rescaled(eps_cond, eps_uncond, guidance_scale):
    guided = eps_uncond + guidance_scale * (eps_cond - eps_uncond)
    return guided * eps_cond.std() / guided.std()


def halves(eps_cond, eps_uncond, guidance_scale):
    return guidance_scale * eps_cond - eps_uncond / 2


@pytest.mark.parametrize(
    "fn, words", [(rescaled, "was it rescaled?"), (halves, "7.5 cond -0.5 uncond came at g = 7.5")]
)
def test_guidance_of_another_size(fn, words):
    report = check_cfg(fn)
    assert report.status == "wrong" and words in "; ".join(report.causes), report


def with_omega(omega):
    """PSD with an omega of both rewards, (B, 1, 1, 1) each."""

    @psd_args
    def submission(h, predictions, r, noises, lam):
        return (h[0] + h[1]) / 2 + lam * omega(r[0], r[1]) * (h[0] - h[1])

    return submission


OF_A_BATCH = {  # right for one picture
    "the first decides": lambda r_1, r_2: torch.sign(r_1 - r_2)[:1],
    "scaled by the largest gap": lambda r_1, r_2: (r_1 - r_2) / (r_1 - r_2).abs().max(),
    "scaled by the sum": lambda r_1, r_2: (r_1 - r_2) / (r_1 - r_2).abs().sum(),
    "winners of the neighbour": lambda r_1, r_2: torch.sign(r_1 - r_2).flip(0),
}


@pytest.mark.parametrize("name", OF_A_BATCH)
def test_an_omega_that_breaks_with_two_views(name):
    report = check_psd(with_omega(OF_A_BATCH[name]))
    assert report.status == "wrong" and "in a batch the winners" in "; ".join(report.causes), report


@pytest.mark.parametrize("omega", [torch.sub, lambda r_1, r_2: torch.tanh((r_1 - r_2) / 2)])
def test_an_omega_of_each_view_is_right(omega):
    assert check_psd(with_omega(omega)).status == "right"


def pair_through_the_unet(
    x, t, eps_1, eps_2, predict_noise, cond, uncond, reward, guidance_scale, lam, alphas_cumprod
):
    a, s = submissions.levels(alphas_cumprod, t)
    loss = 0.0
    for eps in (eps_1, eps_2):
        u = predict_noise(a * x + s * eps, t, uncond)
        e = u + guidance_scale * (predict_noise(a * x + s * eps, t, cond) - u)
        reward(((a * x + s * eps - s * e) / a).detach())
        loss = loss + ((e - eps) ** 2).sum()
    return loss


def test_what_cannot_be_read_is_not_judged():
    """A gradient through the UNet has no weights: one cause, and no rows that guess."""
    report = check_psd(pair_through_the_unet)
    assert [cause for cause in report.causes if "Jacobian" in cause] == report.causes, report
    assert not {"weights", "strength", "batch of 2"} & {f.name for f in report.findings}


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
    seen = [(t, 1, 7.5, factor * exact_world.sigma_at(t) ** 2) for t in (90, 250, 500, 930)]
    status, came, cause = sizes.size(seen, "gradient", 1e-2)
    assert status == "scaled" and came.startswith("w(t) = sigma_t^2") and "mean over" in cause
    assert "the size is 2 times" not in cause
