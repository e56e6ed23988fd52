"""The rows of a report on SDS, CSD or VSD: what readings of a gradient (see `reading`) say about
it, in the order of a proof.

Is there a gradient; its direction and, apart from it, its size; guidance and its limits; the noise
that was added; the mean over draws and the noise around it; the graph; the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psd_mini.checks import diagnosis, world
from psd_mini.checks.probe import Run
from psd_mini.checks.reading import Reading, cosine
from psd_mini.checks.report import Report
from psd_mini.sds import cfg

JACOBIAN = (
    "the gradient flows through the UNet (its Jacobian): detach the prediction, or call it under"
    " no_grad"
)
ASCENT = "the sign is flipped: descent along it would climb (ascent)"
ADDED = "the {} is added instead of subtracted"
NOT_LINEAR = (
    "of it is no combination of noise predictions, noise and x: a part is not linear in them"
)


@dataclass(frozen=True)
class Kind:
    """What a method subtracts from the guided prediction ("noise", "q" or nothing), its
    equation, its methods' names."""

    name: str
    subtracts: str | None
    equation: str
    methods: tuple[str, ...]


def basics(report: Report, run: Run, equation: str) -> bool:
    """Is there a gradient to speak of? Adds the rows that end a check early; False where nothing
    more can be said."""
    calls, cause = run.trace.calls, ""
    came = f"a {run.style}, {len(calls)} call(s) of the UNet"
    if not bool(run.gradient.isfinite().all()):
        came, cause = (
            "NaN or infinity",
            "the gradient is NaN or infinite: division by zero, or a logarithm of it?",
        )
    elif not calls:
        cause = "the UNet was never called: the prior has no say in this gradient"
    elif bool((run.gradient == 0).all()):
        came, cause = (
            "exactly zero",
            (
                "the gradient is exactly zero: the target equals x, or equal predictions are"
                " subtracted"
            ),
        )
        if run.loss is not None and run.loss.abs().max() > 0:
            cause = (
                "the gradient is exactly zero: was the target detached? x cancels in x - (x - G)"
                " unless the target is"
            )
    report.add(
        not cause, "gradient", came, "finite, not zero, with calls of the UNet", cause, equation
    )
    return not cause


def reference(kind: Kind, reading: Reading, eps: Tensor | None = None) -> Tensor:
    """The exact gradient (w = 1) of one picture for the draws that were seen, or for another
    noise."""
    parts = [torch.zeros_like(reading.x)] if not reading.groups else []
    for group in reading.groups:
        noise = next((e for e in (eps, group.eps) if e is not None), torch.zeros_like(reading.x))
        t = torch.tensor([reading.t]).clamp(0, world.T - 1)
        x_t = world.SCHEDULE.add_noise(reading.x[None], noise, t)
        e = {k: group.embeddings.get(k, world.embedding(k, 1)[0])[None] for k in ("cond", "uncond")}
        cond, uncond = (world.predict(x_t, t, e[k])[0] for k in ("cond", "uncond"))
        subtracted = world.predict(x_t, t, None, q=True)[0] if kind.subtracts == "q" else noise
        parts.append(
            cond - uncond if kind.subtracts is None else cfg(cond, uncond, reading.g) - subtracted
        )
    return torch.stack(parts).mean(0)


@dataclass
class Scale:
    """One picture's gradient over its size k: (c, u) of the predictions, what is subtracted,
    what should not be there."""

    reading: Reading
    k: float
    c: float
    u: float
    n: float
    noise: float
    other: float
    from_x_t: bool
    added: bool


def scale(kind: Kind, reading: Reading, tolerance: float) -> Scale:
    """Find the size k of one gradient, by what it subtracts, or else by the sum of its
    predictions."""
    c, u = reading.total("cond"), reading.total("uncond") + reading.total("negative")
    noise, other, q = reading.total("noise"), reading.other, reading.total("q")
    largest = max(map(abs, (c, u, noise, other, q))) or 1.0
    # a target made of x_t puts x - x_t = (1 - a) x - s eps into the gradient: take it out again,
    # and say so
    from_x_t = False
    if reading.groups and abs(reading.b) > tolerance * largest:
        group = reading.groups[0]
        copies = reading.b / (1 - group.a) if abs(1 - group.a) > 1e-3 else 0.0
        if (
            abs(noise + copies * group.s + c + u) < 5 * tolerance * largest
            or kind.subtracts != "noise"
        ):
            noise, from_x_t = noise + copies * group.s, True
    n = {"noise": noise, "q": q, None: 0.0}[kind.subtracts]
    clear = (
        [value for value in (n, other, noise) if abs(value) > tolerance * largest]
        if kind.subtracts
        else []
    )
    total, added = c + u, False
    k = (
        -clear[0]
        if clear
        else c
        if kind.subtracts is None or abs(total) < tolerance * largest
        else total
    )
    if clear and abs(total + k) < 10 * tolerance * abs(k):
        k, added = total, True
    k = k or 1.0
    return Scale(reading, k, c / k, u / k, n / k, noise / k, other / k, from_x_t, added)


