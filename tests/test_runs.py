"""What keeps a run alive, without the loop: a field of two numbers and a record of steps.

In the loop itself: test_distill.py, test_faults.py, test_loop.py."""

import io
import os
import signal
import sys
import threading
import warnings
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from psd_mini._internal.adam import Adam
from psd_mini._internal.runs import (
    Keeper,
    NonFiniteError,
    check_finite,
    deterministic,
    different,
    fixed,
    interrupts_deferred,
    open_checkpoint,
    plain_torch,
    read_checkpoint,
    tell,
    write_checkpoint,
)

NAN, INF = torch.nan, torch.inf


@dataclass
class Progress:
    steps: int = 0
    history: list = field(default_factory=list)
    cost: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(renders=3))


def keeper(path=None, config=None, every=2, steps=5, numbers=(1.0, 2.0)):
    module = nn.Linear(2, 1, bias=False)
    module.weight.data = torch.tensor([numbers])
    optimizer = Adam(module.parameters(), lr=0.5)
    parts = {"field": module, "optimizer": optimizer}
    generator = torch.Generator().manual_seed(3)
    return Keeper(path, config or {"seed": 0}, parts, generator, every, steps)


def numbers(kept):
    return kept.field.weight.tolist()[0]


def work(kept, progress, until, interrupt=(), show=False):
    """One step after the other: Adam moves the field, and a random number is drawn."""
    with kept.watch(progress, "a ball", show) as after:
        while progress.steps < until:
            with kept.step(progress.steps):
                kept.keep()
                noise = torch.rand(1, generator=kept.generator)
                kept.parts["optimizer"].zero_grad()
                (kept.field(noise.expand(2)).sum()).backward()
                kept.parts["optimizer"].step()
            progress.steps += 1
            progress.history.append({"step": progress.steps - 1})
            if progress.steps in interrupt:
                os.kill(os.getpid(), signal.SIGINT)
            after()


def test_the_first_tensor_that_is_not_finite_is_named():
    check_finite({"none": None, "grad": torch.ones(2, requires_grad=True), "whole": torch.ones(1)})
    for bad in (NAN, INF, -INF):
        tensors = {"none": None, "good": torch.ones(2), "a": torch.tensor([1, bad, 0])}
        with pytest.raises(NonFiniteError, match="^a is not finite .NaN or infinity.$"):
            check_finite({**tensors, "b": torch.tensor([NAN])})
    assert issubclass(NonFiniteError, FloatingPointError)


def test_settings_are_compared_as_they_are_written():
    """As JSON: a tuple that came back as a list is the same; what JSON does not know, as text."""
    saved = {"t_min": [0.1, 0.2], "seed": 3, "kind": "a", "where": "b/c"}
    assert different(saved, {"t_min": (0.1, 0.2), "where": os.path.join("b", "c")}) == ""
    assert different(saved, {"seed": 3, "kind": "b", "t_min": 1}) == "kind = 'a', this run has 'b'"
    assert different(saved, {"other": 0}) == "other = None, this run has 0"
    assert different({"x": "1j"}, {"x": 1j}) == ""
    assert fixed({"steps": 3, "threads": 1, "torch": "2", "seed": 0}) == {"seed": 0}


def test_what_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(
        ValueError, match="^resume: there is no checkpoint at .*c.pt; start the run"
    ):
        open_checkpoint(path)
    path.write_bytes(b"text")
    with pytest.raises(
        ValueError, match=r"^resume: .*c.pt is damaged .* \(.+\); delete it to star"
    ):
        open_checkpoint(path)
    wrong = "^resume: .*c.pt is not a 'psd-mini checkpoint 2'; delete it to start anew$"
    for state in ([1], {"config": {}}, {"format": "psd-mini checkpoint 2", "config": [1]}):
        torch.save(state, path)
        with pytest.raises(ValueError, match=wrong):
            open_checkpoint(path)
    write_checkpoint(path, {"config": {"a": 1}, "x": 2})
    assert open_checkpoint(path)["x"] == 2 and open_checkpoint(path)["config"] == {"a": 1}


