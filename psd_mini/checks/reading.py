"""Taking a gradient apart into the known vectors that it is made of.

Every gradient of score distillation is a combination of a few vectors: for one picture,

    G = sum_i ( c_i eps_cond(x_t^i) + u_i eps_uncond(x_t^i) + q_i eps_q(x_t^i) )
        + sum_j n_j eps_j + other noises + b x

over the noised versions x_t^i that the submission asked about. The vectors are linearly independent
here (see `exact_world`), so least squares finds the coefficients to machine precision. They say
what the code computes, whether or not the mistake has ever been seen before. In the same way
x_t = a x + s eps says how the noise was added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, allclose
from torch.nn.functional import normalize

from psd_mini.checks.exact_world import T, alpha_sigma, embedding, exact_eps, sigma_at
from psd_mini.checks.grading.stand_ins import TextEncoder
from psd_mini.checks.trace import Call, Trace

Embeddings = Mapping[str, Tensor]  # by label
Terms = dict[tuple[str, int], float]  # coefficients by (label, number of its x_t or noise)
PREDICTIONS = ("cond", "uncond", "negative", "eps_q")  # labels; others: eps, another_noise, x


@dataclass
class Group:
    """One noised version of one picture: x_t = a x + s eps at t, and what was predicted there.

    x_t, eps and each eps_hat are (C, h, w), in float64. eps_hat: by label. eps: the noise in it,
    None if there is none. eps = ratio times the picture's distinct noise number `noise`: the two
    noises of an opposite pair are one, with the ratios 1 and -1.
    """

    t: float
    x_t: Tensor
    eps_hat: dict[str, Tensor] = field(default_factory=dict)
    a: float = 0.0
    s: float = 1e-9  # never 0, so that rows may divide by it
    eps: Tensor | None = None
    noise: int = 0
    ratio: float = 1.0

    def vector(self, label: str) -> Tensor:
        """The noise, or a prediction: of this world, where nobody asked for it."""
        if label == "eps":
            return torch.zeros_like(self.x_t) if self.eps is None else self.eps
        if label in self.eps_hat:
            return self.eps_hat[label]
        t, q = torch.tensor([round(self.t)]).clamp(0, T - 1), label == "eps_q"
        return exact_eps(self.x_t[None], t, None if q else embedding(label, 1), q)[0]


@dataclass
class Reading:
    """One picture of one run, taken apart.

    terms: coefficients of the gradient. ("eps", j) are noises that are in an x_t,
    ("another_noise", 0) the largest of those in none, ("x", 0) is the picture itself. leftover:
    relative size of what is none of all this. noises: all that were drawn or given.
    """

    g: float
    batch: int
    x: Tensor
    gradient: Tensor
    groups: list[Group]
    terms: Terms = field(default_factory=dict)
    leftover: float = 0.0
    noises: list[Tensor] = field(default_factory=list)

    @property
    def t(self) -> int:
        return round(self.groups[0].t) if self.groups else 0

    def total(self, label: str) -> float:
        """Coefficient of one kind of vector, summed over the noised versions."""
        return sum(value for (name, _), value in self.terms.items() if name == label)

    def group_at(self, t: float, x_t: Tensor) -> Group:
        """The group with this t and x_t; a new one if there is none."""
        for group in self.groups:
            if group.t == t and allclose(group.x_t, x_t, rtol=1e-4, atol=1e-5):
                return group
        self.groups.append(Group(t, x_t))
        return self.groups[-1]


def fit(target: Tensor, vectors: list[Tensor]) -> tuple[list[float], float]:
    """Least squares target = sum_j c_j vectors_j: the coefficients, and the relative rest."""
    length = target.norm().item()
    if not vectors or length == 0:
        return [0.0] * len(vectors), 0.0 if length == 0 else 1.0
    rows = torch.stack([v.flatten() for v in vectors])
    norms = rows.norm(dim=1).clamp(min=1e-30)
    basis = (rows / norms[:, None]).T  # in LAPACK's order of the numbers: no copy, half the time
    c = torch.linalg.lstsq(basis, target.flatten()[:, None], driver="gelsd").solution[:, 0]
    left = (basis @ c - target.flatten()).norm().item() / length
    return (c / norms).tolist(), left


def cosine(u: Tensor, v: Tensor) -> float:
    """Cosine of the angle between two tensors."""
    return ((u * v).sum() / (u.norm() * v.norm()).clamp(min=1e-30)).item()


def in_numbers(terms: Mapping[str, float], small: float = 1e-2) -> str:
    """Coefficients written out, "+1.1 x_t -0.5 cond"; `small`, relative, is left out."""
    smallest = small * max(map(abs, terms.values()))
    large = {name: value for name, value in terms.items() if abs(value) > smallest}
    return " ".join(f"{value:+.3g} {name}" for name, value in large.items())


def read(
    g: float, x: Tensor, gradient: Tensor, trace: Trace, known: Embeddings, eps: list[Tensor]
) -> list[Reading]:
    """Take every picture of a run apart.

    Args:
        g: guidance scale. x, gradient: (B, ...). trace: what was recorded.
        known: embeddings by label. eps: noises that were given.
    """
    if gradient.shape != x.shape or not gradient.isfinite().all():
        return []
    pictures = [Reading(g, len(x), x[i], gradient[i], []) for i in range(len(x))]
    labels = [_labels(call, known) for call in trace.calls]
    # a prompt that nobody gave came from a text encoder: the only prompt, or a negative one
    unknown = "negative" if any("cond" in row for row in labels) else "cond"
    for call, row in zip(trace.calls, labels, strict=True):
        _sort(call, _completed(call, row, unknown), pictures)
    drawn = [d.double() for d in trace.draws if d.numel() in (x.numel(), x[0].numel())]
    noises = [torch.broadcast_to(d.reshape(-1, *x.shape[1:]), x.shape) for d in drawn] + eps
    for i, picture in enumerate(pictures):
        picture.noises = [noise[i] for noise in noises]
        for group in picture.groups:
            split_x_t(group, picture.x, picture.noises)
        split_gradient(picture)
        for number in range(len(picture.groups)):
            _rescale(picture, number)
    return pictures


def _sort(call: Call, labels: list[str], pictures: list[Reading]) -> None:
    """Add the predictions of a call to the groups of the pictures that it asked about."""
    x = torch.stack([picture.x for picture in pictures])
    asked, towards = call.x_t.detach().double(), normalize(x.flatten(1), dim=1)
    if asked.shape[1:] != x.shape[1:] or not asked.isfinite().all():
        return
    for row, (t, label) in enumerate(zip(call.t.tolist(), labels, strict=True)):
        # the picture that x_t resembles most
        picture = pictures[int((towards @ asked[row].flatten()).argmax())]
        group = picture.group_at(t, asked[row])
        group.eps_hat[label] = call.eps_hat[row].detach().double()


def _labels(call: Call, known: Embeddings) -> list[str]:
    """Which of the known embeddings each row was asked with; "" for one that nobody gave."""
    if call.model == "q" or call.embeddings is None:
        return ["eps_q" if call.model == "q" else "cond"] * len(call.x_t)
    table = [(name, e[0].double()) for name, e in known.items()]
    table.append(("uncond", TextEncoder.table[ord(" ")].double()))
    labels = []
    for row in call.embeddings.detach().double():
        near = (name for name, e in table if allclose(row, e.expand_as(row), atol=2e-3))
        labels.append(next(near, ""))
    return labels


def _completed(call: Call, labels: list[str], unknown: str) -> list[str]:
    """Labels with those of prompts that nobody gave.

    If no known prompt was used and one call holds two, the first is the negative one, as in
    diffusers.
    """
    nobodys = [i for i, label in enumerate(labels) if not label]
    if nobodys and unknown == "cond" and call.embeddings is not None:
        first, last = call.embeddings[nobodys[0]], call.embeddings[nobodys[-1]]
        for i in nobodys:
            if torch.equal(call.embeddings[i], first) and not torch.equal(first, last):
                labels[i] = "uncond"
    return [label or unknown for label in labels]


def split_x_t(group: Group, x: Tensor, noises: list[Tensor]) -> None:
    """Fill in a, s, eps: x_t = a x + s eps (+ a constant, for noise that is not centred)."""
    (group.a, constant, *c), left = fit(group.x_t, [x, torch.ones_like(x), *noises])
    alpha_t, sigma_t = alpha_sigma(round(group.t))
    used = [j for j, value in enumerate(c) if abs(value) > 1e-3]
    if left < 5e-3 and len(used) == 1 and abs(constant) < 1e-3:
        value = c[used[0]]
        group.s, group.eps = abs(value), noises[used[0]] * (1 if value > 0 else -1)
    elif left >= 5e-3 or used:  # a noise that was transformed, or drawn elsewhere: what x_t implies
        group.a, group.s = (group.a if left < 5e-3 else alpha_t), sigma_t
        group.eps = (group.x_t - group.a * x) / sigma_t


def _number_among(v: Tensor, seen: list[Tensor]) -> int | None:
    """The number of the vector that v is a multiple of."""
    return next((j for j, other in enumerate(seen) if abs(cosine(v, other)) > 0.99), None)


def split_gradient(picture: Reading) -> None:
    """Fill in the coefficients of the gradient, and the number of the noise in every x_t."""
    vectors, keys = [picture.x], [("x", 0)]
    seen: list[Tensor] = []  # an opposite pair shares one noise
    for i, group in enumerate(picture.groups):
        vectors += group.eps_hat.values()
        keys += [(label, i) for label in group.eps_hat]
        if group.eps is None:
            continue
        number = _number_among(group.eps, seen)
        if number is None:
            number = len(seen)
            seen.append(group.eps)
        group.noise = number
        towards = (group.eps * seen[number]).sum() / seen[number].square().sum()
        group.ratio = towards.item()
    vectors += seen
    keys += [("eps", j) for j in range(len(seen))]
    unused = [n for n in picture.noises if _number_among(n, seen) is None]
    c, picture.leftover = fit(picture.gradient, vectors + unused)
    picture.terms = dict(zip(keys, c, strict=False))
    picture.terms["another_noise", 0] = max(c[len(vectors) :], key=abs, default=0.0)


def _rescale(picture: Reading, number: int) -> None:
    """If code scales its noise, in x_t and in what it subtracts, the scaled one is called eps.

    So 0.1 eps in both places is no mistake. A wrong sigma_t stands in x_t only, and stays as it is.
    """
    group = picture.groups[number]
    ratio, key = group.s / sigma_at(round(group.t)), ("eps", group.noise)
    total = sum(picture.terms.get((label, number), 0.0) for label in ("cond", "uncond"))
    matches = abs(picture.terms.get(key, 0.0) + ratio * total) < 1e-2 * abs(total)
    if group.eps is not None and abs(ratio - 1) > 0.02 and matches:
        group.eps, group.s = group.eps * ratio, group.s / ratio
        picture.terms[key] /= ratio
