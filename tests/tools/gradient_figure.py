"""Why pixel-level reward gradients do not fit a diffusion prior: their directions over noise level.

    python tests/tools/gradient_figure.py [draw]      "draw" only redraws the picture

Two minutes; writes notebooks/images/reward_gradients.png and tests/results/reward_gradients.jsonl.
"a mushroom", colourfulness, eight cameras, at two points: a mushroom of undecided colour (the mean
of the eight true pictures), and a settled one (the gray picture). The exact direction is the mean
over noises of grad V_t, V_t = beta log E[exp(r(x_0)/beta) | x_t]:

    grad V_t = beta (eps_hat - eps_hat*) / sigma_t

Left: cosine with it, of the mean over noises. Right: the share of the squared length that lies in
the span of the differences between the mushroom's true pictures at that camera, the only directions
in which this prior varies by more than its kernel.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch

from psd_mini.methods import KINDS, reward_gradient
from psd_mini.methods.exact import BETA
from psd_mini.psd import rank
from psd_mini.rewards import make_reward
from psd_mini.sds import SDS, Context
from psd_mini.world import text
from psd_mini.world.prior import ToyWorldPrior

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "tests" / "results" / "reward_gradients.jsonl"
N, CAMERAS, LEVELS = 64, 8, (100, 300, 500, 600, 700, 800, 850, 900, 930, 960, 980, 999)


def directions(
    prior, tilted, context: Context, x: torch.Tensor, level: int
) -> dict[str, torch.Tensor]:
    """Mean over N noises of every candidate, each (B, D), at one timestep."""
    t = torch.full((len(x),), level)
    generator = torch.Generator().manual_seed(level)
    total: dict[str, torch.Tensor] = {}
    for _ in range(N // 2):
        half = torch.randn(1, *x.shape, generator=generator)
        for eps in (half[0], -half[0]):
            x_t = prior.schedule.add_noise(x, eps, t)
            sigma_t = prior.schedule.alpha_sigma(t, x)[1]
            asked = x_t, t, context.embeddings[:1], context.cameras
            noise, star = (p.predict_noise(*asked)[0] for p in (prior, tilted))
            found = {"exact grad V": BETA * (noise - star) / sigma_t}
            found |= {kind: reward_gradient(kind, x, x_t, t, context, SDS()) for kind in KINDS}
            for name, value in found.items():
                total[name] = total.get(name, 0) + value.flatten(1) / N
        # the preference term of PSD, hard omega, antithetic pair: descent follows its negative
        pair = rank(SDS(), x, t, torch.cat((half, -half)), context)
        sign = (pair.rewards[0] - pair.rewards[1]).sign().view(-1, 1, 1, 1)
        pull = sign * (pair.residuals[0] - pair.residuals[1])
        total["psd pair"] = total.get("psd pair", 0) - pull.flatten(1) / (N // 2)
    return total


def main() -> None:
    prior, reward = ToyWorldPrior(32), make_reward("colorfulness")
    tilted = prior.tilted(reward, BETA)
    index = torch.arange(0, 128, 128 // CAMERAS)[:CAMERAS]
    pictures = 2 * prior.views.pictures(index) - 1
    of = [i for i, (name, _) in enumerate(text.components()) if name == "mushroom"]
    gray = next(i for i in of if text.components()[i][1] == "gray")
    undecided = pictures[:, of].mean(1)
    # the differences sum to zero: one direction fewer than pictures
    differences = (pictures[:, of] - undecided[:, None]).flatten(2)
    basis = torch.linalg.svd(differences, full_matrices=False)[2][:, : len(of) - 1]
    embeddings, cameras = prior.embed(["a mushroom"]), prior.views.cameras[index]
    context = Context(prior, embeddings, cameras, ["a mushroom"] * CAMERAS, reward)
    places = {"undecided": undecided, "settled": pictures[:, gray]}
    records = []
    for level, (where, x) in itertools.product(LEVELS, places.items()):
        found = directions(prior, tilted, context, x, level)
        exact = found["exact grad V"]
        for name, value in found.items():
            inside = (basis @ value[..., None]).square().sum((1, 2)) / value.square().sum(1)
            cosine = torch.cosine_similarity(value, exact, dim=1)
            # x_t says which picture it is: there is nothing left to prefer
            if exact.norm(dim=1).mean() < 1e-6:
                cosine = torch.nan * cosine
                inside = torch.nan * inside if name == "exact grad V" else inside
            numbers = {"cosine": cosine, "inside": inside, "length": value.norm(dim=1)}
            numbers = {
                key: float(f"{v.mean():.4g}") if v.mean() == v.mean() else None
                for key, v in numbers.items()
            }
            records.append({"at": where, "t": level, "gradient": name, **numbers})
    RESULTS.write_text("".join(json.dumps(record) + "\n" for record in records))


def draw(records: list[dict]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), dpi=110, layout="constrained", sharex=True)
    titles = {
        "cosine": "cosine with the exact gradient",
        "inside": "share inside the prior's own directions",
    }
    for axis, (where, (key, title)) in zip(
        axes.flat, itertools.product(("undecided", "settled"), titles.items()), strict=True
    ):
        for i, name in enumerate(dict.fromkeys(r["gradient"] for r in records)):
            mine = [r for r in records if r["gradient"] == name and r["at"] == where]
            mine = [r for r in mine if r[key] is not None]
            if name != "exact grad V" or key == "inside":
                t, values = [r["t"] for r in mine], [r[key] for r in mine]
                axis.plot(t, values, marker=".", label=name, color=f"C{i}" if i else "black")
        axis.set(title=f"{title}, {where} colour", ylim=(-0.15, 1.05))
        axis.axhline(0, color="gray", linewidth=0.8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("timestep t (noise grows to the right)")
    axes[1, 1].legend(frameon=False, fontsize=9, loc="center left")
    figure.savefig(ROOT / "notebooks" / "images" / "reward_gradients.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "draw" not in sys.argv:
        main()
    draw([json.loads(line) for line in RESULTS.read_text().splitlines()])