def test_another_run_is_refused_another_machine_warned_of(tmp_path):
    path = tmp_path / "c.pt"
    write_checkpoint(path, {"config": {"seed": 0, "steps": 5, "threads": 1, "extra": 1}})
    same = {"seed": 0, "extra": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_checkpoint(path, {**same, "steps": 5, "threads": 1})["config"]["seed"] == 0
    start = "^resume: the checkpoint at .*c.pt was made with "
    for config, what in [
        ({**same, "seed": 1}, "seed = 0, this run has 1"),
        ({"seed": 0}, "extra = 1, this run has None"),
        ({**same, "new": 2}, "new = None, this run has 2"),
    ]:
        with pytest.raises(ValueError, match=f"{start}{what}; give the same, or another output"):
            read_checkpoint(path, config)
    for config, what in [({"threads": 2}, "threads = 1"), ({"steps": 9}, "steps = 5")]:
        with pytest.warns(UserWarning, match=f"{start}{what}, this run has .; it goes on"):
            read_checkpoint(path, same | config)


def test_torch_is_deterministic_for_a_block():
    settings = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    torch.set_deterministic_debug_mode(0)
    settings.fill_uninitialized_memory = True
    try:
        with pytest.raises(KeyError), deterministic():
            assert torch.get_deterministic_debug_mode() == 1  # 1 is "warn"
            assert not settings.fill_uninitialized_memory
            raise KeyError
        assert torch.get_deterministic_debug_mode() == 0 and settings.fill_uninitialized_memory
    finally:
        torch.set_deterministic_debug_mode(before[0])
        settings.fill_uninitialized_memory = before[1]


def test_gradients_are_on_and_tensors_on_the_cpu():
    with torch.no_grad(), torch.device("meta"), plain_torch():
        x = torch.ones(1, requires_grad=True)
        assert x.device.type == "cpu" and (2 * x).requires_grad
    with torch.inference_mode(), plain_torch():
        assert not torch.ones(1).is_inference() and torch.is_grad_enabled()
    with plain_torch():
        assert torch.ones(1).device.type == "cpu"


def test_the_first_ctrl_c_waits_and_the_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts_deferred() as interrupted:
        assert not interrupted
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_has_no_signals_and_works_all_the_same():
    seen, before = [], signal.getsignal(signal.SIGINT)

    def enter():
        with interrupts_deferred() as interrupted:
            seen.append(interrupted)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [[]] and signal.getsignal(signal.SIGINT) is before


def test_a_line_beside_the_bars(capsys):
    tell(False, "nothing")
    tell(True, "fitting")
    assert capsys.readouterr() == ("", "fitting\n")


def test_a_checkpoint_that_cannot_be_is_refused_at_the_start(tmp_path):
    """A folder, a place in no folder, a run that is there; resume and overwrite say it is known."""
    path = tmp_path / "c.pt"
    for bad in (tmp_path, tmp_path / "no" / "c.pt"):
        with pytest.raises(
            ValueError, match="^checkpoint: expected a file in a folder that exists"
        ):
            keeper(bad).claim(resume=False, overwrite=False)
    keeper(path).claim(resume=False, overwrite=False)
    keeper().claim(resume=False, overwrite=False)
    path.write_bytes(b"")
    keeper(str(path)).claim(resume=True, overwrite=False)
    keeper(path).claim(resume=False, overwrite=True)
    with pytest.raises(
        ValueError, match="^checkpoint: .*c.pt holds a run; go on with it by resume="
    ):
        keeper(path).claim(resume=False, overwrite=False)
    keeper(every=1).claim(resume=False, overwrite=False)
    with pytest.raises(
        ValueError, match="^checkpoint_every: expected a whole number of at least 1"
    ):
        keeper(every=0).claim(resume=False, overwrite=False)
    with torch.inference_mode():
        frozen = keeper()
    frozen.field.weight = nn.Parameter(frozen.good["weight"], requires_grad=False)
    with pytest.raises(ValueError, match=r"^radiance_field: made inside torch.inference_mode\(\)"):
        frozen.claim(resume=False, overwrite=False)


def test_a_run_goes_on_from_its_file_in_the_same_bits(tmp_path):
    """Five steps at once, and three, a new process, five: field, optimiser, random numbers."""
    path, whole, first = tmp_path / "c.pt", keeper(), keeper(tmp_path / "c.pt", every=3)
    work(whole, Progress(), 5)
    work(first, Progress(), 4)  # its file is of step 3
    again = keeper(path, numbers=(7.0, 8.0))
    progress = again.load(lambda saved: Progress(**saved))
    assert (progress.steps, len(progress.history), progress.cost) == (3, 3, {"renders": 3})
    # exact: a file's own bits
    assert torch.equal(again.good["weight"], again.field.weight)
    work(again, progress, 5)
    # exact: the same code on the same numbers
    assert torch.equal(again.field.weight, whole.field.weight)
    assert torch.equal(again.generator.get_state(), whole.generator.get_state())
    assert (
        open_checkpoint(path)["progress"]["steps"] == 5
    )  # the last one is written whatever `every`


def test_what_does_not_fit_leaves_the_field_as_it_was(tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(
        ValueError, match="^resume: there is nothing to resume from; give `checkpoi"
    ):
        keeper().load(dict)
    work(keeper(path), Progress(), 4)
    state = open_checkpoint(path)
    wide = torch.ones(3, 1)
    moments = state["optimizer"]["state"][0]
    for name, other in [
        ("progress", {"stairs": 1}),
        ("field", {"weight": wide}),
        ("optimizer", {}),
        ("optimizer", {**state["optimizer"], "state": {0: {**moments, "exp_avg": wide}}}),
        ("optimizer", {**state["optimizer"], "state": {0: {**moments, "exp_avg_sq": wide}}}),
        ("generator", torch.ones(2)),
    ]:
        write_checkpoint(path, {**state, name: other})
        kept = keeper(path)
        with pytest.raises(
            ValueError, match=r"^resume: .*c.pt is damaged, or of another version \("
        ):
            kept.load(lambda saved: Progress(**saved))
        assert numbers(kept) == [1, 2]  # exact: as it was
    for done in (-1, 6):
        write_checkpoint(path, {**state, "progress": {"steps": done}})
        kept = keeper(path)
        what = f"c.pt has done {done} steps, this run has 5; give more steps, or another"
        with pytest.raises(ValueError, match=f"^resume: .*{what}"):
            kept.load(lambda saved: Progress(**saved))
        assert numbers(kept) == [1, 2]  # exact: as it was
    for done in (0, 5):
        write_checkpoint(path, {**state, "progress": {"steps": done}})
        assert keeper(path).load(lambda saved: Progress(**saved)).steps == done


def test_a_ctrl_c_between_two_steps_is_kept_and_at_the_end_ignored(tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        work(keeper(path, every=9), Progress(), 5, interrupt=[3])
    assert open_checkpoint(path)["progress"] == {
        **{"steps": 3, "history": [{"step": n} for n in range(3)], "cost": {"renders": 3}}
    }
    work(keeper(path), Progress(), 5, interrupt=[5])  # there is nothing more to interrupt


@pytest.mark.parametrize("middle", [True, False])
def test_an_interrupted_step_or_an_infinite_field_is_not_written(tmp_path, middle):
    path, kept = tmp_path / "c.pt", keeper(tmp_path / "c.pt")
    with pytest.raises(KeyboardInterrupt), kept.watch(Progress(1), "", False):
        if middle:
            with kept.step(1):
                raise KeyboardInterrupt
        kept.field.weight.data[0, 1] = INF
        raise KeyboardInterrupt
    assert not path.exists()


def test_a_nan_is_named_with_its_step_and_taken_back(tmp_path):
    path = tmp_path / "c.pt"
    kept, progress = keeper(path), Progress()
    with pytest.raises(NonFiniteError) as error, kept.watch(progress, "", False) as after:
        progress.steps = 2
        after()
        good = open_checkpoint(path)
        kept.field.weight.data[0, 0] = NAN
        progress.steps = 4  # when a checkpoint is due, the field itself is looked at
        after()
    back = "the field is back in its last good state; the checkpoint in .*c.pt is untouched"
    assert error.match(f"^step 3: field.weight is not finite .NaN or infinity.; {back}$")
    assert error.value.__cause__ is None and numbers(kept) == [1, 2]  # exact: as it was
    # exact: an untouched file
    assert open_checkpoint(path)["progress"] == good["progress"]
    for where in (None, tmp_path / "other.pt"):
        kept = keeper(where)
        raises = pytest.raises(NonFiniteError)
        with raises as error, kept.watch(Progress(), "", False), kept.step(7):
            raise NonFiniteError("the render")
        assert str(error.value) == "step 7: the render; the field is back in its last good state"


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(
        UserWarning, match="^checkpoint of step 3 not written, the run goes on: .*space"
    ):
        keeper(tmp_path / "c.pt").save({"steps": 3})
    keeper().save({"steps": 3})  # no path, no file, no warning


def test_the_bar_counts_steps_and_is_only_there_if_wanted(monkeypatch):
    for show in (True, False):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        kept, progress = keeper(), Progress(2)
        with kept.watch(progress, "a ball", show) as after:
            progress.steps = 3
            after()
            text = sys.stderr.getvalue()
        assert ("a ball" in text and "2/5" in text and "step" in text) == show
