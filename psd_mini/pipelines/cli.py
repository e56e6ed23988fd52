"""The command line: `psd-mini generate "a red mushroom"`, `compare`, `sweep` and `check`.

The options are the arguments of `generate`, `compare`, `sweep` and `checks.grading.grader.grade`:
types and defaults are in their signatures, and what each is for in their docstrings.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from psd_mini.distill import Options, distill
from psd_mini.fields import FIELDS
from psd_mini.methods import METHODS, RESIDUALS
from psd_mini.pipelines import compare, generate, results, sweep
from psd_mini.schedule import ANNEALING, WEIGHTINGS
from psd_mini.world.prior import CONDITIONING

CHOICES = {"method": METHODS, "field": FIELDS, "conditioning": CONDITIONING}
CHOICES |= {"weighting": WEIGHTINGS, "gradient_scale": ("ignore", "report", "require")}
CHOICES |= {"annealing": ANNEALING, "residual": RESIDUALS}
COUNTS = {"paths": "+", "t_min": 2, "t_max": 2, "lr_scale": "+", "guidance_scale": "+"}
PYTHON_ONLY = (
    *("checkpoint_every", "progress", "callback", "workers", "on_result", "settings", "executor"),
)


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    from psd_mini.checks.grading.command import add_outlets
    from psd_mini.checks.grading.grader import grade

    description = "Score distillation in small, exactly."
    root = argparse.ArgumentParser(prog="psd-mini", description=description)
    commands = root.add_subparsers(dest="command", required=True)
    runs: list[tuple[Callable, Callable]]
    runs = [(run_generate, generate.generate), (run_compare, compare.compare)]
    runs += [(run_sweep, sweep.sweep), (run_check, grade)]
    for run, function in runs:
        name, text = run.__name__.removeprefix("run_"), inspect.getdoc(function) or ""
        purpose = text.partition("\n\nArgs:")[0]
        command = commands.add_parser(name, help=purpose.partition("\n")[0], description=purpose)
        command.set_defaults(run=run)
        add_arguments(command, function)
        if run is run_sweep:
            add_arguments(command, generate.generate, without=sweep.ONE_RUN)
    add_outlets(command)
    return root


def add_arguments(
    command: argparse.ArgumentParser, function: Callable, without: Sequence[str] = ()
) -> None:
    """An option for each argument of a function; one without a default needs no dashes."""
    texts = explained(distill) | explained(function)
    for name, parameter in inspect.signature(function).parameters.items():
        usual, annotation = parameter.default, parameter.annotation
        flag, text = "--" + name.replace("_", "-"), texts.get(name, "")
        form: dict[str, Any] = {"nargs": COUNTS.get(name), "choices": CHOICES.get(name)}
        if name in (*PYTHON_ONLY, *without):
            continue
        if usual is parameter.empty:
            command.add_argument(name, help=text, **form)
        elif annotation == "bool":
            command.add_argument(flag, action="store_true", help=text)
        elif annotation.startswith("bool"):  # alone it says yes, and it may say how
            command.add_argument(flag, nargs="?", const=True, default=usual, help=text)
        else:
            kind = int if "int" in annotation else float if "float" in annotation else str
            if isinstance(usual, tuple):  # names, with commas between
                usual = ",".join(usual)
            form |= {"type": kind, "metavar": None if kind is str else "N"}
            text += usual_values(name, usual)
            command.add_argument(flag, default=usual, help=text, **form)


def explained(function: Callable) -> dict[str, str]:
    """What the section "Args:" of a function's docstring says of each argument."""
    section = (inspect.getdoc(function) or "").partition("Args:")[2].partition("\n\n")[0]
    texts = {}
    for entry in re.split(r"\n {4}(?! )", section):  # what goes on is further to the right
        names, _, text = entry.partition(": ")
        for name in names.split(", "):
            texts[name] = " ".join(text.split())
    return texts


def usual_values(name: str, usual: Any) -> str:
    """The default of an option in words, with those of single priors."""
    general = getattr(Options(), name, None) if usual is None else usual
    values = [] if general in (None, "") else [str(general)]
    if usual is None:
        of_priors = generate.DEFAULTS.items()
        values += [f"{own[name]} for {prior}" for prior, own in of_priors if name in own]
    return f" (default: {', '.join(values)})" if values else ""


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a command, by name; several numbers become a tuple, one of them a number."""
    settings = {name: value for name, value in vars(args).items() if name not in ("command", "run")}
    for name, value in settings.items():
        if isinstance(value, list) and isinstance(value[0], float):
            settings[name] = tuple(value) if len(value) > 1 else value[0]
    return settings


def run_generate(args: argparse.Namespace) -> None:
    """Run `generate`, and say what came out and where it is."""
    settings = settings_of(args)
    out = settings["out"] = args.out or f"psd_mini_out/{sweep.run_name(settings)}"
    before = when_saved(out)
    try:
        result = generate.generate(**settings)
    except KeyboardInterrupt:
        if not args.resume and when_saved(out) == before:
            raise SystemExit("interrupted before anything was saved; start it again") from None
        how = "the same command with --resume goes on"
        raise SystemExit(f"interrupted; {how} from the checkpoint in {out}") from None
    print(result.summary())
    if result.metrics:
        print(results.IN_WORDS)
    if result.out is None:
        saved = args.resume or when_saved(out) != before
        how = "with --resume writes them" if saved else "has to begin anew"
        raise OSError(f"the files in {out} are incomplete; make room, and the same command {how}")
    files = "also views.png, curves.png, mesh.glb, run.json"
    print(f"{result.seconds:.0f} s; look at {out}/turntable.gif ({files})")


def when_saved(out: str | Path) -> int:
    """When a folder's checkpoint was written, in nanoseconds; 0 without one."""
    checkpoint = Path(out) / "checkpoint.pt"
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0


def run_compare(args: argparse.Namespace) -> None:
    """Run `compare`, which prints its table."""
    compare.compare(**settings_of(args) | {"methods": args.methods.split(",")})


def run_sweep(args: argparse.Namespace) -> None:
    """Run `sweep`, which prints a line for each run."""
    try:
        sweep.sweep(**settings_of(args))
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on") from None


def run_check(args: argparse.Namespace) -> None:
    """Check submissions; see `checks.grading.command`."""
    from psd_mini.checks.grading.command import check

    check(**settings_of(args))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. A mistake in the arguments ends in one line and exit status 2.

    Anything else is a bug and is shown.
    """
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"psd-mini: {error}", file=sys.stderr)
        raise SystemExit(2) from None