def scales_of(kind: Kind, runs: list[Run]) -> list[Scale]:
    return [scale(kind, reading, run.tolerance) for run in runs for reading in run.readings]


def judge(
    report: Report,
    kind: Kind,
    runs: list[Run],
    limits: list[Run],
    batched: list[Run],
    takes_g: bool,
    weighting: str | None,
) -> None:
    """Direction, size and guidance, apart. weighting: the name of w(t) if only that one is
    right."""
    tolerance = 5 * max(run.tolerance for run in runs)
    scales, together = scales_of(kind, runs), scales_of(kind, batched)
    if not takes_g and kind.subtracts:  # a scale of its own: whatever it is, if it is one
        for s in [*scales, *together]:
            s.reading.g = s.c if abs(s.c + s.u - 1) < tolerance else s.reading.g
    worst = min(cosine(s.reading.gradient, reference(kind, s.reading)) for s in scales)
    leftover = max(s.reading.leftover for s in scales)
    jacobian = any(run.through_unet() for run in runs)
    if leftover > 0.1 and not jacobian:  # coefficients mean nothing then
        cause = f"{leftover:.0%} {NOT_LINEAR}"
        report.add(False, "direction", f"cosine {worst:.4f}", "cosine 1", cause, kind.equation)
        return
    causes = [JACOBIAN] if jacobian else _direction_causes(kind, runs, scales, tolerance)
    row, cause_g = diagnosis.guidance([(s.reading.g, s.c, s.u) for s in scales], tolerance)
    if jacobian and leftover > tolerance:
        cause_g = ""
    elif kind.subtracts is None:
        cause_g = (
            "CSD is the difference cond - uncond alone"
            if any(abs(s.u + s.c) > tolerance for s in scales)
            else ""
        )
        row = row if cause_g else "cond - uncond"
    elif not takes_g and all(
        abs(s.c + s.u - 1) + abs(s.c - scales[0].c) < tolerance for s in scales
    ):
        row, cause_g = (
            f"a fixed g = {scales[0].c:.3g}",
            ("" if scales[0].c >= 1 - tolerance else cause_g),
        )
    shown = _terms(scales[0].reading)
    straight = worst > 1 - max(tolerance, 1e-3) / 5
    if not causes and not cause_g and leftover > tolerance:
        causes = [f"{leftover:.0%} {NOT_LINEAR}"]
    elif (
        not causes and not cause_g and not straight and not any(cause for _, cause in _levels(runs))
    ):
        causes = [f"the gradient is {shown} at g = {scales[0].reading.g:g}; see the rows below"]
    came = f"cosine {worst:.4f}: {shown}"
    report.add(
        straight and not causes, "direction", came, "cosine 1", "; ".join(causes), kind.equation
    )
    seen = [(s.reading.t, s.reading.batch, s.reading.g, abs(s.k)) for s in [*scales, *together]]
    ok, came, cause = diagnosis.size(seen, runs[0].style, tolerance, weighting)
    if kind.subtracts is None and cause == "multiplied by the guidance scale":  # CSD may be
        ok = True
    expected = f"w(t) = {diagnosis.WEIGHTINGS[weighting]}" if weighting else "any w(t) > 0"
    report.add(ok, "size", came, expected, cause, kind.equation)
    report.add(
        not cause_g,
        "guidance",
        row,
        "uncond + g (cond - uncond)" if kind.subtracts else "cond - uncond",
        cause_g,
    )
    for s, c in (
        zip(scales_of(kind, limits), (1.0, 0.0), strict=True) if takes_g and kind.subtracts else ()
    ):
        right = abs(s.c - c) + abs(s.u - 1 + c) < tolerance
        plain = (
            c == 0 and not right and abs(s.c - 1) < tolerance and not cause_g
        )  # g = 0 means no guidance there
        cause = "" if cause_g else f"at g = {c:g} guidance must reduce to one prediction"
        wanted = "cond" if c else "uncond"
        report.add(
            right or (plain and "note"),
            f"guidance at g = {c:g}",
            f"{s.c:.3g} cond {s.u:+.3g} uncond",
            wanted,
            cause,
        )


