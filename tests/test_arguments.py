"""What a signature says is what a call may bring; what does not fit is named in one line.

The calls are made up here: the package's own are in test_bad_values.py. A wrong implementation is
any that lets a value in that its annotation does not say, refuses one that it says, or blames
another argument."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from psd_mini._internal.arguments import (
    ArgumentError,
    as_numbers,
    at_least,
    first_line,
    in_words,
    named,
    needs,
    numbers_known,
    one_of,
    validated,
)

NAN, INF = math.nan, math.inf
PAIR = torch.ones(2)
NUMBER, WHOLE = "a finite number", "a whole number"


def taking(hint):
    """A function of one `value` of this kind, which it returns."""

    def take(value):
        return value

    take.__annotations__ = {"value": hint}
    return validated(take)


# what is annotated, values that fit, and what each that does not is answered
KINDS = [
    (float, [1, 0.5, np.float32(0.5)], {"1": f"{NUMBER}, got '1'", NAN: f"{NUMBER}, got nan"}),
    (float, [-1e300], {INF: f"{NUMBER}, got inf", None: f"{NUMBER}, got None"}),
    (int, [3, np.int16(-3), 1 - 2**63], {0.5: f"{WHOLE}, got 0.5", 2**63: f"{WHOLE}, got {2**63}"}),
    (int, [2**63 - 1], {-(2**63): f"{WHOLE}, got {-(2**63)}", "3": f"{WHOLE}, got '3'"}),
    (str, ["", "a b"], {1: "a string, got 1", "a\0b": "a string, got 'a\\x00b'"}),
    (bool, [True, False], {1: "True or False, got 1"}),
    (float | None, [None, 0.5], {"x": f"{NUMBER} or None, got 'x'"}),
    (Float[Tensor, "b"] | None, [None], {0.5: "a floating-point tensor (b) or None, got 0.5; use"}),
    (tuple[float, int], [(0.5, 1)], {(0.5,): f"({NUMBER}, {WHOLE}), got (0.5,)"}),
    (tuple[float, int], [], {(1, 0.5): f"({NUMBER}, {WHOLE}), got (1, 0.5)", 1: f"({NUMBER}, "}),
    (Sequence[str], [["a"], ("a", "b"), []], {"ab": "a list (a string, ...), got 'ab'"}),
    (Sequence[str], [], {("a", 1): "a list (a string, ...), got ('a', 1)", None: "a list"}),
    (list[int], [[1, 2]], {(1,): f"a list ({WHOLE}, ...), got (1,)"}),
    (Callable, [len], {1: "a function, got 1"}),
    (Callable[[int], int], [abs], {"abs": "a function, got 'abs'"}),
    (Path, [Path("a")], {"a": "Path, got 'a'"}),
    (Tensor, [PAIR * NAN, torch.ones(0)], {1: "a tensor, got 1"}),
]


@pytest.mark.parametrize(("hint", "good", "bad"), KINDS)
def test_values_are_what_the_annotation_says(hint, good, bad):
    take = taking(hint)
    for value in good:
        assert take(value) is value or take(value) == value
    for value, answer in bad.items():
        with pytest.raises(ArgumentError) as error:
            take(value)
        assert str(error.value).startswith(f"value: expected {answer}")
        assert isinstance(error.value, TypeError) and isinstance(error.value, ValueError)


FLOAT, NUMBERS = "a floating-point tensor", "got NaN or infinity; look at how it was computed"
TENSORS = [
    (Float[Tensor, "b 3"], torch.ones(2, 2), f"{FLOAT} (b, 3), got (2, 2) float32"),
    (Float[Tensor, "b 3"], torch.ones(3), f"{FLOAT} (b, 3), got (3,) float32"),
    (Float[Tensor, "b"], PAIR.int(), f"{FLOAT} (b), got (2,) int32; convert with .float()"),
    (Float[Tensor, "b"], [1.0, 2.0], f"{FLOAT} (b), got [1.0, 2.0]; use torch.tensor([...])"),
    (Float[Tensor, "b"], 2.5, f"{FLOAT} (b), got 2.5; use torch.tensor([...])"),
    (Float[Tensor, "b"], "2", f"{FLOAT} (b), got '2'"),
    (float | Float[Tensor, "b"], [1.0], f"{NUMBER} or {FLOAT} (b), got [1.0]"),
    (Int[Tensor, "b"], PAIR, "an integer tensor (b), got (2,) float32"),
    (Real[Tensor, "b 1"], PAIR, "a tensor (b, 1), got (2,) float32"),
    (Float[Tensor, "b"], PAIR * NAN, f"finite numbers, {NUMBERS}"),
    (Float[Tensor, "b"], torch.tensor([1, -INF]), f"finite numbers, {NUMBERS}"),
    (Float[Tensor, "b"], torch.tensor([INF, -INF]), f"finite numbers, {NUMBERS}"),
    (Real[Tensor, "b"], torch.tensor([1, NAN]), "numbers, got NaN; look at how it was computed"),
    (Float[Tensor, "b 3"], torch.ones(0, 3), "numbers, got an empty tensor (0, 3) float32"),
    (Sequence[Float[Tensor, "b"]], [PAIR, PAIR * NAN], f"finite numbers, {NUMBERS}"),
    (Tensor, torch.ones(2, device="meta"), "a tensor with numbers, got one on the device meta"),
]


@pytest.mark.parametrize(("hint", "value", "answer"), TENSORS)
def test_tensors_that_do_not_fit(hint, value, answer):
    with pytest.raises(ArgumentError) as error:
        taking(hint)(value)
    assert str(error.value) == f"value: expected {answer}"


def test_tensors_that_fit():
    """A sum that overflows has finite terms; log-weights may be infinite; "0" may be empty."""
    huge = torch.full((3,), 3e38)
    # exact: infinity is no rounding
    assert huge.sum() == INF and taking(Float[Tensor, "b"])(huge) is huge
    weights = torch.tensor([0.0, -INF])
    assert taking(Real[Tensor, "b"])(weights) is weights
    assert taking(Float[Tensor, "0 3"])(torch.ones(0, 3)).numel() == 0
    whole = torch.tensor([1, 2])
    assert taking(Int[Tensor, "b"])(whole) is whole and taking(Real[Tensor, "b"])(whole) is whole


@validated
def pair(x: "Float[Tensor, 'b']", y: "Float[Tensor, 'b']", scale: float = 1.0, *more: int):
    return x * y * scale, more


def test_a_name_is_one_size_and_the_tensors_before_are_named():
    with pytest.raises(ArgumentError) as error:
        pair(PAIR, torch.ones(3))
    beside = "beside x (2,) float32"
    assert str(error.value) == f"y: expected {FLOAT} (b), got (3,) float32 {beside}"
    with pytest.raises(ArgumentError, match=f"^x: expected {FLOAT} .b., got .2,. int64; convert"):
        pair(PAIR.long(), PAIR)
    with pytest.raises(
        ArgumentError, match=r"^y: expected .*, got 1; use torch.tensor\(\[...\]\)$"
    ):
        pair(PAIR, 1)


def test_arguments_by_position_by_name_and_many():
    assert pair(PAIR, y=PAIR)[1] == () and pair(PAIR, PAIR, 2.0, 3, 4)[1] == (3, 4)
    for arguments, options, name in [
        ((PAIR, PAIR, "2"), {}, "scale"),
        ((PAIR, PAIR), {"scale": None}, "scale"),
        ((PAIR, PAIR, 2.0, 3, 0.5), {}, "more"),
        ((PAIR,), {"y": None}, "y"),
    ]:
        with pytest.raises(ArgumentError, match=f"^{name}: expected "):
            pair(*arguments, **options)
    for call in (lambda: pair(PAIR), lambda: pair(PAIR, PAIR, other=1)):
        with pytest.raises(TypeError, match="pair") as error:
            call()
        assert not isinstance(error.value, ArgumentError)  # Python's own words


def test_numpys_numbers_become_pythons_at_any_depth():
    class Row(NamedTuple):
        n: int

    @validated
    def same(*values, **options):
        return values, options

    two, half = np.int64(2), np.float32(0.5)
    values, options = same(two, (half, [two]), n=half, settings={"n": two}, row=Row(two))
    # exact: 2 and 1/2 in binary
    assert values == (2, (0.5, [2])) and options == {"n": 0.5, "settings": {"n": 2}, "row": (2,)}
    found = values[0], values[1][0], values[1][1][0], options["n"], options["settings"]["n"]
    assert [type(number) for number in found] == [int, float, int, float, int]
    assert type(options["row"]) is Row  # only plain tuples, lists and dictionaries are rebuilt


@validated
class Scale:
    """Everything public is looked at, what begins with an underscore is the class's own."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, x: float):
        return self.factor * x

    def __getitem__(self, index: int):
        return index

    def times(self, x: float):
        return self._times(x)

    def _times(self, x: float):
        return self.factor * x

    @classmethod
    def of(cls, text: str):
        return cls(float(text))


