"""Train the proxy rewards that the package ships (some two minutes each on one thread).

    python tests/tools/proxy/train.py FOLDER [names]

A person looks at one object in two colours, each seen by some camera of the pool, and prefers one.
Which one is drawn with the probability of Bradley and Terry at T = TEMPERATURE = 0.1:

    P(a preferred to b) = sigmoid( (gold_a - gold_b) / T )

The network s is fitted to these answers by maximum likelihood,

    minimise  - log sigmoid( s(winner) - s(loser) )

so s estimates gold / T up to a constant. What is saved is r = T s + c, in gold's units, with c such
that the mean of r over the training pictures is the mean of gold.

Random numbers depend on the seed and the step alone: one machine and one thread give one file, bit
for bit. Printed is the share of held-out pairs that a file puts in gold's order: all objects, pairs
of colours and pairs of the 24 judging cameras, none of which was trained on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from psd_mini._internal.files import write_atomically
from psd_mini.pretrained.proxy import NAMES, TEMPERATURE, proxy_network
from psd_mini.world.gold import COLOUR_VALUES
from psd_mini.world.objects import COLOURS
from psd_mini.world.pool import WorldViews, fresh_cameras, make_views, pool_cameras
from psd_mini.world.views import recolour

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder only
from learned.parts import seeded
from learned.train import generator_of

RESOLUTIONS = (32, 64)  # pixels per side, in turn from step to step
STEPS, PAIRS, LEARNING_RATE = 1500, 64, 4e-3
MOST_NOISE = 0.5  # standard deviation, in the pictures' units
PALETTE = torch.tensor(list(COLOURS.values()))  # (C, 3)


def gold_of_colours(kind: str) -> Float[Tensor, " c"]:
    """Gold of each colour, in the order of `COLOURS`."""
    return torch.tensor([COLOUR_VALUES[kind][colour] for colour in COLOURS])


def bradley_terry_loss(
    winners: Float[Tensor, " b"], losers: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Mean of - log P(winner preferred to loser), from their scores in log-odds."""
    return -F.logsigmoid(winners - losers).mean()


def drawn_pairs(
    views: WorldViews, gold: Tensor, generator: torch.Generator
) -> Float[Tensor, "2 b 3 h w"]:
    """Pictures that won, and those that lost to them: B comparisons and their answers."""
    n_objects, n_cameras, n_colours = *views.layers.shape[:2], len(gold)
    objects = torch.randint(n_objects, (PAIRS,), generator=generator)
    cameras = torch.randint(n_cameras, (2, PAIRS), generator=generator)
    first = torch.randint(n_colours, (PAIRS,), generator=generator)
    # a second colour that is not the first
    step = torch.randint(1, n_colours, (PAIRS,), generator=generator)
    colours = torch.stack((first, (first + step) % n_colours))
    # P(first preferred) = sigmoid( (gold_1 - gold_2) / T )
    probability = torch.sigmoid((gold[colours[0]] - gold[colours[1]]) / TEMPERATURE)
    prefers_first = torch.rand(PAIRS, generator=generator) < probability
    colours = torch.where(prefers_first, colours, colours.flip(0))
    base, main = views.layers[objects, cameras].split((3, 1), dim=2)
    # image = base + main * c
    return base + main * PALETTE[colours][..., None, None]


def with_noise(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture with Gaussian noise of a level of its own, uniform from 0 to MOST_NOISE."""
    level = MOST_NOISE * torch.rand(*pictures.shape[:2], 1, 1, 1, generator=generator)
    return pictures + level * torch.randn(pictures.shape, generator=generator)


def train(
    name: str, views: Sequence[WorldViews], steps: int = STEPS, progress: bool = False
) -> nn.Sequential:
    """The proxy of this name, in gold's units.

    Args:
        name: one of `NAMES`: gold reward, then a seed or "noisy", which has seed 0.
        views: the world that people look at, at one or more resolutions.
        steps: of AdamW, each on PAIRS comparisons.
        progress: print the loss now and then.
    """
    kind, _, variant = name.partition("-")
    seed = int(variant) if variant.isdigit() else 0
    gold = gold_of_colours(kind)
    network = seeded(proxy_network, seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        generator = generator_of(seed, step)
        pictures = drawn_pairs(views[step % len(views)], gold, generator)
        if variant == "noisy":
            pictures = with_noise(pictures, generator)
        winners, losers = network(pictures.flatten(0, 1))[:, 0].chunk(2)
        loss = bradley_terry_loss(winners, losers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        if progress and step % 300 == 0:
            print(f"{name} step {step}: loss {loss.item():.3f}", flush=True)
    return in_gold_units(network, views, gold)


@torch.no_grad()
def in_gold_units(
    network: nn.Sequential, views: Sequence[WorldViews], gold: Tensor
) -> nn.Sequential:
    """The network with r = T s + c in place of s; changes its last layer."""
    means = [all_scores(network, one).mean() for one in views]
    last = network[-1]
    last.weight *= TEMPERATURE
    # c = mean gold - T mean s
    last.bias *= TEMPERATURE
    last.bias += gold.mean() - TEMPERATURE * torch.stack(means).mean()
    return network


@torch.no_grad()
def all_scores(reward: Callable[[Tensor], Tensor], views: WorldViews) -> Float[Tensor, "o p c"]:
    """Scores of every object from every camera in every colour."""
    scores = []
    for layers in views.layers:  # one object
        pictures = recolour(layers, PALETTE)  # (P, C, 3, H, W)
        scores.append(reward(pictures.flatten(0, 1)).reshape(pictures.shape[:2]))
    return torch.stack(scores)


def pairs_right(scores: Float[Tensor, "o p c"], gold: Float[Tensor, " c"]) -> float:
    """Share of pairs in gold's order: one object, two colours, any two cameras."""
    shares = []
    for better, worse in (gold[:, None] > gold).nonzero().tolist():
        right = scores[:, :, None, better] > scores[:, None, :, worse]
        shares.append(right.float().mean())
    return torch.stack(shares).mean().item()


def main(folder: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    views = [make_views(pool_cameras(), resolution) for resolution in RESOLUTIONS]
    held_out = [make_views(fresh_cameras(), resolution) for resolution in RESOLUTIONS]
    for name in names:
        started = time.perf_counter()
        network = train(name, views, progress=True)
        stored = {key: w.half() for key, w in network.state_dict().items()}
        write_atomically(folder / f"{name}.safetensors", save(stored, {"format": "pt"}))
        network.load_state_dict(stored)
        gold, right = gold_of_colours(name.partition("-")[0]), []
        for one in held_out:
            share = pairs_right(all_scores(network, one), gold)
            right.append(f"{100 * share:.2f}% at {one.resolution} pixels")
        seconds = time.perf_counter() - started
        print(f"{name}: held-out pairs right {', '.join(right)}; {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or NAMES)
