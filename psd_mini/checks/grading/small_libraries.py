"""The few parts of libraries that gradients do go through, for when those are not installed.

einops' patterns, resizing, and settings with attributes: what they do is short to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def einops(x: Tensor, pattern: str, reduction: str = "", **sizes: int) -> Tensor:
    """rearrange, repeat and reduce: "b c (h w) -> b h w c", h=64.

    Axes are split, those that are not on the right are reduced, those that are not on the left are
    repeated; then they are put in order and merged.
    """
    left, right = pattern.split("->")
    named = [name for name in _axes(left) if name != ["..."]]
    dots = " ".join(f"_{i}" for i in range(x.ndim - len(named)))
    before, after = (_axes(side.replace("...", dots)) for side in (left, right))
    axes = []
    for group, length in zip(before, x.shape, strict=True):
        unknown = [name for name in group if name not in sizes]
        known = prod(sizes[name] for name in group if name in sizes)
        sizes.update(dict.fromkeys(unknown, length // known))
        axes += group
    x = x.reshape([sizes[name] for name in axes])
    wanted = sum(after, [])
    gone = [name for name in axes if name not in wanted]
    if gone:
        reduce = {"max": "amax", "min": "amin"}.get(reduction, reduction)
        x = getattr(x, reduce)([axes.index(name) for name in gone])
        axes = [name for name in axes if name in wanted]
    for name in wanted:
        if name not in axes:
            x = x[..., None].expand(*x.shape, sizes.get(name) or int(name))
            sizes[name] = x.shape[-1]
            axes.append(name)
    x = x.permute([axes.index(name) for name in wanted])
    return x.reshape([prod(sizes[name] for name in group) for group in after])


def _axes(side: str) -> list[list[str]]:
    """ "b (h 2) 1" as [["b"], ["h", "2"], []]."""
    found = re.findall(r"\(([^)]*)\)|(\S+)", side)
    return [[name for name in "".join(pair).split() if name != "1"] for pair in found]


def resize(x: Tensor, size: Any, *_: Any, **__: Any) -> Tensor:
    """(B, 3, H, W) in another size; one number is the shorter side."""
    if isinstance(size, int):
        short = min(x.shape[-2:])
        size = [side * size // short for side in x.shape[-2:]]
    return F.interpolate(x, tuple(size), mode="bilinear", antialias=True)


class Resize(nn.Module):
    def __init__(self, size: Any, *_: Any, **__: Any):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, self.size)


class Settings(dict):
    """A dictionary with attributes, nested dictionaries too: OmegaConf's DictConfig."""

    def __init__(self, values: Any = (), **more: Any):
        for name, value in dict(values or (), **more).items():
            self[name] = Settings(value) if isinstance(value, Mapping) else value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"these settings have no {name}") from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def merged(*parts: Any) -> Settings:
    """OmegaConf.merge: the last word counts, at every depth."""
    out = Settings()
    for part in parts:
        for name, value in dict(part or {}).items():
            both = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
            out[name] = merged(out[name], value) if both else value
    return out


class OmegaConf:
    create = structured = Settings
    merge = staticmethod(merged)
    to_container = to_object = staticmethod(dict)


def get_peft_model(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model itself, with an adapter."""
    model.add_adapter(*args, **kwargs)
    return model


PARTS: dict[str, dict[str, Any]] = {  # by library
    "einops": {"rearrange": einops, "repeat": einops, "reduce": einops},
    "torchvision": {"resize": resize, "Resize": Resize, "Compose": lambda t: nn.Sequential(*t)},
    "kornia": {"resize": resize},
    "omegaconf": {"OmegaConf": OmegaConf, "DictConfig": Settings},
    "peft": {"get_peft_model": get_peft_model},
}
