"""No run writes over another: folders are named after all that differs, and a folder that holds
something is refused."""

import functools
import itertools
import json

import pytest
import torch
from worlds import quick_results

from psd_mini import distill, generate
from psd_mini._internal import runs
from psd_mini.pipelines import cli, folders, results
from psd_mini.pipelines import generate as text_to_3d
from psd_mini.pipelines.folders import folder_name
from psd_mini.rewards import make_reward

SMALL = {"steps": 2, "resolution": 8, "progress": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures, judge and oracle cost seconds, and are not what this is about."""
    quick_results(monkeypatch)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def same(a, b):
    # exact: copied or resumed bits of one machine
    return all(
        torch.equal(x, y) for x, y in zip(a.field.parameters(), b.field.parameters(), strict=True)
    )


def nothing_costly(monkeypatch):
    """From here on loading a prior or a reward is an error."""

    def costly(*_, **__):
        raise AssertionError("loaded something")

    monkeypatch.setattr(text_to_3d, "make_prior", costly)
    monkeypatch.setattr(text_to_3d, "make_reward", costly)


def refused(message, prompt, **settings):
    with pytest.raises(ValueError, match=message) as refusal:
        generate(prompt, **{**SMALL, **settings})
    assert "\n" not in str(refusal.value)


def folder_of(monkeypatch, *arguments):
    """The folder that the command line chooses."""
    seen = []

    @functools.wraps(generate)
    def noted(prompt, out, **_):
        seen.append(out)
        raise KeyboardInterrupt

    monkeypatch.setattr(text_to_3d, "generate", noted)
    with pytest.raises(SystemExit):
        cli.main(["generate", *arguments])
    return seen[0]


OTHERS = [
    *(["--method", "sds"], ["--field", "triplane"], ["--seed", "1"], ["--device", "cpu"]),
    *(["--reward", "color:blue"], ["--reward", "color:red"], ["--dtype", "float16"]),
    *(["--reward", "image-reward:/x/A.pt"], ["--reward", "image-reward:/x/a.pt"]),
    *(["--init-from", "a"], ["--init-from", "b"], ["--prior", "dull"], ["--negative", "random"]),
    *(["--prior", "learned"], ["--prior", "a/b"], ["--prior", "a_b"]),
    *(["--conditioning", "words"], ["--conditioning", "none"]),
    *(["--guidance-scale", "2"], ["--guidance-scale", "20"], ["--guidance-scale", "-2"]),
    *(["--negative"], ["--negative-prompt", "red"], ["--negative-prompt", "blue"]),
    *(["--preference-weight", "4"], ["--steps", "40"], ["--resolution", "40"]),
    *(["--cameras-per-step", "2"], ["--n-samples", "8"], ["--t-min", "0.9", "0.1"]),
    *(["--t-min", "0.9", "0.2"], ["--t-max", "0.9", "0.1"], ["--lr-scale", "2"]),
    *(["--lr-scale", "2", "0.1"], ["--entropy-weight", "0"], ["--background", "0.5"]),
    *(["--annealing", "sqrt"], ["--variance-weight", "0.1"], ["--residual", "image"]),
    *(["--guidance-scale", "2", "1"], ["--residual", "latent"], ["--opacity-weight", "0.1"]),
]


def test_every_setting_has_a_folder_of_its_own(monkeypatch):
    """The default stays short; each setting of the command line that is given differently, and each
    two of them, leads to another folder; --resume and --overwrite, which decide nothing about the
    result, do not."""
    usual = folder_of(monkeypatch, "a mushroom")
    assert usual == "psd_mini_out/a-mushroom-psd-voxel-0"
    assert (
        folder_of(monkeypatch, "a mushroom", "--reward", "color:blue")
        == usual[:-1] + "reward-color-blue-0"
    )
    for flag in ("--resume", "--overwrite"):
        assert folder_of(monkeypatch, "a mushroom", flag) == usual
    pairs = [[*a, *b] for a, b in itertools.combinations(OTHERS, 2) if a[0] != b[0]]
    names = [
        folder_of(monkeypatch, "a mushroom", *settings) for settings in [[], *OTHERS, *pairs[::7]]
    ]
    assert len(set(names)) == len(names)
    flags = {
        a.option_strings[0]
        for a in cli.parser()._subparsers._group_actions[0].choices["generate"]._actions[2:]
    }
    assert flags - {settings[0] for settings in OTHERS} == {
        "--out",
        "--resume",
        "--overwrite",
    }  # none is missing above


@pytest.mark.parametrize(
    "prompt",
    [
        "A/B\\C:*?<>|",
        "..",
        "蘑菇",
        "ein grüner Ball",
        "x" * 500,
        "con",
        "a  b",
        "trailing. ",
        "\t",
        "a'b\"c",
    ],
)
def test_names_are_safe_on_every_system(prompt):
    """Small letters, digits, dots and dashes, no dot at an end, at most 100 characters; two
    prompts, two names."""
    name = folder_name([prompt, "psd"], {"reward": print}, [0])
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") and len(name) <= 100
    assert name[0] not in ".-" and name[-1] not in ".-" and name != "con"
    assert name != folder_name([prompt + "!", "psd"], {"reward": print}, [0])


def test_another_run_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    """Each setting, with and without resume: one line that names it, and not a byte changed."""
    generate("a cube", out=tmp_path, **SMALL)
    before = contents(tmp_path)
    nothing_costly(monkeypatch)
    changes = [
        *({"prompt": "a ball"}, {"method": "sds2"}, {"field": "triplane"}, {"prior": "learned"}),
        *({"guidance_scale": 2.0}, {"negative_prompt": "red", "method": "csd"}),
        {"conditioning": "none"},
        *({"reward": "color:blue"}, {"preference_weight": 2.0}, {"n_samples": 9}, {"seed": 1}),
        *({"negative": True, "guidance_scale": 2.0}, {"resolution": 16}, {"n_samples": 8}),
        *({"t_min": (0.5, 0.1)}, {"lr_scale": 2.0}, {"background": 0.5}),
        {"reward": lambda images, prompts: images[:, 0, 0, 0]},
    ]
    message = (
        r"^out: the run in .* was made with \w+ = .*; replace it with overwrite=True"
        r" \(--overwrite\), or ch"
    )
    for change in changes:
        settings = {"prompt": "a cube", **change, "out": tmp_path}
        refused(message, **settings)
        refused(message, resume=True, **settings)
    assert contents(tmp_path) == before


def stop_at(step):
    def callback(info):
        if info["step"] == step:
            raise KeyboardInterrupt

    return callback


def test_an_interrupted_run_repeated_is_refused_and_resume_goes_on(tmp_path, capsys):
    """What was computed stays; with resume the run ends in the bits of one that nobody
    interrupted."""
    with pytest.raises(KeyboardInterrupt):
        generate("a cube", out=tmp_path, callback=stop_at(0), **SMALL)
    before = contents(tmp_path)
    refused(
        r"holds this run, unfinished; go on with resume=True \(--resume\), replace",
        "a cube",
        out=tmp_path,
    )
    command = ["generate", "a cube", "--steps", "2", "--resolution", "8", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as status:
        cli.main(command)
    error = capsys.readouterr().err
    assert (
        status.value.code == 2
        and error.count("\n") == 1
        and "--resume" in error
        and contents(tmp_path) == before
    )
    resumed = generate("a cube", out=tmp_path, resume=True, **SMALL)
    assert same(resumed, generate("a cube", **SMALL))


def test_a_finished_run_repeated_is_refused_and_says_where_to_look(tmp_path, monkeypatch):
    """Nothing is computed and nothing written, whether its parts have names or are one's own."""
    mine = lambda images, prompts: images[:, 0].mean((1, 2))  # noqa: E731
    for name, reward in (("named", "color:red"), ("mine", mine)):
        settings = {"prompt": "a cube", "reward": reward, "out": tmp_path / name}
        generate(**settings, **SMALL)
        before = contents(tmp_path / name)
        with monkeypatch.context() as patch:
            nothing_costly(patch)
            refused(
                rf"{name} holds this run, finished: look at .*{name}.turntable\.gif;"
                r" overwrite=True \(--overwrite\) makes it anew$",
                **settings,
            )
        assert contents(tmp_path / name) == before


def test_a_finished_run_resumed_writes_its_results_again(tmp_path):
    """Nothing is left to do: field, numbers and history are those of the run."""
    first = generate("a cube", out=tmp_path, **SMALL)
    (tmp_path / "field.safetensors").unlink()
    again = generate("a cube", out=tmp_path, resume=True, **SMALL)
    assert same(first, again) and same(first, generate("a cube", **SMALL))
    # exact: read back, or resumed on one machine
    assert (again.history, again.metrics, again.cost) == (first.history, first.metrics, first.cost)
    assert (tmp_path / "field.safetensors").exists()


def test_overwrite_replaces_once_the_first_step_is_done(tmp_path):
    """A mistake or an interrupt before leaves everything; afterwards nothing of the old run is
    mixed with the new one."""
    generate("a cube", out=tmp_path, **SMALL)
    before = contents(tmp_path)
    refused(
        "t_min, t_max: expected",
        "a ball",
        out=tmp_path,
        overwrite=True,
        t_min=(0.9, 0.9),
        t_max=(0.1, 0.1),
    )
    refused("resume, overwrite: .*choose one", "a cube", out=tmp_path, overwrite=True, resume=True)
    assert contents(tmp_path) == before
    with pytest.raises(KeyboardInterrupt):
        generate("a ball", out=tmp_path, overwrite=True, callback=stop_at(0), **SMALL)
    assert set(contents(tmp_path)) == {"checkpoint.pt", "run.json", "views.png"}
    assert folders.read_record(tmp_path)["config"]["prompt"] == "a ball"
    assert same(
        generate("a ball", out=tmp_path, overwrite=True, **SMALL), generate("a ball", **SMALL)
    )


def test_two_runs_at_once(tmp_path):
    """While a run is in its second step, another one is refused in its folder; an equal one is
    not, and both end alike."""
    others = []

    def meanwhile(info):
        if info["step"] == 1:
            refused(
                "was made with prompt = 'a cube', this run has 'a ball'", "a ball", out=tmp_path
            )
            others.append(generate("a cube", out=tmp_path, **SMALL))

    first = generate("a cube", out=tmp_path, callback=meanwhile, **SMALL)
    assert same(first, others[0]) and same(first, generate("a cube", **SMALL))


def test_the_second_of_two_that_begin_together_is_refused(tmp_path, monkeypatch):
    """Both have found the folder empty; the one that ends its first step later sees the other's
    settings."""
    look, nested = folders.look, []

    def slow(*arguments):
        answer = look(*arguments)
        if not nested:
            nested.append(None)
            generate("a cube", out=tmp_path, **SMALL)
        return answer

    monkeypatch.setattr(folders, "look", slow)
    refused(
        "meanwhile another run has begun in .*prompt = 'a cube', this run has 'a ball'",
        "a ball",
        out=tmp_path,
    )
    assert folders.read_record(tmp_path)["config"]["prompt"] == "a cube"


def test_killed_before_the_first_checkpoint_there_is_nothing_to_lose(tmp_path):
    """Only run.json is left: the same run begins anew without a word, another one is refused."""
    generate("a cube", out=tmp_path, **SMALL)
    for name in ("checkpoint.pt", "field.safetensors"):
        (tmp_path / name).unlink()
    (tmp_path / "run.json").write_text(
        json.dumps({"config": json.loads((tmp_path / "run.json").read_text())["config"]})
    )
    refused("was made with seed = 0", "a cube", out=tmp_path, seed=3)
    assert same(generate("a cube", out=tmp_path, **SMALL), generate("a cube", **SMALL))


@pytest.mark.parametrize("name", folders.FILES[1:])
def test_files_of_somebody_else_are_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("precious")
    refused(
        f"holds {name} of an unknown run; replace it with overwrite=True", "a cube", out=tmp_path
    )
    assert contents(tmp_path) == {name: b"precious"}


def test_a_run_whose_run_json_is_gone_is_not_lost(tmp_path):
    """Its checkpoint knows the settings: only resume goes on, and only with the same."""
    generate("a cube", out=tmp_path, **SMALL)
    (tmp_path / "run.json").unlink()
    before = contents(tmp_path)
    refused("holds checkpoint.pt of an unknown run; replace", "a cube", out=tmp_path)
    refused("the checkpoint .* with prompt = 'a cube'", "a ball", out=tmp_path, resume=True)
    assert contents(tmp_path) == before
    generate("a cube", out=tmp_path, resume=True, **SMALL)


def test_a_finished_run_without_its_checkpoint_is_not_lost(tmp_path):
    generate("a cube", out=tmp_path, **SMALL)
    (tmp_path / "checkpoint.pt").unlink()
    refused("holds this run, finished", "a cube", out=tmp_path)
    refused("resume: there is no checkpoint at", "a cube", out=tmp_path, resume=True)


def test_distill_does_not_replace_a_checkpoint_unasked(tmp_path):
    """The loop by itself: refused without resume or overwrite."""
    prior, path = text_to_3d.make_prior("exact", 8), tmp_path / "c.pt"
    options = {
        "steps": 1,
        "resolution": 8,
        "n_samples": 4,
        "progress": False,
        "checkpoint": path,
        "reward": make_reward("color:red"),
    }

    def run(**more):
        distill(
            text_to_3d.make_field("voxel"),
            prior,
            text_to_3d.make_method("sds"),
            "a cube",
            **options,
            **more,
        )

    run()
    before = path.read_bytes()
    with pytest.raises(
        ValueError,
        match="^checkpoint: .* holds a run; go on with it by resume=True, or replace it by overw",
    ):
        run(seed=1)
    assert path.read_bytes() == before
    run(seed=1, overwrite=True)
    assert torch.load(path, weights_only=True)["config"]["seed"] == 1


def test_a_finished_run_can_be_trained_longer(tmp_path):
    """With more steps it goes on and says so, and without resume it says how; fewer are refused."""
    generate("a cube", out=tmp_path, **SMALL)
    longer = {"prompt": "a cube", "steps": 4, "out": tmp_path}
    refused(r"steps = 2, this run has 4; resume=True \(--resume\) goes on, or replace", **longer)
    with pytest.warns(UserWarning, match="steps = 2, this run has 4; it goes on"):
        result = generate(resume=True, **{**SMALL, **longer})
    assert [step["step"] for step in result.history] == [0, 1, 2, 3]
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="has done 4 steps, this run"):
        generate(resume=True, **{**SMALL, **longer, "steps": 3})
    assert folders.read_record(tmp_path)["config"]["steps"] == 4


