"""How people hand in: finding the code in a function, class or object, and reading its answer.

A submission is a function, a class (made within `offline_diffusers`, constructor included) or an
object with a method. It is given what its parameters ask for (see `names`). Its answer may be a
gradient of x's shape, a loss that is back-propagated here, or nothing, if it back-propagated
itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psd_mini.checks.exact_world import PROMPTS, T, embedding
from psd_mini.checks.grading.constructing import ARGS, construct, make_ready, with_held
from psd_mini.checks.grading.missing import is_made_up
from psd_mini.checks.grading.names import KNOWN, PROMPT, keys
from psd_mini.checks.grading.stand_ins import Pipeline, UNet
from psd_mini.checks.report import Unreadable
from psd_mini.checks.trace import Call, Trace

# methods that hold the gradient in classes of courses and public code
COURSE = (
    *("sds_loss", "get_sds_loss", "train_step", "calc_sds_loss", "compute_loss", "loss"),
    *("calc_grad", "compute_grad", "calculate_sds", "gradient", "forward"),
)
# base classes of these are nobody's submission: torch.nn.Module has a `forward` that only raises
FOREIGN = ("builtins", "abc", "typing", "torch", "lightning", "pytorch_lightning")


def environment(unet: UNet | None = None) -> dict[str, Any]:
    """What every submission may ask for: the pipeline and its parts, prompts, devices, numbers.

    unet: another model than the prior's.
    """
    from psd_mini.checks.rewarding import reward  # which reads what a submission did

    pipe = Pipeline()
    pipe.unet = pipe.transformer = unet or pipe.unet
    pipe.alphas = pipe.alphas_cumprod = pipe.scheduler.alphas_cumprod
    pipe.betas, pipe.q = pipe.scheduler.betas, UNet(q=True)
    pipe.unet_lora = pipe.q
    pipe.num_train_timesteps, pipe.min_step, pipe.max_step = T, 20, 980  # type: ignore[assignment]
    cond, uncond, n = (embedding(prompt, 1) for prompt in PROMPTS)
    stacked = torch.cat((cond, uncond))  # in threestudio's order
    parts = ("unet", "vae", "q", "scheduler", "alphas_cumprod", "betas")

    def predict(x_t: Tensor, t: Any, *rest: Any, **keywords: Any) -> Tensor:
        given = dict(keywords)
        for name in keywords:  # a prompt's embedding may be called anything
            if KNOWN.get(name) in ("cond", "uncond", "n"):
                given["encoder_hidden_states"] = given.pop(name)
        sample = pipe.unet(x_t, t, *rest, **given)[0]
        sample.sample = sample.view_as(sample)  # as some expect of a `model`
        return sample

    values: dict[str, Any] = {name: getattr(pipe, name) for name in parts}
    values |= dict(pipe=pipe, predict_noise=predict, velocity=predict, reward=reward)
    values |= dict(cond=cond, uncond=uncond, n=n, prompt=PROMPT, num_train_timesteps=T)
    values |= dict(device=torch.device("cpu"), dtype=torch.float32, fp16=False, generator=None)
    values |= dict(args=ARGS, camera=torch.zeros(1), iteration=100)
    values["prompt_utils"] = SimpleNamespace(get_text_embeddings=lambda *_, **__: stacked)
    return values


def prepare(target: Any, methods: Sequence[str]) -> Callable:
    """The callable in a submission: a function as it is, an object's method by one of the names.

    A class is made first; its constructor's parameters are recognised like all others.

    Raises:
        Unreadable: nothing that can be called.
    """
    made_here = isinstance(target, type)
    if made_here:
        values = environment()
        target = construct(target, values)
    if inspect.isroutine(target) or isinstance(target, partial):
        return target
    attributes = getattr(target, "__dict__", {})
    written = [name for name, value in attributes.items() if inspect.isroutine(value)]
    for cls in type(target).__mro__:  # properties are not computed
        own = {} if _foreign(cls) else vars(cls)
        written += [name for name in own if callable(own[name]) or inspect.isroutine(own[name])]
    chosen = _method(target, methods, list(dict.fromkeys(written)))
    if made_here:
        others = [name for name in written if not name.startswith("_") and name != chosen]
        make_ready(target, others, values)
        return with_held(target, getattr(target, chosen))
    return target if chosen == "__call__" else getattr(target, chosen)


def _method(target: Any, methods: Sequence[str], written: Sequence[str]) -> str:
    """The name of the method that holds the gradient.

    One of `methods`; or the only one that is called alike, or that there is, or that asks for what
    is distilled.
    """
    public = [name for name in written if not name.startswith("_")]
    like = [name for name in public if any(word in name for word in methods)]
    exact = [name for name in methods if name in written]
    for found in (exact[:1], like, {"__call__", "training_step"} & set(written), public):
        if len(found) == 1:
            return next(iter(found))
    asking = [name for name in public if {"x", "image"} & keys(getattr(target, name))]
    if len(asking) == 1:
        return asking[0]
    known, name = ", ".join(methods), type(target).__name__
    raise Unreadable(f"{name} has none of the methods {known}; hand in one: object.method")


def _foreign(cls: type) -> bool:
    """Is this a base class of a library?"""
    own = (Pipeline.__module__, UNet.__module__)
    return cls.__module__.split(".")[0] in FOREIGN or cls.__module__ in own or is_made_up(cls)


def answered(result: Any) -> None:
    """Raise Unreadable for what a stub returns: None (`pass`, too) or `...`."""
    if result is None or result is ...:
        text = f"it returned {result}: return the gradient, or a loss to be back-propagated"
        raise Unreadable(text, "not answered")


def parts_of(result: Any) -> list[Any]:
    """An answer as a list: of a tuple's parts, or of itself alone."""
    return list(result) if isinstance(result, tuple | list) else [result]


