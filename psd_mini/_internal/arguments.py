"""Arguments are looked at where a call enters a function, and what does not fit is named in one
line.

A signature already says what a function takes, so nothing is written twice: `validated` reads the
annotations,

    Float[Tensor, "b 3 h w"]    a floating-point tensor of that shape, finite; a name stands for one
                                size, not 0
    Int[Tensor, "b"]            the same for integers (their range is the function's own affair)
    Real[Tensor, "..."]         the same for real numbers, infinite ones too: log-weights
    Tensor                      any tensor
    float, int, str, bool       a finite number, a whole number, a string, True or False
    X | None, tuple[X, Y], Sequence[X], Callable, any class

and compares. numpy's numbers count as numbers and become Python's. A parameter without annotation,
or with Any, is the function's own affair. Where a loop has looked already, it calls the function
behind the decorator, `unchecked(function)`.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar, Union, get_args, get_origin

import jaxtyping
import numpy as np
import torch
from torch import Tensor

Target = TypeVar("Target", bound=Callable)
WORDS: dict[Any, str] = {
    **{float: "a finite number", int: "a whole number", str: "a string", bool: "True or False"},
    **{type(None): "None", Callable: "a function", Tensor: "a tensor"},
}


class ArgumentError(TypeError, ValueError):
    """An argument of the wrong type, shape or value; the message names it. Whether that is a
    TypeError or a ValueError is a matter of taste, so it is both."""


def validated(target: Target) -> Target:
    """Decorator of a function, or of a class: its constructor, its public methods and calls of its
    instances.

    What is decorated raises ArgumentError for the first argument that does not fit its annotation,
    or has NaN or infinity in it, and for tensors that torch cannot bring together.
    """
    if isinstance(target, type):
        for name, member in list(vars(target).items()):
            public = name[0] != "_" or name in ("__init__", "__call__", "__getitem__")
            if public and isinstance(member, classmethod):
                setattr(target, name, classmethod(validated(member.__func__)))
            elif public and isinstance(member, types.FunctionType):
                setattr(target, name, validated(member))
        return target

    @functools.wraps(target)
    def enter(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _python_numbers(args), {k: _python_numbers(v) for k, v in kwargs.items()}
        given = _check(target, args, kwargs)
        try:
            return target(*args, **kwargs)
        except (RuntimeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            too_large = "DefaultCPUAllocator" in reason or "Storage size" in reason
            own = {name: value for name, value in (given | kwargs).items() if name != "self"}
            named = [
                f"{k} {in_words(v)}"
                for k, v in own.items()
                if isinstance(v, (Tensor, int) if too_large else Tensor)
            ]
            # a function among the arguments may have failed by itself; and a GPU's memory is
            # another affair
            others_code = any(map(callable, own.values())) and not too_large
            if others_code or not named or isinstance(error, torch.OutOfMemoryError):
                raise
            what = "too large for the memory" if too_large else "do not fit together"
            raise ArgumentError(f"{', '.join(named)}: {what} ({reason})") from error

    return enter  # type: ignore[return-value]


def unchecked(function: Target) -> Target:
    """The function behind `validated`, for callers that have looked at the arguments themselves."""
    return getattr(function, "__wrapped__", function)


def _python_numbers(value: Any) -> Any:
    """numpy's scalars as Python numbers, also inside tuples and lists; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list) and any(isinstance(item, np.generic) for item in value):
        return type(value)(map(_python_numbers, value))
    return value


def check_options(function: Callable, options: dict[str, Any]) -> None:
    """Look at some arguments of a validated function as if they were given to it: for what is
    handed on as **options."""
    _check(function, (), options)


def at_least(name: str, value: Any, least: float, whole: bool = True) -> None:
    """Refuse what is not a whole (or, else, a finite) number of at least so much, with an
    ArgumentError that names it."""
    if not isinstance(value, Integral if whole else Real) or not least <= value < math.inf:  # type: ignore[operator]
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ArgumentError(
            f"{name}: expected a {'whole' if whole else 'finite'} number{bound}, got"
            f" {in_words(value)}"
        )


def needs(name: str, value: Any, *attributes: str) -> None:
    """Refuse an object that lacks an attribute, with an ArgumentError that names the argument
    and what is missing."""
    if missing := [attribute for attribute in attributes if not hasattr(value, attribute)]:
        raise ArgumentError(
            f"{name}: expected an object with {', '.join(attributes)}; {in_words(value)} has no"
            f" {missing[0]}"
        )


