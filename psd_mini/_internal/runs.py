"""What keeps a long run alive: checkpoints, Ctrl-C, NaN, progress. The loop itself is `distill`.

A checkpoint is a dictionary of tensors, numbers and strings. It is written to a temporary file
beside its place, flushed to the disk and renamed over the old one, which the operating system does
at once or not at all. It is read with torch's `weights_only=True`: a file that would run code when
unpickled is refused, not executed.
"""

import io
import json
import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psd_mini._internal.arguments import at_least, first_line, named
from psd_mini._internal.files import read_archive, write_atomically

FORMAT = "psd-mini checkpoint 2"
ANEW = "delete it to start anew"
# what a resumed run may have differently: how long it is, and where it runs
MAY_CHANGE = ("steps", "threads", "torch")


class NonFiniteError(FloatingPointError):
    """A NaN or infinity turned up; the message names the first tensor that had it, and the step."""


def check_finite(tensors: Mapping[str, Tensor | None]) -> None:
    """Raise NonFiniteError with the name of the first tensor that has a NaN or an infinity."""
    for name, value in tensors.items():
        # both extremes are NaN if one number is; one look at them is cheaper than isfinite().all()
        extremes = () if value is None else value.detach().aminmax()
        if not all(math.isfinite(extreme.item()) for extreme in extremes):
            raise NonFiniteError(f"{name} is not finite (NaN or infinity)")


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path` in one step; if that fails, the old one stays as it was."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def open_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, of whatever run; ValueError if there is none or it is damaged."""
    if not path.exists():
        remedy = "start the run without resume"
        raise ValueError(f"resume: there is no checkpoint at {path}; {remedy}")
    with named(f"resume: {path} is damaged or not a checkpoint", ANEW):
        state = read_archive(path)
    known = isinstance(state, dict) and state.get("format") == FORMAT
    if not known or not isinstance(state.get("config"), dict):
        raise ValueError(f"resume: {path} is not a '{FORMAT}'; {ANEW}")
    return state


def read_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint and make sure that it continues the run described by `config`.

    Args:
        path: the file.
        config: names and values that must be the same as when it was written; of `MAY_CHANGE` a
            difference is a warning.

    Returns:
        The state that `write_checkpoint` was given.

    Raises:
        ValueError: no checkpoint there, damaged, foreign, or of another run; names the first
            setting that differs.
    """
    state = open_checkpoint(path)
    saved = state["config"]
    made = f"resume: the checkpoint at {path} was made with"
    if difference := different(saved, {**dict.fromkeys(fixed(saved)), **fixed(config)}):
        raise ValueError(f"{made} {difference}; give the same, or another output folder")
    if difference := different(saved, config):
        told = "it goes on, and its bits may differ from those of an unbroken run"
        warnings.warn(f"{made} {difference}; {told}", stacklevel=5)
    return state


def fixed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run keeps when it is resumed."""
    return {name: value for name, value in settings.items() if name not in MAY_CHANGE}


def different(saved: dict[str, Any], settings: dict[str, Any]) -> str:
    """The first setting whose values differ when written as JSON, with both; "" if none does."""
    for name, value in settings.items():
        before, now = (json.dumps(one, default=str) for one in (saved.get(name), value))
        if before != now:
            return f"{name} = {saved.get(name)!r}, this run has {value!r}"
    return ""


@contextmanager
def deterministic() -> Iterator[None]:
    """Switch torch's deterministic algorithms on for a block (a warning where a GPU has none)."""
    # `use_deterministic_algorithms` would import torch's compiler, 2 s
    before = torch.get_deterministic_debug_mode()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    settings.fill_uninitialized_memory = False  # nothing here reads it, and filling takes time
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = fills


@contextmanager
def plain_torch() -> Iterator[None]:
    """Gradients are on and new tensors on the CPU for a block, whatever the caller has switched."""
    # entering a device makes every call slower, so only where another one is the default
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.inference_mode(False), torch.device("cpu") if elsewhere else nullcontext():
        yield


@contextmanager
def interrupts_deferred() -> Iterator[list[int]]:
    """Let the first Ctrl-C wait for the end of a step; a second one acts at once.

    Yields a list that is empty until the first one.
    """
    interrupted: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(number)

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread, which alone receives signals
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


def tell(show: Any, text: str) -> None:
    """A line that says what comes next, where the progress bars are, if they are shown."""
    if show:
        print(text, file=sys.stderr, flush=True)


class Keeper:
    """Keeps a run alive and on the disk: what `distill` does besides its equations.

    Args:
        path: the checkpoint, or None for none.
        config: what identifies the run; must be equal on resume.
        parts: name -> object with `state_dict` and `load_state_dict`, "field" among them.
        generator: of every random choice.
        every: steps between two checkpoints; steps: of the whole run.
    """

    def __init__(
        self,
        path: str | Path | None,
        config: dict[str, Any],
        parts: dict[str, Any],
        generator: torch.Generator,
        every: int,
        steps: int,
    ):
        self.path = None if path is None else Path(path)
        self.config, self.parts, self.generator = config, parts, generator
        self.every, self.steps = every, steps
        self.field: nn.Module = parts["field"]
        self.keep()
        self.in_step: int | None = None  # the step that is being computed

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Raise ValueError if the checkpoint cannot be written, or is there already."""
        at_least("checkpoint_every", self.every, 1)
        if any(p.is_inference() for p in self.field.parameters()):
            raise ValueError("radiance_field: made inside torch.inference_mode(); make it outside")
        path = self.path
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            expected = "a file in a folder that exists"
            raise ValueError(f"checkpoint: expected {expected}, got {str(path)!r}")
        if path is not None and path.exists() and not (resume or overwrite):
            how = "go on with it by resume=True, or replace it by overwrite=True"
            raise ValueError(f"checkpoint: {path} holds a run; {how}")

    def keep(self) -> None:
        """Remember the field as it is now, as its last good state."""
        numbers = self.field.state_dict().items()
        self.good = {name: value.detach().clone() for name, value in numbers}

    def load(self, as_progress: Callable[[dict[str, Any]], Any]) -> Any:
        """Bring all parts to the checkpoint's state; returns the progress that `save` was given.

        Raises:
            ValueError: no checkpoint of this run, contents that do not fit, or more steps done than
                the run has; the field is as it was.
        """
        if self.path is None:
            raise ValueError("resume: there is nothing to resume from; give `checkpoint` too")
        state = read_checkpoint(self.path, self.config)
        try:
            progress = as_progress(state["progress"])
            fits = 0 <= progress.steps <= self.steps
            for name, part in self.parts.items() if fits else ():
                part.load_state_dict(state[name])
            self.generator.set_state(state["generator"])
            for p, moments in self.parts["optimizer"].state.items():
                if not moments["exp_avg"].shape == moments["exp_avg_sq"].shape == p.shape:
                    raise ValueError("the optimizer's numbers are not the field's")
        except Exception as error:  # whatever a part says of the state of another one
            self.field.load_state_dict(self.good)
            what = f"{self.path} is damaged, or of another version ({first_line(error)})"
            raise ValueError(f"resume: {what}; {ANEW}") from None
        if not fits:
            done = f"{self.path} has done {progress.steps} steps, this run has {self.steps}"
            raise ValueError(f"resume: {done}; give more steps, or another output folder")
        self.keep()
        return progress

    def save(self, progress: dict[str, Any]) -> None:
        """Write a checkpoint; where that fails (a full disk) warn and keep the older one."""
        if self.path is None:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"config": self.config, "generator": self.generator.get_state()}
        try:
            write_checkpoint(self.path, {**state, "progress": progress})
        except OSError as error:
            what = f"checkpoint of step {progress['steps']} not written, the run goes on: {error}"
            warnings.warn(what, stacklevel=5)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A block that computes one step: if it fails, no checkpoint of its middle is written."""
        self.in_step = number
        yield
        self.in_step = None

    @contextmanager
    def watch(self, progress: Any, title: str, show: bool) -> Iterator[Any]:
        """Around all steps. Yields a function to be called after each.

        It moves the bar, writes a checkpoint when one is due, and lets a Ctrl-C through. On the way
        out a NaN puts the field back into its last good state and is named with its step; an
        interrupt between two steps writes a checkpoint first.

        Args:
            progress: object with `steps` (done so far); its `vars` go into the checkpoint.
            title: of the bar; show: whether there is one.
        """
        from tqdm.auto import tqdm

        look = {"desc": title, "unit": "step", "leave": False, "disable": not show}
        bar = tqdm(total=self.steps, initial=progress.steps, **look)

        def after() -> None:
            bar.update(1)
            if progress.steps % self.every == 0 or progress.steps == self.steps:
                check_finite(dict(self.field.named_parameters(prefix="field")))
                self.save(as_state(progress))
            if interrupted and progress.steps < self.steps:
                raise KeyboardInterrupt

        try:
            with deterministic(), plain_torch(), interrupts_deferred() as interrupted:
                yield after
        except KeyboardInterrupt:
            finite = all(bool(p.isfinite().all()) for p in self.field.parameters())
            if self.in_step is None and finite:
                self.save(as_state(progress))
            raise
        except NonFiniteError as error:
            self.field.load_state_dict(self.good)
            there = self.path is not None and self.path.exists()
            kept = f"; the checkpoint in {self.path} is untouched" if there else ""
            number = progress.steps - 1 if self.in_step is None else self.in_step
            back = f"the field is back in its last good state{kept}"
            raise NonFiniteError(f"step {number}: {error}; {back}") from None
        finally:
            bar.close()


def as_state(progress: Any) -> dict[str, Any]:
    """The attributes of a record as plain dictionaries, lists and numbers, for a checkpoint."""
    plain = (int, float, str, list, dict)
    return {k: v if isinstance(v, plain) else vars(v) for k, v in vars(progress).items()}
