"""Checks of preference gradients: PSD, DreamDPO, RewardSDS.

All preference methods on noises are weights W_i of the residuals of N noised versions of one
picture, decided by rewards:

    G = w(t) sum_i W_i(R_1..R_N) ( eps_cfg(x_t^i) - eps_i ),    R_i = r(decode(x0_hat_i))

    PSD         W = 1/2 +- lambda omega(R_1 - R_2); lambda may carry a factor sigma_t
    DreamDPO    W = +1 for the winner, -1 for the loser      arXiv 2502.04370 (at a clear gap)
    RewardSDS   W = best, softmax or min-max of the rewards  arXiv 2503.09601

The stand-in reward remembers the pictures it was shown, so what was ranked is known and not
inferred. The weights are then read off the gradient (`preference_weights`).
"""

from __future__ import annotations

from typing import Any

from psd_mini._internal.arguments import validated
from psd_mini.checks import diagnosis
from psd_mini.checks import judging_draws as draws
from psd_mini.checks import preference_weights as weights
from psd_mini.checks.grading.names import Names, keys
from psd_mini.checks.grading.submission import COURSE, prepare
from psd_mini.checks.guard import guarded
from psd_mini.checks.judging import ADDED, JACOBIAN, basics
from psd_mini.checks.probe import Prober, Trial
from psd_mini.checks.reading import Reading
from psd_mini.checks.report import Report, Unreadable
from psd_mini.checks.rewarding import judge_reward, reward, rewards_of, seen_by_reward
from psd_mini.checks.sds import known_weighting

METHODS = ("psd_loss", "psd_gradient", "get_psd_loss", *COURSE)
G_AND_T = ((7.5, 500), (3, 300), (7.5, 700), (3, 850), (7.5, 150), (7.5, 600))
PAIRS = [(1, g, (t,), seed) for seed, (g, t) in enumerate(G_AND_T)]  # batch, g, t, seed
SAME_NOISE = "both noises are the same: one x_t, so nothing to compare"
TWO_TIMES = "the pair stands at different t: rewards of different noise levels do not compare"
HALF_GUIDED = "guidance on one of the two only: winner and loser must be guided alike"
BARE = "no noise is subtracted: the terms must be eps_hat - eps_i"
RAW = (
    "the noise is not subtracted in the preference term (raw form, eps_hat of winner minus loser):"
    " in an exact world it points away from the reward"
)
ONE_NOISE = (
    "the noise of one of the two is not subtracted as it should be: the terms must be"
    " eps_hat - eps_i"
)
ONE_ONLY = "it works for one picture only: give omega, weights and w(t) the shape (B, 1, 1, 1)"
ONE_WINNER = "one winner for the whole batch: right for views of one object, wrong for others"
OTHERS = "in a batch the winners are not those of the rewards: are pictures and rewards mixed?"


@validated
@guarded("PSD")
def check_psd(
    fn: Any, *, form: str = "psd", weighting: str | None = None, names: Names = None
) -> Report:
    """Is this a preference gradient on pairs of noises, and if not, what is it?

    Args:
        fn: takes by name, as far as it wants, x, t, eps_1, eps_2 (or draws its own), predict_noise
            or unet, cond, uncond, reward (images -> (B,), higher is better), guidance_scale,
            preference_weight, tau; a function, class or object.
        form: "psd", "dreamdpo", or RewardSDS's "best", "softmax", "min-max".
        weighting: the name of w(t) if only that one is right, as in `check_sds`.
        names: parameter -> key of `grading.names.NAMES`.

    Returns:
        A `Report`. The temperature tau, where asked for, is 1.
    """
    if form not in weights.RULES:
        raise Unreadable(f"form: {form!r} is not known; choose from {', '.join(weights.RULES)}")
    known_weighting(weighting)
    report = Report(f"check of {form}")
    submission = prepare(fn, METHODS, names)
    more = {"reward": reward, "tau": 1.0, "preference_weight": weights.LAMBDA}
    prober = Prober(submission, names, more)
    trials = [prober.run(*PAIRS[0])]
    if not basics(report, trials[0], weights.EQUATION):
        return report
    trials += [prober.run(*plan) for plan in PAIRS[1:]]
    _judge_pair(report, trials)
    scored = judge_reward(report, trials)
    _judge_residuals(report, trials)
    weighted = form == "psd" and "preference_weight" in keys(prober.fn, names)
    strength = weights.strength_of(scored) if weighted else None
    signed = strength is not None and weights.PAIR_BASES[strength[0]][1] == "note"
    weights.judge_weights(report, form, scored, trials[0].style, weighting, signed)
    if strength is not None:
        more["preference_weight"] = 2 * weights.LAMBDA
        twice = Prober(submission, names, more).run(*PAIRS[0])
        once, doubled = trials[0].readings[0].sums(), twice.readings[0].sums()
        if weights.judge_growth(report, strength[0], once, doubled):
            weights.judge_strength(report, *strength)
    _judge_batch(report, prober, form)
    draws.judge_noise(report, trials)
    draws.judge_graph(report, trials)
    return report


