"""Running a submission in the exact world and writing down what it does.

A `Prober` gives a submission what it asks for, in the form of input that it understands, seeds its
random numbers, turns what it raises into `Unreadable`, and has its gradient taken apart
(`reading`).
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from psd_mini.checks.exact_world import SHAPE, embedding, neighbour, normal, picture
from psd_mini.checks.grading.names import arguments, invoke, keys
from psd_mini.checks.grading.stand_ins import VAE, name_second
from psd_mini.checks.grading.submission import environment, gradient_of, training_of
from psd_mini.checks.guard import describe, status_of
from psd_mini.checks.reading import Reading, cosine, read
from psd_mini.checks.report import Unreadable
from psd_mini.checks.trace import Call, Trace, flows, flows_through

HALF = (torch.float16, torch.bfloat16)
Values = dict[str, Any]  # by the keys of `NAMES`
Form = tuple[str, bool]  # a key of LAYOUTS or "" for latents; stacked embeddings
RAYS = ("(H W, 3)", "(B, H W, 3)")
# where a docstring says that the prompt stands before the empty one: diffusers has it second
PROMPT_FIRST = re.compile(
    r"\[\s*(text|cond|pos|prompt)\w*\s*,\s*(un|neg|null|empty)", re.IGNORECASE
)
# how code may take pictures, made of (B, 3, H, W); those without B hold one
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "(B, 3, H, W)": lambda pictures: pictures,
    "(B, H, W, 3)": lambda pictures: pictures.movedim(1, -1),
    "(H, W, 3)": lambda pictures: pictures[0].movedim(0, -1),
    RAYS[0]: lambda pictures: pictures[0].movedim(0, -1).flatten(0, 1),
    RAYS[1]: lambda pictures: pictures.movedim(1, -1).flatten(1, 2),
}
# what a submission raises whatever the form of its input is
NOT_THE_FORM = (NameError, AttributeError, KeyError, ImportError, OSError, MemoryError, SystemExit)
TURNED = "the picture that it encodes has its rows and columns swapped, or its pixels mixed up by"
TURNED += " view or reshape: use permute"


@dataclass
class Trial:
    """One call of a submission: its gradient (B, ...) in float64 and all that was recorded.

    style: "gradient" or "loss"; changed: names of inputs that it modified; training: q's
    predictions, and the gradient of a loss that came by each of them.
    """

    gradient: Tensor
    style: str
    loss: Tensor | None
    trace: Trace
    readings: list[Reading]
    tolerance: float
    changed: list[str]
    training: list[tuple[Call, Tensor]]

    def through_x_t(self) -> bool:
        """Does the gradient flow through x_t?"""
        asked = [call.x_t.detach() for call in self.trace.calls]
        for reading in self.readings[:1]:  # of a doubled batch, each picture alone
            asked += [group.x_t[None].float() for group in reading.groups]
        return flows_through(self.trace, asked)

    def through_unet(self) -> bool:
        """Does the gradient flow through the UNet?"""
        return any(flows(call.eps_hat) for call in self.trace.calls)


def readings_of(trials: Sequence[Trial]) -> list[Reading]:
    """The pictures of all trials."""
    return [reading for trial in trials for reading in trial.readings]


def given(batch: int, seed: int, layout: str = "", size: tuple[int, int] = (512, 512)) -> Values:
    """What is drawn for one call: latents x (or pictures) with gradients, embeddings, noises."""
    x = picture(batch, seed)
    if layout:
        pictures = picture(batch, seed, (3, *size)).float() / 4
        x = LAYOUTS[layout](pictures).clone(memory_format=torch.contiguous_format)
    values: Values = {"x": x.float().requires_grad_(), "H": size[0], "W": size[1]}
    others = (("n", "negative"), ("cond_src", "negative"))  # another prompt
    for key, prompt in (("cond", "cond"), ("uncond", "uncond"), *others):
        values[key] = embedding(prompt, batch)
    for i, name in enumerate(("eps", "eps_1", "eps_2")):
        values[name] = normal(batch, *SHAPE, seed=1000 + 10 * seed + i).float()
    values["x_src"] = neighbour(picture(batch, seed)).float()  # what an edit starts from
    if layout:
        values |= {"image": values["x"], "pictures": pictures}
    return values


@contextmanager
def traced(seed: int) -> Iterator[Trace]:
    """Gradients on, torch and random seeded (and put back afterwards), errors as `Unreadable`."""
    state = random.getstate()
    random.seed(seed)
    try:
        with torch.enable_grad(), torch.random.fork_rng(), Trace() as trace:
            torch.manual_seed(seed)
            yield trace
    except Unreadable:
        raise
    except (Exception, SystemExit) as error:
        text = describe(error)
        verdict = isinstance(error, NOT_THE_FORM) or "allocate memory" in text
        raise Unreadable(text, status_of(error), verdict) from error
    finally:
        random.setstate(state)


class Prober:
    """Calls one submission again and again, in the form of input that it understands.

    Args:
        fn: from `submission.prepare`.
        more: values that it may ask for beside the pipeline (a reward, a second network, ...).
        guided: its formula needs both prompts, whether or not it takes a guidance scale.

    keys: what it asks for.
    """

    def __init__(self, fn: Callable, more: Mapping[str, Any] = {}, guided: bool = False):
        self.fn, self.given = fn, environment() | dict(more)
        self.asked: list[Call] = []  # what the last attempt asked of the UNet
        self.keys, owner = keys(fn), getattr(fn, "__self__", None)
        name_second(owner)
        stacked = guided or "guidance_scale" in self.keys
        self.size = _size_of(owner)
        known = [form for form in LAYOUTS if form != RAYS[1] or self.size != (512, 512)]
        layouts = [*known, ""] if "image" in self.keys else ["", *known]
        # the most plausible form first
        self.forms: list[Form] = [(form, s) for form in layouts for s in (stacked, not stacked)]

    def run(
        self, batch: int = 1, g: float = 7.5, t: tuple[int, ...] = (500,), seed: int = 0
    ) -> Trial:
        """One call with B pictures at guidance scale g; t and noise are for those who take them.

        Raises:
            Unreadable: it failed, or its answer cannot be read.
        """
        failures: dict[int, Unreadable] = {}  # by how far it came
        for form in self.forms:
            try:
                trial = self._attempt(form, batch, g, t, seed)
                if trial.trace.adapted:  # now the UNet knows from the start that it has adapters
                    trial = self._attempt(form, batch, g, t, seed)
            except Unreadable as error:
                if error.verdict:
                    raise
                failures.setdefault(len(self.asked), error)
            else:
                self.forms = [form]
                return trial
        raise failures[max(failures)]

    def ask(self, values: Mapping[str, Any]) -> tuple[Any, Trace]:
        """Call with these values on top of the environment; the answer as it is.

        Raises:
            Unreadable: it failed.
        """
        with traced(0) as trace:
            return invoke(self.fn, arguments(self.fn, {**self.given, **values})), trace

    def _attempt(self, form: Form, batch: int, g: float, t: tuple[int, ...], seed: int) -> Trial:
        layout, stacked = form
        size = self.size if layout in RAYS else (512, 512)
        if batch > 1 and layout.find("B") < 0 <= layout.find("H"):
            raise Unreadable(f"it takes one picture {layout}", verdict=False)
        drawn = given(batch, seed, layout, size)
        x = drawn["x"]
        values = {**self.given, **drawn, "guidance_scale": g}
        values["t"] = torch.tensor((t * batch)[:batch]) * self.given["unet"].time_unit
        with traced(seed) as trace:
            passed = self._passed(values, stacked)
            tensors = {name: value for name, value in passed.items() if isinstance(value, Tensor)}
            before = {name: value.detach().clone() for name, value in tensors.items()}
            self.asked = trace.calls
            result = invoke(self.fn, passed)
            if inspect.isfunction(result):  # it made the function: that one is called
                result = invoke(result, self._passed(values, stacked, result))
            with trace.paused():
                if layout and len(self.forms) > 1:
                    _look_at_encoded(drawn["pictures"], trace)
                leaf = _entrance(x, trace, bool(layout))
                training = training_of(result, trace)
                gradient, style, loss = gradient_of(result, leaf)
        after = {name: passed[name].detach().to(value) for name, value in before.items()}
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        latents = leaf.detach().double()
        if leaf is not x:  # what the autoencoder made of the picture
            latents = latents * trace.scaling
            gradient = gradient / (trace.scaling if style == "loss" else 1)
        half = any(call.x_t.dtype in HALF for call in trace.calls) or gradient.dtype in HALF
        gradient = gradient.detach().double()
        known = {"cond": drawn["cond"], "uncond": drawn["uncond"], "negative": drawn["n"]}
        readings = read(g, latents, gradient, trace, known, _noises_in(passed, drawn))
        tolerance = 0.03 if half else 2e-3
        return Trial(gradient, style, loss, trace, readings, tolerance, changed, training)

    def _passed(self, values: Values, stacked: bool, fn: Callable | None = None) -> dict[str, Any]:
        """Arguments for one call, the embeddings stacked where that is the form."""
        fn = fn or self.fn
        if {"eps_cond", "eps_uncond", "x_t"} & keys(fn):
            values = values | self._predicted(values)
        cond, uncond = values["cond"], values["uncond"]
        passed = arguments(fn, values)
        if not stacked or any(value is uncond for value in passed.values()):
            return passed
        prompt_first = PROMPT_FIRST.search(fn.__doc__ or "")
        for name, value in passed.items():
            if value is cond or value is values["cond_src"]:  # diffusers stacks the other one first
                passed[name] = torch.cat((value, uncond) if prompt_first else (uncond, value))
        return passed

    def _predicted(self, values: Values) -> dict[str, Tensor]:
        """x_t and noise predictions, asked of the UNet in the submission's place."""
        unet, t = values["unet"], values["t"]
        with torch.no_grad():
            x_t = values["scheduler"].add_noise(values["x"], values["eps"], t)
            cond, uncond = (unet(x_t, t, values[k]).sample.clone() for k in ("cond", "uncond"))
        return {"x_t": x_t, "eps_cond": cond, "eps_uncond": uncond}


