"""Faults that must cost nothing: kill -9 at any moment, Ctrl-C, hostile files."""

import json
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import sys
import time

import killed_run
import pytest
import torch
from worlds import quick_results, same, small_world

from psd_mini import SDS, VoxelField, distill, generate, load_field, save_field
from psd_mini._internal import files
from psd_mini.pipelines.cli import main

# processes that are forked from one which has imported everything: they begin at once
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["killed_run"])


def start(folder, kill_write=0, told=None):
    """The run of `killed_run` in a process of its own."""
    folder.mkdir(exist_ok=True)
    process = SERVER.Process(target=killed_run.run, args=(folder, kill_write, told), daemon=True)
    process.start()
    return process


def end(process):
    """Its exit status, once it has ended."""
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The result of an interpreter of its own, which orders its sets in another way."""
    folder = tmp_path_factory.mktemp("unbroken")
    subprocess.run([sys.executable, killed_run.__file__, str(folder)], check=True)
    return torch.load(folder / "field.pt", weights_only=True)


def check_end(folder, unbroken):
    """Resume to the end in a new process: the same bits as the run that nobody killed."""
    assert end(start(folder)) == 0
    broken = torch.load(folder / "field.pt", weights_only=True)
    assert all(
        torch.equal(unbroken[name], broken[name]) for name in unbroken
    )  # exact: one machine, one thread


def kill_at_random(folder, rng):
    """kill -9 after a random step and a random fraction of the next one."""
    steps, told = SERVER.Pipe(duplex=False)
    process, last = start(folder, told=told), rng.randrange(killed_run.STEPS - 2)
    told.close()  # the process has its own
    while steps.recv() < last:
        pass
    time.sleep(rng.random() * 0.05)
    process.kill()
    assert end(process) == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_a_random_moment(unbroken, tmp_path):
    kill_at_random(tmp_path, random.Random(0))
    check_end(tmp_path, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 7])
def test_killed_in_the_write_of_a_checkpoint(unbroken, tmp_path, write):
    """The half-written file stands beside the old checkpoint and is not taken for it."""
    assert end(start(tmp_path, write)) == -signal.SIGKILL
    assert (tmp_path / "c.pt").exists() == (write > 1)  # exact: a count
    check_end(tmp_path, unbroken)


@pytest.mark.slow
def test_two_processes_end_in_the_same_bits(unbroken, tmp_path):
    check_end(tmp_path, unbroken)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 21))
def test_killed_at_twenty_random_moments(unbroken, tmp_path, seed):
    kill_at_random(tmp_path, random.Random(seed))
    check_end(tmp_path, unbroken)


OPTIONS = {
    "steps": 6,
    "resolution": 8,
    "cameras_per_step": 2,
    "n_samples": 8,
    "progress": False,
    "checkpoint_every": 100,
}


@pytest.fixture(scope="module")
def prior():
    return small_world()


def test_ctrl_c_waits_for_the_step_and_keeps_it(prior, tmp_path):
    """The signal comes amid step 3: that is finished and in the checkpoint; a resumed run ends
    in the same bits."""
    whole = VoxelField(8)
    distill(whole, prior, SDS(), "a red mushroom", **OPTIONS)
    seen = []

    class Interrupted(SDS):
        def __call__(self, *args):
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(*args)

        def __repr__(self):
            return repr(SDS())

    path, field = tmp_path / "c.pt", VoxelField(8)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        options = {**OPTIONS, "callback": lambda info: seen.append(info["step"])}
        distill(field, prior, Interrupted(), "a red mushroom", checkpoint=path, **options)
    assert seen == [0, 1, 2, 3] and signal.getsignal(signal.SIGINT) is before
    assert torch.load(path, weights_only=True)["progress"]["steps"] == 4
    field = VoxelField(8)
    distill(field, prior, SDS(), "a red mushroom", checkpoint=path, resume=True, **OPTIONS)
    assert same(whole, field)


def test_a_second_ctrl_c_acts_at_once(prior, tmp_path):
    """Pressed twice within a step, it does not wait, and writes nothing of the half-done step."""

    class Stuck(SDS):
        def __call__(self, *args):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        distill(
            VoxelField(8), prior, Stuck(), "a red mushroom", checkpoint=tmp_path / "c.pt", **OPTIONS
        )
    assert not (tmp_path / "c.pt").exists()


def test_ctrl_c_at_the_command_line_leaves_a_picture_and_says_how_to_go_on(tmp_path, monkeypatch):
    """The picture shows the field as it is; the message names the flag."""
    from psd_mini.pipelines import generate as text_to_3d

    def interrupted(*args, callback, **kwargs):
        callback({"step": 0})
        kwargs["checkpoint"].write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(text_to_3d, "distill", interrupted)
    with pytest.raises(
        SystemExit,
        match=r"interrupted; the same command with --resume goes on from the checkpoint in ",
    ):
        main(["generate", "a red ball", "--out", str(tmp_path)])
    assert (tmp_path / "views.png").stat().st_size > 1000


def full_disk(monkeypatch):
    def fsync(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


def read_only_folder(monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "open", refuse, raising=False)  # chmod does not stop a superuser


@pytest.mark.parametrize("fault", [full_disk, read_only_folder])
def test_a_checkpoint_that_cannot_be_written_costs_nothing(prior, tmp_path, monkeypatch, fault):
    """It happens at step 4: the run ends as if nothing had been, and resumed from step 2's
    checkpoint it does so again."""
    path, whole, field = tmp_path / "c.pt", VoxelField(8), VoxelField(8)
    distill(whole, prior, SDS(), "a red mushroom", **OPTIONS)
    options = {**OPTIONS, "checkpoint": path, "checkpoint_every": 2}
    with (
        monkeypatch.context() as patch,
        pytest.warns(
            UserWarning, match="checkpoint of step [46] not written, the run goes on"
        ) as told,
    ):
        distill(
            field,
            prior,
            SDS(),
            "a red mushroom",
            callback=lambda info: info["step"] == 2 and fault(patch),
            **options,
        )
    assert same(whole, field) and told[0].filename == __file__  # it points at the call
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]
    assert torch.load(path, weights_only=True)["progress"]["steps"] == 2
    field = VoxelField(8)
    distill(field, prior, SDS(), "a red mushroom", resume=True, **options)
    assert same(whole, field)


@pytest.mark.filterwarnings("ignore:checkpoint of step")
def test_results_that_cannot_be_written_stay_in_memory(tmp_path, monkeypatch, capsys):
    """The disk is full when the run is over: the object is returned; at the command line one
    line that says how to go on."""
    quick_results(monkeypatch)
    out = tmp_path / "out"
    settings = {"method": "sds", "steps": 1, "resolution": 8, "progress": False}
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="still in memory"):
        result = generate("a red ball", out=out, callback=lambda info: full_disk(patch), **settings)
    assert result.out is None and result.metrics["recognised"]
    command = ["generate", "a red ball", "--method", "sds", "--steps", "1", "--resolution", "8"]
    command += ["--out", str(out)]
    with (
        monkeypatch.context() as patch,
        pytest.warns(UserWarning),
        pytest.raises(SystemExit) as status,
    ):
        full_disk(patch)
        main(command)
    assert status.value.code == 2 and "has to begin anew" in capsys.readouterr().err
    main(command)
    assert (out / "run.json").exists()


def field_file(path, settings, header_length=None):
    """A file in the format of safetensors with the header that we like."""
    header = json.dumps({"__metadata__": {"psd_mini_field": json.dumps(settings)}}).encode()
    path.write_bytes(struct.pack("<Q", header_length or len(header)) + header)
    return path


def test_a_huge_field_is_refused_before_memory_is_taken(tmp_path):
    """A header that promises 10^18 voxels, or a header of 2^60 bytes: an error, and no memory
    for it."""
    whole = tmp_path / "whole.safetensors"
    save_field(VoxelField(8), whole)
    huge = field_file(tmp_path / "huge.safetensors", {"kind": "voxel", "resolution": 10**6})
    with pytest.raises(
        ValueError, match="huge.safetensors: the field's header and tensors disagree"
    ):
        load_field(huge)
    with pytest.raises(
        ValueError, match="long.safetensors is not a field file of psd-mini, or damaged"
    ):
        load_field(field_file(tmp_path / "long.safetensors", {"kind": "voxel"}, 2**60))
    assert load_field(whole).settings["resolution"] == 8


def test_a_field_file_cannot_name_a_place(tmp_path):
    """The kind in a file's header is looked up among the known fields, not imported or opened."""
    for kind in ("../../somewhere", "os.system", "", 3):
        with pytest.raises(ValueError, match="header and tensors disagree"):
            load_field(field_file(tmp_path / "f.safetensors", {"kind": kind}))
