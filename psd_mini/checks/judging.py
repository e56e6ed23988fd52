"""The rows of a report on SDS, CSD or VSD: what readings of a gradient (see `probe`) say about it, in the order of a proof.

Is there a gradient; its direction and, apart from it, its size; guidance and its limits; the noise that was added; the mean
over draws and the noise around it; the graph; the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psd_mini.checks import diagnosis, world
from psd_mini.checks.probe import Reading, Run
from psd_mini.checks.report import Report
from psd_mini.formulas import cfg


@dataclass(frozen=True)
class Kind:
    """What a method subtracts from the guided prediction ("noise", "q" or nothing), its equation, its methods' names."""

    name: str
    subtracts: str | None
    equation: str
    methods: tuple[str, ...]


def basics(report: Report, run: Run, equation: str) -> bool:
    """Is there a gradient to speak of? Adds the rows that end a check early; False where nothing more can be said."""
    gradient, calls = run.gradient, run.trace.calls
    if not bool(gradient.isfinite().all()):
        report.add(
            False,
            "gradient",
            "NaN or infinity",
            "finite numbers",
            "the gradient is NaN or infinite: division by zero, or a logarithm of it?",
            equation,
        )
    elif bool((gradient == 0).all()) and calls:
        cause = "the gradient is exactly zero"
        if run.loss is not None and run.loss.abs().max() > 0:
            cause += ": was the target detached? In x - (x - G) the x cancels unless the target is detached"
        elif run.style == "loss":
            cause += " and so is the loss: the target equals x, or both networks are the same"
        else:
            cause += ": the two predictions that are subtracted are the same"
        report.add(False, "gradient", "exactly zero", "not zero", cause, equation)
    elif not calls:
        cause = "the UNet was never called: the prior has no say in this gradient"
        report.add(False, "gradient", f"a {run.style}, no call of the UNet", "a call of the UNet", cause, equation)
    else:
        report.add(True, "gradient", f"a {run.style}, {len(calls)} call(s) of the UNet", "a gradient or a loss")
        return True
    return False


def reference(kind: Kind, reading: Reading, eps: Tensor | None = None) -> Tensor:
    """The exact gradient (w = 1) of one picture for the draws that were seen, or for another noise."""
    parts = []
    for group in reading.groups:
        noise = group.eps if eps is None else eps
        if noise is not None:
            t = torch.tensor([reading.t]).clamp(0, world.T - 1)
            x_t = world.SCHEDULE.add_noise(reading.x[None], noise, t)
            e = {k: group.embeddings.get(k, world.embedding(k, 1)[0])[None] for k in ("cond", "uncond")}
            cond, uncond = (world.predict(x_t, t, e[k])[0] for k in ("cond", "uncond"))
            subtracted = world.predict(x_t, t, None, q=True)[0] if kind.subtracts == "q" else noise
            parts.append(cond - uncond if kind.subtracts is None else cfg(cond, uncond, reading.g) - subtracted)
    return torch.stack(parts).mean(0) if parts else torch.zeros_like(reading.x)


@dataclass
class Scale:
    """One picture's gradient over its size k: (c, u) of the predictions, what is subtracted, what should not be there."""

    k: float
    c: float
    u: float
    n: float
    noise: float
    other: float
    from_x_t: bool
    added: bool


def scale(kind: Kind, reading: Reading, tolerance: float) -> Scale:
    """Find the size k of one gradient, by what it subtracts, or else by the sum of its predictions."""
    c, u = reading.total("cond"), reading.total("uncond") + reading.total("negative") + reading.total("other")
    noise, other, q = reading.total("noise"), reading.other, reading.total("q")
    largest = max(map(abs, (c, u, noise, other, q))) or 1.0
    # a target made of x_t puts x - x_t = (1 - a) x - s eps into the gradient: take it out again, and say so
    from_x_t = False
    if reading.groups and abs(reading.b) > tolerance * largest:
        group = reading.groups[0]
        copies = reading.b / (1 - group.a) if abs(1 - group.a) > 1e-3 else 0.0
        if abs(noise + copies * group.s + c + u) < 5 * tolerance * largest or kind.subtracts != "noise":
            noise, from_x_t = noise + copies * group.s, True
    n = {"noise": noise, "q": q, None: 0.0}[kind.subtracts]
    clear = [value for value in (n, other, noise) if abs(value) > tolerance * largest] if kind.subtracts else []
    total, added = c + u, False
    k = -clear[0] if clear else c if kind.subtracts is None or abs(total) < tolerance * largest else total
    if clear and abs(total + k) < 10 * tolerance * abs(k):
        k, added = total, True
    k = k or 1.0
    return Scale(k, c / k, u / k, n / k, noise / k, other / k, from_x_t, added)


