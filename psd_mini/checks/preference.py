"""Checks of preference gradients: PSD, DreamDPO, RewardSDS.

All preference methods on noises are weights W_i of the residuals of N noised versions of one
picture, decided by rewards:

    G = w(t) sum_i W_i(R_1..R_N) ( eps_cfg(x_t^i) - eps_i ),    R_i = r(decode(x0_hat_i))

    PSD         W = 1/2 +- lambda omega(R_1 - R_2), with lambda = preference_weight, or that times sigma_t
    DreamDPO    W = +1 for the winner, -1 for the loser            arXiv 2502.04370 (the formula, at a clear gap)
    RewardSDS   W = best, softmax or min-max of the rewards        arXiv 2503.09601

The stand-in reward remembers the pictures it was shown, so what was ranked is known and not
inferred. The weights are then read off the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import validated
from psd_mini.checks import diagnosis, world
from psd_mini.checks.grading.submission import COURSE, Unreadable, keys, prepare
from psd_mini.checks.guard import guarded
from psd_mini.checks.judging import ADDED, ASCENT, JACOBIAN, basics, judge_graph, judge_noise
from psd_mini.checks.probe import Prober, Run
from psd_mini.checks.reading import Reading
from psd_mini.checks.report import Report
from psd_mini.checks.shown import judge_reward, rewards_of, seen_by_reward
from psd_mini.checks.trace import current
from psd_mini.methods.rewardsds import reward_weights
from psd_mini.psd import omega

FORMS = ("psd", "dreamdpo", "best", "softmax", "min-max")
LAMBDA = 0.7  # preference_weight in most runs
EQUATION = "G = w(t) { (h_1 + h_2)/2 + lambda omega(R_1 - R_2) (h_1 - h_2) }"
PLAN = [
    (1, g, (t,), seed)
    for seed, (g, t) in enumerate(
        ((7.5, 500), (3, 300), (7.5, 700), (3, 850), (7.5, 150), (7.5, 600))
    )
]


def reward(images: Tensor, *_: Any, **__: Any) -> Tensor:
    """A linear reward of pictures of any shape, (B,); it remembers what it was shown."""
    direction = world.normal(*images.shape[1:], seed=61).to(images)
    scores = 3 * (images * direction).flatten(1).sum(1) / direction.norm()
    if images.requires_grad:
        images.retain_grad()
    current().rewarded.append((images, scores.detach()))
    return scores


@validated
@guarded("PSD")
def check_psd(
    fn: Any,
    *,
    form: str = "psd",
    weighting: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Report:
    """Is this a preference gradient on pairs of noises, and if not, what is it?

    Args:
        fn: takes by name, as far as it wants, x, t, eps_1, eps_2 (or draws its own), predict_noise
            or unet, cond, uncond, reward (images -> (B,), higher is better), guidance_scale,
            preference_weight, tau; a function, class or object.
        form: "psd", "dreamdpo", or RewardSDS's "best", "softmax", "min-max".
        weighting: the name of w(t) if only that one is right, as in `check_sds`.
        names: parameter -> key of `submission.NAMES`.

    Returns:
        A `Report`. The temperature tau, where asked for, is 1.
    """
    for name, value, known in (
        ("form", form, FORMS),
        ("weighting", weighting, (None, *diagnosis.WEIGHTINGS)),
    ):
        if value not in known:
            raise Unreadable(
                f"{name}: {value!r} is not known; choose from {', '.join(filter(None, known))}"
            )
    report = Report(f"check of {form}")
    methods = ("psd_loss", "psd_gradient", "get_psd_loss", *COURSE)
    submission, more = (
        prepare(fn, methods, names),
        {"reward": reward, "tau": 1.0, "preference_weight": LAMBDA},
    )
    prober = Prober(submission, names, more)
    runs = [prober.run(*PLAN[0])]
    if not basics(report, runs[0], EQUATION):
        return report
    runs += [prober.run(*plan) for plan in PLAN[1:]]
    _judge_pair(report, runs)
    scored = judge_reward(report, runs)
    _judge_residuals(report, runs)
    strength = (
        _strength(scored)
        if form == "psd" and "preference_weight" in keys(prober.fn, names)
        else None
    )
    signed = strength is not None and BASES[strength[0]][1] == "note"
    _judge_weights(report, form, scored, runs[0].style, weighting, signed)
    if strength is not None:
        twice = Prober(submission, names, {**more, "preference_weight": 2 * LAMBDA}).run(*PLAN[0])
        grows = _judge_growth(
            report, strength[0], *(_sums(run.readings[0]) for run in (runs[0], twice))
        )
        if grows:
            _judge_strength(report, *strength)
    _judge_batch(report, prober, form)
    judge_noise(report, runs)
    judge_graph(report, runs)
    return report


def _judge_pair(report: Report, runs: list[Run]) -> None:
    """Several noises of one picture, at one t."""
    counts = {len(run.readings[0].groups) for run in runs}
    same_t = all(len({group.t for group in run.readings[0].groups}) == 1 for run in runs)
    cause = "both noises are the same: one x_t, so nothing to compare" if counts == {1} else ""
    if not same_t:
        cause = (
            "the pair stands at different t: rewards and residuals of different noise levels do not"
            " compare"
        )
    came = (
        f"{'/'.join(map(str, sorted(counts)))} noised versions, at"
        f" {'one' if same_t else 'different'} t"
    )
    report.add(not cause, "pair", came, "several, at one t", cause)


def _judge_residuals(report: Report, runs: list[Run]) -> None:
    """Is every term a residual, eps_cfg - eps_i, with the same guidance?"""
    leftover = max(run.readings[0].leftover for run in runs)
    scales, slips = [], []
    for run in runs:
        sums = _sums(run.readings[0])
        largest = max(map(abs, sums), default=0.0) or 1.0
        for c, s in zip(run.readings[0].coefficients, sums, strict=True):
            if abs(s) > 0.2 * largest:  # small ones are read too coarsely
                scales.append((run.g, c.get("cond", 0.0) / s, c.get("uncond", 0.0) / s))
        slips += [_noise_slip(run.readings[0], sums, 1e-2 * largest)] if len(sums) > 1 else []
    causes = (
        [slips[0]]
        if slips and slips[0] and len(set(slips)) == 1
        else [ONE_NOISE]
        if ONE_NOISE in slips
        else []
    )
    row, cause = diagnosis.guidance(scales, 1e-2) if scales else ("no", "")
    if (
        cause
        and any(abs(c - 1) < 1e-2 for _, c, _ in scales)
        and any(abs(c - g) < 1e-2 for g, c, _ in scales)
    ):
        cause = (
            "guidance on one of the two only: winner and loser must be guided alike (the loser came"
            " without CFG?)"
        )
        row = "guided for one, plain for the other"
    causes += [cause] if cause else []
    if leftover > 1e-2 and not causes:
        causes.append(f"{leftover:.0%} of the gradient is no combination of residuals")
    if any(run.through_unet() for run in runs):
        causes.append(JACOBIAN)
    came, wanted = (
        f"{row} guidance, {leftover:.0%} unexplained",
        "uncond + g (cond - uncond) - eps_i",
    )
    report.add(
        not causes, "residuals", came, wanted, "; ".join(causes), "h_i = eps_cfg(x_t^i) - eps_i"
    )


BARE = "no noise is subtracted: the terms must be eps_hat - eps_i"
RAW = (
    "the noise is not subtracted in the preference term (raw form, eps_hat of winner minus loser):"
    " in an exact world it points away from the reward"
)
ONE_NOISE = (
    "the noise of one of the two is not subtracted as it should be: the terms must be eps_hat -"
    " eps_i"
)


def _sums(reading: Reading) -> list[float]:
    """Weight of every noised version: the sum of its predictions' coefficients."""
    return [c.get("cond", 0.0) + c.get("uncond", 0.0) for c in reading.coefficients]


