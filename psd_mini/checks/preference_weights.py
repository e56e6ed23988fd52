"""Which weights W_i(R) stand before the residuals of a preference gradient?

Pairs: a base W_1 + W_2 and a pull W_1 - W_2, which is 2 lambda omega(R_1 - R_2). RewardSDS: a rule
for any number of noises.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from psd_mini.checks import diagnosis
from psd_mini.checks.exact_world import sigma_at
from psd_mini.checks.judging import ASCENT
from psd_mini.checks.reading import Reading
from psd_mini.checks.report import Report
from psd_mini.methods.rewardsds import reward_weights
from psd_mini.psd import omega

Samples = list[tuple[int, Tensor, Tensor]]  # t, rewards (N,), weights (N,)
Scored = list[tuple[Reading, Tensor]]  # a picture, the rewards (N,) of its noised versions
Verdict = tuple[list[str], list[float]]  # causes, sizes

LAMBDA = 0.7  # preference_weight in most trials
EQUATION = "G = w(t) { (h_1 + h_2)/2 + lambda omega(R_1 - R_2) (h_1 - h_2) }"
RULES = {  # the weights that are expected, by form
    "psd": "1/2 +- lambda omega(R_1 - R_2)",
    "dreamdpo": "+1 for the winner, -1 for the loser",
    **{form: f"{form} of the rewards, sum 1" for form in ("best", "softmax", "min-max")},
}
TWICE = "twice the reference: is the base the sum of both residuals (it should be their mean), or"
MEAN_BASE = "the mean of both residuals"
# h_1 alone: the mean of G over both orders of the noises is PSD
FAIR = f"instead of {MEAN_BASE}: right in expectation, with more noise"
# what the reward chose leaves no SDS at lambda = 0
CHOSEN = f"instead of {MEAN_BASE}: chosen by the reward, it is not SDS at lambda = 0"
# base: (what it adds to W_1 - 1/2, of sign(R_1 - R_2); status; cause)
PAIR_BASES: dict[str, tuple[Callable[[Tensor], Tensor], bool | str, str]] = {
    MEAN_BASE: (lambda sign: 0 * sign, True, ""),
    "the first residual": (lambda sign: sign**2 / 2, "note", FAIR),
    "the second residual": (lambda sign: -(sign**2) / 2, "note", FAIR),
    "the winner's residual": (lambda sign: sign / 2, False, CHOSEN),
    "the loser's residual": (lambda sign: -sign / 2, False, CHOSEN),
}
# causes of wrong weights
NO_PULL = "the preference term is missing, the rewards have no influence: SDS with two noises"
SWAPPED = "winner and loser are swapped: the gradient moves to the worse one"
UNSIGNED = (
    "omega is not signed, it must change its sign with R_1 - R_2: the first noise always wins"
)
NO_BASE = "the base is missing: the pair alone does not pull to the prior"
A_BASE = "there is a base: DreamDPO is the winner's residual minus the loser's alone"
OWN_OMEGA = "the weights are 1/2 +- lambda omega for no omega of hard, gap, bt: one of your own?"
WORST = (
    "the worst noise gets the largest weight: wrong sign of the reward, or sorted the wrong way"
    " round"
)


def judge_weights(
    report: Report, form: str, scored: Scored, style: str, weighting: str | None, signed: bool
) -> None:
    """Add the row on W_i(R). signed: the sign of omega is known to be right."""
    samples: Samples = []
    for reading, r in scored:
        if len(r) > 1:
            samples.append((reading.t, r, torch.tensor(reading.sums()).double()))
    if not samples:
        cause = "no pair with rewards: see the rows above"
        report.add(False, "weights", "cannot be read", "weights of residuals", cause)
        return
    if form in ("psd", "dreamdpo"):
        causes, sizes = _pair_causes(form, samples, signed)
    else:
        causes, sizes = _rule_causes(form, samples)
    _, r, w = samples[0]
    weights = [round(value, 3) for value in w.tolist()]
    came = f"{weights} for rewards {[round(value, 2) for value in r.tolist()]}"
    ok: bool | str = not causes
    if sizes:
        seen = [(t, 1, 1.0, abs(k)) for (t, *_), k in zip(samples, sizes, strict=True)]
        ok, found, slip = diagnosis.size(seen, style, 1e-2, weighting)
        came += f"; {found}"
        if all(k < 0 for k in sizes) and form != "dreamdpo":
            causes.append(ASCENT)
        if slip:
            causes.append(slip.replace("twice the reference:", TWICE))
        ok = ok if causes == [slip] else not causes
    report.add(ok, "weights", came, RULES[form], "; ".join(causes), EQUATION)


def _pair_causes(form: str, samples: Samples, signed: bool) -> Verdict:
    """A base W_1 + W_2 and a pull W_1 - W_2 with the sign of the rewards' difference.

    Every odd omega is right, so the size is read off the base (DreamDPO: of the pull, which stands
    alone).
    """
    if any(len(w) != 2 for *_, w in samples):
        return [f"two noises are to be compared, {len(samples[0][2])} came"], []
    first, second = torch.stack([w for *_, w in samples]).T
    base, pull = first + second, first - second
    alone = bool((base.abs() < 1e-2 * pull.abs()).all())
    absent = bool((pull.abs() < 1e-2 * base.abs()).all())
    winner = torch.stack([(r[0] - r[1]).sign() for _, r, _ in samples])
    towards = pull * winner * (1 if alone else base.sign())
    causes = []
    if absent:
        causes.append(NO_PULL)
    elif not signed and not bool((towards > 0).all()):
        causes.append(SWAPPED if bool((towards < 0).all()) else UNSIGNED)
    if form == "psd":
        causes += [NO_BASE] if alone else []
        return causes, [] if alone else base.tolist()
    causes += [] if alone or absent else [A_BASE]
    return causes, (pull / 2).tolist() if alone else []


def strength_of(scored: Scored) -> tuple[str, float, str] | None:
    """Base, factor and omega of weights W_1 = 1/2 + shift of the base + factor lambda omega.

    The weights sum to 1; lambda is the preference weight that was given, or that times sigma_t.

    Returns:
        None where there is nothing to be read; no omega ("") where it is not a known one.
    """
    times, gaps, above = [], [], []
    for reading, r in scored:
        w = reading.sums()
        if len(r) == 2 and abs(w[0] + w[1]) > 1e-2 * abs(w[0] - w[1]) > 0:
            times.append(reading.t)
            gaps.append(r[0] - r[1])
            above.append((w[0] - w[1]) / (w[0] + w[1]) / 2)
    if not gaps:
        return None
    gap, over_half = torch.stack(gaps), torch.tensor(above).double()
    sigma = torch.tensor([sigma_at(t) for t in times]).double()
    for base, kind, scale in product(PAIR_BASES, ("hard", "gap", "bt"), (sigma**0, sigma)):
        shift = PAIR_BASES[base][0](gap.sign())
        ratio = (over_half - shift) / (LAMBDA * scale * omega(gap, kind, 1.0))
        ratio = ratio.abs() if base == MEAN_BASE else ratio  # its wrong sign is named elsewhere
        for factor in (1.0, 2.0, 0.5):
            if bool(((ratio / factor - 1).abs() < 2e-2).all()):
                return base, factor, kind
    return MEAN_BASE, 1.0, ""


def judge_growth(report: Report, base: str, once: list[float], twice: list[float]) -> bool:
    """Is the preference term proportional to preference_weight?

    once, twice: the weights at lambda and at 2 lambda, for the same noises.
    """
    sign = torch.tensor(once[0] - once[1]).sign()
    # W_1 - W_2 = 2 (shift of the base + lambda omega), over W_1 + W_2
    shift = 2 * PAIR_BASES[base][0](sign).item()
    pull, doubled = ((w[0] - w[1]) / (w[0] + w[1]) - shift for w in (once, twice))
    if abs(pull) < 1e-6 or abs(doubled / pull - 2) < 4e-2:
        return True
    ratio = doubled / pull
    cause = "the preference term is not proportional to preference_weight"
    cause = f"{cause}: {ratio:.2f} times as large at twice the weight"
    if abs(ratio - 1) < 1e-2:
        cause = "preference_weight is ignored"
    report.add(False, "lambda", f"{ratio:.2f} times at 2 lambda", "2 times", cause, EQUATION)
    return False


def judge_strength(report: Report, base: str, factor: float, kind: str) -> None:
    """Is it lambda omega (h_1 - h_2), not twice or half, beside the mean of both residuals?"""
    if kind:
        _, status, cause = PAIR_BASES[base]
        report.add(status, "base", base, MEAN_BASE, f"{base} {cause}", EQUATION)
        name = {2.0: "twice", 0.5: "half"}.get(factor)
        cause = f"the preference term is {name} lambda omega (h_1 - h_2), beside {base}"
        came = f"{factor:g} lambda omega, {kind}"
        report.add(not name, "strength", came, "lambda omega", cause)
    elif report.findings[-1].ok:  # otherwise the weights are wrong, and how was said
        report.add("note", "strength", "no omega that is known", "lambda omega", OWN_OMEGA)


def _rule_causes(form: str, samples: Samples) -> Verdict:
    """RewardSDS: the rule that the weights are a multiple of, and that multiple."""
    rules: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda r: reward_weights(r[:, None], form)[:, 0],
        WORST: lambda r: reward_weights(-r[:, None], form)[:, 0],
        "the weights are not normalised: exp(R) without its sum": torch.exp,
        "the weights are not normalised: the rewards themselves": lambda r: r,
        "the rewards have no influence: every noise weighs the same": lambda r: r**0 / len(r),
    }
    found, even = [], []
    for cause, rule in rules.items():
        weights = [(rule(r), w) for _, r, w in samples]
        sizes = [((w * v).sum() / v.square().sum()).item() for v, w in weights]
        pairs = zip(sizes, weights, strict=True)
        if all((w - k * v).norm() < 1e-2 * w.norm() for k, (v, w) in pairs):
            found.append(([cause] if cause else [], sizes))
            if max(sizes) - min(sizes) < 1e-2 * max(map(abs, sizes)):
                even.append(found[-1])
    return (even or found or [(["the weights follow none of the known rules"], [])])[0]
