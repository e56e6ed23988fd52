"""Proxy rewards: small networks that have learned from comparisons what people like.

    h = mean over positions of conv_3(conv_2(conv_1(x)))      3 -> 16 -> 32 -> 64, stride 2, SiLU
    r = W_2 silu(W_1 h + b_1) + b_2                           64 -> 32 -> 1

The mean over positions lets it score pictures of any size; it was trained at 32 and 64 pixels. It
was fitted by maximum likelihood to the answers of people who prefer a to b with the probability of
Bradley and Terry,

    P(a preferred to b) = sigmoid( (gold_a - gold_b) / TEMPERATURE )

for one of the hidden gold rewards in `world.gold`. The score is in gold's units: log-odds times
TEMPERATURE, plus the constant that gives the world's pictures the mean of gold. So proxy and gold
can be drawn on one axis. Pairs cannot tell a constant, and all of them are of one object, so each
object may have a constant of its own: compare scores of one object only.

A proxy is right where it was trained and arbitrary elsewhere, as ImageReward and its relatives are.

    has seen       clean pictures of whole objects in the world's eight colours, from the 128
                   cameras of the pool; 96,000 pairs, each of one object in two colours
    has not seen   noise, fog, two colours on one object, colours between the eight, other
                   backgrounds; two different objects in one pair; any prompt (it ignores them)
    -noisy         has seen the same pairs and answers as the one without, but every picture with
                   Gaussian noise, its standard deviation drawn from 0 to 0.5: the control for
                   "reward models fail because they never saw noise"

Share of held-out pairs in gold's order (all objects, pairs of colours and pairs of the 24 judging
cameras), by resolution, and at 32 pixels under noise of standard deviation 0.4:

                    32 pixels   64 pixels   noisy
    smooth             99.18%      99.21%  96.96%
    smooth-1           99.27%      99.37%  97.05%
    smooth-2           99.23%      99.18%  96.87%
    smooth-noisy       99.19%      99.36%  97.69%
    rugged             99.33%      99.79%  92.06%
    rugged-1           99.48%      99.65%  95.09%
    rugged-2           99.35%      99.49%  93.42%
    rugged-noisy       98.90%      99.47%  97.41%

`python tests/tools/proxy/train.py FOLDER` trains all of them again.

Source: Gao, Schulman & Hilton 2022 (arXiv 2210.10760) for proxy and gold; Bradley & Terry 1952,
"Rank analysis of incomplete block designs"; Christiano et al. 2017 (arXiv 1706.03741) for rewards
from comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from psd_mini._internal.arguments import named, validated
from psd_mini.rewards import check_pictures

FOLDER = Path(__file__).parent / "checkpoint" / "proxy"
# gold reward, then the seed of the training (0 where there is none), or noisy
NAMES = (
    *("smooth", "smooth-1", "smooth-2", "smooth-noisy"),
    *("rugged", "rugged-1", "rugged-2", "rugged-noisy"),
)
TEMPERATURE = 0.1  # of people's answers, in units of gold


def proxy_network() -> nn.Sequential:
    """The network of the module's docstring with random weights, 25,697 of them."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.SiLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.SiLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 1)),
    )


@dataclass
class ProxyReward:
    """A proxy as a reward (equation and card: the module's docstring).

    Args:
        name: one of `NAMES`.
        network: `proxy_network` with its weights.

    Called with images (B, 3, H, W) in [0, 1], returns (B,) in units of gold, in the images' dtype
    and on their device. Differentiable.
    """

    name: str
    network: nn.Module = field(repr=False)
    differentiable = True

    @classmethod
    @validated
    def load(cls, name: str, seed: int = 0) -> ProxyReward:
        """A proxy that the package ships.

        Args:
            name: one of `NAMES`; "rugged-0" is "rugged".
            seed: of the training, 0 to 2, for a name without one: ("rugged", 2) is "rugged-2".

        Raises:
            ValueError: there is no such proxy (lists those there are), or its file is damaged.
        """
        name = f"{name}-{seed}" if seed else name.removesuffix("-0")
        if name not in NAMES:
            known = ", ".join(f"proxy:{one}" for one in NAMES)
            raise ValueError(f"reward: 'proxy:{name}' is not known; choose {known}")
        with torch.device("meta"):  # draws no random numbers
            network = proxy_network()
        path = FOLDER / f"{name}.safetensors"
        with named(f"reward: {path} is missing or damaged", "install the package again"):
            network.load_state_dict(load_file(path), assign=True)
        # stored in float16, used in float32
        return cls(name, network.float().requires_grad_(False).eval())

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str] = ()
    ) -> Float[Tensor, " b"]:
        check_pictures(images)
        weights = {name: w.to(images) for name, w in self.network.state_dict().items()}
        return torch.func.functional_call(self.network, weights, images)[:, 0]
