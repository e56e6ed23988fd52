"""Arguments are looked at where a call enters a function; what does not fit is named in one line.

A signature already says what a function takes, so nothing is written twice: `validated` reads the
annotations,

    Float[Tensor, "b 3 h w"]    a floating-point tensor of that shape, with finite numbers; a name
                                stands for one size, which is not 0
    Int[Tensor, "b"]            the same for integers (the function itself looks at their range)
    Real[Tensor, "..."]         the same for real numbers, also infinite ones: log-weights
    Tensor                      any tensor
    float, int, str, bool       a finite number, a whole number, a string, True or False
    X | None, tuple[X, Y], Sequence[X], Callable, any class

and compares. numpy's numbers count as numbers and become Python's. The function itself looks at a
parameter without annotation, or with Any. A loop that looks for NaN itself, and can say where it
came from, switches that part off (`numbers_known`): types and shapes are looked at always.
"""

import functools
import inspect
import math
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
_NUMBERS_KNOWN = ContextVar("numbers_known", default=False)
KINDS = {jaxtyping.Float: "a floating-point", jaxtyping.Int: "an integer"}


class ArgumentError(TypeError, ValueError):
    """An argument of the wrong type, shape or value; the message names it.

    It is both a TypeError and a ValueError, so that callers may catch either.
    """


class RefusedError(ArgumentError):
    """Arguments that torch refused together; the outermost call names its own."""


