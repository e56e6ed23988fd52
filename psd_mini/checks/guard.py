"""What a submission raises becomes a row of the report: a check itself never fails."""

from __future__ import annotations

import functools
import os
import re
import traceback
from collections.abc import Callable
from typing import Any

import torch

from psd_mini._internal.arguments import ArgumentError, validated
from psd_mini.checks.exact_world import T
from psd_mini.checks.grading.offline import offline_diffusers
from psd_mini.checks.report import Report, Unreadable, no_answer

FOLDERS = (os.path.dirname(torch.__file__), os.path.dirname(__file__))  # not a submission's code
NOT_READY = (
    "is something None that another method sets first? Make the object within"
    " offline_diffusers(), call that method and hand in the object instead of its class"
)
# the usual reason of an exception, by what its text contains
USUAL_REASONS = {
    "cuda|nvidia": "it moves tensors to cuda; use x.device instead of a fixed device",
    "systemexit": "it calls exit",
    "leaf variable|modified by an inplace": "it changes its input in place",
    "out of bounds|out of range": f"was t outside 0..{T - 1}?",
    "nonetype": NOT_READY,
    "memoryerror|can't allocate memory": "it takes more memory than a submission is given",
    "file too large": "it prints or writes more than a submission is given",
    "graph a second time": "it back-propagates the same graph twice",
}


def guarded(what: str) -> Callable[[Callable[..., Report]], Callable[..., Report]]:
    """Decorator of a check: exceptions (exit included) become a row, and diffusers is offline.

    Before that, the check's own arguments are looked at (`validated`). sys.exit is caught.
    os._exit and endless loops are not: those need a process of their own, see `grading.grader`.
    """

    def decorate(check: Callable[..., Report]) -> Callable[..., Report]:
        @functools.wraps(check)
        def run(*args: Any, **kwargs: Any) -> Report:
            try:
                with offline_diffusers():
                    return check(*args, **kwargs)
            except (Exception, SystemExit) as error:
                said = isinstance(error, Unreadable | ArgumentError)
                text = str(error) if said else describe(error)
                return no_answer(status_of(error), text, f"check of {what}")

        return validated(run)

    return decorate


def exercise(check: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a notebook's own checker of a function, which returns a text.

    What the function raises, or that it returns None, becomes a `Report`.
    """

    @functools.wraps(check)
    def run(fn: Callable[..., Any]) -> Any:
        def answering(*args: Any) -> Any:
            answer = fn(*args)
            if answer is None:
                raise Unreadable("it returned None: is a return missing?", "not answered")
            return answer

        return guarded(getattr(fn, "__name__", "an answer"))(check)(answering)

    return run


def status_of(error: BaseException) -> str:
    """What an exception says of a submission: "not answered" by a stub, else "could not run".

    A stub raises NotImplementedError itself, or its `...` meets a calculation. (torch raises
    NotImplementedError too, for what a device or dtype cannot do.)
    """
    if isinstance(error, Unreadable):
        return error.status
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, NotImplementedError) and frames:
        own = not frames[-1].filename.startswith(FOLDERS[0])
        if own and "raise NotImplementedError" in (frames[-1].line or ""):
            return "not answered"
    return "not answered" if "ellipsis" in _text_of(error) else "could not run"


def _text_of(error: BaseException) -> str:
    """What an exception says, in one line, even if it cannot say it."""
    try:
        return " ".join(str(error).split())[:300]
    except Exception:
        return "(no text)"


def describe(error: BaseException) -> str:
    """An exception in one line: what, where in the submission, and the usual reason."""
    all_frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in all_frames if not frame.filename.startswith(FOLDERS)] or all_frames
    where = f" (line {frames[-1].lineno} of {frames[-1].name})" if frames else ""
    text = _text_of(error)
    if isinstance(error, SyntaxError):  # the frames are the importer's
        where, text = f" (line {error.lineno})", error.msg
    words = f"{type(error).__name__} {text}".lower()
    hints = [f": {reason}" for signs, reason in USUAL_REASONS.items() if re.search(signs, words)]
    return f"it raised {type(error).__name__}{where}: {text}{''.join(hints[:1])}"
