"""Rates of the checker on tests/corpus: python tests/tools/corpus_rates.py > results.md

Every folder of the corpus is given to `psd-mini check FOLDER --kind KIND --json`, as anybody would.
A folder that the command does not get through is given file by file, and the report says so.
Most submissions import a library that is not installed, and stop there. So all are checked a second
time with empty libraries of these names on the path, to see what is behind that door.
Verdict, diagnosis and doors come from verdicts.json. "scaled" has no status of its own in the
checker: it counts as found where the status is "wrong" and the factor is named.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

CORPUS = Path(__file__).parent.parent / "corpus"
TOOLS = Path(__file__).parent
EMPTY_LIBRARY = """from corpus_world import FakeModule

__getattr__ = FakeModule(__name__).__getattr__
"""
DETAILED = ("import", "ctor", "embeds", "image", "standin", "vsd", "scale", "hostile")
COMMAND = "import sys; from psd_mini.pipelines.cli import main; main(sys.argv[1:])"


def write_libraries(folder: Path) -> None:
    """Empty packages for every library that a submission imports and that is not installed."""
    imported = re.compile(r"^(?:from|import) ([a-z_][\w.]*)", re.MULTILINE)
    for file in CORPUS.glob("*/*.py"):
        if not file.is_file():
            continue
        for name in imported.findall(file.read_text(errors="replace")):
            if importlib.util.find_spec(name.split(".")[0]) is None:
                place = folder
                for part in name.split("."):
                    place = place / part
                    place.mkdir(exist_ok=True)
                    (place / "__init__.py").write_text(EMPTY_LIBRARY)


def check(path: Path, kind: str, libraries: str) -> tuple[list[dict], str]:
    """Results of the command line for a folder or a file, and what it said where there are none."""
    places = [libraries, str(TOOLS)] if libraries else []
    inherited = [os.environ[name] for name in ("PYTHONPATH",) if name in os.environ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places + inherited)}
    options = ["--kind", kind, "--json", "--timeout", "120"]
    command = [sys.executable, "-c", COMMAND, "check", str(path), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment
    )
    try:
        return json.loads(done.stdout), ""
    except json.JSONDecodeError:
        return [], (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def results_of(table: dict[str, dict], libraries: str = "") -> tuple[dict[str, dict], list[str]]:
    """What came for every submission, by its name in the table; folders that had to be split."""
    came, notes = {}, []
    for folder in sorted({name.split("/")[0] for name in table}):
        names = [name for name in table if name.startswith(f"{folder}/")]
        kind = table[names[0]]["kind"]
        found, error = check(CORPUS / folder, kind, libraries)
        if error:
            notes.append(f"`{folder}` as a folder: {error}")
        for name in names:
            rows, said = [row for row in found if row["path"] == str(CORPUS / name)], ""
            if not rows:  # the folder as a whole failed, or does not count it as a submission
                rows, said = check(CORPUS / name, kind, libraries)
            came[name] = rows[0] if rows else {"status": "could not run", "causes": [said]}
        print(folder, file=sys.stderr)
    return came, notes


def judged(row: dict, result: dict) -> tuple[bool, bool]:
    """Is the verdict right? Is the diagnosis clean: are all words of it there too?"""
    causes = "; ".join(result["causes"])
    named = all(re.search(words, causes, re.IGNORECASE) for words in row["words"])
    if row["expected"] == "scaled":
        return result["status"] == "wrong" and named, result["status"] == "wrong" and named
    same = result["status"] == row["expected"]
    return same, same and named


def share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({part / whole:.0%})" if whole else "")


def summary(table: dict[str, dict], came: dict[str, dict]) -> list[str]:
    """The rates over all, and by where they come from."""
    lines = ["| | all | by hand | from templates |", "|---|---|---|---|"]
    parts = ["by hand", "from a template"]
    sets = [list(table)] + [[n for n in table if table[n]["written"] == p] for p in parts]
    rows: dict[str, list[str]] = defaultdict(list)
    for names in sets:
        good = [judged(table[name], came[name]) for name in names]
        rows["right verdict"].append(share(sum(v for v, _ in good), len(names)))
        rows["clean diagnosis too"].append(share(sum(d for _, d in good), len(names)))
        judgeable = [n for n in names if table[n]["expected"] in ("right", "scaled", "wrong")]
        stuck = [n for n in judgeable if came[n]["status"] not in ("right", "wrong")]
        rows["could not run, though it can be judged"].append(share(len(stuck), len(judgeable)))
        right = [n for n in names if table[n]["expected"] == "right"]
        called_wrong = [n for n in right if came[n]["status"] == "wrong"]
        rows["right called wrong"].append(share(len(called_wrong), len(right)))
        wrong = [n for n in names if table[n]["expected"] in ("wrong", "scaled")]
        called_right = [n for n in wrong if came[n]["status"] == "right"]
        rows["wrong or scaled called right"].append(share(len(called_right), len(wrong)))
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


def by(table: dict[str, dict], came: dict[str, dict], keys: dict[str, list[str]]) -> list[str]:
    """A table of rates, a line for each key with the names that belong to it."""
    lines = ["| | submissions | right verdict | clean diagnosis | could not run or no result |"]
    lines.append("|---|---|---|---|---|")
    for key, names in sorted(keys.items()):
        good = [judged(table[name], came[name]) for name in names]
        stuck = [n for n in names if came[n]["status"] in ("could not run", "no result")]
        numbers = (len(names), sum(v for v, _ in good), sum(d for _, d in good), len(stuck))
        lines.append(f"| {key} | {' | '.join(map(str, numbers))} |")
    return lines


def groups(table: dict[str, dict]) -> tuple[dict[str, list[str]], ...]:
    """Names by kind and by expected verdict, by group of doors, and by door."""
    kinds, doors, each = defaultdict(list), defaultdict(list), defaultdict(list)
    for name, row in table.items():
        kinds[f"{row['kind']}: {row['expected']}"].append(name)
        for group in {door.split(":")[0] for door in row["doors"]}:
            doors[group].append(name)
        for door in row["doors"]:
            if door.split(":")[0] in DETAILED:
                each[door].append(name)
    return kinds, doors, each


def misses(table: dict[str, dict], came: dict[str, dict]) -> list[str]:
    """A line for every verdict or diagnosis that is not as expected."""
    lines = ["| file | expected | got | what it said |", "|---|---|---|---|"]
    for name, row in table.items():
        if not all(judged(row, came[name])):
            causes = " ".join("; ".join(came[name]["causes"]).split()).replace("|", "/")
            causes = re.sub(r"submission_\d+", "submission", causes)  # another one in every run
            short = causes if len(causes) <= 150 else causes[:147] + "..."
            lines.append(f"| {name} | {row['expected']} | {came[name]['status']} | {short} |")
    return lines


HEAD = """# The checker on submissions that it had never seen