def _noises_in(passed: Values, drawn: Values) -> list[Tensor]:
    """The given noises that a submission asked for."""
    given = [drawn[name] for name in ("eps", "eps_1", "eps_2")]
    return [eps.double() for eps in given if any(eps is value for value in passed.values())]


def _size_of(owner: Any) -> tuple[int, int]:
    """H and W that an object or its configuration holds: rays alone do not tell them."""
    for place in (owner, *getattr(owner, "__dict__", {}).values()):
        height = None if isinstance(place, Tensor) else getattr(place, "H", None)
        width = getattr(place, "W", None)
        if type(height) is int and type(width) is int and {height, width} <= set(range(8, 1025)):
            return height, width
    return 512, 512


def _look_at_encoded(pictures: Tensor, trace: Trace) -> None:
    """Raise where pictures were not encoded, or transposed or mixed up by a reshape before."""
    if not trace.encoded:
        raise Unreadable("it takes pictures and does not encode them", verdict=False)
    encoded, (b, c, h, w) = trace.encoded[-1].detach(), pictures.shape
    rays = pictures.movedim(1, -1)
    mixed = (rays.reshape(b, c, h, w), pictures.view(b, h, w, c).movedim(-1, 1))
    likeness = []
    for candidate in (pictures, pictures.mT, *mixed, rays.reshape(b, w, h, c).movedim(-1, 1)):
        latents = VAE().latents(F.interpolate(candidate, (512, 512), mode="bilinear"))
        if latents.shape == encoded.shape:
            pair = [z.double() - z.double().mean((2, 3), keepdim=True) for z in (latents, encoded)]
            likeness.append(cosine(*pair))
    if likeness and max(likeness) > 0.9 > likeness[0]:
        raise Unreadable(TURNED, "wrong", verdict=False)


def _entrance(x: Tensor, trace: Trace, images: bool) -> Tensor:
    """Where the gradient should arrive: at x, or at what the autoencoder made of a picture x."""
    if not trace.encoded:
        return x
    if not trace.encoded[-1].requires_grad:
        if not images:
            return x
        text = "the latents were encoded under no_grad: no gradient can reach the picture"
        raise Unreadable(text, "wrong")
    return trace.encoded[-1]