def as_numbers(name: str, value: Any, **kind: Any) -> Tensor:
    """`torch.as_tensor` with an ArgumentError that names the argument where it fails."""
    try:
        if not torch.as_tensor(value).is_complex():
            return torch.as_tensor(value, **kind)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ArgumentError(f"{name}: expected real numbers, got {in_words(value)}")


def in_words(value: Any) -> str:
    """A value in a few words, on one line."""
    if isinstance(value, Tensor):
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{place}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


@functools.cache
def _hints(function: Callable) -> tuple[inspect.Signature, dict[str, Any]]:
    """The signature, and what its annotations say of the parameters that have one."""
    signature, names = inspect.signature(function), inspect.unwrap(function).__globals__  # type: ignore[attr-defined]
    hints = {}
    for name, parameter in signature.parameters.items():
        hint = parameter.annotation
        if hint is not parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            hint = eval(hint, names) if isinstance(hint, str) else hint
            hints[name] = Sequence[hint] if parameter.kind is parameter.VAR_POSITIONAL else hint  # type: ignore[valid-type]
    return signature, hints


def _check(function: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, after a look at each."""
    signature, hints = _hints(function)
    given = signature.bind_partial(*args, **kwargs).arguments  # what is missing Python says itself
    seen: list[str] = []
    with jaxtyping.jaxtyped("context"):  # within it a name in two shapes is one size
        for name, value in given.items():
            hint = hints.get(name, Any)
            if not _fits(value, hint):
                beside = f" beside {', '.join(seen)}" if seen and isinstance(value, Tensor) else ""
                raise ArgumentError(
                    f"{name}: expected {_expected(hint)}, got"
                    f" {in_words(value)}{beside}{_remedy(value, hint)}"
                )
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor):
                    _look_at_numbers(name, tensor, hint)
            seen += [f"{name} {in_words(value)}"] if isinstance(value, Tensor) else []
    return given


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if hint is float:
        return isinstance(value, Real) and math.isfinite(value)
    if hint is int:
        return isinstance(value, Integral) and abs(int(value)) < 2**63
    if hint is str:
        return isinstance(value, str) and "\0" not in value  # which no file's name can hold
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
        )
    if origin in (list, Sequence):
        return (
            isinstance(value, origin)
            and not isinstance(value, str)
            and all(_fits(item, parts[0]) for item in value)
        )
    return isinstance(value, origin or hint)


def _expected(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_expected, parts))
    if origin is tuple:
        return f"({', '.join(map(_expected, parts))})"
    if origin in (list, Sequence):
        return f"a list ({_expected(parts[0])}, ...)"
    if hasattr(hint, "dim_str"):
        kind = {jaxtyping.Float: "a floating-point", jaxtyping.Int: "an integer"}.get(
            hint.dtype, "a"
        )
        return f"{kind} tensor ({', '.join(hint.dim_str.split())})"
    hint = origin or hint
    return WORDS.get(hint) or hint.__name__


def _remedy(value: Any, hint: Any) -> str:
    hints = (hint, *get_args(hint))
    kinds = {part.dtype for part in hints if hasattr(part, "dim_str")}
    if isinstance(value, Tensor) and jaxtyping.Float in kinds and not value.is_floating_point():
        return "; convert with .float()"
    return (
        "; use torch.tensor([...])"
        if kinds and isinstance(value, Real | list) and float not in hints
        else ""
    )


def _look_at_numbers(name: str, value: Tensor, hint: Any) -> None:
    hints = (hint, *get_args(hint))
    if value.is_meta:
        raise ArgumentError(
            f"{name}: expected a tensor with numbers in it, got one on the device meta"
        )
    if Tensor in hints:
        return
    if value.numel() == 0 and not any(
        "0" in getattr(part, "dim_str", "").split() for part in hints
    ):
        raise ArgumentError(f"{name}: expected numbers, got an empty tensor {in_words(value)}")
    if any(getattr(part, "dtype", None) is jaxtyping.Real for part in hints):
        if bool(value.isnan().any()):
            raise ArgumentError(f"{name}: expected numbers, got NaN; look at how it was computed")
    elif value.is_floating_point() and not bool(value.isfinite().all()):
        raise ArgumentError(
            f"{name}: expected finite numbers, got NaN or infinity; look at how it was computed"
        )
