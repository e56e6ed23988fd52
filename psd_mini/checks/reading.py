"""Taking a gradient apart.

Every gradient of score distillation is a combination of a few known vectors: for one picture,

    G = sum_i ( c_i eps_cond(x_t^i) + u_i eps_uncond(x_t^i) + q_i eps_q(x_t^i) + n_i eps_i ) + other
    noises + b x

over the noised versions x_t^i that the submission asked about. The vectors are linearly independent
here (see `world`), so least squares finds the coefficients to machine precision, and they say what
the code computes, whether or not the mistake has ever been seen before. In the same way x_t = a x +
s eps says how the noise was added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from psd_mini.checks import world
from psd_mini.checks.grading.stand_ins import TextEncoder
from psd_mini.checks.trace import Call, Trace


@dataclass
class Group:
    """One noised version of one picture: x_t = a x + s eps at t, and what was predicted there,
    by embedding."""

    t: float
    x_t: Tensor
    eps_hat: dict[str, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    a: float = 0.0
    s: float = 0.0
    eps: Tensor | None = None


@dataclass
class Reading:
    """One picture of one run, taken apart. `coefficients[i]` belongs to `groups[i]`: cond, uncond,
    q, noise.

    other: coefficient of noises that are in no x_t; b: of x itself; leftover: relative size of what
    is none of all this."""

    g: float
    batch: int
    x: Tensor
    gradient: Tensor
    groups: list[Group]
    coefficients: list[dict[str, float]] = field(default_factory=list)
    other: float = 0.0
    b: float = 0.0
    leftover: float = 0.0

    @property
    def t(self) -> int:
        return round(self.groups[0].t) if self.groups else 0

    def total(self, label: str) -> float:
        """Coefficient of one kind of vector, summed over the noised versions."""
        return sum(c.get(label, 0.0) for c in self.coefficients)


def fit(target: Tensor, vectors: list[Tensor]) -> tuple[list[float], float]:
    """Least squares target = sum_j c_j vectors_j: the coefficients, and the relative size of
    what is left."""
    size = target.norm().item()
    if not vectors or size == 0:
        return [0.0] * len(vectors), 0.0 if size == 0 else 1.0
    basis = torch.stack([v.flatten() for v in vectors], 1)
    norms = basis.norm(dim=0).clamp(min=1e-30)
    c = torch.linalg.lstsq(basis / norms, target.flatten()[:, None], driver="gelsd").solution[:, 0]
    left = (basis / norms @ c - target.flatten()).norm().item() / size
    return (c / norms).tolist(), left


def cosine(u: Tensor, v: Tensor) -> float:
    return ((u * v).sum() / (u.norm() * v.norm()).clamp(min=1e-30)).item()


def read(
    g: float,
    x: Tensor,
    gradient: Tensor,
    trace: Trace,
    known: Mapping[str, Tensor],
    eps: list[Tensor],
) -> list[Reading]:
    """Take every picture of a run apart. x and gradient (B, ...), known: embeddings by label,
    eps: noises that were given."""
    if gradient.shape != x.shape or not gradient.isfinite().all():
        return []
    pictures = [Reading(g, len(x), x[i], gradient[i], []) for i in range(len(x))]
    drawn = [d.double() for d in trace.draws if d.numel() in (x.numel(), x[0].numel())]
    noises = [torch.broadcast_to(d.reshape(-1, *x.shape[1:]), x.shape) for d in drawn] + eps
    towards = torch.nn.functional.normalize(x.flatten(1), dim=1)
    labels = [_labels(call, known) for call in trace.calls]
    # a prompt that nobody gave came from a text encoder: the only prompt, or a negative one beside
    # the given
    unknown = "negative" if any("cond" in row for row in labels) else "cond"
    for call, names in zip(trace.calls, labels, strict=True):
        asked = call.x_t.detach().double()
        if asked.shape[1:] != x.shape[1:] or not asked.isfinite().all():
            continue
        for row, (t, name) in enumerate(zip(call.t.tolist(), names, strict=True)):
            picture = pictures[
                int((towards @ asked[row].flatten()).argmax())
            ]  # the one that x_t resembles most
            near = [
                torch.allclose(group.x_t, asked[row], rtol=1e-4, atol=1e-5)
                for group in picture.groups
            ]
            same = [
                group
                for group, close in zip(picture.groups, near, strict=True)
                if close and group.t == t
            ]
            group = same[0] if same else Group(t, asked[row])
            picture.groups += [] if same else [group]
            group.eps_hat[name or unknown] = call.eps_hat[row].detach().double()
            if call.embeddings is not None:
                group.embeddings[name or unknown] = call.embeddings[row].detach()
    for i, picture in enumerate(pictures):
        _take_apart(picture, [noise[i] for noise in noises])
    return pictures


def _labels(call: Call, known: Mapping[str, Tensor]) -> list[str]:
    """Which of the known embeddings each row was asked with; "" for one that nobody gave."""
    if call.model == "q" or call.embeddings is None:
        return ["q" if call.model == "q" else "cond"] * len(call.x_t)
    table = [(name, e[0].double()) for name, e in known.items()] + [
        ("uncond", TextEncoder.table[ord(" ")].double())
    ]
    labels = []
    for row in call.embeddings.detach().double():
        near = (name for name, e in table if torch.allclose(row, e.expand_as(row), atol=2e-3))
        labels.append(next(near, ""))
    return labels


def _take_apart(picture: Reading, noises: list[Tensor]) -> None:
    """Fill in a, s, eps of the groups, then the coefficients of the gradient."""
    ones = torch.ones_like(picture.x)
    for group in picture.groups:
        # x_t = a x + s eps (+ a constant, for noise that is not centred)
        (group.a, constant, *c), left = fit(group.x_t, [picture.x, ones, *noises])
        alpha_t, sigma_t = world.alpha_sigma(round(group.t))
        used = [j for j, value in enumerate(c) if abs(value) > 1e-3]
        if left < 5e-3 and len(used) == 1 and abs(constant) < 1e-3:
            group.s, group.eps = abs(c[used[0]]), noises[used[0]] * (1 if c[used[0]] > 0 else -1)
        elif (
            left >= 5e-3 or used
        ):  # a noise that was transformed, or drawn elsewhere: what x_t implies
            group.a, group.s = (group.a if left < 5e-3 else alpha_t), sigma_t
            group.eps = (group.x_t - group.a * picture.x) / sigma_t
    vectors, places = [picture.x], [(-1, "x")]
    seen: list[Tensor] = []
    for i, group in enumerate(picture.groups):
        terms = dict(group.eps_hat)
        # antithetic pairs share one noise: its second appearance adds nothing that the fit could
        # tell apart
        if group.eps is not None and not any(abs(cosine(v, group.eps)) > 0.99 for v in seen):
            terms["noise"] = group.eps
            seen.append(group.eps)
        vectors += terms.values()
        places += [(i, label) for label in terms]
    unused = [n for n in noises if not any(abs(cosine(n, v)) > 0.99 for v in seen)]
    c, picture.leftover = fit(picture.gradient, vectors + unused)
    picture.coefficients = [{} for _ in picture.groups]
    for (i, label), value in zip(places[1:], c[1:], strict=False):
        picture.coefficients[i][label] = value
    for group, parts in zip(picture.groups, picture.coefficients, strict=True):
        # a noise of another size, 0.1 eps, say: then it is subtracted at that size too, while a
        # wrong sigma_t is not
        ratio, total = (
            group.s / world.alpha_sigma(round(group.t))[1],
            parts.get("cond", 0.0) + parts.get("uncond", 0.0),
        )
        if (
            group.eps is not None
            and abs(ratio - 1) > 0.02
            and abs(parts.get("noise", 0.0) + ratio * total) < 1e-2 * abs(total)
        ):
            group.eps, group.s, parts["noise"] = (
                group.eps * ratio,
                group.s / ratio,
                parts["noise"] / ratio,
            )
    picture.b = c[0]
    picture.other = max(c[len(vectors) :], key=abs, default=0.0)