def tensors_in(result: Any, shapes: Sequence[tuple[int, ...]], expected: str) -> list[Tensor]:
    """The tensors of an answer with the first of these shapes that occurs in it.

    Raises:
        Unreadable: a stub's answer, or another one; the message says what was expected.
    """
    answered(result)
    parts = list(result.values()) if isinstance(result, Mapping) else parts_of(result)
    came = [part for part in parts if isinstance(part, Tensor)]
    for shape in shapes:
        if found := [part for part in came if part.shape == shape]:
            return found
    words = ", ".join(str(tuple(part.shape)) for part in came) or type(result).__name__
    raise Unreadable(f"it returned {words}, expected {expected}", "wrong")


def gradient_of(result: Any, x: Tensor) -> tuple[Tensor, str, Tensor | None]:
    """Read an answer as a gradient with respect to x, back-propagating a loss where one came.

    Returns:
        gradient of x's shape; how it came ("gradient" or "loss"); the loss, if there was one.

    Raises:
        Unreadable: None, wrong shape, integers, no path back to x; the message is the verdict.
    """
    result = _chosen(result, x)
    usable = isinstance(result, Tensor) and (result.requires_grad or result.shape == x.shape)
    if x.grad is not None and not usable:
        return x.grad, "loss", None  # it back-propagated itself
    answered(result)
    if text := _unusable(result, x):
        raise Unreadable(text, "wrong")
    if result.shape == x.shape and result.numel() > 1:
        return result.detach(), "gradient", None
    result.sum().backward()
    if x.grad is None:
        text = "the gradient is None: the loss has a graph, but x is not in it. Were the latents"
        text += " detached (or encoded under no_grad) before they entered the loss?"
        raise Unreadable(text, "wrong")
    return x.grad, "loss", result.detach()


def _chosen(result: Any, x: Tensor) -> Any:
    """The gradient or loss in a dictionary or a tuple; numpy arrays as tensors."""
    if isinstance(result, Mapping):
        usual = ("loss", "loss_sds", "sds_loss", "grad", "gradient", *result)
        result = next((result[key] for key in usual if key in result), None)
    elif isinstance(result, tuple | list):
        for part in result:
            if isinstance(part, Tensor) and (part.numel() == 1 or part.shape == x.shape):
                return part
        result = result[0] if len(result) else None
    return torch.as_tensor(result) if isinstance(result, np.ndarray) else result


def _unusable(result: Any, x: Tensor) -> str:
    """Why an answer is neither a gradient of x nor a loss; "" where it is one."""
    if isinstance(result, int | float):
        lost = f"it returned the Python number {result!r}, which has no gradient"
        return f"{lost}: leave out .item() or float()"
    if not isinstance(result, Tensor):
        return f"it returned {type(result).__name__}, expected a tensor: the gradient or a loss"
    if not result.is_floating_point():
        return f"it returned integers ({result.dtype}), expected floating-point numbers"
    if result.shape == x.shape and result.numel() > 1:
        return ""
    if result.numel() != 1 and result.shape != x.shape[:1]:
        came, expected = tuple(result.shape), tuple(x.shape)
        return f"it returned shape {came}, expected {expected} (a gradient) or () (a loss)"
    if not result.requires_grad:
        text = "no gradient path: the loss does not depend on x as far as autograd knows. Was it"
        return f"{text} computed under no_grad, or from detached latents?"
    return ""


def training_of(result: Any, trace: Trace) -> list[tuple[Call, Tensor]]:
    """What q's predictions get from each loss that came, and what has been back-propagated."""
    asked = [call for call in trace.calls if call.model == "q" and call.eps_hat.requires_grad]
    predictions = [call.eps_hat for call in asked]
    found = [(call, call.eps_hat.grad) for call in asked]
    seen = [(tensor, tensor.grad) for tensor in [*trace.on_graph, *predictions]]
    for tensor, _ in seen:
        tensor.grad = None
    for part in result.values() if isinstance(result, Mapping) else parts_of(result):
        if predictions and isinstance(part, Tensor) and part.requires_grad:
            with suppress(RuntimeError):  # its graph is gone: it has been back-propagated
                gradients = torch.autograd.grad(
                    part.sum(), predictions, retain_graph=True, allow_unused=True
                )
                found += zip(asked, gradients, strict=True)
    for tensor, before in seen:  # recorded tensors keep gradients: this was no part of the run
        tensor.grad = before
    return [(call, gradient.clone()) for call, gradient in found if gradient is not None]