Made by `python tests/tools/corpus_rates.py > tests/results/corpus.md`: tests/corpus through the
command line, 120 s for each. A scaled gradient counts as found where the status is wrong and the
factor is named: the checker has no status for it. A clean diagnosis is a right verdict, and all
words that verdicts.json asks for. The labels that were corrected after the first run are listed in
tests/corpus/README.md.
"""
BEHIND = """
# With the missing libraries in place

Most submissions stop at their imports. Here all are checked again, with empty libraries of those
names on the path: what is behind that door. Wrong VSD on one UNet is found for the wrong reason:
the stand-in does not know adapters, so q is missing in the right ones too.
"""


def show(table: dict[str, dict], libraries: str = "") -> None:
    """Print rates and misses of one run."""
    came, notes = results_of(table, libraries)
    kinds, doors, each = groups(table)
    print("".join(f"\n{note}; its files were given one by one.\n" for note in notes))
    print("\n".join(summary(table, came)))
    titles = ("By kind and expected verdict", "By doors (a submission has several)", "By door")
    for title, keys in zip(titles, (kinds, doors, each), strict=True):
        print(f"\n## {title}\n")
        print("\n".join(by(table, came, keys)))
    print("\n## Every miss\n")
    print("\n".join(misses(table, came)))


def main() -> None:
    table = json.loads((CORPUS / "verdicts.json").read_text())
    print(HEAD)
    show(table)
    with tempfile.TemporaryDirectory() as libraries:
        write_libraries(Path(libraries))
        print(BEHIND)
        show(table, libraries)


if __name__ == "__main__":
    main()
