"""The engine of the checks: tables of what code may compute, and a search for the fewest slips.

Every part of a formula is a table. Its rows are the ways in which people write that part: right
ones, and wrong ones with the words for what is wrong. A submission is explained by one row of every
table. All combinations are compared with what the submission did, on the same draws, in the order
of their slips; the first one that fits is the diagnosis. So two mistakes at once are both found,
and a new mistake is one more row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from psd_mini.checks.exact_world import SCALING, T, alpha_at, sigma_at


class Row(NamedTuple):
    """One way to compute one part of a formula.

    name: how it is written. value: what it computes; its arguments depend on the table. cause: what
    is wrong with it, "" where it is right. slips: how many mistakes it counts as, if it is wrong:
    above 1 for a row that fits much and says little, so that another one is found first. free: more
    vectors with unknown coefficients, which least squares finds (see `directions`).
    """

    name: str
    value: Callable[..., Any]
    cause: str = ""
    slips: float = 1.0
    free: Callable[..., list[Any]] = lambda *_: []


Table = Sequence[Row]
Rows = tuple[Row, ...]  # one of each table


def abar_at(t: int) -> float:
    """abar_t of one timestep."""
    return alpha_at(t) ** 2


def beta_at(t: int) -> float:
    """beta_t = 1 - abar_t / abar_{t-1}, the noise of one step."""
    return 1 - abar_at(t) / abar_at(t - 1) if t > 0 else 1 - abar_at(0)


# of t, in formulas
LEVELS: dict[str, Any] = {"abar": abar_at, "alpha": alpha_at, "sigma": sigma_at, "beta": beta_at}
LEVELS |= {"T": T, "sqrt": math.sqrt, "exp": math.exp, "scaling": SCALING}
LEVELS["prod_beta"] = lambda t: math.prod(map(beta_at, range(t + 1)))
LEVELS["sum_beta"] = lambda t: sum(map(beta_at, range(t + 1)))
LEVELS["root"] = lambda abar: math.copysign(abs(abar) ** 0.5, abar)  # a negative abar stays one


def formulas(arguments: str, rows: Mapping[str, str], names: Mapping[str, Any]) -> list[Row]:
    """Rows from {formula: what is wrong with it}, "" where it is right.

    A formula is written as on paper and computed as it stands: "T alpha^2" is T times alpha
    squared, alpha_t and alpha_{t-1} are a function alpha of t. (Only text of this package is
    evaluated, nothing that was handed in.)

    Args:
        arguments: of the rows' `value`, "t".
        names: all else that formulas contain, functions and numbers.
    """
    table = []
    for formula, cause in rows.items():
        code = re.sub(r"_t\b", "(t)", formula.replace("^", "**"))
        code = re.sub(r"_\{(.*?)\}", r"(\1)", code)
        code = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", code)
        table.append(Row(formula, eval(f"lambda {arguments}: {code}", dict(names)), cause))
    return table


Observed = Sequence[tuple[tuple, float]]  # (inputs, value) of every run


def slips_of(rows: Sequence[Row]) -> float:
    """How many mistakes these rows are together."""
    return sum(row.slips for row in rows if row.cause)


def fewest_slips(
    tables: Sequence[Table], fits: Callable[..., bool], most: float = 4.0
) -> Rows | None:
    """One row of each table that fits, with the fewest slips; of several, the earlier rows.

    Args:
        tables: of the parts of a formula.
        fits: called with one row of each table.
        most: slips; combinations with more of them explain anything and are not tried.

    Returns:
        None where no combination fits.
    """
    found: list[Rows] = [()]
    for table in tables:
        longer = [(*rows, row) for rows in found for row in table]
        found = [rows for rows in longer if slips_of(rows) <= most]
    return next((rows for rows in sorted(found, key=slips_of) if fits(*rows)), None)


def best_explanation(
    observed: Observed, tables: Sequence[Table], tolerance: float = 1e-2, floor: float = 0.0
) -> Rows | None:
    """The rows with the fewest slips whose product is every observed number; None where none are.

    Args:
        observed: numbers, with the inputs that rows are functions of.
        tolerance: relative; of `floor` where a number is smaller.
    """

    def fits(*rows: Row) -> bool:
        for inputs, value in observed:
            wanted = math.prod(row.value(*inputs) for row in rows)
            # written so that NaN does not fit
            if not abs(value - wanted) <= tolerance * max(abs(wanted), floor):
                return False
        return True

    return fewest_slips(tables, fits)


def causes_of(rows: Sequence[Row]) -> list[str]:
    """What is wrong with these rows, in words."""
    return [row.cause for row in rows if row.cause]


def named(table: Table, name: str) -> Row:
    """The row of this name."""
    return next(row for row in table if row.name == name)


def products_of(factors: Table, most: int = 3) -> list[Row]:
    """Every product of at most so many different factors, as one table."""
    rows: list[Row] = []
    for n in range(most + 1):
        rows += map(_product, combinations(factors, n))
    return rows


def _product(chosen: Rows) -> Row:
    def value(*inputs: Any) -> float:
        return math.prod(row.value(*inputs) for row in chosen)

    causes = causes_of(chosen)
    return Row(" x ".join(row.name for row in chosen), value, "; ".join(causes), slips_of(chosen))
