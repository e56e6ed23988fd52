"""Making an object of a submitted class: what its constructor asks for, and what has to come first.

A parameter gets what its name asks for (see `names`); one with a simple default keeps that. Nobody
knows what options a class wants, so `Options` have every name, with a value that the name suggests.
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

from psd_mini.checks.exact_world import T
from psd_mini.checks.grading.missing import names_in
from psd_mini.checks.grading.names import Names, invoke, key_of, keys, parameters
from psd_mini.checks.grading.small_libraries import Settings

PROMPT = "a red mushroom"
PROMPTS = re.compile("((neg(ative)?_)?(prompt|text|caption)|neg(ative)?)s?")
ENCODES = {"tokenizer", "text_encoder", "encode_prompt", "tokenize"}
EMBEDDINGS = ("cond", "uncond", "n")


class Number(float):
    """A number that may also be a section of options: `opt.guidance` or `opt.guidance.scale`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return option(name)


class Time(float):
    """A bound of t, as a part of all steps; where an integer is expected, a step."""

    def __index__(self) -> int:
        return round(self * T)

    __int__ = __index__


class Options(Settings):
    """Options of every name: false, smaller and larger than nothing where the name says nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name] if name in self else option(name)

    def __missing__(self, name: str) -> Any:
        return option(name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __lt__(self, _: Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __lt__


GUIDANCE, GUIDED = Number(7.5), r"\w*guid\w*|\w*cfg\w*|scale|s|g|w"
OPTIONS: dict[str, Any] = {  # by what the whole name is like; the first decides
    r"guid\w*lora": 1.0,
    r"\w*rescale": 0.0,
    r"(lambda|lam|weight|w)_(sd|sds|psd|vsd|csd|guidance)|(grad|loss)_scale": 1.0,
    r"lam|lambda_?|lmbda|(lambda_)?pref\w*": 1.0,
    r"tau|temperature": 1.0,
    GUIDED: GUIDANCE,
    r"(t|time|\w*step|noise)_(min|lo|low)\w*|(min|lo|low)_(t|time|\w*step|noise)\w*": Time(0.02),
    r"(t|time|\w*step|noise)_(max|hi|high)\w*|(max|hi|high)_(t|time|\w*step|noise)(_\w*)?": Time(0.98),
    r"(t|time\w*|step|noise)_(range|bounds)": (Time(0.02), Time(0.98)),
    r"device": "cpu",
    r"\w*dtype|precision|weights_dtype": torch.float32,
    r"sd_version": "1.5",
    r"neg\w*": "",
    r"prompts?|texts?|caption": PROMPT,
    r"[hw]": 64,
    r"seed": 0,
    r"batch|batch_size|bs": 1,
    r"rank|r": 4,
    r"lr|learning_rate": 1e-3,
    r"(n|num|max|total)_(iters|steps)|iters|num_train_timesteps": T,
}


def option(name: str) -> Any:
    """The value of an option that nobody knows, by its name."""
    for pattern, value in OPTIONS.items():
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return value
    return Options()


def construct(cls: type, values: Mapping[str, Any], names: Names = None) -> Any:
    """An object of a class.

    Args:
        values: what its parameters can be given, by the keys of `names.NAMES`. A configuration
            that is a dataclass is made of its defaults.
        names: parameter -> key, for parameters with names of their own.
    """
    OPTIONS[GUIDED] = GUIDANCE  # an earlier object may have changed it
    hints, given = {}, {}
    with suppress(Exception):  # annotations that need what is not there
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    texts = bool(ENCODES & names_used(cls))
    for name, parameter in parameters(cls).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required, default = parameter.default is parameter.empty, parameter.default
        key, hint = key_of(name, names, guess=required), hints.get(name)
        simple = isinstance(default, str | float | int) and not required
        if dataclasses.is_dataclass(hint):
            given[name] = construct(hint, {})  # type: ignore[arg-type]
        elif simple and key == "guidance_scale" and default >= 1:
            given[name] = GUIDANCE
        elif simple and key not in ("device", "fp16"):
            continue
        elif (texts and PROMPTS.fullmatch(name)) or (required and key not in values):
            given[name] = option(name)
        elif name in ("cfg", "config"):
            given[name] = Options()
        elif key in values:
            given[name] = values[key]
    embeddings = {id(values[key]) for key in EMBEDDINGS if key in values}
    only = [name for name, value in given.items() if id(value) in embeddings]
    if len(only) == 1 and given[only[0]] is values["cond"]:  # diffusers stacks them
        given[only[0]] = torch.cat((values["uncond"], values["cond"]))
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
            key, required = key_of(parameter), how.default is how.empty
            if PROMPTS.fullmatch(parameter) and texts:
                text = option(parameter)
                given[parameter] = [text] if parameter.endswith("s") else text
            elif required and how.kind is how.POSITIONAL_OR_KEYWORD:
                given[parameter] = values.get(key) if key in (*EMBEDDINGS, "prompt") else None
        if given and None not in given.values():
            with suppress(Exception):
                invoke(method, given)


def with_guidance(method: Callable) -> Callable:
    """A method of an object that was made here, with the guidance scale that it holds as argument.

    It holds one in an attribute that its constructor filled with `GUIDANCE`, in a configuration,
    or in `Options`. Otherwise the method comes back as it is.
    """
    made, signature = method.__self__, inspect.signature(method)  # type: ignore[attr-defined]
    own = vars(made)
    places = [(own, name) for name, value in own.items() if value is GUIDANCE]
    places += _guidance_in(own)
    if any(isinstance(value, Options) for value in own.values()) and not places:
        used = [name for name in names_used(type(made)) if option(name) is GUIDANCE]
        if used and not any(name in own for name in used):
            places.append((OPTIONS, GUIDED))
    if not places or "guidance_scale" in keys(method):
        return method

    def call(*args: Any, guidance_scale: float, **kwargs: Any) -> Any:
        for holder, name in places:
            holder[name] = Number(guidance_scale)
        return method(*args, **kwargs)

    g = inspect.Parameter("guidance_scale", inspect.Parameter.KEYWORD_ONLY)
    more = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    call.__signature__ = signature.replace(parameters=[*more, g])  # type: ignore[attr-defined]
    call.__self__ = made  # type: ignore[attr-defined]
    return call


def _guidance_in(holder: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where the configurations in these attributes hold a guidance scale."""
    places = []
    for value in holder.values():
        if dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace):
            value = vars(value)
        elif not isinstance(value, Settings) or isinstance(value, Options):
            continue
        for name, number in value.items():
            if option(name) is GUIDANCE and isinstance(number, int | float) and number >= 1:
                places.append((value, name))
        places += _guidance_in(value)
    return places
