"""Running a submission in the exact world, in the form of input that it understands, and writing
down what it does.

A `Prober` gives a submission what it asks for, seeds its random numbers, turns what it raises into
`Unreadable`, and has its gradient taken apart (`reading`).
"""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from psd_mini.checks import world
from psd_mini.checks.grading.submission import (
    Unreadable,
    arguments,
    environment,
    gradient_of,
    invoke,
    keys,
)
from psd_mini.checks.reading import Reading, read
from psd_mini.checks.trace import Trace, flows, flows_through

HALF = (torch.float16, torch.bfloat16)


@dataclass
class Run:
    """One call of a submission: its gradient (B, ...) in float64, how it came, and all that was
    recorded."""

    g: float
    x: Tensor
    gradient: Tensor
    style: str
    loss: Tensor | None
    trace: Trace
    readings: list[Reading]
    tolerance: float
    changed: list[str]

    def through_x_t(self) -> bool:
        asked = [call.x_t.detach() for call in self.trace.calls]
        alone = [
            group.x_t[None].float() for r in self.readings[:1] for group in r.groups
        ]  # of a doubled batch
        return flows_through(self.trace, asked + alone)

    def through_unet(self) -> bool:
        return any(flows(call.eps_hat) for call in self.trace.calls)


def given(batch: int, seed: int, images: bool = False) -> dict[str, Any]:
    """What is drawn for one call: pictures or latents x that want a gradient, embeddings,
    noises; by the keys of `NAMES`."""
    x = world.picture(batch, seed, (3, 512, 512)) / 4 if images else world.picture(batch, seed)
    values = {"x": x.float().requires_grad_()} | {
        key: world.embedding(kind, batch)
        for key, kind in (("cond", "cond"), ("uncond", "uncond"), ("n", "negative"))
    }
    for i, name in enumerate(("eps", "eps_1", "eps_2")):
        values[name] = world.normal(batch, *world.SHAPE, seed=1000 + 10 * seed + i).float()
    return values | ({"image": values["x"]} if images else {})


@contextmanager
def traced(seed: int) -> Iterator[Trace]:
    """Gradients on, torch and random seeded (and put back afterwards), exceptions as
    `Unreadable`."""
    state = random.getstate()
    random.seed(seed)
    try:
        with torch.enable_grad(), torch.random.fork_rng(), Trace() as trace:
            torch.manual_seed(seed)
            yield trace
    except Unreadable:
        raise
    except (Exception, SystemExit) as error:
        raise Unreadable(describe(error), status_of(error), verdict=False) from error
    finally:
        random.setstate(state)


