"""Python and command line: prompts end as what they name, and mistakes end in one line."""

import dataclasses
import inspect
import json
import subprocess
import sys

import bench
import pytest
from worlds import quick_results, same

import psd_mini
from psd_mini import generate, load_field, render_views
from psd_mini.distill import Options
from psd_mini.pipelines import cli, results
from psd_mini.pipelines import generate as text_to_3d
from psd_mini.world import metrics

SMALL = ["--steps", "3", "--resolution", "8"]


@pytest.fixture
def quick(monkeypatch):
    quick_results(monkeypatch)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [("a blue house", "voxel"), pytest.param("a green car", "triplane", marks=pytest.mark.slow)],
)
def test_prompt_becomes_its_object(prompt, field):
    """SDS: recognised as the prompt's object and colour, true_view_distance at most 1.25 x the
    oracle's."""
    result = generate(prompt, method="sds", field=field, progress=False)
    assert result.metrics["recognised"] == prompt
    assert result.metrics["true_view_distance"] <= 1.25 * result.metrics["oracle_distance"]


@pytest.mark.slow
def test_default_method_prefers_and_a_full_prompt_leaves_nothing_to_prefer():
    """PSD is the default. An open prompt ends as its object in a rewarded colour; "a red mushroom"
    ends as itself, with a true_view_distance of at most 1.1 times the oracle's."""
    psd = generate("a red mushroom", progress=False)
    assert "PSD(" in psd.config["method"] and psd.config["reward"] == "colorfulness"
    assert psd.metrics["recognised"] == "a red mushroom"
    assert psd.metrics["true_view_distance"] <= 1.1 * psd.metrics["oracle_distance"]
    assert generate("a mushroom", progress=False).metrics["recognised"] in (
        "a red mushroom",
        "an orange mushroom",
    )


def test_the_object_is_shown_before_it_is_judged(tmp_path, capsys, monkeypatch):
    """views.png is on the disk, with a title without a verdict, before anything else is made; at
    the end its title is the verdict. Each phase says a line, and the numbers are explained."""
    quick_results(monkeypatch)
    seen = []

    def note(name, result):
        title = result.summary() if name == "save_views" else ""
        seen.append((name, sorted(file.name for file in tmp_path.iterdir()), title))

    def save_views(result, folder):
        note("save_views", result)
        results.save_views(result, folder)

    def measure(*args):
        note("measure", None)
        return results.measure(*args)

    monkeypatch.setattr(text_to_3d, "save_views", save_views)
    monkeypatch.setattr(text_to_3d, "save", lambda result, folder: note("save", result))
    monkeypatch.setattr(text_to_3d, "measure", measure)
    cli.main(["generate", "a red ball", *SMALL, "--out", str(tmp_path)])
    assert [what[0] for what in seen] == ["save_views", "save", "measure", "save_views"]
    assert "views.png" not in seen[0][1] and "views.png" in seen[1][1]
    assert "steps" in seen[0][2] and "recognised as" in seen[3][2]
    printed = capsys.readouterr()
    phases = [line for line in printed.err.splitlines() if "|" not in line and line.strip()]
    assert [line.split()[0] for line in phases if not line.startswith("drawing")] == [
        f"{tmp_path}/views.png",
        "comparing",
    ]
    assert results.IN_WORDS in printed.out


def test_output_folder_holds_everything(tmp_path, capsys, monkeypatch):
    """The command leaves the promised files; run.json's numbers are those of the saved field."""
    quick_results(monkeypatch, files=True)
    out = tmp_path / "out"
    cli.main(["generate", "a red ball", *SMALL, "--out", str(out), "--seed", "5"])
    printed = capsys.readouterr().out
    assert "recognised as" in printed and "turntable.gif" in printed
    expected = {
        "turntable.gif",
        "views.png",
        "curves.png",
        "mesh.glb",
        "field.safetensors",
        "run.json",
        "checkpoint.pt",
    }
    assert {file.name for file in out.iterdir()} == expected
    record = json.loads((out / "run.json").read_text())
    assert record["seed"] == 5 and record["config"]["prompt"] == "a red ball"
    assert record["seconds"] > 0  # exact: a clock
    assert record["cost"]["prior_evaluations"] == 24 and "torch" in record["versions"]
    assert set(record["metrics"]) == {
        "true_view_distance",
        "oracle_distance",
        "log_density_gap",
        "recognised",
        "reward",
    }
    field = load_field(out / "field.safetensors")
    views = metrics.judge_views()
    verdict = metrics.judge(render_views(field, views.cameras, views.resolution))
    assert record["metrics"]["true_view_distance"] == pytest.approx(
        verdict.true_view_distance, abs=1e-9
    )

    from PIL import Image

    with Image.open(out / "turntable.gif") as gif:
        assert gif.n_frames == 24
    with Image.open(out / "views.png") as sheet:
        assert sheet.width > 8 * 96


