"""Files are whole or not there, and what is read runs no code."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from psd_mini._internal import files
from psd_mini._internal.files import checksum, read_archive, write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    for text in (b"a long old text", b"new"):
        write_atomically(path, text)
        assert path.read_bytes() == text and os.listdir(tmp_path) == ["a.txt"]
    write_atomically(str(path), b"by a string")
    assert path.read_bytes() == b"by a string"


def test_it_takes_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch):
    """Written under another name beside its own, flushed, synced to the disk, and only then
    renamed: at no time does the name stand for half a file."""
    path, seen = tmp_path / "a.txt", []
    path.write_bytes(b"old")

    def note(what, function):
        def noted(*arguments):
            names = set(os.listdir(tmp_path)) - {"a.txt"}
            contents = [(tmp_path / name).read_bytes() for name in names]
            seen.append((what, path.read_bytes(), contents))
            return function(*arguments)

        return noted

    monkeypatch.setattr(os, "fsync", note("fsync", os.fsync))
    monkeypatch.setattr(os, "replace", note("replace", os.replace))
    write_atomically(path, b"new")
    assert seen == [("fsync", b"old", [b"new"]), ("replace", b"old", [b"new"])]


def test_two_processes_do_not_share_the_temporary_file(tmp_path, monkeypatch):
    """Its name has the process in it, and it is hidden."""
    names = []
    monkeypatch.setattr(os, "replace", lambda partial, path: names.append(partial.name))
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        write_atomically(tmp_path / "a.txt", b"")
    assert len(set(names)) == 2 and all(name[0] == "." and "a.txt" in name for name in names)


@pytest.mark.parametrize("path", ["", "."])
def test_a_folder_is_no_file(path):
    with pytest.raises(IsADirectoryError) as error:
        write_atomically(path, b"")
    assert error.value.strerror == "a path to a file is needed, not a folder"


def test_a_temporary_file_that_stays_costs_nothing(tmp_path, monkeypatch):
    """What went wrong before is what is said, and a whole file is a whole file."""

    def held(path):
        raise PermissionError(13, "it is open elsewhere")

    monkeypatch.setattr(Path, "unlink", held)
    write_atomically(tmp_path / "a.txt", b"new")
    with pytest.raises(FileNotFoundError, match="choose a path"):
        write_atomically(tmp_path / "nowhere" / "a.txt", b"new")


def test_a_failure_names_the_file_and_what_to_do(tmp_path):
    path = tmp_path / "nowhere" / "a.txt"
    with pytest.raises(FileNotFoundError) as error:  # the kind, by its number, is kept
        write_atomically(path, b"")
    assert error.value.filename == str(path) and error.value.__cause__ is None
    assert "No such file" in error.value.strerror and "; choose a path in" in error.value.strerror


def test_an_archive_is_read_where_its_checksums_fit(tmp_path):
    path, state = tmp_path / "a.pt", {"x": torch.arange(64), "n": 3}
    torch.save(state, path)
    read = read_archive(path)
    # exact: whole numbers
    assert read["n"] == 3 and torch.equal(read["x"], state["x"])
    data = bytearray(path.read_bytes())
    place = data.find(state["x"].numpy().tobytes())
    data[place + 5] ^= 1  # one bit of one number
    path.write_bytes(bytes(data))
    with pytest.raises(zipfile.BadZipFile, match=r"data/0 does not fit its checksum"):
        read_archive(path)


def test_an_archive_runs_no_code_and_comes_to_the_cpu(tmp_path, monkeypatch):
    """A pickle that would call a function is refused; tensors of a GPU are read without one."""
    seen = {}
    path = tmp_path / "a.pt"
    torch.save({"x": torch.ones(1)}, path)
    load = torch.load

    def noted(*arguments, **settings):
        seen.update(settings)
        return load(*arguments, **settings)

    monkeypatch.setattr(files.torch, "load", noted)
    read_archive(path)
    assert seen == {"map_location": "cpu", "weights_only": True}

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"x": Evil()}, path)
    with pytest.raises(Exception, match="[Ww]eights"):
        read_archive(path)
    assert not (tmp_path / "executed").exists()


def test_the_checksum_is_that_of_the_safetensors_file(tmp_path):
    tensors, settings = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}, {"kind": "voxel"}
    save_file(tensors, tmp_path / "a", {"settings": json.dumps(settings)})
    expected = hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert checksum(tensors, settings) == expected
    with safe_open(tmp_path / "a", "pt") as file:
        assert json.loads(file.metadata()["settings"]) == settings
    others = [checksum({**tensors, "a": torch.ones(3)}, settings), checksum(tensors, {"kind": ""})]
    assert len({expected, *others}) == 3
