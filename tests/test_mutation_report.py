"""The report of the mutation tests is whole: enough mutants killed, a reason for every survivor."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
REPORT = (ROOT / "tests" / "results" / "mutation.md").read_text()
# modules whose sample has not been run yet, or that came after it; names are of the tree of then
LATER = {f"methods/{name}" for name in ("hifa", "linear_combinations", "noise_rules")}
LATER |= {f"methods/{name}" for name in ("running_gaussian", "score_model", "vsd")}
LATER |= {f"methods/{name}" for name in ("by_noise_level", "image_residual", "low_rank")}
LATER |= {"pretrained/clip_rewards", "pretrained/image_reward", "pretrained/stable_diffusion"}
LATER |= {"pretrained/proxy", "_internal/adam"}
OUTSIDE = {"__init__", "learned"}  # of the rooms of files and loaders: a door, and settings


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
    chapters = {"schedule", "rendering", "mixture", "sds", "psd", "negative", "rewards", "distill"}
    rooms = {"world/isotropic", "world/prior", "pipelines/folders"}
    for room in ("_internal", "pretrained"):
        paths = (ROOT / "psd_mini" / room).glob("*.py")
        rooms |= {f"{room}/{path.stem}" for path in paths if path.stem not in OUTSIDE}
    tests = modules_of_the_tool()
    assert chapters | methods | rooms <= set(tests)
    for module, (files, _) in tests.items():
        assert (ROOT / "psd_mini" / f"{module}.py").exists(), module
        for file in files.split():
            assert (ROOT / "tests" / f"test_{file}.py").exists(), file


def test_the_report_says_of_which_tree_it_is():
    assert "at commit 4d90dd0" in REPORT.partition("| module |")[0]


def test_every_module_is_in_a_table_and_its_mutants_are_killed():
    """At least 95% of all, 85% of each; killed + survivors = tried; tests in less than 20 s."""
    seen = []
    for section in REPORT.split("\n## ")[1:]:
        rows = re.findall(
            r"^\| (\S+) \| (\d+) \| (\d+) \| ([\d.]+)%[ ±\d.%]* \| ([\d.]*) \|$", section, re.M
        )
        table = {
            name: (int(killed), int(generated), float(share), seconds)
            for name, killed, generated, share, seconds in rows
        }
        total = table.pop("all")
        seen += table
        for name, (killed, generated, share, seconds) in table.items():
            assert killed / generated >= 0.85 and float(seconds) < 20, name
            assert generated - killed == len(re.findall(rf"^\| {name}:\d+ \|", section, re.M)), name
            assert abs(100 * killed / generated - share) < 0.06, name
        killed, generated, *_ = zip(*table.values(), strict=True)
        assert total[:2] == (sum(killed), sum(generated))
        assert total[0] / total[1] >= 0.95
    assert len(seen) == len(set(seen)) and set(seen) == set(modules_of_the_tool()) - LATER


def test_every_survivor_has_its_reason():
    survivors = re.findall(r"^\| \S+:\d+ \| .+ \| (.*) \|$", REPORT, re.M)
    assert survivors and all(len(reason) > 3 for reason in survivors)