def test_same_seed_same_object_and_resume_is_whole(quick, tmp_path):
    """One seed twice gives the same bits (on one machine, one thread count); --resume of a
    finished run changes nothing."""
    options = {"steps": 3, "resolution": 8, "progress": False, "seed": 1}
    a = generate("a cube", out=tmp_path, **options)
    b = generate("a cube", **options)
    c = generate("a cube", out=tmp_path, resume=True, **options)
    assert same(a.field, b.field) and same(a.field, c.field)


def test_a_method_given_as_object_runs_as_the_one_of_its_name(quick):
    """The range of timesteps, too, is that of a preference."""
    options = {"steps": 3, "resolution": 8, "progress": False}
    named, given = (
        generate("a cube", method=m, reward="colorfulness", **options)
        for m in ("psd", psd_mini.PSD())
    )
    assert same(named.field, given.field)


def test_result_object_shows_itself(quick, tmp_path):
    """turntable(), views() and mesh() without a folder; the gif is one a notebook can show, and a
    script, which shows nothing, can write the views."""
    from PIL import Image

    result = generate("a yellow ball", steps=3, resolution=8, progress=False)
    assert (
        result.turntable().data[:6] == b"GIF89a"
        and "data:image/gif;base64," in result.turntable()._repr_html_()
    )
    sheet = result.views(tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as written:
        assert sheet.size == written.size and sheet.width > 8 * 96
    assert len(result.mesh().faces) > 100
    assert "a yellow ball: recognised as" in result.summary()


def test_own_method_and_own_reward(quick):
    """A subclass as method, and a plain function as black-box reward for PSD."""

    class Damped(psd_mini.SDS):
        def __call__(self, x, t, eps, context):
            gradient, metrics = super().__call__(x, t, eps, context)
            return 0.5 * gradient, metrics

    assert (
        "Damped"
        in generate("a cube", method=Damped(), steps=2, resolution=8, progress=False).config[
            "method"
        ]
    )
    seen = []

    def redness(images, prompts):
        seen.append(images.requires_grad)
        return images[:, 0].mean(dim=(1, 2)) - images[:, 1].mean(dim=(1, 2))

    result = generate("a cube", method="psd", reward=redness, steps=2, resolution=8, progress=False)
    # once a step, and once for the judged pictures
    assert result.config["reward"].startswith("redness ") and seen == [False, False, False]


@pytest.mark.parametrize("conditioning", ["words", "none"])
def test_other_conditionings_run(quick, conditioning):
    result = generate("a cube", steps=2, resolution=8, conditioning=conditioning, progress=False)
    assert result.config["conditioning"] == conditioning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", ""], "prompt: names nothing"),
        (["generate", "of the"], "prompt: names nothing"),
        (
            ["generate", "a purple hippo"],
            "prompt: the toy world does not know 'hippo'; objects: ball, cube",
        ),
        (
            ["generate", "a cube", "--steps", "0"],
            "steps: expected a whole number of at least 1, got 0",
        ),
        (
            ["generate", "a cube", "--steps", "-4"],
            "steps: expected a whole number of at least 1, got -4",
        ),
        (
            ["generate", "a cube", "--resolution", "2"],
            "resolution: expected a whole number of at least 8",
        ),
        (["generate", "a cube", "--resume", *SMALL], "there is no checkpoint at"),
        (
            ["generate", "a cube", "--negative", *SMALL],
            "guidance_scale: at 1 the negative embedding has no effect",
        ),
        (
            ["generate", "a cube", "--method", "sds", "--preference-weight", "2"],
            "preference_weight: sds has no such weight",
        ),
        (
            ["generate", "a cube", "--method", "psd", "--reward", "nice"],
            "reward: 'nice' is not known; choose colorfulness",
        ),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, tmp_path, capsys):
    """Exit status 2, one line on stderr that names the argument, no traceback."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("drawing")]
    assert stop.value.code == 2 and message in error and len(lines) == 1


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SystemExit):
        cli.main(["generate", "a cube", *SMALL, "--out", str(tmp_path / "file")])
    assert "out: cannot write into" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"


def test_resuming_another_run_changes_nothing(quick, tmp_path, capsys):
    """A checkpoint of another prompt: refused with the difference, and every file stays as it
    was."""
    cli.main(["generate", "a cube", *SMALL, "--out", str(tmp_path)])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(SystemExit):
        cli.main(["generate", "a ball", *SMALL, "--out", str(tmp_path), "--resume"])
    assert "made with prompt = 'a cube', this run has 'a ball'" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_unknown_names_in_python():
    for arguments, message in (
        ({"method": "magic"}, "method: 'magic' is not known; choose from"),
        ({"field": "octree"}, "field: kind: 'octree' is not known; choose from voxel, triplane"),
        ({"prior": "imagen"}, "prior: 'imagen' is not known; choose exact, \\w+, real, a hub id"),
        ({"resume": True}, "resume: needs `out`"),
    ):
        with pytest.raises(ValueError, match=message):
            generate("a cube", **arguments)


def test_import_needs_only_torch_numpy_and_jaxtyping():
    """`import psd_mini` in a fresh process where everything else is forbidden; the check itself
    can fail (matplotlib)."""
    script = """