def _noise_slip(reading: Reading, sums: list[float], slack: float) -> str:
    """What is wrong with the noises that are subtracted, in words; each should come as often as
    its prediction."""
    noises = [c["noise"] for c in reading.coefficients if "noise" in c]
    if len(noises) < len(
        sums
    ):  # an antithetic pair has one noise: it should carry minus the difference of the weights
        pull = sums[0] - sums[1]
        added = len(sums) == 2 and abs(sum(noises) - pull) < slack < abs(pull)
        return (
            ADDED.format("noise") if added else RAW if abs(sum(noises)) < slack < abs(pull) else ""
        )
    if all(abs(n) < slack for n in noises) and abs(reading.other) < slack:
        return BARE
    if all(abs(n - s) < slack for n, s in zip(noises, sums, strict=True)):
        return ADDED.format("noise")
    wrong = [abs(n + s) > slack for n, s in zip(noises, sums, strict=True)]
    return (
        RAW if all(wrong) and max(noises) - min(noises) < slack else ONE_NOISE if all(wrong) else ""
    )


def _judge_weights(
    report: Report,
    form: str,
    scored: list[tuple[Reading, Tensor]],
    style: str,
    weighting: str | None,
    signed: bool,
) -> None:
    """Which weights W_i(R) stand before the residuals? signed: the sign of omega is known to be
    right."""
    samples = [
        (reading.t, r, torch.tensor(_sums(reading)).double()) for reading, r in scored if len(r) > 1
    ]
    if not samples:
        report.add(
            False,
            "weights",
            "cannot be read",
            "weights of residuals",
            "no pair with rewards: see the rows above",
        )
        return
    if form in ("psd", "dreamdpo"):
        causes, sizes = _pair_causes(form, samples, signed)
    else:
        causes, sizes = _rule_causes(form, samples)
    _, r, w = samples[0]
    came = f"{[round(v, 3) for v in w.tolist()]} for rewards {[round(v, 2) for v in r.tolist()]}"
    ok: bool | str = not causes
    if sizes:
        seen = [(t, 1, 1.0, abs(k)) for (t, *_), k in zip(samples, sizes, strict=True)]
        ok, found, slip = diagnosis.size(seen, style, 1e-2, weighting)
        came += f"; {found}"
        causes += [ASCENT] if all(k < 0 for k in sizes) and form != "dreamdpo" else []
        causes += [slip.replace("twice the reference:", TWICE)] if slip else []
        ok = ok if causes == [slip] else not causes
    report.add(ok, "weights", came, WEIGHTS[form], "; ".join(causes), EQUATION)


