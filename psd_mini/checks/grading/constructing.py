"""Making an object of a submitted class: what its constructor asks for, and what has to come first.

A parameter gets what its name asks for; one with a simple default keeps that. Options (`opt`,
`args`, `cfg`) answer to every name, with a value where `names.OPTIONS` knows one. A guidance scale
that the object holds is varied as an argument would be.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import torch

from psd_mini.checks.grading.missing import named, names_in
from psd_mini.checks.grading.names import (
    GUIDANCE,
    GUIDED,
    OPTIONS,
    Names,
    invoke,
    key_of,
    keys,
    option,
    parameters,
)

ARGS = named("options", "args")
PROMPTS = re.compile("((neg(ative)?_)?(prompt|text|caption)|neg(ative)?)s?")
ENCODES = {"tokenizer", "text_encoder", "encode_prompt", "tokenize"}
EMBEDDINGS = ("cond", "uncond", "n")


def construct(cls: type, values: Mapping[str, Any], names: Names = None) -> Any:
    """An object of a class.

    Args:
        values: what its parameters can be given, by the keys of `names.NAMES`. A configuration
            that is a dataclass is made of its defaults.
        names: parameter -> key, for parameters with names of their own.
    """
    hints, given = {}, {}
    with suppress(Exception):  # annotations that need what is not there
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    texts = bool(ENCODES & names_used(cls))
    for name, parameter in parameters(cls).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default, required = parameter.default, parameter.default is parameter.empty
        key = "args" if name == "cfg" else key_of(name, names, guess=required)
        simple = isinstance(default, str | float | int)
        if dataclasses.is_dataclass(hints.get(name)):
            given[name] = construct(hints[name], {})
        elif simple and key == "guidance_scale" and default >= 1:
            given[name] = GUIDANCE
        elif (texts and PROMPTS.fullmatch(name) and required) or (required and key not in values):
            given[name] = option(name, ARGS)
        elif key in values and (not simple or key in ("device", "fp16")):
            given[name] = values[key]
    prompts = [name for name, value in given.items() if value is values.get("uncond", ARGS)]
    for name, value in given.items():
        if value is values.get("cond") and not prompts:  # diffusers stacks them
            given[name] = torch.cat((values["uncond"], values["cond"]))
    return invoke(cls, given)


def names_used(cls: type) -> set[str]:
    """Names of globals and attributes in the methods of a class."""
    found: set[str] = set()
    for method in vars(cls).values():
        code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
        found |= names_in(code) if code else set()
    return found


def make_ready(made: Any, methods: list[str], values: Mapping[str, Any]) -> None:
    """Call those methods that take prompts or embeddings and nothing else: they keep them."""
    texts = bool(ENCODES & names_used(type(made)))
    for name in methods:
        method, given = getattr(made, name), {}
        for parameter, how in parameters(method).items():
            required = how.default is how.empty and how.kind is how.POSITIONAL_OR_KEYWORD
            if texts and PROMPTS.fullmatch(parameter):
                text = option(parameter)
                given[parameter] = [text] if parameter.endswith("s") else text
            elif required:
                key = key_of(parameter)
                given[parameter] = values[key] if key in (*EMBEDDINGS, "prompt") else None
        if given and None not in given.values():
            with suppress(Exception):
                invoke(method, given)


def with_guidance(method: Callable) -> Callable:
    """A method of an object that was made here, with the guidance scale that it holds as argument.

    It holds one in an attribute that its constructor filled with `GUIDANCE`, in a configuration,
    or in `ARGS`. Otherwise the method comes back as it is.
    """
    made, signature = method.__self__, inspect.signature(method)  # type: ignore[attr-defined]
    own = vars(made)
    places = [(own, name) for name, value in own.items() if value is GUIDANCE] + _guidance_in(own)
    used = [name for name in names_used(type(made)) if option(name) is GUIDANCE]
    if not places and used and not own.keys() & used and any(v is ARGS for v in own.values()):
        places.append((OPTIONS, GUIDED))
    if not places or "guidance_scale" in keys(method):
        return method

    def call(*args: Any, guidance_scale: float, **kwargs: Any) -> Any:
        for holder, name in places:
            holder[name] = guidance_scale
        try:
            return method(*args, **kwargs)
        finally:
            OPTIONS[GUIDED] = GUIDANCE

    g = inspect.Parameter("guidance_scale", inspect.Parameter.KEYWORD_ONLY)
    others = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    call.__signature__ = signature.replace(parameters=[*others, g])  # type: ignore[attr-defined]
    call.__self__ = made  # type: ignore[attr-defined]
    return call


def _guidance_in(holder: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where the configurations in these attributes hold a guidance scale."""
    places = []
    for value in holder.values():
        if dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace | dict):
            inside = value if isinstance(value, dict) else vars(value)
            for name, number in inside.items():
                if option(name) is GUIDANCE and isinstance(number, int | float) and number >= 1:
                    places.append((inside, name))
            places += _guidance_in(inside)
    return places