import importlib.abc, sys
banned = {"diffusers", "transformers", "matplotlib", "skimage", "PIL", "safetensors", "tqdm"}
banned |= {"huggingface_hub", "scipy"}
class Ban(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in banned:
            raise ImportError("banned: " + name)
sys.meta_path.insert(0, Ban())
import NAME
"""
    for name, works in (("psd_mini", True), ("matplotlib", False)):
        run = subprocess.run(
            [sys.executable, "-c", script.replace("NAME", name)], capture_output=True, text=True
        )
        assert (run.returncode == 0) == works, run.stderr


def test_the_numbers_of_a_run_are_the_same_everywhere():
    """`Options`, the signatures of distill and generate, DEFAULTS and the command line agree on
    names, types and defaults."""
    options = {field.name: field for field in dataclasses.fields(Options)}
    loop, whole = (inspect.signature(f).parameters for f in (psd_mini.distill, generate))
    for name, field in options.items():
        assert loop[name].default == field.default == getattr(Options(), name)
        assert loop[name].annotation == field.type
        usual = (field.default, field.type) if name == "seed" else (None, f"{field.type} | None")
        assert (whole[name].default, whole[name].annotation) == usual
    own = set(options) - {"seed"}
    for numbers in (*text_to_3d.DEFAULTS.values(), text_to_3d.PREFERENCE_TIMES):
        assert set(numbers) <= own | {"guidance_scale", "residual"}
        Options(**{name: value for name, value in numbers.items() if name in own})
    given = cli.settings_of(cli.parser().parse_args(["generate", "a cube"]))
    assert all(given[name] is None for name in own) and given["seed"] == Options().seed


def test_every_option_says_what_it_is_and_its_default(capsys):
    """The texts are those of the docstrings; of two defaults the prior's own is named too."""
    for command, found in (
        ("generate", ["optimiser steps", "5000 for real", "(default: voxel)", "a red mushroom"]),
        ("compare", ["how many, from 0. (default: 3)", "(default: sds,sds2,"]),
        ("check", ["seconds for each file. (default: 20.0)", "print all findings as JSON"]),
    ):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        assert all(text in printed for text in found)
    choices = cli.parser()._subparsers._group_actions[0].choices.values()
    assert all(len(action.help) > 5 for command in choices for action in command._actions)


def test_numbers_of_the_command_line_arrive_as_generate_takes_them():
    """One number is a number, several are a tuple."""
    texts = ["generate", "x", "--steps", "5", "--t-min", "0.9", "0.1", "--background", "0.5"]
    given = cli.settings_of(cli.parser().parse_args([*texts, "--lr-scale", "2", "0.1"]))
    # exact: settings as they were given
    assert (given["steps"], given["t_min"]) == (5, (0.9, 0.1))
    # exact: settings as they were given
    assert (given["lr_scale"], given["background"]) == ((2.0, 0.1), 0.5)
    given = cli.settings_of(cli.parser().parse_args([*texts, "--lr-scale", "2"]))
    # exact: settings as they were given
    assert given["lr_scale"] == 2.0


def test_defaults_depend_on_the_prior_and_on_a_preference():
    """What is given wins over PREFERENCE_TIMES, these over DEFAULTS, these over `Options`."""
    defaults = text_to_3d.with_defaults
    numbers = defaults("real", "voxel", True, False, {"steps": None, "t_min": (0.5, 0.5)})
    # exact: settings as they were given
    assert numbers["steps"] == 5000 and numbers["guidance_scale"] == 50.0
    # exact: settings as they were given
    assert (numbers["t_min"], numbers["t_max"]) == ((0.5, 0.5), (1.0, 0.2))
    assert defaults("exact", "triplane", False, False, {}) == {"guidance_scale": 1.0}
    learned = defaults("learned", "voxel", False, False, {})
    # exact: settings as they stand in DEFAULTS
    assert (learned["guidance_scale"], learned["residual"]) == ((1.0, 3.0), "image")
    refined = defaults("learned", "voxel", True, True, {})
    # exact: settings as they were given
    assert (refined["t_min"], refined["t_max"]) == ((0.02, 0.02), (0.98, 0.2))
    a_folder = defaults("some/model", "voxel", False, False, {"guidance_scale": 3.0})
    # exact: settings as they were given
    assert (a_folder["resolution"], a_folder["guidance_scale"]) == (64, 3.0)


@pytest.mark.slow
def test_bench_prints_a_table(capsys):
    bench.bench(1)
    printed = capsys.readouterr().out
    assert "ms a step" in printed and "voxel" in printed and "triplane" in printed