def test_a_class_is_looked_at_where_it_is_entered():
    scale = Scale(2)
    # exact: small whole numbers
    assert (scale(3), scale[4], scale.times(5), scale._times("a"), Scale.of("2").factor) == (
        *(6, 4, 10, "aa"),
        2.0,
    )
    for call, name in [
        (lambda: Scale("2"), "factor"),
        (lambda: scale("3"), "x"),
        (lambda: scale["a"], "index"),
        (lambda: scale.times(None), "x"),
        (lambda: Scale.of(2), "text"),
    ]:
        with pytest.raises(ArgumentError, match=f"^{name}: expected "):
            call()


def test_who_knows_the_numbers_is_not_asked_again():
    """NaN passes inside the block, shapes do not; after it, also after an error, NaN is refused."""
    take = taking(Float[Tensor, "b"])
    with pytest.raises(KeyError), numbers_known():
        assert take(PAIR * NAN).isnan().all() and take(torch.ones(0)).numel() == 0
        with pytest.raises(ArgumentError, match="^value: expected a floating-point"):
            take(torch.ones(2, 2))
        raise KeyError
    with pytest.raises(ArgumentError, match="^value: expected finite numbers"):
        take(PAIR * NAN)


class Layer:
    @validated
    def apply(self, x: Tensor, y: Tensor, name: str = "", n: int = 0):
        return x @ y

    @validated
    def outer(self, a: Tensor, b: Tensor, function: Callable | None = None):
        return self.apply(a, b)


