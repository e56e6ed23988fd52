"""What a check answers: one row per question, readable by people, notebooks, graders and pytest.

report = check_sds(my_function)
print(report)             # a table, and under it what is likely wrong
report.require()          # one line makes a test of it
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Ok = bool | str  # True, False or one of STATUSES
NO_ANSWER = ("could not run", "not answered", "timed out", "not run")
STATUSES = ("ok", "note", "scaled", "wrong", *NO_ANSWER)


class Unreadable(ValueError):
    """The submission or its answer cannot be understood; the message says what to change.

    status: of the row that it becomes, see `Finding`: "wrong" where the answer is, "could not run"
    where none came. verdict: False if the code itself raised, so that another form of input may be
    what it wants.
    """

    def __init__(self, message: str, status: str = "could not run", verdict: bool = True):
        super().__init__(message)
        self.status, self.verdict = status, verdict


# in a notebook: of a status; of columns, in percent
COLOURS, RED = {"ok": "#2a7d2a", "note": "#96690a", "scaled": "#96690a"}, "#b3261e"
WIDTHS = (9, 14, 22, 15, 40)
CELL = "text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere"


@dataclass(frozen=True)
class Finding:
    """One row: what was checked, what came, what was expected, the likely cause, and the equation.

    status: "ok"; "note" (worth knowing, not a mistake); "scaled" (right up to a constant factor,
    which is named); "wrong" (it ran, and what it answers is
    wrong); or why there is no answer: "could not run" (not found, imported or called, it raised an
    exception, or crashed), "not answered" (a stub: it raises NotImplementedError, or returns None
    or ...), "timed out", "not run" (the checking was stopped before).
    """

    name: str
    came: str
    expected: str = ""
    status: str = "ok"
    cause: str = ""
    equation: str = ""

    @property
    def ok(self) -> bool:
        """Notes and constant factors do not fail."""
        return self.status in ("ok", "note", "scaled")

    @property
    def sentence(self) -> str:
        """The likely cause, or what came and what was expected."""
        return self.cause or self.came + (f", expected {self.expected}" if self.expected else "")


@dataclass(repr=False)
class Report:
    """The findings of one check. `ok` says whether all is right; `causes` are likely mistakes."""

    title: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Is every row right, a note, or a constant factor?"""
        return all(finding.ok for finding in self.findings)

    @property
    def status(self) -> str:
        """ "right", "scaled" (up to a constant factor), or the first status that fails."""
        statuses = [finding.status for finding in self.findings if finding.status != "scaled"]
        failed = [status for status in statuses if status not in ("ok", "note")]
        return [*failed, "scaled" if len(statuses) < len(self.findings) else "right"][0]

    @property
    def score(self) -> float:
        """The share of rows that are right (notes and constant factors are), in [0, 1]."""
        return sum(finding.ok for finding in self.findings) / max(len(self.findings), 1)

    @property
    def causes(self) -> list[str]:
        """What is likely wrong, or which factor it is; empty when all is right."""
        wrong = [finding for finding in self.findings if finding.status not in ("ok", "note")]
        named = [finding.cause for finding in wrong if finding.cause]
        return list(dict.fromkeys(named)) or [f"{f.name}: {f.sentence}" for f in wrong]

    def add(
        self, ok: Ok, name: str, came: str, wanted: str = "", cause: str = "", equation: str = ""
    ) -> None:
        """Append a row; ok is True, False or a status. Right rows keep no cause."""
        status = ok if isinstance(ok, str) else "ok" if ok else "wrong"
        cause = "" if status == "ok" else cause
        self.findings.append(Finding(name, came, wanted, status, cause, equation))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        verdict = {"title": self.title, "ok": self.ok, "status": self.status, "causes": self.causes}
        verdict |= {"score": self.score}
        return verdict | {"findings": [asdict(finding) for finding in self.findings]}

    def require(self) -> Report:
        """The report itself if all is right; otherwise an AssertionError that shows it."""
        if not self.ok:
            raise AssertionError(str(self))
        return self

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "checked", "came", "expected")]
        for finding in self.findings:
            texts = (finding.name, finding.came, finding.expected)
            rows.append((finding.status, *map(_short, texts)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{self.title}: {in_capitals(self.status)}"]
        for row in rows:
            lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
        for finding in self.findings:
            if finding.cause:
                equation = f"  [{finding.equation}]" if finding.equation else ""
                text = f"-> {finding.name}: {finding.cause}{equation}"
                lines += textwrap.wrap(text, 120, subsequent_indent="   ")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The findings as a table, for notebooks: what fails comes first, long texts are broken."""
        table = "".join(f"<col style='width:{width}%'>" for width in WIDTHS)
        table += _html_row(("", "checked", "came", "expected", "likely cause"), "inherit")
        for f in sorted(self.findings, key=lambda finding: finding.ok):
            texts = (f.status, f.name, f.came, f.expected, f"{f.cause}  {f.equation}")
            table += _html_row(texts, COLOURS.get(f.status, RED))
        title = html.escape(f"{self.title}: {in_capitals(self.status)}")
        return f"<b>{title}</b><table style='table-layout:fixed;width:100%'>{table}</table>"


def _html_row(texts: Sequence[str], colour: str) -> str:
    """A row of a table; what is in the texts is shown as it is, never interpreted."""
    first, *others = [html.escape(text) for text in texts]
    cells = f"<th style='{CELL};color:{colour}'>{first}</th>"
    for text in others:
        cells += f"<td style='{CELL}'>{text}</td>"
    return f"<tr>{cells}</tr>"


def no_answer(status: str, text: str, title: str = "") -> Report:
    """A report of one row: there is nothing to judge, and why."""
    return Report(title, [Finding("runs", text, "an answer", status, text)])


def in_capitals(status: str) -> str:
    """A status as tables show it: what is wrong should meet the eye."""
    return status.upper() if status == "wrong" else status


def _short(text: str, width: int = 70) -> str:
    """One line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."
