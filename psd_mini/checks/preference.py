"""Checks of preference gradients: PSD, DreamDPO, RewardSDS.

All preference methods on noises are weights W_i of the residuals of N noised versions of one picture, decided by rewards:

    G = w(t) sum_i W_i(R_1..R_N) ( eps_cfg(x_t^i) - eps_i ),    R_i = r(decode(x0_hat_i))

    PSD         W = 1/2 +- lambda omega(R_1 - R_2), with lambda = preference_weight, or that times sigma_t
    DreamDPO    W = +1 for the winner, -1 for the loser            arXiv 2502.04370 (the formula, at a clear gap)
    RewardSDS   W = best, softmax or min-max of the rewards        arXiv 2503.09601

The stand-in reward remembers the pictures it was shown, so what was ranked is known and not inferred. The weights are then
read off the gradient and compared with rows of hypotheses, right and wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from psd_mini.checks import diagnosis, world
from psd_mini.checks.guard import guarded
from psd_mini.checks.judging import basics, judge_graph, judge_noise
from psd_mini.checks.probe import Prober, Reading, Run
from psd_mini.checks.report import Report
from psd_mini.checks.stand_ins import VAE
from psd_mini.checks.submission import prepare
from psd_mini.checks.trace import current, flows
from psd_mini.formulas import cfg, omega
from psd_mini.methods.rewardsds import reward_weights

FORMS = ("psd", "dreamdpo", "best", "softmax", "min-max")
LAMBDA = 0.7  # preference_weight in most runs
EQUATION = "G = w(t) { (h_1 + h_2)/2 + lambda omega(R_1 - R_2) (h_1 - h_2) }"
Weights = Callable[[Tensor, float, float], Tensor]  # rewards (N,), lambda, sigma_t -> W (N,)


@lru_cache
def _direction(shape: torch.Size) -> Tensor:
    return world.normal(*shape, seed=61)


def reward(images: Tensor, *_: Any, **__: Any) -> Tensor:
    """A linear reward of pictures of any shape, (B,); it remembers what it was shown."""
    direction = _direction(images.shape[1:]).to(images)
    scores = 3 * (images * direction).flatten(1).sum(1) / direction.norm()
    if images.requires_grad:
        images.retain_grad()
    current().rewarded.append((images, scores.detach()))
    return scores


def _pair(base: float, sign: float, kind: str, noisy: bool, shift: float = 0.0, odd: bool = True) -> Weights:
    """W = base +- sign (lambda or lambda sigma_t, plus shift) omega(gap), for the two of a pair."""

    def weights(r: Tensor, lam: float, sigma_t: float) -> Tensor:
        o = omega(r[0] - r[1], kind) if odd else omega(r[0] - r[1], kind).abs()
        term = sign * (lam * (sigma_t if noisy else 1.0) + shift) * o
        return torch.stack((base + term, base - term))

    return weights


def _rows(form: str) -> list[tuple[str, Weights, str]]:
    """Hypotheses (name, weights, cause) for one form; an empty cause is right."""
    swapped = "the worst noise gets the largest weight: wrong sign of the reward (softmax), or sorted the wrong way round"
    if form in ("best", "softmax", "min-max"):
        return [
            (form, lambda r, *_: reward_weights(r[:, None], form)[:, 0], ""),
            (f"{form} of -R", lambda r, *_: reward_weights(-r[:, None], form)[:, 0], swapped),
            ("exp(R)", lambda r, *_: r.exp(), "the weights are not normalised: exp(R) without its sum"),
            ("R", lambda r, *_: r, "the weights are not normalised: the rewards themselves"),
            ("1/N", lambda r, *_: torch.ones_like(r) / len(r), "the rewards have no influence: every noise weighs the same"),
        ]  # fmt: skip
    if form == "dreamdpo":
        hard = [
            ("+-1", _pair(0, 1, "hard", False, 1), ""),
            ("-+1", _pair(0, -1, "hard", False, 1), "winner and loser are swapped"),
        ]
        zero = [(name, lambda r, lam, s, w=w: w(r, 0.0, s), cause) for name, w, cause in hard]
        return [*zero, ("1/2, 1/2", lambda r, *_: torch.full_like(r, 0.5), "the rewards have no influence: this is SDS")]
    rows: list[tuple[str, Weights, str]] = []
    for kind, noisy in product(("hard", "gap", "bt", "gated"), (False, True)):
        name = f"lambda{' sigma_t' if noisy else ''} omega_{kind}"
        rows += [
            (f"1/2 +- {name}", _pair(0.5, 1, kind, noisy), ""),
            (
                f"1/2 -+ {name}",
                _pair(0.5, -1, kind, noisy),
                "winner and loser are swapped: the gradient moves to the worse one",
            ),
            (f"1/2 +- |{name}|", _pair(0.5, 1, kind, noisy, odd=False), "omega is not signed: the first noise always wins"),
            (f"+- {name}", _pair(0, 1, kind, noisy), "the base is missing: the pair alone does not pull to the prior"),
            (f"-+ {name}", _pair(0, -1, kind, noisy), "the base is missing, and winner and loser are swapped"),
            (f"1 +- {name}", _pair(1, 1, kind, noisy), "the base is the sum of both residuals: it should be their mean"),
            (f"1/2 +- {name}/2", _pair(0.5, 0.5, kind, noisy), "the preference term is half of what it should be"),
            (f"1/2 +- 2 {name}", _pair(0.5, 2, kind, noisy), "the preference term is twice what it should be"),
        ]
    for noisy in (False, True):  # base = winner is allowed: it equals the mean with lambda larger by 1/2
        rows.append(("winner +- lambda omega_hard", _pair(0.5, 1, "hard", noisy, 0.5), ""))
    rows.append(("loser base", _pair(0.5, 1, "hard", False, -0.5), "the base is the loser's residual"))
    rows.append(
        ("1/2, 1/2", lambda r, *_: torch.full_like(r, 0.5), "the preference term is missing: this is SDS with two noises")
    )
    return sorted(rows, key=lambda row: bool(row[2]))


@guarded("PSD")
def check_psd(fn: Any, *, form: str = "psd", names: Mapping[str, str] | None = None) -> Report:
    """Is this a preference gradient on pairs of noises, and if not, what is it?

    Args:
        fn: takes by name, as far as it wants, x, t, eps_1, eps_2 (or draws its own), predict_noise or unet, cond, uncond,
            reward (images -> (B,), higher is better), guidance_scale, preference_weight, tau; a function, class or object.
        form: "psd", "dreamdpo", or RewardSDS's "best", "softmax", "min-max".
        names: parameter -> key of `submission.NAMES`.

    Returns:
        A `Report`. The temperature tau, where asked for, is 1.
    """
    if form not in FORMS:
        raise ValueError(f"form: {form!r} is not known; choose from {', '.join(FORMS)}")
    report = Report(f"check of {form}")
    methods = ("psd_loss", "psd_gradient", "get_psd_loss", "get_sds_loss", "sds_loss", "loss", "gradient", "forward")
    prober = Prober(prepare(fn, methods, names), names, {"reward": reward, "tau": 1.0, "preference_weight": LAMBDA})
    plan = [(1, 7.5, 500, 0), (1, 3.0, 300, 1), (1, 7.5, 700, 2), (1, 3.0, 850, 3), (1, 7.5, 150, 4), (1, 7.5, 600, 5)]
    runs = [prober.run(plan[0][0], plan[0][1], (plan[0][2],), plan[0][3])]
    if not basics(report, runs[0], EQUATION):
        return report
    runs += [prober.run(batch, g, (t,), seed) for batch, g, t, seed in plan[1:]]
    _judge_pair(report, runs)
    scored = _judge_reward(report, runs)
    _judge_residuals(report, runs)
    _judge_weights(report, form, scored, runs)
    judge_noise(report, runs)
    judge_graph(report, runs)
    changed = sorted({name for run in runs for name in run.changed})
    report.add(not changed, "inputs", ", ".join(changed) or "unchanged", "unchanged", "it modifies its inputs in place")
    return report


def _judge_pair(report: Report, runs: list[Run]) -> None:
    """Several noises of one picture, at one t."""
    counts = {len(run.readings[0].groups) for run in runs}
    same_t = all(len({group.t for group in run.readings[0].groups}) == 1 for run in runs)
    cause = "both noises are the same: one x_t, so nothing to compare" if counts == {1} else ""
    if not same_t:
        cause = "the pair stands at different t: rewards and residuals of different noise levels do not compare"
    levels = "at one t" if same_t else "at different t"
    report.add(not cause, "pair", f"{'/'.join(map(str, sorted(counts)))} noised versions, {levels}", "at one t", cause)


def _judge_reward(report: Report, runs: list[Run]) -> list[tuple[Reading, Tensor]]:
    """What was the reward shown? Returns the readings with the reward of each of their groups."""
    scored, shown = [], set()
    for run in runs:
        reading = run.readings[0]
        scores: dict[int, float] = {}
        for images, values in run.trace.rewarded:
            for image, value in zip(images.detach().double(), values.tolist(), strict=True):
                candidates = []
                for i, group in enumerate(reading.groups):
                    alpha_t, sigma_t = world.alpha_sigma(round(group.t))
                    cond, uncond = group.eps_hat.get("cond"), group.eps_hat.get("uncond", group.eps_hat.get("cond"))
                    if cond is not None and uncond is not None:
                        for name, e in (("x0_hat", cfg(cond, uncond, run.g)), ("x0_hat without guidance", cond)):
                            candidates.append((name, i, (group.x_t - sigma_t * e) / alpha_t))
                    candidates.append(("the noisy x_t", i, group.x_t))
                candidates.append(("x itself", 0, reading.x))
                like = [_alike(image, c) for *_, c in candidates]
                name, i, _ = candidates[max(range(len(like)), key=like.__getitem__)]
                shown.add(name if max(like) > 0.98 else "something else")
                scores[i] = value
        if len(scores) == len(reading.groups):
            scored.append((reading, torch.tensor([scores[i] for i in range(len(reading.groups))]).double()))
    causes = {
        "the noisy x_t": "the reward is shown the noisy x_t, which no reward model has ever seen: denoise to x0_hat first",
        "x itself": "the reward is shown the render itself, which is the same for both noises: it must see x0_hat",
        "something else": "the reward is not shown x0_hat = (x_t - sigma_t eps_cfg)/alpha_t",
    }
    cause = "; ".join(causes[name] for name in sorted(shown) if name in causes) or (
        "" if shown else "the reward is never asked"
    )
    plain = shown == {"x0_hat without guidance"}
    if plain:
        cause = "the reward is shown x0_hat without guidance, while the gradient is guided"
    came = ", ".join(sorted(shown)) or "nothing"
    report.add("note" if plain else not cause, "reward sees", came, "x0_hat", cause, "R_i = r(decode(x0_hat_i))")
    leaks = any(flows(images) for run in runs for images, _ in run.trace.rewarded)
    cause = "the reward is differentiated: it should only be compared, under no_grad"
    report.add(not leaks, "reward is compared only", "differentiated" if leaks else "yes", "yes", cause)
    return scored


def _alike(image: Tensor, latents: Tensor) -> float:
    """Correlation of a picture that the reward was shown with latents, or with what the autoencoder makes of them."""
    if image.shape != latents.shape:
        image, latents = F.avg_pool2d(image, 8), torch.einsum("lc,lhw->chw", VAE.mix, latents)
    if image.shape != latents.shape:
        return 0.0
    return torch.corrcoef(torch.stack((image.flatten(), latents.flatten())))[0, 1].item()


def _judge_residuals(report: Report, runs: list[Run]) -> None:
    """Is every term a residual, eps_cfg - eps_i, with the same guidance?"""
    causes, leftover, shown = [], 0.0, set()
    raw, bare, added, scales = [], [], [], []
    for run in runs:
        reading = run.readings[0]
        leftover = max(leftover, reading.leftover)
        sums = [c.get("cond", 0.0) + c.get("uncond", 0.0) for c in reading.coefficients]
        noises = [c.get("noise") for c in reading.coefficients]
        largest = max(map(abs, sums), default=0.0) or 1.0
        if len(sums) > 1 and None not in noises:
            noise = [float(n or 0.0) for n in noises]
            bare.append(all(abs(n) < 1e-2 * largest for n in noise) and abs(reading.other) < 1e-2 * largest)
            added.append(all(abs(n + s) > 1e-2 * largest for n, s in zip(noise, sums, strict=True)))
            raw.append(max(noise) - min(noise) < 1e-2 * largest and not bare[-1] and added[-1])
        elif len(sums) > 1:  # an antithetic pair has one noise: it should carry minus the difference of the weights
            total = sum(n for n in noises if n is not None)
            raw.append(abs(total) < 1e-2 * largest and abs(sums[0] - sums[1]) > 1e-2 * largest)
        for c, s in zip(reading.coefficients, sums, strict=True):
            if abs(s) > 0.2 * largest:  # small ones are read too coarsely
                scales.append((run.g, c.get("cond", 0.0) / s, c.get("uncond", 0.0) / s))
                shown.add(round(c.get("cond", 0.0) / s, 2))
    if bare and all(bare):
        causes.append("no noise is subtracted: the terms must be eps_hat - eps_i")
    elif raw and all(raw):
        causes.append(
            "the noise is not subtracted in the preference term (raw form, eps_hat of winner minus loser): in an exact world "
            "it points away from the reward"
        )
    elif any(added):
        causes.append("the noise of one of the two is not subtracted as it should be: the terms must be eps_hat - eps_i")
    row, cause = diagnosis.guidance(scales, 1e-2) if scales else ("", "")
    if cause and any(abs(c - 1) < 1e-2 for _, c, _ in scales) and any(abs(c - g) < 1e-2 for g, c, _ in scales):
        cause = "guidance on one of the two only: winner and loser must be guided alike (the loser came without CFG?)"
        row = "guided for one, plain for the other"
    causes += [cause] if cause else []
    if leftover > 1e-2 and not causes:
        causes.append(f"{leftover:.0%} of the gradient is no combination of residuals")
    if any(run.through_unet() for run in runs):
        causes.append("the gradient flows through the UNet: call it under no_grad")
    came = f"{row or 'no'} guidance, {leftover:.0%} unexplained"
    report.add(
        not causes, "residuals", came, "uncond + g (cond - uncond) - eps_i", "; ".join(causes), "h_i = eps_cfg(x_t^i) - eps_i"
    )


def _judge_weights(report: Report, form: str, scored: list[tuple[Reading, Tensor]], runs: list[Run]) -> None:
    """Which weights W_i(R) stand before the residuals?"""
    samples = []
    for reading, r in scored:
        sums = torch.tensor([c.get("cond", 0.0) + c.get("uncond", 0.0) for c in reading.coefficients]).double()
        if len(sums) > 1:
            samples.append((reading.t, r, sums))
    if not samples:
        report.add(False, "weights", "cannot be read", "weights of residuals", "no pair with rewards: see the rows above")
        return
    matches = []
    for name, weights, cause in _rows(form):
        sizes = [_size(s, weights(r, LAMBDA, world.alpha_sigma(t)[1])) for t, r, s in samples]
        if all(sizes) and len({k > 0 for k in sizes}) == 1:
            seen = [(t, 1, 1.0, abs(k)) for (t, *_), k in zip(samples, sizes, strict=True)]
            ok, w, slip = diagnosis.size(seen, runs[0].style, None, 1e-2)
            flipped = "the sign is flipped: descent along it would climb (ascent)" if sizes[0] < 0 else ""
            wrong = [part for part in (cause, slip if ok is False else "", flipped) if part]
            matches.append((len(wrong) + 1.5 * (ok == "note"), ok, f"{name}; {w}", "; ".join(wrong)))
    if matches:  # the fewest mistakes that explain it
        _, ok, came, causes = min(matches, key=lambda match: match[0])
        report.add(False if causes else ok, "weights", came, f"{_rows(form)[0][0]} or its like", causes, EQUATION)
        return
    _, r, s = samples[0]
    came = f"{[round(v, 3) for v in s.tolist()]} for rewards {[round(v, 2) for v in r.tolist()]}"
    alone = all(abs(s.sum()) < 1e-2 * s.abs().max() for *_, s in samples)
    p = torch.stack([(s[0] - s[1]) * (r[0] - r[1]) / s.abs().sum().clamp(min=1e-12) for _, r, s in samples])
    cause = "the weights follow none of the known rules"
    if form == "psd" and alone:
        cause = "the base is missing: the pair alone does not pull to the prior"
    elif form == "psd" and bool((p < 0).all()):
        cause = "winner and loser are swapped: the residual of the better one weighs less"
    elif form == "psd" and bool((p > 0).all()):
        report.add(
            "note", "weights", came, _rows(form)[0][0], "signs are right; size or omega is not one of the known ones", EQUATION
        )
        return
    report.add(False, "weights", came, _rows(form)[0][0], cause, EQUATION)


def _size(seen: Tensor, expected: Tensor) -> float:
    """k in seen = k expected; 0 if it is no multiple."""
    k = ((seen * expected).sum() / expected.square().sum().clamp(min=1e-30)).item()
    return k if seen.shape == expected.shape and bool((seen - k * expected).norm() < 1e-2 * seen.norm()) else 0.0
