"""What several test files need: random inputs, a toy world of few pixels, comparisons."""

from types import ModuleType

import pytest
import torch

from psd_mini import ToyWorldPrior, save_field
from psd_mini.pipelines import compare, results, tables
from psd_mini.pipelines import generate as text_to_3d
from psd_mini.world import metrics
from psd_mini.world.pool import fresh_cameras, make_views, pool_cameras


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_world(cameras: int = 6, resolution: int = 8) -> ToyWorldPrior:
    """The toy world's prior with so few cameras and pixels that a step takes milliseconds."""
    return ToyWorldPrior(views=make_views(pool_cameras(cameras), resolution))


def quick_results(monkeypatch, files: bool = False) -> None:
    """Spare `generate` and `compare` what takes seconds after a run of a few steps.

    The judge gets 4 cameras of 16 pixels instead of 24 of 64, the oracle's distance is 1, and only
    with `files` more is written than the field.
    """
    views = make_views(fresh_cameras(4), 16)
    for module in (metrics, results, compare, tables):
        monkeypatch.setattr(module, "judge_views", lambda: views)
    monkeypatch.setattr(results, "oracle_distance", lambda *settings: 1.0)

    def save_alone(result, folder):
        save_field(result.field, folder / "field.safetensors")

    if not files:
        monkeypatch.setattr(text_to_3d, "save", save_alone)
        monkeypatch.setattr(text_to_3d, "save_views", lambda result, folder: None)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two fields are equal in every bit."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    # exact: asked of runs on one machine with one thread count
    return all(torch.equal(p, q) for p, q in pairs)


def public_names(module):
    """Name -> function or class, for everything that a module offers."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    hidden = ("Any", "import_module")
    return {k: v for k, v in own.items() if k not in hidden and not isinstance(v, ModuleType)}


def mostly_slow(names, every=8):
    """Parameters of a test: the first and every eighth are quick, the others have the marker
    `slow`."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if number % every else [])
        for number, name in enumerate(names)
    ]
