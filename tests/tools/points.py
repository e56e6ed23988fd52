"""SDS, VSD and its variants in a world of points, where the right answer is known.

    python tests/tools/points.py     a table of tests/results/relatives.md, and a picture

The prior is 0.3 N(-1.5, 0.05) + 0.7 N(1.2, 0.05) on the line. Particles start from N(0, 1) and take
400 steps of gradient descent with one t for all, falling from 0.98 to 0.2 of the schedule. W2 is
the root mean square distance between the particles, in order, and the prior's quantiles; "light" is
the share of particles on the light mode, whose weight is 0.3; "spread" the standard deviation
within the modes, the prior's being 0.224.
"""

from __future__ import annotations

from pathlib import Path

import torch

from psd_mini import SDS, Context, GaussianMixture, scaled_linear_schedule
from psd_mini.methods import VSD, Mixture

PICTURE = Path(__file__).parents[2] / "notebooks" / "images" / "relatives_points.png"
SCHEDULE = scaled_linear_schedule()
MEANS = torch.tensor([[-1.5], [1.2]], dtype=torch.float64)
LIGHT, VARIANCE = 0.3, 0.05
PRIOR = GaussianMixture([LIGHT, 1 - LIGHT], MEANS, VARIANCE, SCHEDULE)
SEEDS, STEPS, RATE = 5, 400, 1.0


def descend(method, n: int, seed: int, steps: int = STEPS, rate: float = RATE) -> torch.Tensor:
    """n particles after descent along w(t) G, (n,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    context = Context(PRIOR, torch.zeros(2, 2, dtype=torch.float64))
    for fraction in torch.linspace(0.98, 0.2, steps):
        t = torch.full((n,), round(999 * fraction.item()))
        eps = torch.randn(1, *x.shape, generator=generator, dtype=torch.float64)
        x = x - rate * method(x, t, eps, context)[0]
    return x.flatten()


def quantiles(n: int) -> torch.Tensor:
    """The prior's quantiles at (i + 1/2) / n, by bisection."""
    wanted = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    low, high = torch.full_like(wanted, -6), torch.full_like(wanted, 6)
    for _ in range(60):
        middle = (low + high) / 2
        z = (middle[:, None] - MEANS.flatten()) / VARIANCE**0.5
        below = (torch.special.ndtr(z) * torch.tensor([LIGHT, 1 - LIGHT])).sum(-1) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def measures(x: torch.Tensor) -> tuple[float, float, float]:
    """W2 to the prior, share on the light mode, spread within the modes."""
    w2 = (x.sort().values - quantiles(len(x))).square().mean().sqrt()
    light = x < -0.15  # the middle between the modes
    parts = [part - part.mean() for part in (x[light], x[~light]) if len(part)]
    return w2.item(), light.double().mean().item(), torch.cat(parts).square().mean().sqrt().item()


def row(make, n: int) -> str:
    """Mean and standard error over seeds of the three measures."""
    found = torch.tensor([measures(descend(make(), n, seed)) for seed in range(SEEDS)])
    errors = found.std(0) / SEEDS**0.5
    return " | ".join(f"{m:.3f} ± {e:.3f}" for m, e in zip(found.mean(0), errors, strict=True))


def points_table() -> None:
    """Print the table, a row as soon as it is measured."""
    print("| particles | method | W2 | light | spread |\n|---|---|---|---|---|")
    for n, widths in ((64, (0.0, 1.0)), (16, (0.0,)), (4, (0.0,))):
        print(f"| {n} | SDS | {row(SDS, n)} |", flush=True)
        for width in widths:
            name = "VSD, exact q" if width == 0 else f"VSD, q of width {width:g}"
            print(f"| {n} | {name} | {row(lambda w=width: VSD(own=Mixture(w)), n)} |", flush=True)


def draw() -> None:
    """Histograms of 64 particles of every seed against the prior's density."""
    import matplotlib.pyplot as plt

    methods = {"SDS": SDS, "VSD, exact q": lambda: VSD(own=Mixture())}
    methods["VSD, q of width 1"] = lambda: VSD(own=Mixture(1.0))
    line = torch.linspace(-3, 3, 600, dtype=torch.float64)[:, None]
    figure, axes = plt.subplots(1, len(methods), figsize=(9, 2.4), sharex=True, sharey=True)
    for axis, (name, make) in zip(axes, methods.items(), strict=True):
        x = torch.cat([descend(make(), 64, seed) for seed in range(SEEDS)])
        axis.hist(x, bins=torch.linspace(-3, 3, 61).tolist(), density=True, color="0.7")
        axis.plot(line, PRIOR.log_prob(line)[0].exp(), color="black", linewidth=1)
        axis.set(title=name, xlabel="x", ylim=(0, 2.5))
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    points_table()
    draw()