def judge(
    report: Report, kind: Kind, runs: list[Run], limits: list[Run], batched: list[Run], weighting: str | None, takes_g: bool
) -> None:
    """Direction, size and guidance, apart."""
    tolerance = 5 * max(run.tolerance for run in runs)
    readings = [reading for run in runs for reading in run.readings]
    scales = [scale(kind, reading, run.tolerance) for run in runs for reading in run.readings]
    if not takes_g and kind.subtracts:  # a scale of its own: whatever it is, if it is one
        for r in [r for run in [*runs, *batched] for r in run.readings]:
            s = scale(kind, r, 2e-3)
            r.g = s.c if abs(s.c + s.u - 1) < tolerance else r.g
    exact = [reference(kind, reading) for reading in readings]
    pairs = zip(readings, exact, strict=True)
    cosines = [((r.gradient * e).sum() / (r.gradient.norm() * e.norm()).clamp(min=1e-30)).item() for r, e in pairs]
    worst = min(cosines)
    leftover = max(r.leftover for r in readings)
    jacobian = any(run.through_unet() for run in runs)
    if leftover > 0.1 and not jacobian:  # coefficients mean nothing then
        causes = [f"{leftover:.0%} of it is no combination of noise predictions, noise and x: a part is not linear in them"]
        report.add(False, "direction", f"cosine {worst:.4f}", "cosine 1", causes[0], kind.equation)
        return
    causes = _direction_causes(kind, runs, readings, scales, tolerance)
    row, cause_g = diagnosis.guidance([(r.g, s.c, s.u) for r, s in zip(readings, scales, strict=True)], tolerance)
    constant = [(s.c, s.u) for s in scales]
    cause_g = "" if jacobian and leftover > tolerance else cause_g
    if kind.subtracts is None:
        csd = all(abs(s.u + s.c) < tolerance for s in scales)
        row, cause_g = ("cond - uncond", "") if csd else (row, "CSD is the difference cond - uncond alone")
    elif not takes_g and all(abs(c + u - 1) < tolerance and abs(c - constant[0][0]) < tolerance for c, u in constant):
        row, cause_g = f"a fixed g = {constant[0][0]:.3g}", "" if constant[0][0] >= 1 - tolerance else cause_g
    first = readings[0]
    terms = {"eps_cond": first.total("cond"), "eps_uncond": first.total("uncond"), "eps": first.total("noise")}
    terms |= {"eps_q": first.total("q"), "another noise": first.other, "x": first.b}
    shown = " ".join(f"{v:+.3g} {name}" for name, v in terms.items() if abs(v) > 1e-3 * max(map(abs, terms.values())))
    straight = worst > 1 - max(tolerance, 1e-3) / 5
    if not causes and not cause_g and leftover > tolerance:
        causes = [
            f"{leftover:.0%} of it is no combination of noise predictions, noise and x: a part of it is not linear in them"
        ]
    elif not causes and not cause_g and not straight:
        causes = [f"the gradient is {shown} at g = {first.g:g}; see the rows below"] if not _noise_wrong(runs) else []
    report.add(
        straight and not causes, "direction", f"cosine {worst:.4f}: {shown}", "cosine 1", "; ".join(causes), kind.equation
    )
    seen = [
        (r.t, r.batch, r.g, s.k) for run in [*runs, *batched] for r in run.readings for s in [scale(kind, r, run.tolerance)]
    ]
    if kind.subtracts is None and all(s[3] for s in seen):
        by_g = [(t, b, g, k / g) for t, b, g, k in seen]
        seen = by_g if diagnosis.size(by_g, runs[0].style, weighting, tolerance)[0] is True else seen
    ok, came, cause = diagnosis.size([(t, b, g, abs(k)) for t, b, g, k in seen], runs[0].style, weighting, tolerance)
    report.add(ok, "size", came, "w(t)" if weighting is None else weighting, cause, kind.equation)
    report.add(not cause_g, "guidance", row, "uncond + g (cond - uncond)" if kind.subtracts else "cond - uncond", cause_g)
    if takes_g and kind.subtracts:
        for run, expected in zip(limits, ((1.0, 0.0), (0.0, 1.0)), strict=True):
            s = scale(kind, run.readings[0], run.tolerance)
            came, right = f"{s.c:.3g} cond {s.u:+.3g} uncond", abs(s.c - expected[0]) + abs(s.u - expected[1]) < tolerance
            wanted = f"{expected[0]:g} cond {expected[1]:+g} uncond"
            shorter = run.g == 0 and not right and abs(s.c - 1) < tolerance and not cause_g
            cause = "" if cause_g else f"at g = {run.g:g} guidance must reduce to one prediction"
            report.add("note" if shorter else right, f"guidance at g = {run.g:g}", came, wanted, cause)