WEIGHTS = {
    "psd": "1/2 +- lambda omega(R_1 - R_2)",
    "dreamdpo": "+1 for the winner, -1 for the loser",
    **{form: f"{form} of the rewards, sum 1" for form in ("best", "softmax", "min-max")},
}
TWICE = "twice the reference: is the base the sum of both residuals (it should be their mean), or"
Samples = list[tuple[int, Tensor, Tensor]]  # t, rewards (N,), weights (N,)


def _pair_causes(form: str, samples: Samples, signed: bool) -> tuple[list[str], list[float]]:
    """Two weights are a base W_1 + W_2 and a pull W_1 - W_2, whose sign must be that of the
    rewards' difference.

    Every odd omega is right, so the size is read off the base (DreamDPO: of the pull, which stands
    alone)."""
    if any(len(w) != 2 for *_, w in samples):
        return [f"two noises are to be compared, {len(samples[0][2])} came"], []
    base, pull = torch.stack([torch.stack((w.sum(), w[0] - w[1])) for *_, w in samples]).T
    alone, absent = (
        bool((base.abs() < 1e-2 * pull.abs()).all()),
        bool((pull.abs() < 1e-2 * base.abs()).all()),
    )
    winner = torch.stack([(r[0] - r[1]).sign() for _, r, _ in samples])
    towards = pull * winner * (1 if alone else base.sign())
    causes = []
    if absent:
        causes.append(
            "the preference term is missing, the rewards have no influence: this is SDS with two"
            " noises"
        )
    elif not signed and bool((towards < 0).all()):
        causes.append("winner and loser are swapped: the gradient moves to the worse one")
    elif not signed and not bool((towards > 0).all()):
        causes.append(
            "omega is not signed, it must change its sign with R_1 - R_2: here the first noise"
            " always wins"
        )
    if form == "psd" and alone:
        causes.append("the base is missing: the pair alone does not pull to the prior")
    elif form == "dreamdpo" and not alone and not absent:
        causes.append("there is a base: DreamDPO is the winner's residual minus the loser's alone")
    size = base if form == "psd" else pull / 2
    return causes, [] if alone is (form == "psd") else size.tolist()


