"""The commands that make the README's numbers again know what the README says."""

import json

import pytest
import reproduce
from test_readme import text_of


def test_every_row_quotes_the_readme_and_finds_its_records():
    text = " ".join(text_of("README.md").split())
    for readme, _ in reproduce.OTHERS.values():
        assert readme in text
    for name, rows in reproduce.WHAT.items():
        assert rows.readme in text, name
        lines = (reproduce.RESULTS / f"{rows.file}.jsonl").read_text().splitlines()
        records = [r for r in map(json.loads, lines) if rows.wanted(r)]
        assert len(records) >= rows.n, name
        for record in records:
            assert set(rows.keys.split()) <= record.keys()
            assert isinstance(rows.value(record), float), name


@pytest.mark.parametrize("moved, verdict", [(0.0, True), (0.03, True), (0.5, False)])
def test_agreement_allows_two_standard_errors(moved, verdict):
    """Of runs with a standard error of 0.05 each side, means may differ by 0.14."""
    recorded = [0.9, 1.0, 1.1, 1.0, 0.9, 1.1]
    pairs = [("run", value, value + moved) for value in recorded]
    assert reproduce.agree(pairs) is verdict


def test_the_command_makes_runs_again(monkeypatch, capsys):
    """Recorded values come back: exit status 0; values that are far off: 1; no such name: 2."""

    def again(by):
        rows = reproduce.WHAT["objects"]
        lines = (reproduce.RESULTS / "all_prompts.jsonl").read_text().splitlines()
        old = [r for r in map(json.loads, lines) if rows.wanted(r)]
        keys = rows.keys.split()

        def run_jobs(jobs, work, path):
            records = [r for job in jobs for r in old if all(r[k] == job[k] for k in keys)]
            return [{**r, "distance": r["distance"] + by} for r in records]

        return run_jobs

    for by, status, word in ((0.0, 0, "the same"), (1.0, 1, "DISAGREE")):
        monkeypatch.setattr(reproduce, "run_jobs", again(by))
        assert reproduce.main("objects") == status
        assert word in capsys.readouterr().out
    assert reproduce.main("nothing") == 2 and "one of objects" in capsys.readouterr().err
