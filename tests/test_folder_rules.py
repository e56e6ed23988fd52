"""Whether a run may use a folder: every row of the table in psd_mini/pipelines/folders.py, without
any run. With runs: test_folders.py."""

import json
import re

import pytest

from psd_mini._internal.runs import write_checkpoint
from psd_mini.pipelines import folders
from psd_mini.pipelines.folders import (
    LONGEST,
    claim,
    folder_name,
    look,
    not_both,
    read_record,
    writable_folder,
)

SETTINGS = {"prompt": "a ball", "seed": 0, "steps": 5}
BEGUN, FINISHED = {"config": SETTINGS}, {"config": SETTINGS, "seconds": 3.0}
OVERWRITE = r"replace it with overwrite=True \(--overwrite\), or choose another out \(--out\)"


def test_names_of_folders():
    first = ("a mushroom", "psd", "voxel")
    assert folder_name(first, {}, (0,)) == "a-mushroom-psd-voxel-0"
    others = {"reward": "color:blue", "steps": 40, "negative": True}
    expected = "a-mushroom-psd-voxel-reward-color-blue-steps-40-negative-0"
    assert folder_name(first, others, (0,)) == expected
    assert folder_name(["a.b-c_d 1.5"], {"x": False}) == "a.b-c-d-1.5-x-false-" + digest(
        folder_name(["a.b-c_d 1.5"], {"x": False})
    )


def digest(name):
    assert re.fullmatch(r"[a-z0-9.-]+-[0-9a-f]{8}", name), name
    return name[-8:]


def test_what_a_name_cannot_hold_is_in_its_digest():
    """Capitals, slashes, objects, what is too long: parts that differ have names that differ."""
    names = [folder_name(["x", part], {}) for part in ("A", "a/", "/a", "å", "..", "a--b", "a b ")]
    names += [folder_name(["a"], {"n": value}) for value in ((1, 2), [1, 2])]
    names += [folder_name([end * 101], {}) for end in "ab"]
    names += [folder_name([dots, "x"], {}) for dots in (".a", "..a", "..", "-a")]
    assert len({digest(name) for name in names}) == len(names)
    for name in names:
        assert name.strip("-.") == name and len(name) <= LONGEST
    assert folder_name(["a" * LONGEST], {}) == "a" * LONGEST
    assert folder_name(["a" * 90 + "." * 9 + "bc"], {})[:91] == "a" * 90 + "-"
    assert len(folder_name(["a" * 300], {})) == LONGEST


def test_a_folder_is_made_and_tried(tmp_path):
    assert writable_folder(None) is None
    new = tmp_path / "a" / "b"
    for _ in range(2):
        assert writable_folder(str(new)) == new and list(new.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match="^out: cannot write into .*file .*; choose another folder"
    ):
        writable_folder(tmp_path / "file")


def test_two_wishes_that_contradict_each_other(tmp_path):
    not_both(True, False), not_both(False, True)
    for ask in (lambda: not_both(True, True), lambda: look(tmp_path, SETTINGS, True, True)):
        with pytest.raises(ValueError, match="^resume, overwrite: one goes on .*; choose one$"):
            ask()
    with pytest.raises(ValueError, match="^resume: needs `out`, the folder of the run to continue"):
        look(None, SETTINGS, resume=True)
    look(None, SETTINGS)


@pytest.mark.parametrize("text", [None, "no json", "[1]", '{"config": 1}', '{"other": {}}', "\x00"])
def test_a_record_that_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert read_record(tmp_path) == {}


def folder(tmp_path, record=None, checkpoint=False, file=None):
    """A folder with this in run.json, perhaps with a checkpoint and with another file."""
    if record:
        (tmp_path / "run.json").write_text(json.dumps(record))
    if checkpoint:
        write_checkpoint(tmp_path / "checkpoint.pt", {"config": SETTINGS})
    if file:
        (tmp_path / file).write_text("")
    return tmp_path