def test_what_torch_refuses_is_named_by_the_outermost_call():
    with pytest.raises(ArgumentError) as error:
        Layer().apply(PAIR, y=torch.ones(3), name="z", n=4)
    before = "x (2,) float32, y (3,) float32: do not fit together (inconsistent tensor size, "
    assert str(error.value).startswith(before) and str(error.value).endswith(")")
    assert isinstance(error.value.__cause__, RuntimeError) and "\n" not in str(error.value)
    with pytest.raises(
        ArgumentError, match="^a .2,. float32, b .3,. float32: do not fit .*sistent"
    ):
        Layer().outer(PAIR, torch.ones(3))
    with pytest.raises(ArgumentError, match="^x .2,. float32, y "):  # a function may be at fault
        Layer().outer(PAIR, torch.ones(3), print)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no tensor"), IndexError("far"), torch.OutOfMemoryError("CUDA"), KeyError()],
)
def test_errors_that_are_not_of_the_arguments_stay(error):
    """Without tensors, out of a GPU's memory, or of a kind that torch does not raise for them."""

    @validated
    def fail(n: int, x: Tensor | None = None):
        raise error

    for x in () if type(error) in (RuntimeError, IndexError) else (PAIR,):
        with pytest.raises(type(error)) as raised:
            fail(1, x)
        assert raised.value is error
    with pytest.raises(type(error)) as raised:
        fail(1)
    assert raised.value is error


def test_what_is_too_large_for_the_memory_names_the_numbers():
    @validated
    def zeros(n: int, name: str = ""):
        return torch.zeros(n, n)

    for n in (2**25, 2**61):  # more than there is; more than can be counted
        with pytest.raises(ArgumentError, match=rf"^n {n}: too large for the memory \(.+\)$"):
            zeros(n, "a")


@pytest.mark.parametrize(
    ("value", "least", "whole", "answer"),
    [
        (2, 2, True, ""),
        (1, 2, True, "a whole number of at least 2, got 1"),
        (2.0, 1, True, "a whole number of at least 1, got 2.0"),
        (0.5, 0.5, False, ""),
        (0.4, 0.5, False, "a finite number of at least 0.5, got 0.4"),
        (NAN, 0, False, "a finite number of at least 0, got nan"),
        (INF, 0, False, "a finite number of at least 0, got inf"),
        (-7, -INF, False, ""),
        ("7", -INF, False, "a finite number, got '7'"),
    ],
)
def test_at_least(value, least, whole, answer):
    if not answer:
        at_least("n", value, least, whole)
        return
    with pytest.raises(ArgumentError) as error:
        at_least("n", value, least, whole)
    assert str(error.value) == f"n: expected {answer}"


def test_whole_is_the_default():
    with pytest.raises(ArgumentError, match="^n: expected a whole number of at least 0, got 0.5"):
        at_least("n", 0.5, 0)


def test_names_and_attributes():
    one_of("kind", "a", ("a", "b"))
    with pytest.raises(ArgumentError, match="^kind: 'c' is not known; choose from a, b$"):
        one_of("kind", "c", ("a", "b"))
    needs("thing", "text", "upper", "lower")
    with pytest.raises(ArgumentError) as error:
        needs("thing", "text", "upper", "sum", "lower")
    expected = "expected an object with upper, sum, lower; 'text' has no sum"
    assert str(error.value) == f"thing: {expected}"


def test_real_numbers_from_anything():
    x = as_numbers("x", [1, 2], dtype=torch.float64)
    # exact: small whole numbers
    assert x.dtype == torch.float64 and x.tolist() == [1.0, 2.0]
    for bad, came in [("ab", "'ab'"), ([[1], [2, 3]], "[[1], [2, 3]]"), (1j, "1j"), (None, "None")]:
        with pytest.raises(ArgumentError) as error:
            as_numbers("x", bad)
        assert str(error.value) == f"x: expected real numbers, got {came}"


def test_values_and_errors_on_one_line():
    assert in_words(torch.ones(2, 3, dtype=torch.int16)) == "(2, 3) int16"
    assert in_words(torch.ones(2, device="meta")) == "(2,) float32 on meta"
    assert in_words("x" * 78) == repr("x" * 78)  # 80 with its quotes
    assert in_words("x" * 79) == "'" + "x" * 76 + "..."
    assert in_words(np.ones((2, 1))) == "array([[1.], [1.]])"
    assert first_line(ValueError("a\n  b")) == "a b" and first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("x" * 300)) == "x" * 200
    with pytest.raises(ValueError) as error, named("file: no", "try again"):
        raise OSError("gone\n away")
    assert str(error.value) == "file: no (gone away); try again" and not error.value.__cause__