def test_messages_promise_only_what_is_there(tmp_path, monkeypatch, capsys):
    """An interrupt before the first step of a run that is to replace another: nothing to go on
    from. A disk that is full from the beginning: nothing that --resume could finish."""
    command = ["generate", "a cube", "--steps", "2", "--resolution", "8", "--out", str(tmp_path)]
    cli.main(command)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="before anything was sav"):
        patch.setattr(text_to_3d, "distill", interrupted)
        cli.main([*command, "--overwrite"])
    for flags, how in (([], "has to begin anew"), (["--resume"], "--resume writes them")):
        with monkeypatch.context() as patch, pytest.warns(UserWarning), pytest.raises(SystemExit):
            for name in () if flags else folders.FILES:
                (tmp_path / name).unlink(missing_ok=True)
            patch.setattr(runs, "write_atomically", full)
            patch.setattr(text_to_3d, "save", full)
            cli.main([*command, *flags])
        assert how in capsys.readouterr().err
        if not flags:
            cli.main(command)


def test_results_are_there_before_the_oracle_is_fitted(tmp_path, monkeypatch):
    """Ctrl-C in the minutes after the loop costs the judge's numbers and no file of the object; the
    message is true, and --resume finishes."""

    def interrupted(*_):
        raise KeyboardInterrupt

    command = ["generate", "a cube", "--steps", "2", "--resolution", "8", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(results, "oracle_distance", interrupted)
        with pytest.raises(SystemExit, match="--resume goes on from the checkpoint in"):
            cli.main(command)
    assert {"checkpoint.pt", "field.safetensors"} <= contents(tmp_path).keys()
    assert "seconds" not in folders.read_record(tmp_path)
    cli.main([*command, "--resume"])
    assert "seconds" in folders.read_record(tmp_path)
