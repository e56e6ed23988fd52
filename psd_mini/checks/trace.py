"""Recording what a submission does: questions to the UNet, random numbers, tensors on the graph.

Submissions draw their own t and noise. Knowing them, the exact gradient for *those* draws can be
compared. No statistics are needed to see that a noise was drawn twice, that t is off by one, or
that a gradient went through x_t.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, allclose
from torch.overrides import TorchFunctionMode

RANDOM = {"randn", "randn_like", "normal", "normal_", "rand", "rand_like", "uniform_"}
# intermediate tensors that are remembered, so that a submission that loops cannot fill the memory
KEPT = 400
CHANNELS = 64  # of what is resized, at most: more of them are rows of a picture, and take seconds


@dataclass
class Call:
    """One question to a UNet and its answer.

    x_t, eps_hat: (R, ...); t: (R,) as it was asked; embeddings: (R, tokens, width) or None.
    """

    x_t: Tensor
    t: Tensor
    embeddings: Tensor | None
    eps_hat: Tensor
    model: str


class Trace(TorchFunctionMode):
    """While open: records calls of the stand-ins, random draws, and tensors that lie on a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.encoded: list[Tensor] = []
        self.scaling = 1.0  # of the autoencoder
        self.decoded: list[Tensor] = []
        self.draws: list[Tensor] = []
        self.on_graph: list[Tensor] = []
        self.rewarded: list[tuple[Tensor, Tensor]] = []  # pictures and their scores
        self.recording = True
        self.adapted = False  # a UNet's adapters were switched that nobody had added before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "interpolate" and args and args[0].ndim == 4 and args[0].shape[1] > CHANNELS:
            raise ValueError(f"(B, C, H, W) is resized, {tuple(args[0].shape)} came: no picture")
        out = func(*args, **(kwargs or {}))
        if self.recording and isinstance(out, Tensor) and out.is_floating_point() and out.ndim:
            if name in RANDOM and len(self.draws) < KEPT:
                self.draws.append(out.detach().clone())
            elif out.requires_grad and not out.is_leaf and len(self.on_graph) < KEPT:
                out.retain_grad()
                self.on_graph.append(out)
        return out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not recording: the stand-ins' own work is none of the submission's."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    def __enter__(self) -> Trace:
        _OPEN.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _OPEN.remove(self)


_OPEN: list[Trace] = []


def current() -> Trace:
    """The trace that is open. Outside of checks: one that nobody will read."""
    return _OPEN[-1] if _OPEN else Trace()


def flows(tensor: Tensor) -> bool:
    """Did a gradient other than zero arrive at this tensor?"""
    return tensor.grad is not None and bool((tensor.grad != 0).any())


def flows_through(trace: Trace, values: list[Tensor]) -> bool:
    """Did a gradient pass through a recorded tensor with one of these values (x_t, for example)?"""
    with torch.no_grad():
        for tensor in filter(flows, trace.on_graph):
            for value in values:
                if value.shape != tensor.shape:
                    continue
                if allclose(tensor, value.to(tensor.dtype), rtol=1e-5):
                    return True
    return False