def _judge_pair(report: Report, trials: list[Trial]) -> None:
    """Several noises of one picture, at one t."""
    groups = [trial.readings[0].groups for trial in trials]
    counts = {len(noised) for noised in groups}
    same_t = all(len({group.t for group in noised}) == 1 for noised in groups)
    cause = SAME_NOISE if counts == {1} else ""
    if not same_t:
        cause = TWO_TIMES
    numbers, at = "/".join(map(str, sorted(counts))), "one" if same_t else "different"
    came = f"{numbers} noised versions, at {at} t"
    report.add(not cause, "pair", came, "several, at one t", cause)


def _judge_residuals(report: Report, trials: list[Trial]) -> None:
    """Is every term a residual, eps_cfg - eps_i, with the same guidance?"""
    leftover = max(trial.readings[0].leftover for trial in trials)
    scales, slips = [], []
    for trial in trials:
        reading = trial.readings[0]
        sums = reading.sums()
        largest = max(map(abs, sums), default=0.0) or 1.0
        for c, s in zip(reading.coefficients, sums, strict=True):
            if abs(s) > 0.2 * largest:  # small ones are read too coarsely
                scales.append((trial.g, c.get("cond", 0.0) / s, c.get("uncond", 0.0) / s))
        if len(sums) > 1:
            slips.append(_noise_slip(reading, sums, 1e-2 * largest))
    causes = []
    if len(set(slips)) == 1 and slips[0]:
        causes = [slips[0]]
    elif ONE_NOISE in slips:
        causes = [ONE_NOISE]
    row, cause = diagnosis.guidance(scales, 1e-2) if scales else ("no", "")
    plain = any(abs(c - 1) < 1e-2 for _, c, _ in scales)
    if cause and plain and any(abs(c - g) < 1e-2 for g, c, _ in scales):
        row, cause = "guided for one, plain for the other", HALF_GUIDED
    causes += [cause] if cause else []
    if leftover > 1e-2 and not causes:
        causes.append(f"{leftover:.0%} of the gradient is no combination of residuals")
    if any(trial.through_unet() for trial in trials):
        causes.append(JACOBIAN)
    came = f"{row} guidance, {leftover:.0%} unexplained"
    wanted = "uncond + g (cond - uncond) - eps_i"
    equation = "h_i = eps_cfg(x_t^i) - eps_i"
    report.add(not causes, "residuals", came, wanted, "; ".join(causes), equation)


def _noise_slip(reading: Reading, sums: list[float], slack: float) -> str:
    """What is wrong with the noises that are subtracted; each should come as its prediction."""
    noises = [c["noise"] for c in reading.coefficients if "noise" in c]
    if len(noises) < len(sums):
        # an antithetic pair has one noise, which should carry minus the difference of the weights
        pull, total = sums[0] - sums[1], sum(noises)
        if len(sums) == 2 and abs(total - pull) < slack < abs(pull):
            return ADDED.format("noise")
        return RAW if abs(total) < slack < abs(pull) else ""
    if all(abs(n) < slack for n in noises) and abs(reading.other) < slack:
        return BARE
    pairs = list(zip(noises, sums, strict=True))
    if all(abs(n - s) < slack for n, s in pairs):
        return ADDED.format("noise")
    if not all(abs(n + s) > slack for n, s in pairs):
        return ""
    return RAW if max(noises) - min(noises) < slack else ONE_NOISE


def _judge_batch(report: Report, prober: Prober, form: str) -> None:
    """Two pictures at once with different winners: who decides for whom?"""
    for seed in range(10, 20):
        try:
            trial = prober.run(2, 7.5, (500,), seed)
        except Unreadable as error:
            report.add("note", "batch of 2", str(error), "as for one picture", ONE_ONLY)
            return
        rewards = rewards_of(trial, seen_by_reward(trial))
        gaps = [r[0] - r[1] for r in rewards if r is not None and len(r) == 2]
        if form not in ("psd", "dreamdpo") or len(gaps) != 2:
            return  # weights of more noises, or other rows say what is wrong
        if gaps[0] * gaps[1] < 0:
            _judge_winners(report, trial, [gap.item() for gap in gaps])
            return


def _judge_winners(report: Report, trial: Trial, gaps: list[float]) -> None:
    """Each picture decides for itself, or the mean of their rewards for both."""
    pulls = [w[0] - w[1] for w in (reading.sums() for reading in trial.readings)]
    own = all(pull * gap > 0 for pull, gap in zip(pulls, gaps, strict=True))
    together = all(pull * (gaps[0] + gaps[1]) > 0 for pull in pulls)
    expected, cause = "each picture's own winner", OTHERS
    came = expected if own else "other winners"
    if together and not own:
        came, cause = "one winner for all", ONE_WINNER
    lenient = together or not report.ok
    status = own or ("note" if lenient else False)
    report.add(status, "batch of 2", came, expected, "" if own else cause)