def _terms(r: Reading) -> str:
    """The gradient written out, "+7.5 eps_cond -6.5 eps_uncond -1 eps"."""
    terms = {
        "eps_cond": r.total("cond"),
        "eps_uncond": r.total("uncond"),
        "eps": r.total("noise"),
        "eps_q": r.total("q"),
    }
    terms |= {"another noise": r.other, "x": r.b}
    return " ".join(
        f"{v:+.3g} {name}"
        for name, v in terms.items()
        if abs(v) > 1e-3 * max(map(abs, terms.values()))
    )


def _direction_causes(
    kind: Kind, runs: list[Run], scales: list[Scale], tolerance: float
) -> list[str]:
    """What is wrong with the direction, apart from guidance: each in words."""
    noiseless = all(group.eps is None for s in scales for group in s.reading.groups)
    missing = kind.subtracts and all(abs(s.n) < tolerance for s in scales)
    noise = any(abs(s.noise) > tolerance for s in scales)
    causes = [ASCENT] if all(s.k < 0 for s in scales) else []
    if all(s.from_x_t for s in scales):
        causes.append(
            "the residual is taken at x_t instead of x: the target is made of x_t, so x - x_t"
            " enters the gradient"
        )
    elif any(abs(s.reading.b) > tolerance * abs(s.k) for s in scales):
        b = scales[0].reading.b
        causes.append(
            f"it contains the picture itself, {b:+.3g} x: x0_hat or the target is not what it"
            " should be"
        )
    if all(s.added for s in scales):
        causes.append(ADDED.format("noise" if kind.subtracts == "noise" else "second prediction"))
    if missing and kind.subtracts == "q" and noise:
        causes.append("the noise is subtracted instead of q's prediction: this is SDS, not VSD")
    elif missing and all(abs(s.other) > tolerance for s in scales) and not noiseless:
        causes.append("the noise was redrawn: the one that is subtracted is not the one in x_t")
    elif missing and kind.subtracts == "q":
        causes.append("q's prediction does not appear: is the pretrained network used for both?")
    elif missing and not noiseless and all(abs(s.c + s.u) < tolerance for s in scales):
        causes.append("no noise is subtracted and the predictions cancel: this is CSD, not SDS")
    elif missing and not noiseless:
        causes.append(
            "the noise is not subtracted: G is the noise prediction alone (same mean, other"
            " variance)"
        )
    elif noise and kind.subtracts == "q":
        causes.append("the noise appears beside q's prediction: VSD subtracts q's prediction only")
    elif noise and kind.subtracts is None:
        causes.append(
            "the noise is subtracted: this is SDS; CSD is the difference of two predictions of the"
            " same x_t"
        )
    asked = [[set(group.eps_hat) - {"q"} for group in s.reading.groups] for s in scales]
    if all(
        len(set().union(*labels)) > 1 and all(len(names) == 1 for names in labels)
        for labels in asked
    ):
        causes.append("the two predictions are not at the same x_t")
    if any(run.through_x_t() for run in runs):
        causes.append(
            "the gradient flows through x_t, which brings an extra alpha_t: let it enter at x only"
        )
    return causes


def _levels(runs: list[Run]) -> list[tuple[str, str]]:
    """How signal and noise were mixed: (formula, cause) of a and of s."""
    groups = [
        group
        for run in runs
        for r in run.readings
        for group in r.groups
        if group.t == round(group.t)
    ]
    slack = 1e-2 if any(run.tolerance > 0.01 for run in runs) else 2e-4
    tables = (
        (diagnosis.SIGNAL, [(round(g.t), g.a) for g in groups]),
        (diagnosis.NOISE, [(round(g.t), g.s) for g in groups]),
    )
    return (
        [diagnosis.level(table, values, slack) for table, values in tables]
        if groups
        else [("?", "")] * 2
    )


