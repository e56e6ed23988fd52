"""The command line: `psd-mini generate "a red mushroom"`, `compare`, `bench` and `check`."""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    from psd_mini.compare import DEFAULT_METHODS
    from psd_mini.fields import FIELDS
    from psd_mini.methods import METHODS
    from psd_mini.priors.toy_world import CONDITIONING
    from psd_mini.schedule import WEIGHTINGS

    root = argparse.ArgumentParser(prog="psd-mini", description="Score distillation in small, exactly.")
    commands = root.add_subparsers(dest="command", required=True)

    make = commands.add_parser("generate", help="make a 3D object from a prompt")
    make.add_argument("prompt", help='what to make, for example "a red mushroom"')
    make.add_argument("--method", default="psd", choices=METHODS, help="default: %(default)s")
    make.add_argument("--field", default="voxel", choices=FIELDS, help="default: %(default)s")
    make.add_argument(
        "--prior", default="exact", help="exact (default), toy (trained), real (Stable Diffusion), or a folder or hub id"
    )
    make.add_argument("--device", help="where a learned prior runs, for example cuda or cpu (default: what there is)")
    make.add_argument("--dtype", help="float32, float16 or bfloat16 (default: what the device is fast in)")
    make.add_argument(
        "--guidance-scale", type=float, help="classifier-free guidance g; 1 is none (default: 1 exact, 50 real, 7.5 others)"
    )
    make.add_argument("--negative-prompt", default="", help="what guidance pushes away from")
    make.add_argument(
        "--conditioning",
        default="camera",
        choices=CONDITIONING,
        help="what the exact prior knows of the camera (default: %(default)s)",
    )
    make.add_argument("--reward", help="colorfulness (default), color:NAME, image-reward or image-reward:FILE")
    make.add_argument("--preference-weight", type=float, help="how strongly the reward pulls (default: the method's)")
    make.add_argument("--negative", action="store_true", help="optimise the negative embedding too (guidance scale not 1)")
    make.add_argument("--steps", type=int, help="optimiser steps (default: 120 in the toy world, 5000 for large models)")
    make.add_argument("--seed", type=int, default=0, help="one seed, one result (default: %(default)s)")
    make.add_argument("--resolution", type=int, help="pixels per side while training, 32 or 64 by prior (results are 64)")
    make.add_argument(
        "--out",
        help="output folder (default: psd_mini_out/<prompt>-<method>-<field>-<seed>, with every other setting that you give)",
    )
    make.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    make.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    make.set_defaults(run=run_generate)

    table = commands.add_parser(
        "compare", help="run several methods and seeds on one prompt; table and picture (some 20 s a run)"
    )
    table.add_argument("prompt")
    table.add_argument(
        "--methods",
        default=",".join(DEFAULT_METHODS),
        help="comma-separated, +neg adds the negative embedding (default: %(default)s)",
    )
    table.add_argument("--reward", default="colorfulness", help="colorfulness (default) or color:NAME")
    table.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (default: %(default)s)")
    table.add_argument("--steps", type=int, default=120, help="default: %(default)s")
    table.add_argument("--resolution", type=int, default=32, help="pixels per side (default: %(default)s)")
    table.add_argument(
        "--out",
        help="folder for compare.md, compare.json and compare.png (default: psd_mini_out/compare-<prompt>, with every other "
        "setting that you give)",
    )
    table.add_argument("--resume", action="store_true", help="keep the runs that are finished in the output folder")
    table.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds runs")
    table.set_defaults(run=run_compare)

    bench = commands.add_parser("bench", help="show where the time of a step goes")
    bench.add_argument("--steps", type=int, default=30, help="steps to time after a warm-up (default: %(default)s)")
    bench.add_argument("--growth", metavar="FILE.png", help="also draw how the time of a step grows with every size (minutes)")
    bench.set_defaults(run=run_bench)

    check = commands.add_parser(
        "check",
        help="check a formula in somebody's file, and name the mistake",
        description="Checks one file (file.py or file.py:name) or every .py file of a folder, each in a process of its own "
        "and in a copy of its folder. Exit status 1 if anything is not right, 130 after Ctrl-C (results so far are printed). "
        "It executes what it checks: isolation from accidents, not a security sandbox.",
    )
    check.add_argument("paths", nargs="+", metavar="path", help="file.py, file.py:function, file.py:Class or a folder")
    check.add_argument(
        "--kind", default="sds", help="sds (default), cfg, csd, vsd, psd, negative-embedding, renderer or schedule"
    )
    check.add_argument("--weighting", choices=WEIGHTINGS, help="take only this w(t) for right (default: any)")
    check.add_argument("--json", action="store_true", help="print all findings as JSON")
    check.add_argument("--timeout", type=float, default=20.0, help="seconds for each file (default: %(default)g)")
    check.add_argument(
        "--memory", type=float, default=2.0, help="GiB for each file, beside what the check itself takes (default: %(default)g)"
    )
    check.set_defaults(run=run_check)
    return root


