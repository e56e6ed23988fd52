"""Files and folders: each submission in a process of its own, and a verdict whatever it does."""

import inspect
import json
import time
from pathlib import Path
from types import ModuleType

import pytest
import submissions

from psd_mini.checks.grading.grader import KINDS, find, grade, summary
from psd_mini.pipelines.cli import main

HEAD = (
    "import os, sys, time, math\nimport torch\nimport torch.nn.functional as F\n" + inspect.getsource(submissions.levels) + "\n"
)
GOOD = HEAD + inspect.getsource(submissions.plain_gradient).replace('@right("sds")\n', "").replace(
    "plain_gradient", "sds_gradient"
)
STARTER = (
    HEAD
    + "from diffusers import DDIMScheduler, StableDiffusionPipeline\nfrom transformers import CLIPTextModel\n"
    + inspect.getsource(submissions.StarterA)
    + inspect.getsource(submissions.StarterASolved).replace('@right("sds")\n', "")
)
FILES = {
    "good.py": (GOOD, ""),
    "starter.py:StarterASolved": (STARTER, ""),
    "talks.py": (GOOD + "print('hello ' * 100_000)\n", ""),
    "broken.py": ("\ndef sds(:\n", "SyntaxError (line 2)"),
    "missing.py": ("import a_package_that_nobody_has\n", "does not import"),
    "exits_on_import.py": (GOOD + "sys.exit(0)\n", "does not import"),
    "hard_exit.py": (HEAD + "def sds(x):\n    os._exit(0)\n", "ended the process"),
    "stub.py": (HEAD + "def sds(x):\n    raise NotImplementedError('your code here')\n", "your code here"),
    "endless.py": (HEAD + "def sds(x):\n    while True:\n        pass\n", "did not return within 10 s"),
    "empty.py": ("x = 1\n", "name it"),
    "several.py": (GOOD + "def a(x):\n    pass\ndef b(x):\n    pass\ndef sds_other(x):\n    pass\n", "name it"),
    "unknown_parameter.py": (HEAD + "def sds(x, wibble):\n    return x\n", "'wibble' is not known"),
    "none.py": (HEAD + "def sds(x):\n    return None\n", "returned None"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("submissions")
    for name, (source, _) in FILES.items():
        (folder / name.split(":")[0]).write_text(source)
    started = time.monotonic()
    graded = grade([str(folder / name) for name in FILES], "sds", timeout=10)
    assert time.monotonic() - started < 60
    return {Path(result["path"]).name: result for result in graded}


@pytest.mark.parametrize("name", FILES)
def test_verdict_of_a_file(results, name):
    words = FILES[name][1]
    result = results[name]
    assert result["ok"] == (not words), result
    assert words in "; ".join(result["causes"])
    assert len(result["output"]) <= 2000
    json.dumps(result)
    unanswered = {"stub.py": "not answered", "endless.py": "timed out"}
    assert result["status"] == unanswered.get(name, "wrong" if words else "right")


def test_summary_has_a_line_for_each(results):
    lines = summary(list(results.values())).splitlines()
    assert len(lines) == len(FILES) + 1
    assert [line.split("  ")[0] for line in lines if "stub.py" in line or "endless.py" in line] == ["not answered", "timed out"]
    assert lines[-1] == f"3 of {len(FILES)} right"


@pytest.mark.parametrize("kind", KINDS)
def test_one_name_is_always_found(kind):
    """The kind's name, among helpers whose names look like it."""
    called, module = kind.replace("-", "_"), ModuleType("handed_in")
    for name in ("helper", f"{called}_weight", called):
        exec(f"def {name}(x): pass", vars(module) | {}, made := {})
        made[name].__module__ = "handed_in"
        setattr(module, name, made[name])
    assert find(module, None, kind) is getattr(module, called)


def command(capsys, *args):
    """Exit status and output of `psd-mini check`."""
    try:
        main(["check", *map(str, args)])
        status = 0
    except SystemExit as leaving:
        status = leaving.code
    return status, capsys.readouterr().out


def test_command_line(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(GOOD)
    status, out = command(capsys, f"{file}:sds_gradient", "--kind", "sds")
    assert status == 0 and "check of SDS: right" in out, out
    (tmp_path / "other.py").write_text(GOOD.replace(" - eps", " + eps"))
    status, out = command(capsys, tmp_path, "--json")
    assert status == 1
    mine, other = json.loads(out)
    assert mine["ok"] and not other["ok"] and "added instead of subtracted" in other["causes"][0]
    assert command(capsys, file, "--kind", "nonsense")[0] == 2
    assert command(capsys, f"{file}:sds_gradient", "--weighting", "uniform")[0] == 0  # w = 1
    status, out = command(capsys, f"{file}:sds_gradient", "--weighting", "sds")
    assert status == 1 and "w(t) = sigma_t^2 is expected" in out
    assert command(capsys, file, "--kind", "cfg", "--weighting", "sds")[0] == 2
    assert command(capsys, tmp_path, tmp_path / "none.py") == (2, "")  # nothing is graded
    assert "not a security sandbox" in " ".join(command(capsys, "--help")[1].split())
