"""The report of the mutation tests is whole: every module, enough of its mutants killed, a
reason for every survivor."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
REPORT = (ROOT / "tests" / "results" / "mutation.md").read_text()


def modules() -> set[str]:
    """schedule, formulas, every method, rendering, negative and the exact priors."""
    methods = {f"methods/{path.stem}" for path in (ROOT / "psd_mini" / "methods").glob("*.py")}
    exact = {f"priors/{name}" for name in ("mixture", "isotropic", "toy_world")}
    return {"schedule", "formulas", "rendering", "negative"} | methods | exact


def test_every_module_is_in_the_table_and_its_mutants_are_killed():
    """At least 85% of all and of each, killed + survivors = generated, and the tests of a module
    take less than 20 s."""
    rows = re.findall(r"^\| (\S+) \| (\d+) \| (\d+) \| ([\d.]+)% \| ([\d.]*) \|$", REPORT, re.M)
    table = {
        name: (int(killed), int(generated), float(share), seconds)
        for name, killed, generated, share, seconds in rows
    }
    total = table.pop("all")
    assert modules() <= set(table)
    for name, (killed, generated, share, seconds) in table.items():
        assert killed / generated >= 0.85 and float(seconds) < 20, name
        assert generated - killed == len(re.findall(rf"^\| {name}:\d+ \|", REPORT, re.M)), name
        assert abs(100 * killed / generated - share) < 0.06, name
    assert total[:2] == (
        sum(row[0] for row in table.values()),
        sum(row[1] for row in table.values()),
    )
    assert total[0] / total[1] >= 0.85


def test_every_survivor_has_its_reason():
    survivors = re.findall(r"^\| \S+:\d+ \| .+ \| (.*) \|$", REPORT, re.M)
    assert survivors and all(len(reason) > 3 for reason in survivors)
