"""Check of preference gradients on pairs of noises: PSD, DreamDPO.

They are weights W_i of the residuals of two noised versions of one picture, decided by rewards:

    G = w(t) sum_i W_i(R_1, R_2) ( eps_cfg(x_t^i) - eps_i ),    R_i = r(decode(x0_hat_i))

    PSD         W_i = 1/2 +- lambda omega(R_1 - R_2); lambda may carry a factor sigma_t
    DreamDPO    W_i = +1 for the winner, -1 for the loser    arXiv 2502.04370 (at a clear gap)

The residuals are explained by the tables of `directions`, as a gradient of SDS is; what is left is
one weight for each noise, explained by the tables of `preference_weights`. The stand-in reward
remembers the pictures it was shown, so what was ranked is known and not inferred.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from psd_mini._internal.arguments import one_of
from psd_mini.checks import preference_weights as weights
from psd_mini.checks.directions import GUIDED, Method, explain_direction, fit_rows
from psd_mini.checks.grading.submission import COURSE, prepare
from psd_mini.checks.guard import guarded
from psd_mini.checks.judging import JACOBIAN, basics, combination_of, judge_graph
from psd_mini.checks.noise_schedule import judge_noise
from psd_mini.checks.probe import Prober, Trial
from psd_mini.checks.reading import Reading
from psd_mini.checks.report import Report, Unreadable
from psd_mini.checks.rewarding import judge_reward, rewards_of, seen_by_reward
from psd_mini.checks.sizes import Scale, size
from psd_mini.checks.tables import Rows, causes_of

METHODS = ("psd_loss", "psd_gradient", "get_psd_loss", *COURSE)
LAMBDA = 0.7  # preference_weight in most trials
G_AND_T = ((7.5, 500), (3, 300), (7.5, 700), (3, 850), (7.5, 150), (7.5, 600))
PAIRS = [(1, g, (t,), seed) for seed, (g, t) in enumerate(G_AND_T)]  # batch, g, t, seed
TOLERANCE = 1e-2
SAME_NOISE = "both noises are the same: one x_t, so nothing to compare"
TWO_TIMES = "the pair stands at different t: rewards of different noise levels do not compare"
HALF_GUIDED = "guidance on one of the two only: winner and loser must be guided alike"
ONE_NOISE = "the noise of one of the two is not subtracted: the terms must be eps_hat - eps_i"
BARE = "no noise is subtracted: the terms must be eps_hat - eps_i"
WORDS = {"nothing": BARE, "- k eps": ONE_NOISE, "another term": ONE_NOISE}
RESIDUALS = Method("pair", "h_i = eps_cfg(x_t^i) - eps_i", GUIDED, "- eps", WORDS)
ONE_ONLY = "it works for one picture only: give omega, weights and w(t) the shape (B, 1, 1, 1)"
ONE_WINNER = "one winner for the whole batch: right for views of one object, wrong for others"
OTHERS = "in a batch the winners are not those of the rewards: are pictures and rewards mixed?"


@guarded("PSD")
def check_psd(
    fn: Any,
    *,
    form: str = "psd",
    omega: str | None = None,
    weighting: str | None = None,
    gradient_scale: str = "report",
) -> Report:
    """Is this a preference gradient on pairs of noises, and if not, what is it?

    Args:
        fn: takes by name, as far as it wants, x, t, eps_1, eps_2 (or draws its own), predict_noise
            or unet, cond, uncond, reward (images -> (B,), higher is better), guidance_scale,
            preference_weight, tau; a function, class or object.
        form: "psd" or "dreamdpo".
        omega: "hard", "gap" or "bt" if only that one is right; None takes any. Where
            preference_weight is no parameter, the kind cannot be told.
        weighting, gradient_scale: as in `check_sds`.

    Returns:
        A `Report`. The temperature tau, where asked for, is 1.
    """
    one_of("form", form, weights.FORMS)
    one_of("omega", omega or "hard", weights.OMEGAS)
    scale = Scale(weighting, gradient_scale)
    report = Report(f"check of {form}")
    more = {"tau": 1.0, "preference_weight": LAMBDA}
    prober = Prober(prepare(fn, METHODS), more)
    trials = [prober.run(*PAIRS[0])]
    if not basics(report, trials[0], weights.EQUATION):
        return report
    trials += [prober.run(*plan) for plan in PAIRS[1:]]
    _judge_pair(report, trials)
    scored = judge_reward(report, trials)
    jacobian = any(trial.through_unet() for trial in trials)
    rows = _judge_residuals(report, trials, jacobian)
    if not jacobian:  # otherwise no weight can be read
        samples = _samples(prober, scored, rows)

        def judged(sizes: list[float]) -> weights.Judged:
            seen = [(sample.t, 1, 1.0, k) for sample, k in zip(samples, sizes, strict=True)]
            return size(seen, trials[0].style, 1e-2, scale)

        found = weights.judge_weights(report, form, samples, judged, omega)
        _judge_batch(report, prober, rows, found)
    judge_noise(report, trials)
    judge_graph(report, trials)
    return report


def weights_of(reading: Reading, rows: Rows | None) -> list[float]:
    """W_i of every noised version; without rows, the sum of its predictions' coefficients."""
    found = fit_rows(reading, rows) if rows else None
    if found is None:
        found = [0.0] * len(reading.groups)
        for (label, number), value in reading.terms.items():
            found[number] += value if label in ("cond", "uncond") else 0.0
    return found


