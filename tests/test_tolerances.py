"""Every strict or exact comparison of floats in the tests has a margin or says `# exact: why`.

Two processors round differently, so `computed < 0` or `computed == other` may hold on one and fail
on the other. This file reads the tests as syntax trees. A claim is what an `assert` or a `return`
compares, through `and`, `or`, `not`, `&`, `|`, bool(), all(), any() and generators. Reported are,
unless they have a margin:

* an ordering (<, <=, >, >=) of two computed values, or of one and 0, 1 or -1, the bounds that
  mathematics reaches;
* == and != of arrays inside all() or any(), or where a side is a float literal or comes from a call
  that gives floats (FLOATS);
* torch.equal and its relatives, wherever they stand, and rtol=0 with atol=0.

The margin of an ordering: one side is another number than 0, 1 and -1, or a sum, difference,
product or quotient that holds one (`b + 1e-9`, `1.01 * b`), or a name with tol, bound or slack in
it. The margin of an equality: pytest.approx. Whole numbers, sizes, texts, sets and truth values
(OTHERS) are no floats. The comment stands on a line of the statement or on the line above it, and
says why another processor gives the same answer.

What this cannot see: types. `a == b` of two plain names passes, and so does a dictionary that holds
floats; a margin may be too small; a comparison used as an index, x[y > 0], or counted,
(y > 0).sum(), is no claim.
"""

import ast
import re
from pathlib import Path

import pytest

TESTS = sorted(Path(__file__).parent.glob("*.py"))
FLOATS = re.compile(
    "item|abs|norm|mean|std|var|median|sum|prod|max|min|amax|amin|square|sqrt|exp|log|tanh|sigmoid|softmax|dot|det|trace|double|"
    "float|positions|log_prob|denoise|score|predict_noise|standard_error|grad|history"
)
OTHERS = re.compile(
    "len|int|round|ord|index|count|counts|numel|count_nonzero|argmin|argmax|st_size|shape|dtype|ndim|returncode|wait|keys|set|"
    "sorted|type|vars|str|repr|bytes|read_text|read_bytes|split|getvalue|exists|isfinite|any|all|monotonic|num_timesteps|"
    "prior_evaluations|renders|get_state|get_rng_state|requires_grad|to_uint8|faces|frames|width"
)
EXACT = {"equal", "array_equal", "assert_array_equal", "assert_equal"}


def name_of(node: ast.AST) -> str:
    """sum for torch.sum, x.sum and x.sum(...)."""
    node = node.func if isinstance(node, ast.Call) else node
    return (
        node.attr
        if isinstance(node, ast.Attribute)
        else node.id
        if isinstance(node, ast.Name)
        else ""
    )


