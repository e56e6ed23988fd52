"""Gradients that are no combination of predictions, noise and x: the table of what bends them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from psd_mini.checks.directions import Method, reference
from psd_mini.checks.reading import Reading, cosine
from psd_mini.checks.tables import formulas

CLAMPED = "the gradient is clamped elementwise at {:.3g}: large elements lose their direction"
NOT_LINEAR = (
    "of it is no combination of predictions, noise and x: not linear in them (was it rescaled?)"
)
BY_TANH = "the gradient goes through a tanh: large elements lose their direction"
CUT_OFF = "the elements of the gradient {} 0 are cut off (clamp, relu)"
UNBOUND = "is clamped to -1..1: noise predictions are numbers of any size"
OF_NOISES = f"each prediction {UNBOUND}"
FORMULAS = {  # of the gradient G that is right, c, u and guided predictions, noise and pictures
    "sign(G)": "only the sign of each element of the gradient is left",
    "tanh(G)": BY_TANH,
    "tanh(sigma^2 G)": BY_TANH,
    "relu(G)": CUT_OFF.format("below"),
    "-relu(-G)": CUT_OFF.format("above"),
    "abs(G)": "the absolute value of the gradient is taken: its signs are lost",
    "G^2": "the gradient is squared: its signs are lost",
    "G - G.mean()": "the mean over the picture is subtracted from the gradient",
    "G abs(G)": "each element of the gradient is multiplied by its size",
    "normalize(G, dim=0)": "the gradient is normalised at every pixel: only whole pictures may be",
    "limit(guided) - eps": f"the guided prediction {UNBOUND}",
    "limit(u) + g (limit(c) - limit(u)) - eps": OF_NOISES,
    "limit(c) - limit(u)": OF_NOISES,
    "x - limit((noisy - sigma guided) / alpha)": "x0_hat is clamped to -1..1: it is no picture",
}
FUNCTIONS = {"sign": torch.sign, "tanh": torch.tanh, "relu": F.relu, "abs": torch.abs}
FUNCTIONS |= {"normalize": F.normalize, "limit": lambda values: values.clamp(-1, 1)}
ROWS = formulas("G, c, u, guided, eps, x, noisy, alpha, sigma, g", FORMULAS, FUNCTIONS)


def why_not_linear(method: Method, readings: Sequence[Reading], limit: float, style: str) -> str:
    """What bends these gradients, or how much of them nothing explains; limit: see `clamped_at`."""
    for row in ROWS:
        if all(cosine(row.value(*_parts(method, r)), r.gradient) > 0.999 for r in readings):
            return row.cause
    leftover = max(reading.leftover for reading in readings)
    if leftover > 0.9 and style == "loss":
        return "nothing of the gradient is left but rounding: was the target detached?"
    if limit:
        return CLAMPED.format(limit)
    return f"{leftover:.0%} {NOT_LINEAR}"


def _parts(method: Method, reading: Reading) -> list[Tensor | float]:
    """What the formulas are made of."""
    exact = reference(method, reading, [1.0] * len(reading.groups))
    group, g = reading.groups[0], reading.g
    c, u = group.vector("cond"), group.vector("uncond")
    parts = [exact, c, u, u + g * (c - u), group.vector("eps"), reading.x, group.x_t]
    return [*parts, group.a or 1e-30, group.s, g]


def clamped_at(gradient: Tensor) -> float:
    """The largest size of an element if several have it, and not all; otherwise 0."""
    sizes = gradient.abs()
    at_limit = int((sizes > sizes.max() * (1 - 1e-5)).sum())
    return sizes.max().item() if 4 <= at_limit < sizes.numel() else 0.0