def _direction_causes(kind: Kind, runs: list[Run], readings: list[Reading], scales: list[Scale], tolerance: float) -> list[str]:
    """What is wrong with the direction, apart from guidance: each in words."""
    if any(run.through_unet() for run in runs):  # the coefficients mean nothing then
        return ["the gradient flows through the UNet (its Jacobian): detach the prediction, or call it under no_grad"]
    causes = []
    noiseless = all(group.eps is None for r in readings for group in r.groups)
    if all(s.k < 0 for s in scales):
        causes.append("the sign is flipped: descent along it would climb (ascent)")
    if all(s.from_x_t for s in scales):
        causes.append("the residual is taken at x_t instead of x: the target is made of x_t, so x - x_t enters the gradient")
    elif any(abs(r.b) > tolerance * abs(s.k) for r, s in zip(readings, scales, strict=True)):
        causes.append(f"it contains the picture itself, {readings[0].b:+.3g} x: x0_hat or the target is not what it should be")
    if all(s.added for s in scales):
        causes.append(f"the {'noise' if kind.subtracts == 'noise' else 'second prediction'} is added instead of subtracted")
    missing = kind.subtracts and all(abs(s.n) < tolerance for s in scales)
    if missing and all(abs(s.other) > tolerance for s in scales) and not noiseless:
        causes.append("the noise was redrawn: the one that is subtracted is not the one in x_t")
    elif missing and kind.subtracts == "q":
        if all(abs(s.noise) > tolerance for s in scales):
            causes.append("the noise is subtracted instead of q's prediction: this is SDS, not VSD")
        else:
            causes.append("q's prediction does not appear: is the pretrained network used for both?")
    elif missing and not noiseless:
        if all(abs(s.c + s.u) < tolerance for s in scales):
            causes.append("no noise is subtracted and the predictions cancel: this is CSD, not SDS")
        else:
            causes.append("the noise is not subtracted: G is the noise prediction alone (same mean, other variance)")
    elif kind.subtracts == "q" and any(abs(s.noise) > tolerance for s in scales):
        causes.append("the noise appears beside q's prediction: VSD subtracts q's prediction only")
    elif kind.subtracts is None and any(abs(s.noise) > tolerance for s in scales):
        causes.append("the noise is subtracted: this is SDS; CSD is the difference of two predictions of the same x_t")
    if any(run.through_x_t() for run in runs):
        causes.append("the gradient flows through x_t, which brings an extra alpha_t: let it enter at x only")
    return causes


def _levels(runs: list[Run]) -> tuple[tuple[str, str], tuple[str, str]]:
    """How signal and noise were mixed: (formula, cause) of a and of s."""
    groups = [group for run in runs for r in run.readings for group in r.groups if abs(group.t - round(group.t)) < 1e-6]
    half = any(run.tolerance > 0.01 for run in runs)
    tolerances = (1e-2, 1e-2) if half else (1e-4, 3e-4)
    if not groups:
        return ("", ""), ("", "")
    a = diagnosis.level(diagnosis.SIGNAL, ((round(g.t), g.a) for g in groups), tolerances[0])
    return a, diagnosis.level(diagnosis.NOISE, ((round(g.t), g.s) for g in groups), tolerances[1])


def _noise_wrong(runs: list[Run]) -> bool:
    return any(cause for _, cause in _levels(runs))


