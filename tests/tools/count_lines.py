"""Lines of code (no blank, comment or docstring lines) of the package: python tests/tools/count_lines.py"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "psd_mini"
# the path from a prompt to a judged object: everything that `psd-mini generate` with SDS runs before it draws pictures
CORE = {
    *("schedule", "cameras", "fields", "rendering", "formulas", "checkpoint", "distill"),
    *("world/objects", "world/views", "world/pool", "world/text", "world/metrics"),
    *("priors/isotropic", "priors/mixture", "priors/toy_world", "methods/context", "methods/sds", "methods/regression"),
}


def code_lines(path: Path) -> int:
    """Lines that hold a token which is neither comment, docstring nor layout."""
    source = path.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


if __name__ == "__main__":
    counts = {str(p.relative_to(PACKAGE).with_suffix("")): code_lines(p) for p in sorted(PACKAGE.rglob("*.py"))}
    for name, count in counts.items():
        print(f"{count:5d}  {'core  ' if name in CORE else '      '}{name}")
    print(f"{sum(counts[name] for name in CORE):5d}  core path from prompt to judged object")
    print(f"{sum(counts.values()):5d}  whole package")