def _samples(
    prober: Prober, scored: list[tuple[Trial, Tensor]], rows: Rows | None
) -> list[weights.Sample]:
    """Rewards and weights of every trial; the first one again, at twice the weight."""
    samples = [_sample(prober, trial.readings[0], rewards, rows) for trial, rewards in scored]
    if samples and samples[0].lam:
        prober.given["preference_weight"] = 2 * LAMBDA
        twice = prober.run(*PAIRS[0]).readings[0]
        samples.append(_sample(prober, twice, scored[0][1], rows))
        prober.given["preference_weight"] = LAMBDA
    return [sample for sample in samples if len(sample.rewards) > 1]


def _sample(prober: Prober, reading: Reading, rewards: Tensor, rows: Rows | None) -> weights.Sample:
    """The rewards and weights of one picture, and the preference weight if it was asked for."""
    asked = "preference_weight" in prober.keys
    lam = prober.given["preference_weight"] if asked else None
    found = torch.tensor(weights_of(reading, rows), dtype=torch.float64)
    return weights.Sample(reading.t, lam, rewards, found)


def _judge_pair(report: Report, trials: list[Trial]) -> None:
    """Several noises of one picture, at one t."""
    versions = [trial.readings[0].groups for trial in trials]
    counts = sorted({len(groups) for groups in versions})
    same_t = all(len({group.t for group in groups}) == 1 for groups in versions)
    cause = TWO_TIMES if not same_t else SAME_NOISE if counts == [1] else ""
    came = f"{'/'.join(map(str, counts))} noised versions, at {'one' if same_t else 'different'} t"
    report.add(not cause, "pair", came, "several, at one t", cause)


def _judge_residuals(report: Report, trials: list[Trial], jacobian: bool) -> Rows | None:
    """Is every term a residual, eps_cfg - eps_i, with the same guidance? Returns its rows."""
    readings = [trial.readings[0] for trial in trials]
    leftover = max(reading.leftover for reading in readings)
    rows = None if jacobian else explain_direction(RESIDUALS, readings, TOLERANCE, signed=False)
    combination, causes = "no", [JACOBIAN] if jacobian else []
    if rows is not None:
        combination, causes = rows[0].name, causes_of(rows[1:])
        if rows[0].slips > 1:  # its numbers are all that is known
            combination = combination_of(readings[0], rows)
            unlike = any(_guided_unlike(reading) for reading in readings)
            words = f"{combination} came at g = {readings[0].g:g} (guidance)"
            causes.insert(0, HALF_GUIDED if unlike else words)
        elif rows[0].cause:
            causes.insert(0, rows[0].cause)
    if not causes and (leftover > TOLERANCE or rows is None):
        causes.append(f"{leftover:.0%} of the gradient is no combination of residuals")
    came = f"{combination} guidance, {leftover:.0%} unexplained"
    wanted = f"{GUIDED} - eps_i"
    report.add(not causes, "residuals", came, wanted, "; ".join(causes), RESIDUALS.equation)
    return rows


def _guided_unlike(reading: Reading) -> bool:
    """Do the noised versions have guidance scales of their own?"""
    scales = []
    for i in range(len(reading.groups)):
        c, u = (reading.terms.get((label, i), 0.0) for label in ("cond", "uncond"))
        scales.append(c / (c + u) if c + u else 0.0)
    return max(scales) - min(scales) > 0.1


def _judge_batch(report: Report, prober: Prober, rows: Rows | None, explained: Rows | None) -> None:
    """Two pictures at once, with different winners: who decides for whom?

    explained: the rows that explain the weights of one picture.
    """
    for seed in range(10, 40):
        try:
            trial = prober.run(2, 7.5, (500,), seed)
        except Unreadable as error:
            report.add("note", "batch of 2", str(error), "as for one picture", ONE_ONLY)
            return
        samples, scores = [], rewards_of(trial, seen_by_reward(trial))
        for reading, rewards in zip(trial.readings, scores, strict=True):
            if rewards is not None and len(rewards) == 2:
                samples.append(_sample(prober, reading, rewards, rows))
        if explained is None or len(samples) != 2:
            return  # weights of more noises, or other rows say what is wrong
        # the mean decides as the second picture would: not as the first one
        if samples[0].gap * samples[1].gap < 0 and abs(samples[0].gap) < abs(samples[1].gap):
            _judge_winners(report, samples, explained)
            return


def _judge_winners(report: Report, samples: list[weights.Sample], rows: Rows) -> None:
    """Each picture decides for itself, or the mean of their rewards for both."""
    mean = (samples[0].rewards + samples[1].rewards) / 2
    of_any_size = (rows[0], weights.ANY_PULL, *rows[2:])
    own, together = True, rows[1].name not in (weights.THE_PAIR.name, weights.NO_PULL_ROW.name)
    for sample in samples:
        own &= weights.size_by(sample, rows) is not None
        together &= weights.size_by(sample._replace(rewards=mean), of_any_size) is not None
    expected, cause = "as each picture alone", OTHERS
    came = expected if own else "other winners"
    if together and not own:
        came, cause = "one winner for all", ONE_WINNER
    status = own or ("note" if together or not report.ok else False)
    report.add(status, "batch of 2", came, expected, "" if own else cause)