OTHER = {"config": {**SETTINGS, "seed": 1}}
SHORTER = {"config": {**SETTINGS, "steps": 3}}
IS_OTHER = "was made with seed = 1, this run has 0; "
LOOKS = [
    ({}, ""),
    ({"file": "notes.txt"}, ""),
    ({"record": BEGUN}, ""),  # killed before its first checkpoint
    (
        {"record": BEGUN, "checkpoint": True},
        "this run, unfinished; go on with resume=True .--resume",
    ),
    ({"record": FINISHED}, "this run, finished: look at .*turntable.gif; overwrite=True"),
    ({"record": FINISHED, "checkpoint": True}, "this run, finished: look at .*turntable.gif; over"),
    ({"record": OTHER}, IS_OTHER + OVERWRITE),
    ({"record": OTHER, "checkpoint": True}, IS_OTHER + OVERWRITE),
    (
        {"record": SHORTER},
        "made with steps = 3, this run has 5; resume=True .--resume. goes on, or ",
    ),
    ({"checkpoint": True}, "holds checkpoint.pt of an unknown run; " + OVERWRITE),
    ({"file": "mesh.glb"}, "holds mesh.glb of an unknown run; " + OVERWRITE),
]


@pytest.mark.parametrize(("what", "answer"), LOOKS)
def test_a_look_at_a_folder(tmp_path, what, answer):
    out = folder(tmp_path, **what)
    look(str(out), SETTINGS, overwrite=True)
    if not answer:
        look(str(out), SETTINGS)
        return
    with pytest.raises(ValueError, match=f"^out: .*{answer}") as error:
        look(str(out), SETTINGS)
    assert "\n" not in str(error.value)


NAMES = ("checkpoint.pt", "run.json", "field.safetensors", "mesh.glb", "turntable.gif")
NAMES += ("views.png", "curves.png")


@pytest.mark.parametrize("name", NAMES)
def test_every_result_of_an_unknown_run_is_guarded(tmp_path, name):
    with pytest.raises(ValueError, match=f"^out: .* holds {re.escape(name)} of an unknown run"):
        look(folder(tmp_path, file=name), SETTINGS)


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ({}, "^resume: there is no checkpoint"),
        ({"record": BEGUN}, "^resume: there is no checkpoint"),
        ({"checkpoint": True}, ""),  # it knows its own settings
        ({"record": BEGUN, "checkpoint": True}, ""),
        ({"record": FINISHED, "checkpoint": True}, ""),
        ({"record": SHORTER, "checkpoint": True}, ""),  # it may be trained longer
        ({"record": OTHER, "checkpoint": True}, f"^out: .*{IS_OTHER}{OVERWRITE}"),
    ],
)
def test_a_look_before_going_on(tmp_path, what, answer):
    out = folder(tmp_path, **what)
    if not answer:
        look(out, SETTINGS, resume=True)
        return
    with pytest.raises(ValueError, match=answer):
        look(out, SETTINGS, resume=True)


def test_a_run_claims_its_folder_after_its_first_step(tmp_path):
    settings = {**SETTINGS, "where": tmp_path}
    claim(tmp_path, settings)
    text = (tmp_path / "run.json").read_text()
    assert json.loads(text) == {"config": {**SETTINGS, "where": str(tmp_path)}}
    assert text.startswith('{\n  "config": {')  # to be read by people
    folder(tmp_path, FINISHED)
    claim(tmp_path, SETTINGS)  # going on: what is written there stays
    assert read_record(tmp_path) == FINISHED
    meanwhile = "^out: meanwhile another run has begun in .*, with seed = 0, this run has 1; choose"
    with pytest.raises(ValueError, match=meanwhile):
        claim(tmp_path, OTHER["config"])
    assert read_record(tmp_path) == FINISHED


def test_what_a_run_replaces_is_taken_away_and_nothing_else(tmp_path):
    for name in (*NAMES[:-1], "notes.txt"):  # the last one is not there
        folder(tmp_path, file=name)
    folder(tmp_path, OTHER)  # the run before this one
    claim(tmp_path, SETTINGS, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.txt", "run.json"]
    assert read_record(tmp_path) == BEGUN


def test_a_full_disk_costs_the_record_and_not_the_run(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_atomically", full)
    claim(tmp_path, SETTINGS)
    assert list(tmp_path.iterdir()) == []
