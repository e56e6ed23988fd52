"""The command line: `psd-mini generate "a red mushroom"`, `compare` and `check`."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

# what each number of `distill.Options` says of itself; None is the prior's default
NUMBERS = {
    "steps": "optimiser steps (default: 120 in the toy world, 5000 for large models)",
    "cameras_per_step": "pictures rendered per step (default: 4, real 1)",
    "resolution": "pixels per side while training (default: 32 exact, 64 others; results are 64)",
    "n_samples": "samples per ray (default: 32)",
    "t_min": "lowest timestep at the first and at the last step, fractions of the schedule",
    "t_max": "highest timestep, likewise",
    "lr_scale": "factor of the learning rates; two are for the field's two groups",
    "entropy_weight": "weight of the opacities' entropy (default: 0.01)",
    "background": "brightness behind the object, 0 to 1 (default: 1)",
}


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    description = "Score distillation in small, exactly."
    root = argparse.ArgumentParser(prog="psd-mini", description=description)
    commands = root.add_subparsers(dest="command", required=True)
    _generate_arguments(commands.add_parser("generate", help="make a 3D object from a prompt"))
    text = "run several methods and seeds on one prompt; table and picture (some 20 s a run)"
    _compare_arguments(commands.add_parser("compare", help=text))
    text = "check a formula in somebody's file, and name the mistake"
    _check_arguments(commands.add_parser("check", help=text, description=CHECK))
    return root


def _generate_arguments(make: argparse.ArgumentParser) -> None:
    from psd_mini.distill import Options
    from psd_mini.fields import FIELDS
    from psd_mini.methods import METHODS
    from psd_mini.world.prior import CONDITIONING

    add, given = make.add_argument, "%(default)s"
    add("prompt", help='what to make, for example "a red mushroom"')
    add("--method", default="psd", choices=METHODS, help=f"default: {given}")
    add("--field", default="voxel", choices=FIELDS, help=f"default: {given}")
    known = "exact (default), learned (small, in the package), real (Stable Diffusion)"
    add("--prior", default="exact", help=f"{known}, or a folder or hub id")
    add("--device", help="where a learned prior runs: cuda, cpu (default: what there is)")
    add("--dtype", help="float32, float16 or bfloat16 (default: what the device is fast in)")
    text = "classifier-free guidance g; 1 is none (default: 1 exact, 50 real, 7.5 others)"
    add("--guidance-scale", type=float, help=text)
    add("--negative-prompt", default="", help="what guidance pushes away from")
    text = f"what the exact prior knows of the camera (default: {given})"
    add("--conditioning", default="camera", choices=CONDITIONING, help=text)
    add(
        "--reward", help="colorfulness (default), color:NAME, image-reward, hpsv2, pickscore[:FILE]"
    )
    text = "how strongly the reward pulls (default: the method's)"
    add("--preference-weight", type=float, help=text)
    text = "optimise the negative embedding too (guidance scale not 1)"
    add("--negative", action="store_true", help=text)
    for option in fields(Options):
        if option.name != "seed":
            flag, kind = option.name.replace("_", "-"), int if option.type == "int" else float
            count: Any = {"t_min": 2, "t_max": 2, "lr_scale": "+"}.get(option.name)
            add(f"--{flag}", type=kind, nargs=count, metavar="N", help=NUMBERS[option.name])
    add("--seed", type=int, default=0, help=f"one seed, one result (default: {given})")
    text = "psd_mini_out/<prompt>-<method>-<field>-<seed>, with every other setting that you give"
    add("--out", help=f"output folder (default: {text})")
    add("--resume", action="store_true", help="continue the run in the output folder")
    add("--overwrite", action="store_true", help="replace the run in the output folder")
    make.set_defaults(run=run_generate)


def _compare_arguments(table: argparse.ArgumentParser) -> None:
    from psd_mini.pipelines.compare import DEFAULT_METHODS

    add, given = table.add_argument, "%(default)s"
    add("prompt", help='what to make, for example "a mushroom"')
    text = f"comma-separated, +neg adds the negative embedding (default: {given})"
    add("--methods", default=",".join(DEFAULT_METHODS), help=text)
    add("--reward", default="colorfulness", help="colorfulness (default) or color:NAME")
    add("--seeds", type=int, default=3, help=f"how many seeds, from 0 (default: {given})")
    add("--steps", type=int, default=120, help=f"optimiser steps (default: {given})")
    add("--resolution", type=int, default=32, help=f"pixels per side (default: {given})")
    text = "psd_mini_out/compare-<prompt>, with every other setting that you give"
    add("--out", help=f"folder for compare.md, compare.json and compare.png (default: {text})")
    add("--resume", action="store_true", help="keep finished runs that are in the output folder")
    add("--overwrite", action="store_true", help="start anew in a folder that holds runs")
    table.set_defaults(run=run_compare)


CHECK = (
    "Checks one file (file.py or file.py:name) or every .py file of a folder, each in a process of "
    "its own and in a copy of its folder. Exit status 1 if anything is not right, 130 after Ctrl-C "
    "(results so far are printed). It executes what it checks: isolation from accidents, not a "
    "security sandbox."
)


def _check_arguments(check: argparse.ArgumentParser) -> None:
    from psd_mini.schedule import WEIGHTINGS

    add = check.add_argument
    text = "file.py, file.py:function, file.py:Class or a folder"
    add("paths", nargs="+", metavar="path", help=text)
    text = "sds (default), cfg, csd, vsd, psd, negative-embedding, renderer or schedule"
    add("--kind", default="sds", help=text)
    add("--weighting", choices=WEIGHTINGS, help="take only this w(t) for right (default: any)")
    add("--json", action="store_true", help="print all findings as JSON")
    add("--timeout", type=float, default=20.0, help="seconds for each file (default: %(default)g)")
    text = "GiB for each file, beside what the check itself takes (default: %(default)g)"
    add("--memory", type=float, default=2.0, help=text)
    check.set_defaults(run=run_check)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a command, by name; several numbers become a tuple, one of them a number."""
    settings = {name: value for name, value in vars(args).items() if name not in ("command", "run")}
    for name, value in settings.items():
        if isinstance(value, list):
            settings[name] = tuple(value) if len(value) > 1 else value[0]
    return settings