def judge_noise(report: Report, runs: list[Run]) -> None:
    """x_t = alpha_t x + sigma_t eps with eps ~ N(0, I), at the t that the UNet was told."""
    (a, cause_a), (s, cause_s) = _levels([run for run in runs if len(run.readings) == 1])
    causes = list(dict.fromkeys(cause for cause in (cause_a, cause_s) if cause))
    batched = [run for run in runs if len(run.readings) > 1]
    if not causes and _noise_wrong(batched):
        causes = ["in a batch, pictures do not get the noise level of their own t: is it the same for all?"]
    expected = f"{diagnosis.SIGNAL[0][0]} x + {diagnosis.NOISE[0][0]} eps"
    report.add(not causes, "x_t", f"{a} x + {s} eps", expected, "; ".join(causes), "x_t = alpha_t x + sigma_t eps")
    noise = [group.eps.flatten() for run in runs for r in run.readings for group in r.groups if group.eps is not None]
    if noise and not cause_s:
        e = torch.cat(noise)
        mean, std = e.mean().item(), e.std().item()
        kurtosis = (((e - mean) / std) ** 4).mean().item()
        slack = 8 / len(e) ** 0.5 + 2e-3
        normal = abs(mean) < slack and abs(std - 1) < slack and abs(kurtosis - 3) < 10 * slack
        uniform = "uniform instead of normal noise (rand for randn?)" if abs(kurtosis - 1.8) < 0.05 else "it is not N(0, I)"
        report.add(
            normal, "noise", f"mean {mean:.2f}, std {std:.2f}, kurtosis {kurtosis:.2f}", "0, 1, 3", uniform, "eps ~ N(0, I)"
        )
    asked = [t for run in runs for call in run.trace.calls for t in call.t.tolist()]
    whole = all(0 <= t <= world.T - 1 and t == round(t) for t in asked)
    cause = f"the UNet takes integers 0..{world.T - 1}: was t divided by {world.T}, or drawn out of range?"
    report.add(whole, "t", f"{min(asked):g}..{max(asked):g}", f"integers in 0..{world.T - 1}", cause)


def judge_mean(report: Report, kind: Kind, runs: list[Run]) -> None:
    """The mean over draws against its expectation, and the noise around it against the reference's.

    E[G] is the mean over eps and -eps, which for this nearly Gaussian world is exact to a few parts in a thousand.
    """
    shifts, ratios = [], []
    for run in runs:
        reading = run.readings[0]
        eps = next((group.eps for group in reading.groups if group.eps is not None), None)
        if eps is None or abs(scale(kind, reading, run.tolerance).k) == 1.0 and reading.leftover > 0.5:
            continue
        eps = eps if abs(eps.std() - 1) < 0.05 else torch.randn(eps.shape, dtype=eps.dtype)
        expected = (reference(kind, reading, eps) + reference(kind, reading, -eps)) / 2
        scaled = reading.gradient / abs(scale(kind, reading, run.tolerance).k)
        shifts.append((((scaled - expected) * expected).sum() / expected.square().sum()).item())
        noise = (reference(kind, reading, eps) - expected).norm()
        ratios.append(((scaled - expected).norm() / noise.clamp(min=1e-12)).item())
    if len(shifts) < 3:
        return
    s = torch.tensor(shifts)
    error = max((s.std() / len(s) ** 0.5).item(), 2e-3)
    right = all(f.ok for f in report.findings)
    fine = abs(s.mean().item()) < 5 * error
    cause = "" if not right else "on average it is not the expected gradient: a bias"
    came = f"1 {s.mean().item():+.3f}, standard error {error:.3f}"
    report.add(fine or (right and "note"), "mean over draws", came, "1", cause, "E[G] = w(t) sigma_t/alpha_t grad KL")
    ratio = torch.tensor(ratios).median().item()
    same = abs(ratio - 1) < 0.1
    report.add(same or "note", "noise against reference", f"{ratio:.3g}", "1", "its variance is not that of the reference")


def judge_graph(report: Report, runs: list[Run]) -> None:
    """Is the UNet's graph kept? It costs memory even where no gradient flows."""
    kept = any(call.eps_hat.requires_grad for run in runs for call in run.trace.calls)
    cause = "the UNet is called with gradients on: right, but its graph costs memory and time; use torch.no_grad()"
    report.add("note" if kept else True, "graph of the UNet", "kept" if kept else "not kept", "not kept", cause)


def judge_batch(report: Report, kind: Kind, batched: list[Run], failure: str) -> None:
    """Three pictures at once, each with its own t, against one."""
    if failure:
        report.add(
            "note", "batch of 3", failure, "as for one picture", "it works for one picture only: reshape w(t) to (B, 1, 1, 1)"
        )
        return
    run = batched[0]
    values = []
    for reading in run.readings:
        exact = reference(kind, reading)
        values.append(abs((reading.gradient * exact).sum() / (reading.gradient.norm() * exact.norm()).clamp(min=1e-30)).item())
    sound = all(f.ok for f in report.findings)
    fine = min(values) > 1 - 5 * run.tolerance
    cause = "pictures influence each other, or share a t or a weight that is not theirs" if sound else ""
    report.add(fine if sound else fine or "note", "batch of 3", f"cosine {min(values):.4f}", "cosine 1 for each picture", cause)
