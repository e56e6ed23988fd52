"""Which weights W_i(R) stand before the residuals of a preference gradient?

They are a base and a pull, W_1, W_2 = k ( base_i +- m ), with m > 0 towards the winner:

    PSD        base (1/2, 1/2),  m = lambda omega(R_1 - R_2), lambda perhaps times sigma_t
    DreamDPO   no base,          m = 1

Each part is a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from psd_mini.checks.directions import SIGNS
from psd_mini.checks.exact_world import sigma_at
from psd_mini.checks.reading import fit
from psd_mini.checks.report import Ok, Report
from psd_mini.checks.tables import Row, Rows, Table, causes_of, fewest_slips
from psd_mini.psd import omega

OMEGAS = ("hard", "gap", "bt")
EQUATION = "G = w(t) { (h_1 + h_2)/2 + lambda omega(R_1 - R_2) (h_1 - h_2) }"
FORMS = {  # the weights that are expected, by form
    "psd": "1/2 +- lambda omega(R_1 - R_2)",
    "dreamdpo": "+1 for the winner, -1 for the loser",
}


class Sample(NamedTuple):
    """One picture: t, preference weight (None if not asked for), rewards and weights (N,)."""

    t: int
    lam: float | None
    rewards: Tensor
    weights: Tensor

    @property
    def gap(self) -> float:
        return (self.rewards[0] - self.rewards[1]).item()


@lru_cache
def _omega(gap: float, kind: str) -> float:
    return omega(torch.tensor(gap, dtype=torch.float64), kind, 1.0).item()


MEAN = "the mean of both residuals"
# h_1 alone: the mean of G over both orders of the noises is PSD
FAIR = f"instead of {MEAN}: right in expectation, with more noise"
# what the reward chose leaves no SDS at lambda = 0
CHOSEN = f"{{}} instead of {MEAN}: chosen by the reward, it is not SDS at lambda = 0"
SUM = "the base is the sum of both residuals: it should be their mean"
NO_BASE = "the base is missing: the pair alone does not pull to the prior"
A_BASE = "there is a base: DreamDPO is the winner's residual minus the loser's alone"
WINNERS, LOSERS = "the winner's residual", "the loser's residual"
FIRST, SECOND = torch.eye(2, dtype=torch.float64)
BASES = [  # of the rewards R of a pair: the weights of both residuals without the preference
    Row(MEAN, lambda R: (FIRST + SECOND) / 2),
    Row("the first residual", lambda R: FIRST, slips=0),
    Row("the second residual", lambda R: SECOND, slips=0),
    Row(WINNERS, lambda R: FIRST if R[0] > R[1] else SECOND, CHOSEN.format(WINNERS)),
    Row(LOSERS, lambda R: SECOND if R[0] > R[1] else FIRST, CHOSEN.format(LOSERS)),
    Row("the sum of both residuals", lambda R: FIRST + SECOND, SUM),
    Row("no base", lambda R: 0 * R, NO_BASE),
]
NO_PULL = "the preference term is missing, the rewards have no influence: SDS with two noises"
NOT_PROPORTIONAL = "the preference term is not proportional to preference_weight"
OWN_OMEGA = "the weights are 1/2 +- lambda omega for no omega of hard, gap, bt: one of your own?"
SWAPPED = "winner and loser are swapped: the gradient moves to the worse one"
UNSIGNED = "omega is not signed, it must follow the sign of R_1 - R_2: one noise always wins"
SIDES = [  # of the rewards: which of the two is pulled to
    Row("the winner", lambda R: FIRST - SECOND if R[0] > R[1] else SECOND - FIRST),
    Row("the loser", lambda R: SECOND - FIRST if R[0] > R[1] else FIRST - SECOND, SWAPPED),
    Row("the first", lambda R: FIRST - SECOND, UNSIGNED),
    Row("the second", lambda R: SECOND - FIRST, UNSIGNED),
]


def known_pulls(asked: str | None) -> list[Row]:
    """lambda omega, perhaps times sigma_t, and twice or half of it: of (t, lambda, |gap|).

    asked: the kind of omega that is right; None where all are.
    """
    rows = []
    factors = ((1.0, ""), (2.0, "twice"), (0.5, "half"))
    for kind, by_sigma, (factor, word) in product(OMEGAS, (False, True), factors):

        def pull(t: int, lam: float, gap: float, kind=kind, by_sigma=by_sigma, factor=factor):
            return factor * lam * _omega(gap, kind) * (sigma_at(t) if by_sigma else 1.0)

        cause = f"the preference term is {word} lambda omega (h_1 - h_2)" if word else ""
        if kind != (asked or kind):
            cause = cause or f"omega is {kind}, {asked} is asked for"
        rows.append(Row(f"{factor:g} lambda omega, {kind}", pull, cause))
    return rows


# None: the size of the pull is read off, not compared
ANY_PULL = Row("no omega that is known", lambda t, lam, gap: None, OWN_OMEGA, slips=1.5)
NO_PULL_ROW = Row("nothing", lambda t, lam, gap: 0.0, NO_PULL)
THE_PAIR = Row("the pair alone", lambda t, lam, gap: 1.0)
SIZES = [  # of the status and the cause by `sizes.size`: no w(t) at all speaks against the rows
    Row("a known w(t)", lambda status, cause: not cause),
    Row("a factor", lambda status, cause: status != "note", "a factor"),
    Row("any", lambda status, cause: True, "no w(t) that is known", slips=1.5),
]
Judged = tuple[Ok, str, str]  # by `sizes.size`


def weights_by(sample: Sample, *rows: Row) -> list[Tensor]:
    """The weights that these rows give; and the direction of a pull whose size is free."""
    base, pull, sign, side = rows
    weights, towards = base.value(sample.rewards), side.value(sample.rewards)
    size = pull.value(sample.t, sample.lam, abs(sample.gap))
    if size is None:
        return [sign.value() * weights, sign.value() * towards]
    return [sign.value() * (weights + size * towards)]


def size_by(sample: Sample, rows: Sequence[Row]) -> float | None:
    """How many times the weights that these rows give came; None where others came."""
    (k, *pull), left = fit(sample.weights, weights_by(sample, *rows))
    return None if left > 1e-2 or k <= 0 or min(pull, default=k) < 1e-2 * k else k


def explain_weights(
    tables: Sequence[Table], samples: Sequence[Sample], judged: Callable[[list[float]], Judged]
) -> tuple[Rows, Judged] | None:
    """The rows with the fewest slips, a factor of the size included; and what the size is.

    judged: says what the sizes of all samples are, in units of what the rows give.
    """

    @lru_cache
    def size_of(*rows: Row) -> Judged | None:
        # without a base the pair is all there is, and only then
        if (rows[0].name == "no base") != (rows[1] is THE_PAIR):
            return None
        sizes = [size for sample in samples if (size := size_by(sample, rows)) is not None]
        return judged(sizes) if len(sizes) == len(samples) else None

    def fits(*rows: Row) -> bool:
        found = size_of(*rows[:-1])
        return found is not None and rows[-1].value(found[0], found[2])

    rows = fewest_slips([*tables, SIZES], fits, most=6)
    size = size_of(*rows[:-1]) if rows else None
    return (rows[:-1], size) if rows and size else None


def judge_weights(
    report: Report,
    form: str,
    samples: Sequence[Sample],
    judged: Callable[[list[float]], Judged],
    omega_asked: str | None,
) -> Rows | None:
    """Add the rows on W_i(R); returns what explains the weights."""
    if not samples:
        cause = "no pair with rewards: see the rows above"
        report.add(False, "weights", "cannot be read", "weights of residuals", cause)
        return None
    weights = [round(value, 3) for value in samples[0].weights.tolist()]
    rewards = [round(value, 2) for value in samples[0].rewards.tolist()]
    came = f"{weights} for rewards {rewards}"
    known_weight, expected = form == "psd" and samples[0].lam is not None, FORMS[form]
    best, cause = None, f"they are not {expected}"
    if len(weights) != 2:
        cause = f"two noises are to be compared, {len(weights)} came"
    else:
        pulls = [ANY_PULL._replace(cause="")]
        if known_weight:
            pulls = [*known_pulls(omega_asked), ANY_PULL]
        bases = BASES
        if form == "dreamdpo":
            bases = [BASES[-1]._replace(cause=""), BASES[0]._replace(cause=A_BASE)]
        tables = [bases, [THE_PAIR, *pulls, NO_PULL_ROW], SIGNS, SIDES]
        best = explain_weights(tables, samples, judged)
    if best is None:
        report.add(False, "weights", came, expected, cause, EQUATION)
        return None
    rows, (status, size, factor) = best
    # the strength of a pull has a row of its own
    wrong = causes_of(rows if rows[1] is NO_PULL_ROW else [rows[0], *rows[2:]])
    causes = "; ".join([*wrong, *filter(None, [factor])])
    report.add(not wrong and status, "weights", f"{came}; {size}", expected, causes, EQUATION)
    if known_weight and NO_PULL not in wrong:
        _judge_strength(report, rows, samples, bool(omega_asked))
    return rows


def _judge_strength(
    report: Report, rows: Rows, samples: Sequence[Sample], omega_asked: bool
) -> None:
    """Is the pull lambda omega (h_1 - h_2), and does it grow with lambda?

    The last sample is the first one again, at twice the preference weight.
    """
    base, pull, sign, side = rows
    right = not (base.cause or side.cause or sign.cause)
    if right and base.name != MEAN:
        report.add("note", "base", base.name, MEAN, f"{base.name} {FAIR}", EQUATION)
    if base.cause == NO_BASE:
        return
    status: Ok = not pull.cause
    cause = f"{pull.cause}, beside {base.name}"
    if pull.name == ANY_PULL.name:
        once, twice = (fit(s.weights, weights_by(s, *rows))[0] for s in (samples[0], samples[-1]))
        ratio = (twice[1] / twice[0]) / (once[1] / once[0])  # of m / k
        status, cause = not right or (not omega_asked and "note"), OWN_OMEGA
        if abs(ratio - 2) > 4e-2:
            status, cause = False, f"{NOT_PROPORTIONAL}: {ratio:.2f} times as large at twice of it"
        if abs(ratio - 1) < 1e-2:
            cause = "preference_weight is ignored"
    report.add(status, "strength", pull.name, "lambda omega", cause, EQUATION)
