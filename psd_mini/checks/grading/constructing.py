"""Making an object of a submitted class: what its constructor asks for, and what has to come first.

A parameter gets what its name asks for; one with a simple default keeps that. Options (`opt`,
`args`, `cfg`) answer to every name, with a value where `names.OPTIONS` knows one. What the object
holds of `names.HELD`, such as a guidance scale, is varied as an argument would be.
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

from psd_mini.checks.grading import names as known
from psd_mini.checks.grading.missing import named, names_in
from psd_mini.checks.grading.names import key_of

ARGS = named("options", "args")
PROMPTS = re.compile("((neg(ative)?_)?(prompt|text|caption)|neg(ative)?)s?")
ENCODES = {"tokenizer", "text_encoder", "encode_prompt", "tokenize"}
NUMBERS = (float, int)
KEPT = (str, dict, *NUMBERS)  # defaults of these types stay
EMBEDDINGS = ("cond", "uncond", "n")


def construct(cls: type, values: Mapping[str, Any]) -> Any:
    """An object of a class.

    Args:
        values: what its parameters can be given, by the keys of `names.NAMES`. A configuration
            that is a dataclass is made of its defaults.
    """
    hints, given = {}, {}
    if "cond" in values and "uncond" not in known.keys(cls):  # diffusers stacks them
        values = {**values, "cond": torch.cat((values["uncond"], values["cond"]))}
    with suppress(Exception):  # annotations that need what is not there
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    texts = bool(ENCODES & names_used(cls))
    for name, parameter in known.parameters(cls).items():
        default, required = parameter.default, parameter.default is parameter.empty
        key = "args" if name == "cfg" else key_of(name, guess=required)
        if dataclasses.is_dataclass(hints.get(name)):
            given[name] = construct(hints[name], {})
        elif isinstance(default, NUMBERS) and key in known.HELD and default >= 1:
            given[name] = known.HELD[key][1]
        elif (texts and _is_text(parameter)) or (required and key not in values):
            given[name] = known.option(name, ARGS)
        elif key in values and (not isinstance(default, KEPT) or key in ("device", "fp16")):
            given[name] = values[key]
    return known.invoke(cls, given)


def _is_text(parameter: inspect.Parameter) -> bool:
    """Is it a prompt? One of its own, too: only ours can be told from the negative one."""
    given = parameter.default is parameter.empty or isinstance(parameter.default, str)
    return given and PROMPTS.fullmatch(parameter.name) is not None


def names_used(cls: type) -> set[str]:
    """Names of globals and attributes in the methods of a class."""
    found: set[str] = set()
    for base in cls.__mro__:
        for method in vars(base).values() if base.__module__ == cls.__module__ else ():
            code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
            found |= names_in(code) if code else set()
    return found


def make_ready(made: Any, methods: list[str], values: Mapping[str, Any]) -> None:
    """Call those methods that take prompts or embeddings and nothing else: they keep them."""
    texts = bool(ENCODES & names_used(type(made)))
    for name in methods:
        given: dict[str, Any] = {}
        with suppress(Exception):  # it was no such method
            for parameter, how in known.parameters(getattr(made, name)).items():
                if texts and PROMPTS.fullmatch(parameter):
                    text = known.option(parameter)
                    given[parameter] = [text] if parameter.endswith("s") else text
                elif how.default is how.empty:
                    key = key_of(parameter)
                    given[parameter] = values[key] if key in (*EMBEDDINGS, "prompt") else None
            if given and None not in given.values():
                known.invoke(getattr(made, name), given)


def with_held(made: Any, method: Callable) -> Callable:
    """A method of an object that was made here, with what the object holds as further arguments.

    It holds one in an attribute that its constructor filled with the value of `HELD`, in a
    configuration, or in `ARGS`.
    """
    own, used = getattr(made, "__dict__", {}), names_used(type(made))
    places, more = [], []
    for key, (pattern, value) in known.HELD.items():
        found = [(own, name) for name, kept in own.items() if kept is value] + _inside(own, value)
        names = {name for name in used if known.option(name) is value}
        if not found and names - own.keys() and any(kept is ARGS for kept in own.values()):
            found = [(known.OPTIONS, pattern)]
        if found and key not in known.keys(method):
            places += [(key, *place) for place in found]
            more.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value))

    def call(*args: Any, **kwargs: Any) -> Any:
        asked = {
            parameter.name: kwargs.pop(parameter.name, parameter.default) for parameter in more
        }
        for key, holder, name in places:
            holder[name] = asked[key]
        try:
            return method(*args, **kwargs)
        finally:
            known.OPTIONS.update(known.HELD.values())

    taken, call.__doc__ = [*known.parameters(method).values(), *more], method.__doc__
    call.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    call.__self__ = made  # type: ignore[attr-defined]
    return call if more else method


def _inside(holder: dict[str, Any], wanted: float) -> list[tuple[dict[str, Any], str]]:
    """Where the configurations in these attributes hold the option that has the wanted value."""
    places = []
    for value in holder.values():
        if dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace | dict):
            inside = value if isinstance(value, dict) else vars(value)
            for name, number in inside.items():
                if known.option(name) is wanted and isinstance(number, int | float) and number >= 1:
                    places.append((inside, name))
            places += _inside(inside, wanted)
    return places