def validated(target: Target) -> Target:
    """Decorator of a function, or of a class: its constructor, public methods and calls.

    What is decorated raises ArgumentError for the first argument that does not fit its annotation,
    or has NaN or infinity in it, and for tensors that torch cannot bring together.
    """
    if isinstance(target, type):
        for name, member in list(vars(target).items()):
            if name[0] == "_" and name not in ("__init__", "__call__", "__getitem__"):
                continue
            if isinstance(member, classmethod):
                setattr(target, name, classmethod(validated(member.__func__)))
            elif isinstance(member, types.FunctionType):
                setattr(target, name, validated(member))
        return target

    @functools.wraps(target)
    def enter(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _python_numbers(args), _python_numbers(kwargs)
        given = _check(target, args, kwargs)
        try:
            return target(*args, **kwargs)
        except (RuntimeError, IndexError, RefusedError) as error:
            if complaint := _blame({**given, **kwargs}, error):
                raise complaint from error
            raise

    return enter  # type: ignore[return-value]


@contextmanager
def numbers_known() -> Iterator[None]:
    """Look at types and shapes only inside this block, which looks for NaN and infinity itself."""
    token = _NUMBERS_KNOWN.set(True)
    try:
        yield
    finally:
        _NUMBERS_KNOWN.reset(token)


def at_least(name: str, value: Any, least: float, whole: bool = True) -> None:
    """Refuse what is not a whole (or else a finite) number of at least so much."""
    kind: Any = Integral if whole else Real
    if not isinstance(value, kind) or not least <= value < math.inf:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        what = "whole" if whole else "finite"
        raise ArgumentError(f"{name}: expected a {what} number{bound}, got {in_words(value)}")


def one_of(name: str, value: Any, known: Collection[str]) -> None:
    """Refuse what is not among the known names."""
    if value not in known:
        raise ArgumentError(f"{name}: {value!r} is not known; choose from {', '.join(known)}")


def needs(name: str, value: Any, *attributes: str) -> None:
    """Refuse an object that lacks one of these attributes."""
    for attribute in attributes:
        if not hasattr(value, attribute):
            expected = f"an object with {', '.join(attributes)}"
            came = f"{in_words(value)} has no {attribute}"
            raise ArgumentError(f"{name}: expected {expected}; {came}")


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


def first_line(error: BaseException) -> str:
    """An error's message on one line, at most 200 characters; without a message its type."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def named(what: str, remedy: str) -> Iterator[None]:
    """Any error in the block becomes a ValueError of one line: what is wrong, why, what to do."""
    try:
        yield
    except Exception as error:  # files, torch and its relatives raise many kinds
        raise ValueError(f"{what} ({first_line(error)}); {remedy}") from None


def _python_numbers(value: Any) -> Any:
    """numpy's scalars as Python numbers, also in tuples, lists and dictionaries."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list):
        return type(value)([_python_numbers(item) for item in value])
    if type(value) is dict:
        return {key: _python_numbers(item) for key, item in value.items()}
    return value


def _blame(given: dict[str, Any], error: Exception) -> ArgumentError | None:
    """What to say of an error that torch raised about these arguments; None if they had no part."""
    while isinstance(error, RefusedError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # an inner call has named its own arguments
    reason = " ".join(str(error).split())[:200]
    too_large = "DefaultCPUAllocator" in reason or "Storage size" in reason
    kinds: Any = (Tensor, int) if too_large else Tensor
    own = {name: value for name, value in given.items() if name != "self"}
    named = [f"{k} {in_words(value)}" for k, value in own.items() if isinstance(value, kinds)]
    if not named or isinstance(error, torch.OutOfMemoryError):  # a GPU's memory is not an argument
        return None
    if too_large:
        return RefusedError(f"{', '.join(named)}: too large for the memory ({reason})")
    if any(map(callable, own.values())):  # a function among them may have failed by itself
        return None
    return RefusedError(f"{', '.join(named)}: do not fit together ({reason})")


@functools.cache
def _hints(function: Callable) -> tuple[dict[str, Any], int, set[tuple]]:
    """What the annotations say of each parameter; from which argument on they are `*several`; and
    the shapes of tensors that were found to fit together, none so far."""
    parameters = inspect.signature(function).parameters
    hints: dict[str, Any] = {}
    several = len(parameters)
    names = inspect.unwrap(function).__globals__  # type: ignore[attr-defined]
    for name, parameter in parameters.items():
        hint = Any if parameter.annotation is parameter.empty else parameter.annotation
        hint = eval(hint, names) if isinstance(hint, str) else hint
        if parameter.kind is parameter.VAR_POSITIONAL:
            several, hint = len(hints), Sequence[hint]  # type: ignore[valid-type]
        hints[name] = hint
    return hints, several, set()


def _check(function: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, after a look at each."""
    hints, several, fitting = _hints(function)
    args = (*args[:several], args[several:]) if len(args) > several else args
    # Python itself names what is missing, unknown or too many
    given = {**dict(zip(hints, args, strict=False)), **kwargs}
    # jaxtyping takes long over a shape, and a loop comes with the same shapes in every step
    shapes = tuple([(k, v.shape, v.dtype) for k, v in given.items() if isinstance(v, Tensor)])
    known = shapes in fitting
    with jaxtyping.jaxtyped("context"):  # within it a name in two shapes is one size
        for name, value in given.items():
            hint = hints.get(name, Any)
            if not (known and isinstance(value, Tensor)) and not _fits(value, hint):
                raise ArgumentError(_complaint(name, value, hint, given))
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor):
                    _look_at_numbers(name, tensor, hint)
    fitting.add(shapes)
    return given


def _complaint(name: str, value: Any, hint: Any, given: dict[str, Any]) -> str:
    """What to say of an argument that does not fit; a tensor is compared with those before it."""
    before = list(given)[: list(given).index(name)]
    seen = [f"{k} {in_words(given[k])}" for k in before if isinstance(given[k], Tensor)]
    beside = f" beside {', '.join(seen)}" if seen and isinstance(value, Tensor) else ""
    hints = (hint, *get_args(hint))
    kinds = {part.dtype for part in hints if hasattr(part, "dim_str")}
    remedy = ""
    if isinstance(value, Tensor) and jaxtyping.Float in kinds and not value.is_floating_point():
        remedy = "; convert with .float()"
    elif kinds and isinstance(value, Real | list) and float not in hints:
        remedy = "; use torch.tensor([...])"
    return f"{name}: expected {_expected(hint)}, got {in_words(value)}{beside}{remedy}"


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(hint, type):
        return _fits_one(value, hint)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        same = isinstance(value, tuple) and len(value) == len(parts)
        return same and all(map(_fits, value, parts))
    if origin in (list, Sequence):
        several = isinstance(value, origin) and not isinstance(value, str)
        return several and all(_fits(item, parts[0]) for item in value)
    return _fits_one(value, origin or hint)


def _fits_one(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value)
    if kind is int:
        return isinstance(value, Integral) and abs(int(value)) < 2**63
    if kind is str:
        return isinstance(value, str) and "\0" not in value  # which no file's name can hold
    return isinstance(value, kind)


def _expected(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_expected, parts))
    if origin is tuple:
        return f"({', '.join(map(_expected, parts))})"
    if origin in (list, Sequence):
        return f"a list ({_expected(parts[0])}, ...)"
    if hasattr(hint, "dim_str"):
        return f"{KINDS.get(hint.dtype, 'a')} tensor ({', '.join(hint.dim_str.split())})"
    hint = origin or hint
    return WORDS.get(hint) or hint.__name__


def _look_at_numbers(name: str, value: Tensor, hint: Any) -> None:
    """Refuse a tensor without numbers, or with NaN, or (but for Real) with infinity."""
    if value.is_meta:
        raise ArgumentError(f"{name}: expected a tensor with numbers, got one on the device meta")
    hints = (hint, *get_args(hint))
    if _NUMBERS_KNOWN.get() or Tensor in hints:
        return
    shapes = [getattr(part, "dim_str", "").split() for part in hints]
    if value.numel() == 0 and not any("0" in shape for shape in shapes):
        raise ArgumentError(f"{name}: expected numbers, got an empty tensor {in_words(value)}")
    if not value.is_floating_point() or math.isfinite(value.detach().sum().item()):
        return  # a finite sum has finite terms: this look is several times faster than the next
    if any(getattr(part, "dtype", None) is jaxtyping.Real for part in hints):
        if bool(value.isnan().any()):
            raise ArgumentError(f"{name}: expected numbers, got NaN; look at how it was computed")
    elif not bool(value.isfinite().all()):
        problem = "NaN or infinity; look at how it was computed"
        raise ArgumentError(f"{name}: expected finite numbers, got {problem}")