def judge_noise(report: Report, runs: list[Run]) -> None:
    """x_t = alpha_t x + sigma_t eps with eps ~ N(0, I), at the t that the UNet was told."""
    (a, cause_a), (s, cause_s) = _levels([run for run in runs if len(run.readings) == 1])
    causes = list(dict.fromkeys(cause for cause in (cause_a, cause_s) if cause))
    if not causes and any(
        cause for _, cause in _levels([run for run in runs if len(run.readings) > 1])
    ):
        causes = [
            "in a batch, pictures do not get the noise level of their own t: is it the same for"
            " all?"
        ]
    expected = f"{diagnosis.SIGNAL[0][0]} x + {diagnosis.NOISE[0][0]} eps"
    report.add(
        not causes,
        "x_t",
        f"{a} x + {s} eps",
        expected,
        "; ".join(causes),
        "x_t = alpha_t x + sigma_t eps",
    )
    noise = [
        group.eps.flatten()
        for run in runs
        for r in run.readings
        for group in r.groups
        if group.eps is not None
    ]
    if noise and not cause_s:
        e = torch.cat(noise)
        mean, std = e.mean().item(), e.std().item()
        kurtosis = (((e - mean) / std) ** 4).mean().item()
        slack = 8 / len(e) ** 0.5 + 2e-3
        normal = abs(mean) < slack and abs(std - 1) < slack and abs(kurtosis - 3) < 10 * slack
        cause = (
            "uniform instead of normal noise (rand for randn?)"
            if abs(kurtosis - 1.8) < 0.05
            else "it is not N(0, I)"
        )
        came = f"mean {mean:.2f}, std {std:.2f}, kurtosis {kurtosis:.2f}"
        report.add(normal, "noise", came, "0, 1, 3", cause, "eps ~ N(0, I)")
    asked = [t for run in runs for call in run.trace.calls for t in call.t.tolist()]
    whole = all(0 <= t <= world.T - 1 and t == round(t) for t in asked)
    cause = (
        f"the UNet takes integers 0..{world.T - 1}: was t divided by {world.T}, or drawn out of"
        " range?"
    )
    report.add(
        whole, "t", f"{min(asked):g}..{max(asked):g}", f"integers in 0..{world.T - 1}", cause
    )


def judge_mean(report: Report, kind: Kind, runs: list[Run]) -> None:
    """The mean over draws against its expectation, and the noise around it against the reference's.

    E[G] is the mean over eps and -eps, which for this nearly Gaussian world is exact to a few parts
    in a thousand. Mistakes that single draws show are named above, exactly; only where there are
    none has the mean more to say."""
    if not report.ok:
        return
    shifts, ratios = [], []
    for s in scales_of(kind, runs):
        eps = next((group.eps for group in s.reading.groups if group.eps is not None), None)
        if eps is None:
            return
        here, opposite = reference(kind, s.reading, eps), reference(kind, s.reading, -eps)
        expected = (here + opposite) / 2
        off = s.reading.gradient / abs(s.k) - expected
        shifts.append((off * expected).sum().item() / expected.square().sum().item())
        ratios.append(off.norm().item() / (here - expected).norm().clamp(min=1e-12).item())
    shift = torch.tensor(shifts)
    error = max((shift.std() / len(shift) ** 0.5).item(), 2e-3)
    fine, came = (
        abs(shift.mean().item()) < 5 * error,
        f"1 {shift.mean().item():+.3f}, standard error {error:.3f}",
    )
    cause = "on average it is not the expected gradient: a bias"
    report.add(
        fine or "note", "mean over draws", came, "1", cause, "E[G] = w(t) sigma_t/alpha_t grad KL"
    )
    ratio = torch.tensor(ratios).median().item()
    cause = "its variance is not that of the reference"
    report.add(
        abs(ratio - 1) < 0.1 or "note", "noise against reference", f"{ratio:.3g}", "1", cause
    )


def judge_graph(report: Report, runs: list[Run]) -> None:
    """Is the UNet's graph kept (memory, even where no gradient flows)? Are inputs changed?"""
    kept = any(call.eps_hat.requires_grad for run in runs for call in run.trace.calls)
    cause = (
        "the UNet is called with gradients on: right, but its graph costs memory and time; use"
        " torch.no_grad()"
    )
    report.add(
        "note" if kept else True,
        "graph of the UNet",
        "kept" if kept else "not kept",
        "not kept",
        cause,
    )
    judge_inputs(report, {name for run in runs for name in run.changed})


def judge_inputs(report: Report, changed: set[str]) -> None:
    """Are inputs left as they were?"""
    came = ", ".join(sorted(changed)) or "unchanged"
    report.add(not changed, "inputs", came, "unchanged", "it modifies its inputs in place")


def judge_batch(report: Report, kind: Kind, batched: list[Run], failure: str) -> None:
    """Three pictures at once, each with its own t, against one."""
    cause = "it works for one picture only: reshape w(t) to (B, 1, 1, 1)"
    if failure:
        report.add("note", "batch of 3", failure, "as for one picture", cause)
        return
    worst = min(
        abs(cosine(reading.gradient, reference(kind, reading))) for reading in batched[0].readings
    )
    fine, sound = worst > 1 - 5 * batched[0].tolerance, all(f.ok for f in report.findings)
    cause = (
        "pictures influence each other, share a t or a weight that is not theirs, or their"
        " embeddings are interleaved"
    )
    cause = f"{cause} (repeat for repeat_interleave?)" if sound else ""
    report.add(
        fine or (not sound and "note"),
        "batch of 3",
        f"cosine {worst:.4f}",
        "cosine 1 for each picture",
        cause,
    )