class Prober:
    """Calls one submission again and again, in the form of input that it turned out to understand.

    Args:
        fn: from `submission.prepare`. names: parameter -> key, see `submission.arguments`.
        more: values that it may ask for beside the pipeline (a reward, a second network, ...).
    """

    def __init__(
        self,
        fn: Callable,
        names: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        self.fn, self.names, self.given = fn, names, environment() | dict(more or {})
        asked = keys(fn, names)
        likely = "image" in asked, "guidance_scale" in asked
        # pictures instead of latents, stacked embeddings: the most plausible form first, so that
        # its error is shown
        self.forms = sorted(
            product((True, False), repeat=2),
            key=lambda form: (form[0] != likely[0], form[1] != likely[1]),
        )

    def run(
        self, batch: int = 1, g: float = 7.5, t: tuple[int, ...] = (500,), seed: int = 0
    ) -> Run:
        """One call with B pictures at guidance scale g; t and noise are for those who take them.

        Raises:
            Unreadable: it failed, or its answer is none.
        """
        failures = []
        for form in self.forms:
            try:
                run = self._attempt(form, batch, g, t, seed)
            except Unreadable as error:
                if error.verdict:
                    raise
                failures.append(error)
            else:
                self.forms = [form]
                return run
        raise failures[0]

    def ask(self, values: Mapping[str, Any]) -> tuple[Any, Trace]:
        """Call with these values on top of the environment, and nothing read into the answer.

        Raises:
            Unreadable: it failed.
        """
        with traced(0) as trace:
            return invoke(self.fn, arguments(self.fn, {**self.given, **values}, self.names)), trace

    def _attempt(
        self, form: tuple[bool, ...], batch: int, g: float, t: tuple[int, ...], seed: int
    ) -> Run:
        images, stacked = form
        drawn = given(batch, seed, images)
        x, cond, uncond = drawn["x"], drawn["cond"], drawn["uncond"]
        values = {
            **self.given,
            **drawn,
            "guidance_scale": g,
            "t": torch.tensor((t * batch)[:batch]),
        }
        with traced(seed) as trace:
            if {"eps_cond", "eps_uncond", "x_t"} & keys(
                self.fn, self.names
            ):  # for those who take predictions
                values |= self._predicted(values)
            passed = arguments(self.fn, values, self.names)
            if stacked and not any(value is uncond for value in passed.values()):
                both = torch.cat((uncond, cond))  # diffusers stacks the unconditional one first
                passed = {name: both if value is cond else value for name, value in passed.items()}
            before = {
                name: value.detach().clone()
                for name, value in passed.items()
                if isinstance(value, Tensor)
            }
            result = invoke(self.fn, passed)
            with trace.paused():
                leaf = self._entrance(x, trace)
                gradient, style, loss = gradient_of(result, leaf)
        changed = [
            name
            for name, value in before.items()
            if not torch.equal(value, passed[name].detach().to(value))
        ]
        latents = leaf.detach().double()
        if leaf is not x:  # what the autoencoder made of the picture
            latents, gradient = (
                latents * world.SCALING,
                gradient / (world.SCALING if style == "loss" else 1),
            )
        half = any(call.x_t.dtype in HALF for call in trace.calls) or gradient.dtype in HALF
        gradient = gradient.detach().double()
        known = {"cond": cond, "uncond": uncond, "negative": drawn["n"]}
        noises = [
            value.double()
            for name, value in drawn.items()
            if "eps" in name and any(value is v for v in passed.values())
        ]
        readings = read(g, latents, gradient, trace, known, noises)
        return Run(
            g, latents, gradient, style, loss, trace, readings, 0.03 if half else 2e-3, changed
        )

    def _predicted(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """x_t and noise predictions, asked of the UNet in the submission's place."""
        with torch.no_grad():
            x_t = values["scheduler"].add_noise(values["x"], values["eps"], values["t"])
            return {"x_t": x_t} | {
                f"eps_{k}": values["unet"](x_t, values["t"], values[k]).sample
                for k in ("cond", "uncond")
            }

    def _entrance(self, x: Tensor, trace: Trace) -> Tensor:
        """Where the gradient should arrive: at the latents, x itself or what the autoencoder
        made of the picture."""
        if not trace.encoded or (x.shape[1] != 3 and not trace.encoded[-1].requires_grad):
            return x
        if not trace.encoded[-1].requires_grad:
            raise Unreadable(
                "the latents were encoded under no_grad: no gradient can reach the picture", "wrong"
            )
        return trace.encoded[-1]


USUAL_REASONS = {  # of an exception, by what its text contains
    **dict.fromkeys(
        ("cuda", "nvidia"), "it moves tensors to cuda; use x.device instead of a fixed device"
    ),
    "systemexit": "it calls exit",
    **dict.fromkeys(("leaf variable", "modified by an inplace"), "it changes its input in place"),
    **dict.fromkeys(("out of bounds", "out of range"), f"was t outside 0..{world.T - 1}?"),
    "nonetype": (
        "is something None that another method sets first? Make the object within"
        " offline_diffusers(), call that method and hand in the object instead of its class"
    ),
    **dict.fromkeys(
        ("memoryerror", "can't allocate memory"), "it takes more memory than a submission is given"
    ),
    "graph a second time": "it back-propagates the same graph twice",
}


TORCH, CHECKS = os.path.dirname(torch.__file__), os.path.dirname(__file__)


def status_of(error: BaseException) -> str:
    """What an exception says of a submission: "not answered" by a stub, otherwise "could not run".

    A stub raises NotImplementedError itself (torch does so too, for what a device or dtype cannot
    do), or its `...` meets a calculation.
    """
    if isinstance(error, Unreadable):
        return error.status
    last = (
        traceback.extract_tb(error.__traceback__) or [traceback.FrameSummary("", 0, "", line="")]
    )[-1]
    raised = isinstance(error, NotImplementedError) and "raise NotImplementedError" in (
        last.line or ""
    )
    stub = raised and not last.filename.startswith(TORCH) or "ellipsis" in _text_of(error)
    return "not answered" if stub else "could not run"


def _text_of(error: BaseException) -> str:
    """What an exception says, in one line, even if it cannot say it."""
    try:
        return " ".join(str(error).split())[:300]
    except Exception:
        return "(no text)"


def describe(error: BaseException) -> str:
    """An exception in one line: what, where in the submission, and the usual reason."""
    all_frames = traceback.extract_tb(error.__traceback__)
    frames = [
        frame for frame in all_frames if not frame.filename.startswith((TORCH, CHECKS))
    ] or all_frames
    where = f" (line {frames[-1].lineno} of {frames[-1].name})" if frames else ""
    text = _text_of(error)
    if isinstance(error, SyntaxError):  # the frames are the importer's
        where, text = f" (line {error.lineno})", error.msg
    words = f"{type(error).__name__} {text}".lower()
    hint = next((f": {reason}" for sign, reason in USUAL_REASONS.items() if sign in words), "")
    return f"it raised {type(error).__name__}{where}: {text}{hint}"