def number(node: ast.AST) -> float | None:
    """The number that a literal is, with its sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def kind(node: ast.AST) -> str:
    """What an expression is, as far as syntax tells: float, other, or ? (whole literals too)."""
    if number(node) is not None:
        return "float" if isinstance(number(node), float) else "?"
    if isinstance(
        node,
        ast.Constant
        | ast.JoinedStr
        | ast.Compare
        | ast.Set
        | ast.Dict
        | ast.SetComp
        | ast.DictComp,
    ):
        return "other"
    if isinstance(node, ast.List | ast.Tuple | ast.BinOp):
        parts = [node.left, node.right] if isinstance(node, ast.BinOp) else node.elts
        kinds = [kind(part) for part in parts]
        return "float" if "float" in kinds else "other" if "other" in kinds else "?"
    if OTHERS.fullmatch(name_of(node)):
        return "other"
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and kind(node.func.value) != "?"
    ):
        return kind(node.func.value)  # (y > 0).sum() is a count, len(x).real no float
    if isinstance(node, ast.Call | ast.Attribute):
        return (
            "float"
            if FLOATS.fullmatch(name_of(node))
            and not isinstance(getattr(node, "func", node), ast.Name)
            else "?"
        )
    if isinstance(node, ast.Subscript | ast.UnaryOp | ast.ListComp):
        inner = {ast.Subscript: "value", ast.UnaryOp: "operand", ast.ListComp: "elt"}[type(node)]
        return kind(getattr(node, inner))
    return "?"


def margin(node: ast.AST) -> bool:
    """A side of an ordering that keeps its distance."""
    if isinstance(node, ast.BinOp):
        return margin(node.left) or (not isinstance(node.op, ast.Pow) and margin(node.right))
    if isinstance(node, ast.IfExp):
        return margin(node.body) and margin(node.orelse)
    if isinstance(node, ast.UnaryOp) and number(node) is None:
        return margin(node.operand)
    if isinstance(node, ast.Name | ast.Attribute):
        return any(part in name_of(node).lower() for part in ("tol", "bound", "slack"))
    return number(node) not in (None, 0, 1, -1)


def claims(node: ast.AST, arrays: bool = False):
    """The comparisons of a claim, each with whether it compares arrays."""
    if isinstance(node, ast.BoolOp):
        inner = node.values
    elif isinstance(node, ast.UnaryOp):
        inner = [node.operand]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        inner = [node.left, node.right]
    elif isinstance(node, ast.IfExp):
        inner = [node.body, node.orelse]
    elif isinstance(node, ast.GeneratorExp | ast.ListComp):
        inner = [node.elt]
    elif isinstance(node, ast.Call) and name_of(node) in ("bool", "all", "any"):
        method = isinstance(node.func, ast.Attribute)
        arrays = arrays or method
        inner = [node.func.value] if method else node.args
    elif isinstance(node, ast.Compare):
        yield node, arrays
        inner = [node.left, *node.comparators]  # (a < b) == c
    else:
        inner = []
    for part in inner:
        yield from claims(part, arrays)


def dangerous(left: ast.AST, op: ast.cmpop, right: ast.AST, arrays: bool) -> bool:
    kinds = {kind(left), kind(right)}
    if "other" in kinds:
        return False
    if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
        return not (margin(left) or margin(right))
    approximate = "approx" in (name_of(left), name_of(right))
    return isinstance(op, ast.Eq | ast.NotEq) and not approximate and (arrays or "float" in kinds)


def exact_call(node: ast.AST) -> bool:
    """torch.equal(a, b) of what may be floats, or a call that says rtol=0 and atol=0."""
    if not isinstance(node, ast.Call):
        return False
    zeros = {word.arg for word in node.keywords if number(word.value) == 0}
    equal = (
        name_of(node) in EXACT
        and isinstance(node.func, ast.Attribute)
        and "other" not in {kind(a) for a in node.args}
    )
    return equal or {"rtol", "atol"} <= zeros


def findings(source: str) -> list[int]:
    """Lines of the comparisons without a margin and without a comment."""
    lines, found = source.splitlines(), set()
    for statement in ast.walk(ast.parse(source)):
        if not isinstance(statement, ast.stmt) or hasattr(statement, "body"):
            continue  # what stands in a body comes on its own
        tests = [
            value
            for value in (getattr(statement, "test", None), getattr(statement, "value", None))
            if value
        ]
        bad = any(exact_call(node) for test in tests for node in ast.walk(test))
        for test in tests if isinstance(statement, ast.Assert | ast.Return) else []:
            for node, arrays in claims(test):
                sides = [node.left, *node.comparators]
                bad |= any(
                    dangerous(a, op, b, arrays)
                    for a, op, b in zip(sides, node.ops, sides[1:], strict=False)
                )
        above = lines[statement.lineno - 2].strip() if statement.lineno > 1 else ""
        comment = [above] if above.startswith("#") else []
        if bad and not any(
            "# exact: " in line
            for line in [*comment, *lines[statement.lineno - 1 : statement.end_lineno]]
        ):
            found.add(statement.lineno)
    return sorted(found)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_a_comparison_of_floats_has_a_margin_or_says_why_it_is_exact(path):
    source = path.read_text()
    found = [f"{path.name}:{n}: {source.splitlines()[n - 1].strip()}" for n in findings(source)]
    assert not found, "\n".join(["give a margin, or write `# exact: why`:", *found])


@pytest.mark.parametrize(
    "line",
    [
        "assert x.item() < 0",
        "assert bool(((only_first * dns[0]).sum(-1) < 0).all())",
        "assert (a @ b) > 0.0",
        "assert (opacity <= 1).all()",
        "assert low < high",
        "assert 0 < error < 1e-6",
        "assert n == 3 and V @ right.mean(0) < 0",
        "assert all(v >= 0 for v in values)",
        "assert not (x - y).min() > -1.0",
        "assert x.norm() == y",
        "assert rate == 0.1",
        "assert (a == b).all()",
        "assert bool((a != 0).any())",
        "assert torch.equal(a, b)",
        "return all(torch.equal(a, b) for a, b in pairs)",
        "np.testing.assert_array_equal(a, b)",
        "torch.testing.assert_close(a, b, rtol=0, atol=0.0)",
        "assert (error < 1e-9) == (x.min() > 0)",
        "assert x.item() < 0  # exactly",
    ],
)
def test_planted_comparisons_are_found(line):
    """Each of these may differ between two processors; a comment that says why makes it pass."""
    assert findings(line) == [1]
    assert findings(f"# exact: because\n{line}") == findings(f"{line}  # exact: because") == []
    assert findings(f"x = 1  # exact: of another line\n{line}") == [2]


@pytest.mark.parametrize(
    "line",
    [
        "assert x.item() < 1e-12",
        "assert x.abs().max() > 0.5 * y.norm()",
        "assert x.min() >= -tolerance",
        "assert -1e-9 <= x.item() <= 1 + 1e-9",
        "assert x.item() == pytest.approx(y.item(), rel=1e-9)",
        "assert (x <= 4 * standard_error(y)).all()",
        "torch.testing.assert_close(a, b, rtol=0, atol=1e-12)",
        "assert x.shape == (2, 3) and x.dtype == y.dtype",
        "assert len(a) > 0 and len(a) == len(b) and a.count('x') == 1",
        "assert (y > 0).sum() == 0 and hit.any()",
        "assert text == 'a' and path.read_bytes() == b'old'",
        "assert {1, 2} <= set(a) and a.keys() == b.keys()",
        "assert torch.equal(a > 0.5, b > 0.5)",
        "smaller = a < b",
    ],
)
def test_margins_and_whole_numbers_are_let_through(line):
    assert findings(line) == []


def test_the_suite_is_read():
    assert Path(__file__) in TESTS and len(TESTS) > 40