def run_generate(args: argparse.Namespace) -> None:
    """Run `generate`, and say what came out and where it is."""
    from psd_mini.folders import folder_name
    from psd_mini.text_to_3d import generate

    settings = {k: v for k, v in vars(args).items() if k not in ("command", "run", "prompt", "out")}
    usual = {name: parameter.default for name, parameter in inspect.signature(generate).parameters.items()}
    elsewhere = ("method", "field", "seed", "resume", "overwrite")  # in the name anyway, or nothing to do with the result
    others = {k: v for k, v in settings.items() if k not in elsewhere and v != usual[k]}
    out = args.out or f"psd_mini_out/{folder_name([args.prompt, args.method, args.field], others, [args.seed])}"
    try:
        result = generate(args.prompt, out=out, **settings)
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted, see {out}/views.png; the same command with --resume goes on from there") from None
    print(result.summary())
    if result.out is None:
        raise OSError(f"the files in {out} are incomplete; make room, and the same command with --resume writes them")
    print(f"{result.seconds:.0f} s; look at {out}/turntable.gif (also views.png, curves.png, mesh.glb, run.json)")


def run_compare(args: argparse.Namespace) -> None:
    """Run `compare`, and print its table."""
    from psd_mini.compare import compare

    settings = {k: v for k, v in vars(args).items() if k not in ("command", "run", "methods")}
    compare(methods=args.methods.split(","), **settings)


def run_bench(args: argparse.Namespace) -> None:
    """Time steps of every method and print a table; with --growth also how the time grows."""
    from psd_mini.bench import bench

    if args.growth is not None and not (args.growth.endswith(".png") and Path(args.growth).absolute().parent.is_dir()):
        raise ValueError(f"growth: expected the name of a .png file in a folder that exists, got {args.growth!r}")
    bench(args.steps)
    if args.growth is not None:
        from psd_mini.growth import growth_of_cost

        growth_of_cost(args.growth)


def run_check(args: argparse.Namespace) -> None:
    """Check submissions; the exit status is 1 if any is not right, 128 + its number if a signal stopped the checking."""
    import json

    from psd_mini.checks.grader import KINDS, counts, expand, grade
    from psd_mini.checks.report import Finding, Report

    if args.kind not in KINDS:
        raise ValueError(f"kind: {args.kind!r} is not known; choose from {', '.join(KINDS)}")
    paths = [path for given in args.paths for path in expand(given)]
    if not paths:
        raise ValueError(f"path: no .py files in {', '.join(args.paths)}")
    options = {"timeout": args.timeout, "weighting": args.weighting, "memory": args.memory}
    table = len(paths) > 1 and not args.json
    with _stop_signals() as stopped, _progress(paths, table) as on_result:
        results = grade(paths, args.kind, on_result=on_result, **options)
    if table:
        print(counts(results))
    elif args.json:
        print(json.dumps(results, indent=1))
    else:
        report = Report(results[0]["title"], [Finding(**finding) for finding in results[0]["findings"]])
        print(_printable(str(report)))
    if stopped or not all(result["ok"] for result in results):
        raise SystemExit(128 + stopped[0] if stopped else 1)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP act as Ctrl-C does, and results so far are printed. The first acts; all that came are listed."""
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        if len(stopped) == 1:
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}  # nohup ignores one
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(paths: Sequence[str], table: bool) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """What is called with each result: it moves a bar on stderr, and prints the table's lines in the order of the paths."""
    from tqdm import tqdm

    from psd_mini.checks.grader import line

    width, shown = max(len(Path(path).name) for path in paths), 0
    done: dict[int, dict[str, Any]] = {}
    tqdm.monitor_interval = 0  # no thread of its own: the grader forks

    def on_result(i: int, result: dict[str, Any]) -> None:
        nonlocal shown
        done[i] = result
        bar.update()
        while table and shown in done:
            bar.write(_printable(line(done[shown], width)), file=sys.stdout)
            sys.stdout.flush()
            shown += 1

    with tqdm(total=len(paths), unit="file", leave=False, disable=len(paths) <= 3) as bar:
        yield on_result


def _printable(text: str) -> str:
    """The text with escapes for what stdout cannot encode: lone surrogates, file names that are no UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. A mistake in the arguments ends in one line and exit status 2; anything else is a bug and is shown."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"psd-mini: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
