"""The report of the mutation tests is whole: enough mutants killed, a reason for every survivor."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
REPORT = (ROOT / "tests" / "results" / "mutation.md").read_text()
# modules that came after the sample was run; names are those of the tree it was run on
LATER = {f"methods/{name}" for name in ("hifa", "linear_combinations", "noise_rules")}
LATER |= {f"methods/{name}" for name in ("running_gaussian", "score_model", "vsd")}
LATER |= {f"methods/{name}" for name in ("by_noise_level", "image_residual", "low_rank")}


def modules_of_the_tool():
    """TESTS of the tool, which is not imported: it needs mutmut."""
    tree = ast.parse((ROOT / "tests" / "tools" / "mutation.py").read_text())
    for node in tree.body:
        target = getattr(node, "targets", [None])[0]
        if isinstance(target, ast.Name) and target.id == "TESTS":
            return ast.literal_eval(node.value)
    raise AssertionError("no TESTS")


def test_the_tool_knows_the_mathematics_of_today():
    """Chapters with formulas, every method, the exact priors; and the files of their tests."""
    methods = {f"methods/{path.stem}" for path in (ROOT / "psd_mini" / "methods").glob("*.py")}
    chapters = {"schedule", "rendering", "mixture", "sds", "psd", "negative"}
    tests = modules_of_the_tool()
    assert chapters | methods | {"world/isotropic", "world/prior"} <= set(tests)
    for module, (files, _) in tests.items():
        assert (ROOT / "psd_mini" / f"{module}.py").exists(), module
        for file in files.split():
            assert (ROOT / "tests" / f"test_{file}.py").exists(), file


def test_the_report_says_of_which_tree_it_is():
    assert "at commit 4d90dd0" in REPORT.partition("| module |")[0]


def test_every_module_is_in_the_table_and_its_mutants_are_killed():
    """At least 95% of all, 85% of each; killed + survivors = tried; tests in less than 20 s."""
    rows = re.findall(
        r"^\| (\S+) \| (\d+) \| (\d+) \| ([\d.]+)%[ ±\d.%]* \| ([\d.]*) \|$", REPORT, re.M
    )
    table = {
        name: (int(killed), int(generated), float(share), seconds)
        for name, killed, generated, share, seconds in rows
    }
    total = table.pop("all")
    assert set(table) == set(modules_of_the_tool()) - LATER
    for name, (killed, generated, share, seconds) in table.items():
        assert killed / generated >= 0.85 and float(seconds) < 20, name
        assert generated - killed == len(re.findall(rf"^\| {name}:\d+ \|", REPORT, re.M)), name
        assert abs(100 * killed / generated - share) < 0.06, name
    killed, generated, *_ = zip(*table.values(), strict=True)
    assert total[:2] == (sum(killed), sum(generated))
    assert total[0] / total[1] >= 0.95


def test_every_survivor_has_its_reason():
    survivors = re.findall(r"^\| \S+:\d+ \| .+ \| (.*) \|$", REPORT, re.M)
    assert survivors and all(len(reason) > 3 for reason in survivors)