MEAN = "the mean of both residuals"
# h_1 alone: the mean of G over both orders of the noises is PSD; what the reward chose leaves no
# SDS at lambda = 0
FAIR, CHOSEN = (
    "right in expectation, with more noise",
    "chosen by the reward, it is not SDS at lambda = 0",
)
BASES: dict[
    str, tuple[Callable[[Tensor], Tensor], bool | str, str]
] = {  # what they add to W_1 - 1/2, of sign(R_1 - R_2)
    MEAN: (lambda sign: 0 * sign, True, ""),
    "the first residual": (
        lambda sign: sign**2 / 2,
        "note",
        f"the first residual instead of {MEAN}: {FAIR}",
    ),
    "the second residual": (
        lambda sign: -(sign**2) / 2,
        "note",
        f"the second residual instead of {MEAN}: {FAIR}",
    ),
    "the winner's residual": (
        lambda sign: sign / 2,
        False,
        f"the winner's residual instead of {MEAN}: {CHOSEN}",
    ),
    "the loser's residual": (
        lambda sign: -sign / 2,
        False,
        f"the loser's residual instead of {MEAN}: {CHOSEN}",
    ),
}


def _strength(scored: list[tuple[Reading, Tensor]]) -> tuple[str, float, str] | None:
    """Base, factor and omega of weights that sum to 1, W_1 = 1/2 + shift of the base + factor
    lambda omega.

    lambda is the preference weight that was given, or that times sigma_t. Returns None where there
    is nothing to be read, no omega ("") where it is not a known one.
    """
    pairs = [(reading.t, r[0] - r[1], _sums(reading)) for reading, r in scored if len(r) == 2]
    pairs = [(t, gap, w) for t, gap, w in pairs if abs(w[0] + w[1]) > 1e-2 * abs(w[0] - w[1]) > 0]
    if not pairs:
        return None
    above = torch.tensor([(w[0] - w[1]) / (w[0] + w[1]) / 2 for *_, w in pairs]).double()
    gap = torch.stack([gap for _, gap, _ in pairs])
    sigma = torch.tensor([world.alpha_sigma(t)[1] for t, *_ in pairs]).double()
    for base, kind, scale in product(BASES, ("hard", "gap", "bt"), (torch.ones_like(sigma), sigma)):
        ratio = (above - BASES[base][0](gap.sign())) / (LAMBDA * scale * omega(gap, kind, 1.0))
        ratio = ratio.abs() if base == MEAN else ratio  # whose wrong sign is named elsewhere
        for factor in (1.0, 2.0, 0.5):
            if bool(((ratio / factor - 1).abs() < 2e-2).all()):
                return base, factor, kind
    return MEAN, 1.0, ""


def _judge_growth(report: Report, base: str, once: list[float], twice: list[float]) -> bool:
    """Is the preference term proportional to preference_weight? The weights at lambda and at 2
    lambda, same noises."""
    sign = torch.tensor(
        once[0] - once[1]
    ).sign()  # W_1 - W_2 = 2 (shift of the base + lambda omega), over W_1 + W_2
    shift = 2 * BASES[base][0](sign).item()
    pulls = [(w[0] - w[1]) / (w[0] + w[1]) - shift for w in (once, twice)]
    if abs(pulls[0]) < 1e-6 or abs(pulls[1] / pulls[0] - 2) < 4e-2:
        return True
    ratio = pulls[1] / pulls[0]
    cause = (
        f"the preference term is not proportional to preference_weight: {ratio:.2f} times as large"
        " at twice the weight"
    )
    cause = "preference_weight is ignored" if abs(ratio - 1) < 1e-2 else cause
    report.add(False, "lambda", f"{ratio:.2f} times at 2 lambda", "2 times", cause, EQUATION)
    return False