def run_generate(args: argparse.Namespace) -> None:
    """Run `generate`, and say what came out and where it is."""
    from psd_mini.pipelines.folders import folder_name
    from psd_mini.pipelines.generate import generate

    settings = settings_of(args)
    usual = inspect.signature(generate).parameters
    in_name = [settings.pop("prompt"), args.method, args.field]
    others = {name: v for name, v in settings.items() if v != usual[name].default}
    for name in ("method", "field", "seed", "out", "resume", "overwrite"):
        others.pop(name, None)  # in the name anyway, or nothing to do with the result
    out = settings.pop("out") or f"psd_mini_out/{folder_name(in_name, others, [args.seed])}"
    try:
        result = generate(args.prompt, out=out, **settings)
    except KeyboardInterrupt:
        if not (Path(out) / "checkpoint.pt").exists():
            raise SystemExit("interrupted before anything was saved; start it again") from None
        how = "the same command with --resume goes on"
        raise SystemExit(f"interrupted; {how} from the checkpoint in {out}") from None
    print(result.summary())
    if result.out is None:
        how = "make room, and the same command with --resume writes them"
        raise OSError(f"the files in {out} are incomplete; {how}")
    files = "also views.png, curves.png, mesh.glb, run.json"
    print(f"{result.seconds:.0f} s; look at {out}/turntable.gif ({files})")


def run_compare(args: argparse.Namespace) -> None:
    """Run `compare`, which prints its table."""
    from psd_mini.pipelines.compare import compare

    compare(**settings_of(args) | {"methods": args.methods.split(",")})


def run_check(args: argparse.Namespace) -> None:
    """Check submissions; see `checks.grading.command`."""
    from psd_mini.checks.grading.command import check

    options = {"timeout": args.timeout, "weighting": args.weighting, "memory": args.memory}
    check(args.paths, args.kind, args.json, **options)


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


if __name__ == "__main__":
    main()
