"""Which weights W_i(R) stand before the residuals of a preference gradient?

Pairs are a base and a pull, W_1, W_2 = k ( base_1 +- m ), m > 0 towards the winner:

    PSD        base (1/2, 1/2),  m = lambda omega(R_1 - R_2), lambda perhaps times sigma_t
    DreamDPO   no base,          m = 1

Each part is a table. RewardSDS has a rule for any number of noises, which is one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch

from psd_mini.checks.directions import ASCENT, SIGNS
from psd_mini.checks.exact_world import sigma_at
from psd_mini.checks.judging import Scale
from psd_mini.checks.report import Ok, Report
from psd_mini.checks.sizes import size
from psd_mini.checks.tables import Row, causes_of, slips_of
from psd_mini.methods.rewardsds import reward_weights
from psd_mini.psd import omega

EQUATION = "G = w(t) { (h_1 + h_2)/2 + lambda omega(R_1 - R_2) (h_1 - h_2) }"
FORMS = {  # the weights that are expected, by form
    "psd": "1/2 +- lambda omega(R_1 - R_2)",
    "dreamdpo": "+1 for the winner, -1 for the loser",
    **{form: f"{form} of the rewards, sum 1" for form in ("best", "softmax", "min-max")},
}


class Sample(NamedTuple):
    """One picture: t, preference weight (None if not asked for), and of N noises both numbers."""

    t: int
    lam: float | None
    rewards: list[float]
    weights: list[float]

    @property
    def gap(self) -> float:
        return self.rewards[0] - self.rewards[1]


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
BASES = [  # of gap = R_1 - R_2: the weights of both residuals without the preference
    Row(MEAN, lambda gap: (0.5, 0.5)),
    Row("the first residual", lambda gap: (1.0, 0.0), slips=0),
    Row("the second residual", lambda gap: (0.0, 1.0), slips=0),
    Row(WINNERS, lambda gap: (float(gap > 0), float(gap <= 0)), CHOSEN.format(WINNERS)),
    Row(LOSERS, lambda gap: (float(gap <= 0), float(gap > 0)), CHOSEN.format(LOSERS)),
    Row("the sum of both residuals", lambda gap: (1.0, 1.0), SUM),
    Row("no base", lambda gap: (0.0, 0.0), NO_BASE),
]
NO_PULL = "the preference term is missing, the rewards have no influence: SDS with two noises"
NOT_PROPORTIONAL = "the preference term is not proportional to preference_weight"
OWN_OMEGA = "the weights are 1/2 +- lambda omega for no omega of hard, gap, bt: one of your own?"
SWAPPED = "winner and loser are swapped: the gradient moves to the worse one"
UNNORMALISED = "the weights are not normalised: exp(R), or R itself, without the sum"
EVEN = "the rewards have no influence: every noise weighs the same"
WORST = "the worst noise gets the largest weight: wrong sign of the reward, or of the sorting"
UNSIGNED = "omega is not signed, it must follow the sign of R_1 - R_2: one noise always wins"
SIDES = [  # of gap: which of the two is pulled to
    Row("the winner", lambda gap: 1 if gap > 0 else -1),
    Row("the loser", lambda gap: -1 if gap > 0 else 1, SWAPPED),
    Row("the first", lambda gap: 1, UNSIGNED),
    Row("the second", lambda gap: -1, UNSIGNED),
]


def _known_pulls() -> list[Row]:
    """lambda omega, perhaps times sigma_t, and twice or half of it: of (t, lambda, |gap|)."""
    rows = []
    kinds, factors = ("hard", "gap", "bt"), ((1.0, ""), (2.0, "twice"), (0.5, "half"))
    for kind, by_sigma, (factor, word) in product(kinds, (False, True), factors):

        def pull(t: int, lam: float, gap: float, kind=kind, by_sigma=by_sigma, factor=factor):
            return factor * lam * _omega(gap, kind) * (sigma_at(t) if by_sigma else 1.0)

        cause = f"the preference term is {word} lambda omega (h_1 - h_2)" if word else ""
        rows.append(Row(f"{factor:g} lambda omega, {kind}", pull, cause))
    return rows


# sizes that are read off, not compared
ANY_PULL = Row("no omega that is known", lambda t, lam, gap: None)
NOTHING = Row("nothing", lambda t, lam, gap: 0.0, NO_PULL)
PULLS = _known_pulls()


def _base_and_pull(sample: Sample, base: Row, sign: int) -> tuple[float, float]:
    """k and m of W_1 = k (base_1 + m), W_2 = k (base_2 - m).

    Without a base k is |m| and m is 1 or -1.
    """
    first, second = (sign * weight for weight in sample.weights)
    b_1, b_2 = base.value(sample.gap)
    if b_1 + b_2 == 0:
        k = abs(first - second) / 2
        return (k, (first - second) / 2 / k) if abs(first + second) < 1e-2 * k else (0.0, 0.0)
    k = (first + second) / (b_1 + b_2)
    return k, (first - second - k * (b_1 - b_2)) / 2 / k if k else 0.0


Candidates = list[tuple[tuple[Row, ...], list[float]]]  # rows that fit, and the sizes k


def explain_pair(form: str, samples: Sequence[Sample]) -> Candidates:
    """All rows (of BASES, PULLS, SIDES, SIGNS) that give these weights, and the sizes k."""
    bases, pulls = BASES, [ANY_PULL, NOTHING]
    if form == "dreamdpo":
        bases = [BASES[-1]._replace(cause=""), BASES[0]._replace(cause=A_BASE)]
    elif samples[0].lam is not None:
        pulls = [*PULLS, ANY_PULL._replace(cause=OWN_OMEGA, slips=1.5), NOTHING]
    found: Candidates = []
    for rows in product(bases, pulls, SIDES, SIGNS):
        if _makes_sense(*rows):
            sizes = []
            for sample in samples:
                sizes.append(_size_of(sample, rows))
                if sizes[-1] == 0:
                    break
            else:
                found.append((rows, sizes))
    return found


def _makes_sense(base: Row, pull: Row, side: Row, sign: Row) -> bool:
    """Without a pull nobody wins; without a base the pull is all there is, and so is its sign."""
    alone = base.value(1.0) == (0.0, 0.0)
    if pull.name == NOTHING.name:
        return not side.cause and not alone
    return not alone or (pull.name == ANY_PULL.name and not sign.cause)


def _size_of(sample: Sample, rows: tuple[Row, ...]) -> float:
    """The size k of weights that these rows explain; 0 where they do not."""
    base, pull, side, sign = rows
    k, m = _base_and_pull(sample, base, sign.value())
    wanted = pull.value(sample.t, sample.lam, abs(sample.gap))
    m *= side.value(sample.gap) if pull.name != NOTHING.name else 1
    fits = m > 1e-2 if wanted is None else abs(m - wanted) < 2e-2 * max(wanted, 0.5)
    return k if fits and k > 0 else 0.0


def explain_rule(form: str, samples: Sequence[Sample]) -> Candidates:
    """RewardSDS: the rules that the weights are a multiple of, and that multiple."""
    rules = [
        Row(form, lambda r: reward_weights(r[:, None], form)[:, 0]),
        Row("worst", lambda r: reward_weights(-r[:, None], form)[:, 0], WORST),
        Row("exp", torch.exp, UNNORMALISED),
        Row("rewards", torch.clone, UNNORMALISED),
        Row("even", lambda r: r**0 / len(r), EVEN),
    ]
    found: Candidates = []
    for row in rules:
        sizes = []
        for sample in samples:
            rule = row.value(torch.tensor(sample.rewards).double())
            weights = torch.tensor(sample.weights).double()
            k = ((weights * rule).sum() / rule.square().sum()).item()
            if (weights - k * rule).norm() < 1e-2 * weights.norm():
                sizes.append(k)
        if len(sizes) == len(samples):
            found.append(((row,), sizes))
    return found


def judge_weights(
    report: Report, form: str, samples: Sequence[Sample], style: str, scale: Scale
) -> None:
    """Add the rows on W_i(R)."""
    if not samples:
        cause = "no pair with rewards: see the rows above"
        report.add(False, "weights", "cannot be read", "weights of residuals", cause)
        return
    weights = [round(value, 3) for value in samples[0].weights]
    rewards = [round(value, 2) for value in samples[0].rewards]
    came, pair = f"{weights} for rewards {rewards}", form in ("psd", "dreamdpo")
    if pair and len(weights) != 2:
        cause = f"two noises are to be compared, {len(weights)} came"
        report.add(False, "weights", came, FORMS[form], cause, EQUATION)
        return
    candidates = explain_pair(form, samples) if pair else explain_rule(form, samples)
    best = _simplest(candidates, samples, style, scale)
    if best is None:
        report.add(False, "weights", came, FORMS[form], f"they are not {FORMS[form]}", EQUATION)
        return
    rows, (status, found, factor) = best
    wrong = causes_of(rows[:1] + rows[2:])
    if pair and rows[1].cause == NO_PULL:
        wrong.insert(0, NO_PULL)
    if not pair and max(sum(sample.weights) for sample in samples) < 0:
        wrong.append(ASCENT)
    causes = "; ".join([*wrong, *filter(None, [factor])])
    ok: Ok = False if wrong else status
    report.add(ok, "weights", f"{came}; {found}", FORMS[form], causes, EQUATION)
    if form == "psd" and samples[0].lam is not None and NO_PULL not in wrong:
        _judge_strength(report, rows, samples)


def _simplest(
    candidates: Candidates, samples: Sequence[Sample], style: str, scale: Scale
) -> tuple[tuple[Row, ...], tuple[Ok, str, str]] | None:
    """The rows with the fewest slips, a factor of the size included; and what the size is."""
    best, fewest = None, float("inf")
    for rows, sizes in candidates:
        seen = [(s.t, 1, 1.0, abs(k)) for s, k in zip(samples, sizes, strict=True)]
        judged = size(seen, style, 1e-2, *scale)
        # a factor is one slip; sizes that follow no w(t) at all speak against the rows
        slips = slips_of(rows) + (1.5 if judged[0] == "note" else bool(judged[2]))
        if slips < fewest:
            best, fewest = (rows, judged), slips
    return best


def _judge_strength(report: Report, rows: tuple[Row, ...], samples: Sequence[Sample]) -> None:
    """Is the pull lambda omega (h_1 - h_2), and does it grow with lambda?

    The last sample is the first one again, at twice the preference weight.
    """
    base, pull, side, sign = rows
    right = not (base.cause or side.cause or sign.cause)
    if right and base.name != MEAN:
        report.add("note", "base", base.name, MEAN, f"{base.name} {FAIR}", EQUATION)
    if base.cause == NO_BASE:
        return
    status: Ok = not pull.cause
    cause = f"{pull.cause}, beside {base.name}"
    if pull.name == ANY_PULL.name:
        once, twice = (_base_and_pull(samples[i], base, sign.value())[1] for i in (0, -1))
        ratio = twice / once
        status, cause = "note" if right else True, OWN_OMEGA
        if abs(ratio - 2) > 4e-2:
            status, cause = False, f"{NOT_PROPORTIONAL}: {ratio:.2f} times as large at twice of it"
        if abs(ratio - 1) < 1e-2:
            cause = "preference_weight is ignored"
    report.add(status, "strength", pull.name, "lambda omega", cause, EQUATION)