def _judge_batch(report: Report, prober: Prober, form: str) -> None:
    """Two pictures at once with different winners: each decides for itself, or the mean of their
    rewards for both."""
    for seed in range(10, 20):
        try:
            run = prober.run(2, 7.5, (500,), seed)
        except Unreadable as error:
            cause = (
                "it works for one picture only: give omega, weights and w(t) the shape (B, 1, 1, 1)"
            )
            report.add("note", "batch of 2", str(error), "as for one picture", cause)
            return
        rewards = rewards_of(run, seen_by_reward(run))
        gaps = [r[0] - r[1] for r in rewards if r is not None and len(r) == 2]
        if form not in ("psd", "dreamdpo") or len(gaps) != 2:
            return  # weights of more noises, or other rows say what is wrong
        if gaps[0] * gaps[1] < 0:
            break
    else:
        return
    pulls = [w[0] - w[1] for w in map(_sums, run.readings)]
    own = all(pull * gap > 0 for pull, gap in zip(pulls, gaps, strict=True))
    together = all(pull * (gaps[0] + gaps[1]) > 0 for pull in pulls)
    came = (
        "each picture's own winner"
        if own
        else "one winner for all"
        if together
        else "other winners"
    )
    cause = (
        "one winner for the whole batch: right where it holds views of one object, wrong for"
        " different ones"
    )
    cause = (
        cause
        if together
        else (
            "in a batch the winners are not those of the rewards: are pictures and rewards"
            " mixed up?"
        )
    )
    sound = all(f.ok for f in report.findings)
    status: bool | str = own or ("note" if together or not sound else False)
    report.add(status, "batch of 2", came, "each picture's own winner", "" if own else cause)


def _judge_strength(report: Report, base: str, factor: float, kind: str) -> None:
    """Is it lambda omega (h_1 - h_2), or twice or half of that, and beside the mean of both
    residuals?"""
    if kind:
        report.add(BASES[base][1], "base", base, MEAN, BASES[base][2], EQUATION)
        name = {2.0: "twice", 0.5: "half"}.get(factor)
        cause = f"the preference term is {name} lambda omega (h_1 - h_2), beside {base}"
        report.add(not name, "strength", f"{factor:g} lambda omega, {kind}", "lambda omega", cause)
    elif report.findings[-1].ok:  # otherwise the weights are wrong, and how was said
        cause = (
            "the weights are 1/2 +- lambda omega for no omega of hard, gap, bt: is it, or"
            " lambda(t), one of your own?"
        )
        report.add("note", "strength", "no omega that is known", "lambda omega", cause)


def _rule_causes(form: str, samples: Samples) -> tuple[list[str], list[float]]:
    """RewardSDS: the rule that the weights are a multiple of, and that multiple."""
    rules: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda r: reward_weights(r[:, None], form)[:, 0],
        "the worst noise gets the largest weight: wrong sign of the reward, or sorted the wrong way round": lambda r: (
            reward_weights(-r[:, None], form)[:, 0]
        ),
        "the weights are not normalised: exp(R) without its sum": torch.exp,
        "the weights are not normalised: the rewards themselves": lambda r: r,
        "the rewards have no influence: every noise weighs the same": (
            lambda r: torch.ones_like(r) / len(r)
        ),
    }
    found = []
    for cause, rule in rules.items():
        sizes = [((w * rule(r)).sum() / rule(r).square().sum()).item() for _, r, w in samples]
        if all(
            (w - k * rule(r)).norm() < 1e-2 * w.norm()
            for k, (_, r, w) in zip(sizes, samples, strict=True)
        ):
            found.append(([cause] if cause else [], sizes))
    even = [
        entry for entry in found if max(entry[1]) - min(entry[1]) < 1e-2 * max(map(abs, entry[1]))
    ]
    return (even or found or [(["the weights follow none of the known rules"], [])])[0]
