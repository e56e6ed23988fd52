"""Many runs by one process or by several: the same files, whoever dies on the way."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from worlds import quick_results

from psd_mini.pipelines import cli, sweep
from psd_mini.pipelines import generate as text_to_3d
from psd_mini.pipelines.folders import read_record

TINY = {"method": "sds", "steps": 2, "resolution": 8, "cameras_per_step": 2, "n_samples": 4}
PROMPTS = ["a red ball", "a cube"]
COMMAND = [
    *("sweep", "prompts.txt", "--seeds", "2", "--method", "sds", "--steps", "6"),
    *("--resolution", "8", "--cameras-per-step", "2", "--n-samples", "4"),
]
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quick_results(monkeypatch)
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


def as_worker(monkeypatch, rank, count, slurm=False):
    names = LAUNCHED[3:] if slurm else LAUNCHED[:3]
    for name, value in zip(names, (rank, count, 0), strict=True):
        monkeypatch.setenv(name, str(value))


def fields(folder):
    return {path.parent.name: load_file(path) for path in folder.glob("*/field.safetensors")}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, field in expected.items():
        for part, value in field.items():
            # exact: one machine, one thread in every worker
            assert torch.equal(found[name][part], value), (name, part)


@pytest.mark.parametrize("slurm", [False, True])
def test_workers_share_the_runs_and_make_the_same_bits(tmp_path, monkeypatch, slurm):
    """Jobs r, r + W, ... of prompts x seeds; whoever is last writes the table and the sheet."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    sweep.sweep(PROMPTS, seeds=2, out=alone, **TINY)
    made = []
    for rank in (1, 0):
        as_worker(monkeypatch, rank, 2, slurm)
        table = sweep.sweep(PROMPTS, seeds=2, out=shared, **TINY)
        made.append([place.name for place, cells in table.items() if cells])
        assert (shared / "sweep.md").exists() == (rank == 0)
    assert len(made[0]) == 2 and set(made[0]) < set(made[1]) and len(made[1]) == 4
    assert_same_bits(fields(shared), fields(alone))
    lines = (shared / "sweep.md").read_text().splitlines()
    assert len(lines) == 2 + 4 and all(line.count("|") == lines[0].count("|") for line in lines)
    assert Image.open(shared / "sweep.png").width > 2 * 96  # two seeds side by side


def test_finished_runs_are_skipped_and_interrupted_ones_go_on(tmp_path, monkeypatch):
    """A second call runs nothing; one with more seeds only those; a run that was interrupted after
    its checkpoint is resumed, to the bits of one that was not."""
    whole = tmp_path / "whole"
    sweep.sweep(PROMPTS, seeds=2, out=whole, **TINY)
    broken, calls = tmp_path / "broken", []

    @functools.wraps(text_to_3d.generate)
    def interrupting(*args, **kwargs):
        calls.append((kwargs["prompt"], kwargs["seed"], kwargs["resume"]))
        if len(calls) == 2:
            stop = {"callback": lambda info: (_ for _ in ()).throw(KeyboardInterrupt)}
            return text_to_3d.generate(*args, **kwargs, **stop)
        return text_to_3d.generate(*args, **kwargs)

    monkeypatch.setattr(sweep, "generate", interrupting)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(PROMPTS, seeds=1, out=broken, **TINY)
    sweep.sweep(PROMPTS, seeds=2, out=broken, **TINY)
    sweep.sweep(PROMPTS, seeds=2, out=broken, **TINY)
    first, second = sorted(PROMPTS)
    expected = [(first, 0, False), (second, 0, False)]  # the second one is interrupted
    assert calls == [*expected, (first, 1, False), (second, 0, True), (second, 1, False)]
    assert_same_bits(fields(broken), fields(whole))


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path, capsys):
    """One line in error.txt, in the table too; when the cause is gone it is done."""
    table = sweep.sweep(["a purple hippo", "a cube"], out=tmp_path, **TINY)
    ((place, cells),) = [(p, c) for p, c in table.items() if "hippo" in p.name]
    assert cells == [(place / "error.txt").read_text()]
    assert cells[0].startswith("ValueError: prompt: the toy world does not know 'hippo'")
    assert "\n" not in cells[0] and cells[0] in (tmp_path / "sweep.md").read_text()
    assert "2 of 2 runs are done" in capsys.readouterr().out
    (tmp_path / "a-cube-sds").mkdir()
    cube = next(p for p in table if "cube" in p.name)
    assert read_record(cube)["seconds"] > 0  # exact: a clock
    (cube / "run.json").unlink()
    (cube / "checkpoint.pt").write_bytes(b"damaged")
    assert "damaged" in sweep.sweep(["a cube"], out=tmp_path, **TINY)[cube][0]
    (cube / "checkpoint.pt").unlink()
    (cube / "field.safetensors").unlink()
    assert len(sweep.sweep(["a cube"], out=tmp_path, **TINY)[cube]) > 1
    assert not (cube / "error.txt").exists()


def test_the_command_reads_a_file_and_names_folders_as_generate_does(tmp_path, monkeypatch, capsys):
    """Empty lines and repeated prompts do not count; other settings have other folders; threads are
    put back."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a cube\n\n  a cube \n")
    settings = ["--steps", "1", "--resolution", "8", "--method", "sds", "--n-samples", "4"]
    before = torch.get_num_threads()
    cli.main(["sweep", "prompts.txt", "--out", "runs", "--threads", "2", *settings])
    assert torch.get_num_threads() == before
    cli.main(["sweep", "prompts.txt", "--out", "runs", "--annealing", "sqrt", *settings])
    cli.main(["generate", "a cube", *settings])
    (name,) = os.listdir("psd_mini_out")
    assert {name, name.replace("-0", "-annealing-sqrt-0")} < set(os.listdir("runs"))
    assert read_record(Path("runs") / name)["config"]["threads"] == 2
    capsys.readouterr()
    for command, message in (
        (["nothing.txt"], "prompts: expected a text file with a prompt on each line"),
        (["prompts.txt", "--seeds", "0"], "seeds: expected a whole number of at least 1, got 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["sweep", *command])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1
    with pytest.raises(ValueError, match="settings: 'step' is not known"):
        sweep.sweep(PROMPTS, step=3)
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        sweep.sweep([" "])


@pytest.mark.slow
def test_a_killed_worker_is_started_again_by_torchrun(tmp_path):
    """Two workers, one of which dies in the middle of writing a checkpoint: torchrun starts both
    again, and the files are those of a serial run."""
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "a donut"]))
    script = Path(__file__).parent / "killed_sweep.py"
    clean = {k: v for k, v in os.environ.items() if k not in LAUNCHED} | {"OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launches = {"serial": [], "shared": [*launcher, "--max-restarts", "1"]}
    for out, before in launches.items():
        command = [sys.executable, *before, script, *COMMAND, "--out", out]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "killed").exists()
    assert len(fields(tmp_path / "serial")) == 6
    assert_same_bits(fields(tmp_path / "shared"), fields(tmp_path / "serial"))
    assert (tmp_path / "shared" / "sweep.md").exists()
