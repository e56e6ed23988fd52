"""The checker itself never fails: whatever a submission does becomes a row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from psd_mini.checks.grading.offline import offline_diffusers
from psd_mini.checks.grading.submission import Unreadable
from psd_mini.checks.probe import describe, status_of
from psd_mini.checks.report import Report, no_answer


def guarded(what: str) -> Callable[[Callable[..., Report]], Callable[..., Report]]:
    """Decorator of a check: exceptions (exit included) become a finding, and diffusers is offline
    meanwhile.

    sys.exit is caught, os._exit and endless loops are not: those need a process of their own, see
    `grader`."""

    def decorate(check: Callable[..., Report]) -> Callable[..., Report]:
        @functools.wraps(check)
        def run(*args: Any, **kwargs: Any) -> Report:
            try:
                with offline_diffusers():
                    return check(*args, **kwargs)
            except (Exception, SystemExit) as error:
                text = str(error) if isinstance(error, Unreadable) else describe(error)
                return no_answer(status_of(error), text, f"check of {what}")

        return run

    return decorate
