"""Files and folders: each submission in a process of its own, and a verdict whatever it does."""

import inspect
import json
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import submissions
import torch

from psd_mini.checks.grading.grader import CHECKS, counts, find, grade, line
from psd_mini.pipelines.cli import main

HEAD = (
    "import os, sys, time, math\nimport torch\nimport torch.nn.functional as F\n"
    + inspect.getsource(submissions.levels)
    + "\n"
)
GOOD = HEAD + inspect.getsource(submissions.plain_gradient).replace('@right("sds")\n', "").replace(
    "plain_gradient", "sds_gradient"
)
STARTER = (
    HEAD + "from diffusers import DDIMScheduler, StableDiffusionPipeline\nfrom transformers import"
    " CLIPTextModel\n"
    + inspect.getsource(submissions.StarterA)
    + inspect.getsource(submissions.StarterASolved).replace('@right("sds")\n', "")
)
NOT_RUN, STUB, WRONG = "could not run", "not answered", "wrong"
MODULE = (
    HEAD
    + """
class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = torch.nn.MSELoss()

    @property
    def broken(self):
        raise RuntimeError("a property was computed")

"""
)
METHOD = inspect.getsource(submissions.plain_gradient).replace('@right("sds")\n', "")
METHOD = "".join(
    f"    {line}\n" for line in METHOD.replace("plain_gradient(", "my_sds(self, ").splitlines()
)
FILES = {  # source, status, words
    "good.py": (GOOD, "right", ""),
    "starter.py:StarterASolved": (STARTER, "right", ""),
    "talks.py": (GOOD + "print('hello ' * 100_000)\n", "right", ""),
    "module.py": (MODULE + METHOD, "right", ""),
    "module_inherits.py:Handed": (MODULE + METHOD + "class Handed(Mine):\n    pass\n", "right", ""),
    "module_empty.py": (MODULE, NOT_RUN, "Mine has none of the methods"),
    "added.py": (GOOD.replace(" - eps", " + eps"), WRONG, "added instead of subtracted"),
    "number.py": (HEAD + "def sds(x):\n    return x.sum().item()\n", WRONG, "Python number"),
    "detached.py": (HEAD + "def sds(x):\n    return x.detach().sum()\n", WRONG, "no gradient path"),
    "broken.py": ("\ndef sds(:\n", NOT_RUN, "SyntaxError (line 2)"),
    "missing.py": ("import a_package_that_nobody_has\n", NOT_RUN, "there are: none"),
    "exits_on_import.py": (GOOD + "sys.exit(0)\n", NOT_RUN, "does not import"),
    "hard_exit.py": (HEAD + "def sds(x):\n    os._exit(0)\n", NOT_RUN, "ended the process"),
    "raises.py": (
        HEAD + "def sds(x):\n    return x @ x.flatten()[:3]\n",
        NOT_RUN,
        "it raised RuntimeError (line 9 of sds)",
    ),
    "constructor.py": (
        HEAD + "class Sds:\n    def __init__(self, wibble):\n        self.a = wibble + 1\n",
        NOT_RUN,
        "depends on options.args",
    ),
    "abstract.py": (
        HEAD
        + "import abc\nclass Sds(abc.ABC):\n    @abc.abstractmethod\n    def sds(self):\n       "
        " pass\n",
        NOT_RUN,
        "abstract",
    ),
    "signature.py:sds": ("sds = max\n", NOT_RUN, "its parameters cannot be read"),
    "inner_module.py": (
        HEAD + "def sds(x):\n    return torch.nn.Module()(x)\n",
        NOT_RUN,
        "NotImplementedError",
    ),
    "stub.py": (
        HEAD + "def sds(x):\n    raise NotImplementedError('your code here')\n",
        STUB,
        "your code here",
    ),
    "stub_on_import.py": ("raise NotImplementedError('not yet')\n", STUB, "not yet"),
    "stub_class.py": (
        HEAD + "class Sds:\n    def sds_loss(self, x):\n        raise NotImplementedError\n",
        STUB,
        "",
    ),
    "none.py": (HEAD + "def sds(x):\n    return None\n", STUB, "returned None"),
    "pass.py": (HEAD + "def sds(x):\n    pass\n", STUB, "returned None"),
    "dots.py": (HEAD + "def sds(x):\n    loss = ...\n    return loss\n", STUB, "returned Ellipsis"),
    "dots_in_use.py": (
        HEAD + "def sds(x):\n    eps_hat = ...\n    return x - eps_hat\n",
        STUB,
        "ellipsis",
    ),
    "endless.py": (
        HEAD + "def sds(x):\n    while True:\n        pass\n",
        "timed out",
        "did not return within 10 s",
    ),
    "empty.py": ("x = 1\n", NOT_RUN, "name it"),
    "no_such_name.py:sds": ("x = 1\n", NOT_RUN, "it has no 'sds'"),
    "several.py": (
        GOOD + "def a(x):\n    pass\n" + GOOD.replace("sds_gradient", "sds_other"),
        NOT_RUN,
        "name it",
    ),
    "unknown_parameter.py": (
        HEAD + "def sds(x, wibble):\n    return x\n",
        NOT_RUN,
        "'wibble' is not known",
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("submissions")
    for name, (source, *_) in FILES.items():
        (folder / name.split(":")[0]).write_text(source)
    graded = grade([str(folder / name) for name in FILES], "sds", timeout=10)
    return {Path(result["path"]).name: result for result in graded}


@pytest.mark.parametrize("name", FILES)
def test_verdict_of_a_file(results, name):
    _, status, words = FILES[name]
    result = results[name]
    assert result["status"] == status, result
    assert result["ok"] == (status == "right") and words in "; ".join(result["causes"])
    assert len(result["output"]) <= 2000
    json.dumps(result)


def test_summary_has_a_line_for_each(results):
    rows = list(results.values())
    lines = [*(line(row, 10) for row in rows), counts(rows)]
    verdicts = [text.split("  ")[0] for text in lines if "stub.py" in text or "endless.py" in text]
    assert verdicts == ["not answered", "timed out"]
    counted = Counter(status for _, status, _ in FILES.values())
    others = ", ".join(
        f"{counted[status]} {status}" for status in (WRONG, NOT_RUN, STUB, "timed out")
    )
    assert lines[-1] == f"{counted['right']} of {len(FILES)} right, {others}"


@pytest.mark.parametrize("kind", CHECKS)
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
    file.write_text(
        GOOD.replace(
            "u + guidance_scale * (c - u) - eps", "(u + guidance_scale * (c - u) - eps) / 7"
        )
    )
    for policy, status, word in (
        ("ignore", 0, "right"),
        ("report", 0, "scaled"),
        ("require", 1, "WRONG"),
    ):
        came, out = command(capsys, f"{file}:sds_gradient", "--gradient-scale", policy)
        assert came == status and f"check of SDS: {word}" in out
    assert command(capsys, tmp_path, tmp_path / "none.py") == (2, "")  # nothing is graded
    assert "not a security sandbox" in " ".join(command(capsys, "--help")[1].split())


@pytest.mark.parametrize("kind", CHECKS)
def test_a_stub_of_any_kind_has_not_answered(kind):
    """One that returns nothing, and one that cannot be called."""

    def stub(x, cond=None, guidance_scale=None):
        pass

    def unknown(wibble_1, wibble_2, wibble_3, wibble_4):
        pass

    assert CHECKS[kind](stub).status == "not answered"
    assert CHECKS[kind](unknown).status == "could not run"


def test_what_is_attached_to_an_object_counts():
    """A function that is an attribute is a submission; a module (a loss, say) is only a part."""
    mine = submissions.RIGHT["plain_gradient"][1]
    CHECKS["sds"](SimpleNamespace(sds_loss=mine)).require()
    assert CHECKS["sds"](SimpleNamespace(loss=torch.nn.MSELoss())).status == "could not run"
