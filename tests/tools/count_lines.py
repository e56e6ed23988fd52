"""Size of the package by room, against its budgets: python tests/tools/count_lines.py [--core]

Counts code lines (no blank, comment or docstring lines) as ruff formats them, at 100 columns, and
looks at files, functions and comprehensions. The exit status is 1 where a budget is exceeded.
--core counts the lines that a run of generate("a mushroom", method="sds") executes.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "psd_mini"
# room -> (code lines today, which may only fall; what is aimed at)
BUDGETS = {"book": (1300, 1300), "package without checks": (5369, 4610), "checks": (4197, 2800)}
CHAPTER_CODE = defaultdict(lambda: 180, mixture=250, distill=195)  # code lines
CHAPTER_LINES, FILE_LINES = 420, 300
FUNCTION_LINES, BRANCHES = 60, 15
COMPREHENSIONS = 7.0  # per 100 code lines of checks today; 5 are aimed at
BRANCHING = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.BoolOp,
    ast.comprehension,
)
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold a token which is neither comment, docstring nor layout."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if constant and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED | {tokenize.ENDMARKER}:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - docstrings


def room_of(path: Path) -> str:
    """The folder in the package that a file is in; "book" for the chapters."""
    parts = path.relative_to(PACKAGE).parts
    if len(parts) > 1:
        return parts[0]
    return "table of contents" if path.stem == "__init__" else "book"


def large_functions(path: Path, code: set[int]) -> list[str]:
    """Functions with too many code lines or branches, with those numbers."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
            lines = len(code & set(body))
            branches = sum(isinstance(part, BRANCHING) for part in ast.walk(node))
            if lines > FUNCTION_LINES or branches > BRANCHES:
                found.append(
                    f"{path.name}:{node.lineno} {node.name}: {lines} lines, {branches} branches"
                )
    return found


def comprehensions(path: Path) -> int:
    """How many list, set and dictionary comprehensions and generator expressions a file has."""
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    return sum(isinstance(node, kinds) for node in ast.walk(ast.parse(path.read_text())))


def over_budget() -> list[str]:
    """Print the table; returns a line for each budget that is exceeded."""
    problems, rooms, dense = [], defaultdict(int), 0
    for path in sorted(PACKAGE.rglob("*.py")):
        source, room = path.read_text(), room_of(path)
        code, chapter = code_lines(source), room_of(path) == "book"
        rooms[room] += len(code)
        print(f"{len(code):5d}  {path.relative_to(PACKAGE)}")
        problems += large_functions(path, code)
        longest = CHAPTER_LINES if chapter else FILE_LINES
        if len(source.splitlines()) > longest:
            problems.append(
                f"{path.name}: {len(source.splitlines())} lines in all, at most {longest}"
            )
        if chapter and len(code) > CHAPTER_CODE[path.stem]:
            problems.append(
                f"{path.name}: {len(code)} code lines, at most {CHAPTER_CODE[path.stem]}"
            )
        dense += comprehensions(path) if room == "checks" else 0
    for room, count in rooms.items():
        print(f"{count:5d}  {room}")
    rooms["package without checks"] = sum(rooms.values()) - rooms["checks"]
    for name, (most, aim) in BUDGETS.items():
        print(f"{rooms[name]:5d}  {name} (at most {most}, the aim is {aim})")
        if rooms[name] > most:
            problems.append(f"{name}: {rooms[name]} code lines, at most {most}")
    if 100 * dense > COMPREHENSIONS * rooms["checks"]:
        problems.append(
            f"checks: {dense} comprehensions, at most {COMPREHENSIONS} per 100 code lines"
        )
    return problems


def core_path() -> int:
    """Code lines that a traced run of generate("a mushroom", method="sds") executes."""
    import psd_mini

    executed: dict[str, set[int]] = defaultdict(set)

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return None
        executed[frame.f_code.co_filename].add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    psd_mini.generate("a mushroom", method="sds", steps=3, progress=False)
    sys.settrace(None)
    return sum(len(code_lines(Path(f).read_text()) & lines) for f, lines in executed.items())


if __name__ == "__main__":
    if "--core" in sys.argv[1:]:
        print(f"{core_path()} code lines run from prompt to judged object")
        sys.exit()
    found = over_budget()
    print("\n".join(["", *found]))
    sys.exit(bool(found))
