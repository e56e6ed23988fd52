"""The formulas that a gradient is compared with, and its coefficients in their terms.

The three gradients are rows over noise predictions, with any positive weight w(t):

    SDS   w(t) ( eps_uncond + g (eps_cond - eps_uncond) - eps )
    CSD   w(t) ( eps_cond - eps_uncond )
    VSD   w(t) ( eps_uncond + g (eps_cond - eps_uncond) - eps_q )

Sources: DreamFusion, arXiv 2209.14988, eq. 3; arXiv 2310.19415, eq. 9; ProlificDreamer, arXiv
2305.16213, eq. 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psd_mini.checks.exact_world import SCHEDULE, T, embedding, exact_eps
from psd_mini.checks.grading.submission import COURSE
from psd_mini.checks.probe import Trial
from psd_mini.checks.reading import Reading
from psd_mini.sds import cfg


@dataclass(frozen=True)
class Formula:
    """A method's gradient: what it subtracts ("noise", "q" or None), its equation, its methods."""

    name: str
    subtracts: str | None
    equation: str
    methods: tuple[str, ...]


DIFFERENCE = "G = w(t) (cond - uncond)"
GUIDED = "G = w(t) (uncond + g (cond - uncond) - {})"
SDS_FORMULA = Formula("SDS", "noise", GUIDED.format("eps"), COURSE)
CSD_FORMULA = Formula("CSD", None, DIFFERENCE, ("csd_loss", "get_csd_loss", *COURSE))
VSD_FORMULA = Formula("VSD", "q", GUIDED.format("eps_q"), ("vsd_loss", "get_vsd_loss", *COURSE))


def reference(formula: Formula, reading: Reading, eps: Tensor | None = None) -> Tensor:
    """The exact gradient (w = 1) of one picture for the draws that were seen, or another noise."""
    parts = [] if reading.groups else [torch.zeros_like(reading.x)]
    t = torch.tensor([reading.t]).clamp(0, T - 1)
    for group in reading.groups:
        noise = next((e for e in (eps, group.eps) if e is not None), torch.zeros_like(reading.x))
        x_t = SCHEDULE.add_noise(reading.x[None], noise, t)
        predicted = []
        for prompt in ("cond", "uncond"):
            e = group.embeddings.get(prompt, embedding(prompt, 1)[0])
            predicted.append(exact_eps(x_t, t, e[None])[0])
        cond, uncond = predicted
        if formula.subtracts is None:
            parts.append(cond - uncond)
        else:
            q = formula.subtracts == "q"
            subtracted = exact_eps(x_t, t, None, q=True)[0] if q else noise
            parts.append(cfg(cond, uncond, reading.g) - subtracted)
    return torch.stack(parts).mean(0)


@dataclass
class Scale:
    """One picture's gradient over its size k.

    c, u: coefficients of the predictions; n: of what the formula subtracts; noise: of the noise;
    other: of noises that are in no x_t; from_x_t: the residual was taken at x_t; added: what should
    be subtracted is added.
    """

    reading: Reading
    k: float
    c: float
    u: float
    n: float
    noise: float
    other: float
    from_x_t: bool
    added: bool


def scale(formula: Formula, reading: Reading, tolerance: float) -> Scale:
    """Find the size k of a gradient, by what it subtracts, or by the sum of its predictions."""
    c, u = reading.total("cond"), reading.total("uncond") + reading.total("negative")
    noise, other, q = reading.total("noise"), reading.other, reading.total("q")
    largest = max(map(abs, (c, u, noise, other, q))) or 1.0
    slack, total = tolerance * largest, c + u
    # a target made of x_t puts x - x_t = (1 - a) x - s eps into the gradient: take it out again
    from_x_t = False
    if reading.groups and abs(reading.b) > slack:
        group = reading.groups[0]
        copies = reading.b / (1 - group.a) if abs(1 - group.a) > 1e-3 else 0.0
        own = noise + copies * group.s
        if abs(own + c + u) < 5 * slack or formula.subtracts != "noise":
            noise, from_x_t = own, True
    n = {"noise": noise, "q": q, None: 0.0}[formula.subtracts]
    clear = [value for value in (n, other, noise) if abs(value) > slack]
    added = False
    if formula.subtracts and clear:
        k = -clear[0]
        if abs(total + k) < 10 * tolerance * abs(k):
            k, added = total, True
    else:
        k = c if formula.subtracts is None or abs(total) < slack else total
    k = k or 1.0
    return Scale(reading, k, c / k, u / k, n / k, noise / k, other / k, from_x_t, added)


def scales_of(formula: Formula, trials: list[Trial]) -> list[Scale]:
    """The scale of every picture of every trial."""
    return [scale(formula, r, trial.tolerance) for trial in trials for r in trial.readings]
