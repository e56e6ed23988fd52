"""What other people's graders read: Gradescope's results.json.

The format is that of gradescope-autograders.readthedocs.io/specs: a score for the submission, and a
list of tests with a score, a status and an output each. Texts are marked as text, not as HTML: they
quote code that nobody has read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psd_mini.checks.report import Finding

POINTS = 100.0  # of a submission that is right, whatever the number of its rows


def gradescope(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One submission for Gradescope: a test for each row of its report.

    Each row that is right gives an equal share of the POINTS.

    Args:
        results: of `grader.grade`, for all files of the submission. The one with the highest score
            counts: the others are taken for its helpers.
    """
    best = max(results, key=lambda result: (result["score"], len(result["findings"])))
    share = round(POINTS / len(best["findings"]), 2)
    tests = []
    for finding in [Finding(**row) for row in best["findings"]]:
        test: dict[str, Any] = {"score": share if finding.ok else 0.0, "max_score": share}
        test |= {"name": finding.name, "status": "passed" if finding.ok else "failed"}
        test |= {"output": finding.sentence, "output_format": "text", "name_format": "text"}
        tests.append(test | {"visibility": "visible"})
    head = {"score": round(POINTS * best["score"], 2), "execution_time": best.get("seconds", 0)}
    text = f"{best['title']}: {best['status']}"
    return head | {"output": text, "output_format": "text", "tests": tests}


def write_gradescope(results: Sequence[Mapping[str, Any]], file: str) -> None:
    """Write `gradescope(results)`; ValueError where the file cannot be written."""
    try:
        Path(file).write_text(json.dumps(gradescope(results), indent=1))
    except OSError as error:
        raise ValueError(f"gradescope: {file!r} cannot be written: {error.strerror}") from None
