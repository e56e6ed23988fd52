"""Refining a finished object (`init_from`), the dull prior and the negative words by name."""

import json

import pytest
import torch
from worlds import quick_results, same

from psd_mini import generate, load_field, make_field, save_field
from psd_mini.methods import NegativeWords
from psd_mini.pipelines import cli
from psd_mini.pipelines.generate import PREFERENCE_TIMES, REFINING_TIMES

SMALL = {"steps": 2, "resolution": 8, "progress": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures, judge and oracle cost seconds, and are not what this is about."""
    quick_results(monkeypatch)


def test_refining_begins_with_the_finished_object(tmp_path):
    """At a learning rate of 0 the refined object is the first one, from its folder or its file.

    Catches a fresh field, and a start that does not reach the loop.
    """
    first = generate("a red ball", method="sds", seed=1, out=tmp_path / "first", **SMALL)
    still = {**SMALL, "lr_scale": 0.0, "method": "sds"}
    for where in (tmp_path / "first", tmp_path / "first" / "field.safetensors"):
        refined = generate("a ball", init_from=where, **still)
        assert same(refined.field, first.field)
    assert not same(generate("a ball", seed=2, **still).field, first.field)


def test_refining_has_its_own_times_and_is_part_of_the_identity(tmp_path):
    generate("a red ball", method="sds", seed=1, out=tmp_path / "first", **SMALL)
    out = tmp_path / "second"
    generate("a ball", init_from=tmp_path / "first", out=out, **SMALL)
    config = json.loads((out / "run.json").read_text())["config"]
    assert tuple(config["t_min"]) == REFINING_TIMES["t_min"]
    assert len(config["init_from"]) == 12
    generate("a ball", out=tmp_path / "third", **SMALL)
    config = json.loads((tmp_path / "third" / "run.json").read_text())["config"]
    assert tuple(config["t_min"]) == PREFERENCE_TIMES["t_min"] and config["init_from"] is None
    with pytest.raises(ValueError, match="out: the run in .* was made with init_from"):
        generate("a ball", out=out, **REFINING_TIMES, **SMALL)


@pytest.mark.parametrize(
    "start, message",
    [
        (
            "nothing here",
            "init_from: expected the folder of a finished run .*nothing here is not a field file",
        ),
        ("triplane", "init_from: .* holds a TriplaneField, this run makes a voxel field; give"),
    ],
)
def test_a_start_that_is_none_is_refused(start, message, tmp_path):
    path = tmp_path / start
    if start == "triplane":
        save_field(make_field("triplane", torch.Generator().manual_seed(0)), path)
    with pytest.raises(ValueError, match=message) as refusal:
        generate("a ball", init_from=path, out=tmp_path / "out", **SMALL)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_the_command_line_refines(tmp_path, capsys):
    generate("a red ball", method="sds", out=tmp_path / "first", **SMALL)
    small = ["--steps", "2", "--resolution", "8", "--out", str(tmp_path / "second")]
    cli.main(["generate", "a ball", "--init-from", str(tmp_path / "first"), *small])
    assert "recognised" in capsys.readouterr().out
    assert load_field(tmp_path / "second" / "field.safetensors") is not None


def test_the_dull_prior_by_name():
    """Half way to gray, guided at 2; a word of the world as negative, drawn or learned."""
    seen = []
    result = generate("a red ball", prior="dull", negative="bandit", callback=seen.append, **SMALL)
    assert seen[0]["context"].prior.views.vividness == pytest.approx(0.5)
    assert result.config["guidance_scale"] == pytest.approx(2)
    negative = seen[0]["negative"]
    assert isinstance(negative, NegativeWords) and negative.choice == "bandit"
    assert "red" not in negative.words and "ball" not in negative.words
    assert "gray" in negative.words and "house" in negative.words


def test_a_run_reports_the_reward_of_what_it_made():
    """`reward` is the mean over the judged pictures; a proxy and its gold reward stand apart."""
    plain = generate("a ball", reward="colorfulness", **SMALL).metrics
    assert {"reward"} == {name for name in plain if "reward" in name}
    proxied = generate("a ball", reward="proxy:rugged", **SMALL).metrics
    assert {"proxy_reward", "gold_reward"} == {name for name in proxied if "reward" in name}
    assert "reward" not in generate("a ball", method="sds", **SMALL).metrics
