"""Mutation testing: if a line of the mathematics were wrong, would a test notice?

    pip install mutmut==3.8.1
    python tests/tools/mutation.py                     every module of the table below
    python tests/tools/mutation.py schedule negative   some
    python tests/tools/mutation.py --sample 400        a random sample of all mutants, in a tenth
                                                       of the time; with names: of some modules

mutmut makes the mutants, all that it knows for a file: operators exchanged, numbers raised by one,
arguments dropped or None, strings and simple defaults changed; not in annotations, docstrings,
decorators and calls of len and isinstance. They are run here and not by mutmut, which leaves out
functions with decorators (`validated`, property, contextmanager) and chooses a mutant when its
function is called, so that it misses what runs while a test module is imported:

1. torch, the package and the tests are loaded once. In a fork for each mutant its function gets
   other code, and the tests that reach it run until one fails: quick ones first, and before them
   those that killed its neighbours.
2. Functions that run while the tests are imported, and what stands outside of functions: in a fork
   that imports the mutated file from the start and runs all of the module's tests.

Kills are kept in build/mutation.jsonl and are final; who survived is tried again the next time.
Writes the tables of tests/results/mutation.md, under the heading of a sample, of a sample of some
modules, or of all; what stands above a table, and the reasons, are by hand and stay.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import hashlib
import importlib
import json
import math
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import libcst
import pytest
import torch  # noqa: F401 - so that no fork has to
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).parent.parent.parent
BUILD, REPORT = ROOT / "build", ROOT / "tests" / "results" / "mutation.md"
# headings of the report
ALL, SAMPLE, SOME = "## All mutants", "## A sample", "## Some modules"
LIMIT = 60  # seconds of processor time after which a mutant does not end, and counts as killed
# module -> its tests, and what takes long and is left out of them (pytest -k)
TESTS = {
    "schedule": ("schedule", "not agrees_with_diffusers and not loop_anneals"),
    "rendering": ("rendering", ""),
    "mixture": ("mixture tilted", ""),
    "sds": ("formulas settings sds relatives distill", "not test_distill or plain_function"),
    "psd": ("formulas settings psd", ""),
    "negative": ("negative limiting_prior", ""),
    "methods/by_noise_level": ("image_residual", ""),
    "methods/image_residual": ("image_residual", ""),
    "methods/hifa": ("settings hifa noise_rules", ""),
    "methods/linear_combinations": ("settings linear_combinations", ""),
    "methods/low_rank": ("low_rank", ""),
    "methods/negative_words": ("limiting_prior", ""),
    "methods/__init__": ("settings", ""),
    "methods/dreamdpo": ("settings psd preference_relatives", ""),
    "methods/exact": ("settings reward_gradients", ""),
    "methods/noise_rules": ("settings noise_rules", ""),
    "methods/regression": ("settings reward_gradients", "test_settings or regression"),
    "methods/reward_gradients": ("settings reward_gradients", ""),
    "methods/rewardsds": ("settings psd limiting_prior", ""),
    "methods/running_gaussian": ("settings vsd lookahead", ""),
    "methods/score_model": ("settings vsd", ""),
    "methods/vsd": ("settings vsd lookahead", ""),
    "world/isotropic": ("isotropic toy_world_prior", ""),
    "world/prior": ("toy_world_prior reward_gradients limiting_prior", ""),
    "pretrained/sampling": ("sampling", ""),
    "distill": (
        "loop hifa image_residual distill generate",
        "test_loop or the_loop or bad_values or only_the_checkpoint or same_everywhere",
    ),
    "rewards": (
        "rewards users clip_rewards image_reward proxy",
        "test_rewards or found_by_name or is_no_picture or names_and_seeds or unknown_proxies",
    ),
    "_internal/runs": ("runs", ""),
    "_internal/arguments": ("arguments", ""),
    "_internal/files": ("files", ""),
    "_internal/identity": ("identity", ""),
    "_internal/adam": ("runs fields", "goes_on or test_the_optimi"),
    "pretrained/proxy": (
        "proxy",
        "names_and or unknown_proxies or damaged or alone or differentiable or network_is",
    ),
    "pretrained/clip_rewards": ("clip_rewards", "not open_clip_itself and not loop"),
    "pretrained/image_reward": ("image_reward", "not package and not loop"),
    "pretrained/loading": ("loading", ""),
    "pretrained/stable_diffusion": (
        "stable_diffusion_prior real_rung",
        "(test_stable and not sampling and not survive and not moves) or views_reach or size_as",
    ),
    "pretrained/precision": ("loading stable_diffusion_prior", "loading or follows_the_gpu"),
    "pretrained/published": ("loading clip_rewards", "loading or preprocessing"),
    "pretrained/failures": ("loading", ""),
    "pipelines/folders": ("folder_rules", ""),
}


class Visitor(MutationVisitor):
    """Also visits functions with decorators: mutmut cannot run their mutants, this tool can."""

    def _skip_node_and_children(self, node: libcst.CSTNode) -> bool:
        return not isinstance(node, libcst.FunctionDef) and super()._skip_node_and_children(node)


class Mutant(NamedTuple):
    source: str  # the whole file
    function: str  # "name" or "Class.name"; "" outside of functions
    lines: range  # of that function in the original
    line: int
    change: str  # what is different, for the report
    key: str


def file_of(name: str) -> str:
    return str(ROOT / "psd_mini" / f"{name}.py")


def load(name: str) -> Any:
    return importlib.import_module("psd_mini." + name.replace("/", ".").removesuffix(".__init__"))


@functools.cache
def changes(name: str) -> tuple[str, MetadataWrapper, libcst.Module, list[Any]]:
    """A module's text, its tree, and all changes of it that mutmut knows."""
    old = Path(file_of(name)).read_text()
    wrapper = MetadataWrapper(libcst.parse_module(old))
    visitor = Visitor(mutation_operators, IgnoredCode(set(), set(), set()))
    return old, wrapper, wrapper.visit(visitor), visitor.mutations


def mutants(name: str, numbers: Iterable[int] | None = None) -> list[Mutant]:
    """All mutants of a module, or those with these numbers."""
    old, wrapper, module, mutations = changes(name)
    places = wrapper.resolve(PositionProvider)
    names = {node: node.name.value for node in module.body if isinstance(node, libcst.FunctionDef)}
    for cls in (node for node in module.body if isinstance(node, libcst.ClassDef)):
        names |= {
            f: f"{cls.name.value}.{f.name.value}"
            for f in cls.body.body
            if isinstance(f, libcst.FunctionDef)
        }
    found = []
    for mutation in mutations if numbers is None else [mutations[i] for i in numbers]:
        node: Any = mutation.contained_by_top_level_function
        lines = range(0)
        if node in names:
            lines = range(places[[*node.decorators, node][0]].start.line, places[node].end.line + 1)
        new = deep_replace(module, mutation.original_node, mutation.mutated_node).code
        start = len(os.path.commonprefix([old, new]))
        end, parts = len(os.path.commonprefix([old[start:][::-1], new[start:][::-1]])), []
        for text in (old, new):  # what differs, with up to 30 characters of the line on either side
            left, right = max(start - 30, old.rfind("\n", 0, start) + 1), len(text) - end
            right = min(right + 30, (text + "\n").find("\n", right))
            parts.append("`" + " ".join(text[left:right].split()) + "`")
        # a kill stays valid as long as its function stays the same
        stop = lines.stop - 1 + new.count("\n") - old.count("\n")
        same = new.split("\n")[lines.start - 1 : stop] if lines else [new]
        identity = "\n".join([f"{name} {names.get(node, '')}", *same])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        change, line = " → ".join(parts).replace("|", "\\|"), old.count("\n", 0, start) + 1
        found.append(Mutant(new, names.get(node, ""), lines, line, change, key))
    return found


def in_fork(work: Callable[[], Any], limit: int = LIMIT) -> Any:
    """What work() returns (JSON) in a silent fork; None if that dies, fails or takes too long."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.setitimer(signal.ITIMER_PROF, limit)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            with open(write, "w") as pipe:
                pipe.write(json.dumps(work()))
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else None


def forget_package() -> None:
    """Unload the package and its tests, so that importing them runs them again."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(f"{ROOT}/") and name != "__main__":
            del sys.modules[name]


def note_lines(name: str) -> set[int]:
    """A set that from now on collects the first lines of the module's functions when called."""
    file, lines = file_of(name), set()

    def note(frame, event, argument):
        if frame.f_code.co_filename == file:
            lines.add(frame.f_code.co_firstlineno)

    sys.setprofile(note)
    return lines


def innermost(found: Any) -> Any:
    """The function as it is written, without the decorators around it."""
    for shell in ("fget", "__func__", "__wrapped__"):
        if inner := getattr(found, shell, None):
            return innermost(inner)
    return found


def graft(name: str, source: str, function: str) -> None:
    """Give a loaded function the code and the defaults that it has in another text of its file."""
    module, pair = load(name), []
    other = dict(vars(module))
    exec(compile(source, file_of(name), "exec"), other)
    for place in (vars(module), other):
        *cls, attribute = function.split(".")
        pair.append(innermost(vars(place[cls[0]])[attribute] if cls else place[attribute]))
    for part in ("__code__", "__defaults__", "__kwdefaults__"):
        setattr(pair[0], part, getattr(pair[1], part))


class QuickRound:
    """Step 1, a pytest plugin: collected tests run in forks; `undecided` is left for step 2."""

    def __init__(self, name: str, waiting: list[Mutant], killed: Callable[[Mutant, str], None]):
        self.name, self.waiting, self.killed = name, waiting, killed
        self.undecided: list[Mutant] = []
        self.seconds = 0.0
        self.at_import = note_lines(name)

    def first_failure(
        self, session: pytest.Session, items: list[pytest.Item], mutant: Mutant | None = None
    ) -> str:
        if mutant:
            try:
                graft(self.name, mutant.source, mutant.function)
            except Exception as error:
                return f"import: {type(error).__name__}"
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return item.nodeid
        return ""

    def unmutated(self, session: pytest.Session) -> tuple[dict, list[str]] | None:
        """{test: (seconds, first lines of the functions it reaches)}, all grafted unchanged; and
        the modules that are loaded after them."""
        source, answer = Path(file_of(self.name)).read_text(), {}
        for function in {mutant.function for mutant in self.waiting} - {""}:
            graft(self.name, source, function)
        for item in session.items:
            lines, started = note_lines(self.name), time.process_time()
            if self.first_failure(session, [item]):
                return None
            sys.setprofile(None)
            answer[item.nodeid] = (time.process_time() - started, sorted(lines))
        return answer, list(sys.modules)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.setprofile(None)
        tests, loaded = in_fork(lambda: self.unmutated(session), 10 * LIMIT) or ({}, [])
        if not tests:
            raise pytest.UsageError(f"{self.name}: a test fails without any mutant")
        for other in loaded:  # what tests load when they run is loaded here, once for all forks
            if not other.startswith("psd_mini"):
                with contextlib.suppress(Exception):
                    importlib.import_module(other)
        gc.collect()
        # in the forks the garbage collector would touch, and so copy, all that is loaded
        gc.freeze()
        self.seconds, killers = sum(seconds for seconds, _ in tests.values()), Counter()
        for mutant in self.waiting:
            reaching = {test for test, (_, at) in tests.items() if set(at) & set(mutant.lines)}
            items = [item for item in session.items if item.nodeid in reaching]
            places = {
                item: (-killers[mutant.function, item.nodeid], tests[item.nodeid][0])
                for item in items
            }
            items.sort(key=places.__getitem__)
            failure = functools.partial(self.first_failure, session, items, mutant)
            by = in_fork(failure) if items else ""
            if by != "":
                killers[mutant.function, by] += 1
                self.killed(mutant, by or "does not end")
            elif not mutant.function or any(line in mutant.lines for line in self.at_import):
                self.undecided.append(mutant)
        return True


def slow_round(name: str, source: str, arguments: list[str]) -> int:
    """Step 2: the exit code of the tests with this text in place of the module's file."""
    forget_package()
    get_code = SourceFileLoader.get_code

    def mutated(self, module):
        if self.path == file_of(name):
            return compile(source, self.path, "exec")
        return get_code(self, module)

    SourceFileLoader.get_code = mutated  # type: ignore[method-assign]
    return int(pytest.main(["-x", *arguments]))


def sample_of_all(names: list[str], n: int, seed: int) -> dict[str, list[Mutant]]:
    """n mutants of these modules, each as likely as any other; module -> those of it."""
    everyone = [(name, number) for name in names for number in range(len(changes(name)[-1]))]
    chosen = random.Random(seed).sample(everyone, n)
    return {name: mutants(name, [i for where, i in chosen if where == name]) for name in names}


def test_module(name: str, found: list[Mutant], seconds: float | None = None) -> dict:
    """Both steps for these mutants of a module: its line of the table, and who survived.

    Where none is left to try, its tests are not run if it is known how long they take.
    """
    BUILD.mkdir(exist_ok=True)
    log = BUILD / "mutation.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    kills = {json.loads(line)["key"] for line in lines}

    def killed(mutant: Mutant, by: str) -> None:
        kills.add(mutant.key)
        record = {"key": mutant.key, "module": name, "mutant": mutant.change, "by": by}
        with open(log, "a") as file:
            file.write(json.dumps(record) + "\n")

    files, left_out = TESTS[name]
    arguments = ["-sq", "-n0", "--tb=no", "-pno:cacheprovider", "-Wignore"]
    arguments += [f"--basetemp={BUILD}/tmp", "-k", left_out]
    arguments += [f"{ROOT}/tests/test_{test}.py" for test in files.split()]
    waiting = [mutant for mutant in found if mutant.key not in kills]
    print(f"{name}: {len(found)} mutants, {len(waiting)} to try", flush=True)
    if not waiting and seconds is not None:
        return {"seconds": seconds, "found": len(found), "alive": []}
    forget_package()
    quick = QuickRound(name, waiting, killed)
    load(name)
    if pytest.main(arguments, plugins=[quick]) not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(1)
    unchanged = functools.partial(slow_round, name, Path(file_of(name)).read_text(), arguments)
    if quick.undecided and in_fork(unchanged) != 0:
        sys.exit(f"{name}: a test fails without any mutant")
    for mutant in quick.undecided:
        code = in_fork(functools.partial(slow_round, name, mutant.source, arguments))
        if code != 0:
            killed(mutant, f"exit code {code}")
    alive = [(mutant.line, mutant.change) for mutant in found if mutant.key not in kills]
    print(f"{name}: {len(found) - len(alive)} killed; tests {quick.seconds:.1f} s", flush=True)
    return {"seconds": quick.seconds, "found": len(found), "alive": alive}


def write_report(rows: dict[str, dict], heading: str) -> None:
    """Under this heading the table, and every survivor with its reason so far.

    The share of all is given with its standard error if they are a sample: sqrt(p (1 - p) / n).
    """
    old = REPORT.read_text()
    before, _, section = old.partition(heading)
    section, more, after = section.partition("\n## ")
    survivors = re.findall(r"^\| (\S+):\d+ \| (.*) \| (.*) \|$", old, re.M)
    reasons = {(name, change): reason for name, change, reason in survivors}
    rows = {name: rows[name] for name in TESTS if name in rows}
    alive = [survivor for row in rows.values() for survivor in row["alive"]]
    total = {"found": sum(row["found"] for row in rows.values()), "alive": alive}
    tried = "generated" if heading == ALL else "tried"
    table = [f"| module | killed | {tried} | share | its tests, s |", "|---|---|---|---|---|"]
    for name, row in {**rows, "all": total}.items():
        killed, found = row["found"] - len(row["alive"]), row["found"]
        share = killed / found
        error = math.sqrt(share * (1 - share) / found)
        plus_minus = f" ± {error:.1%}" if heading != ALL and name == "all" else ""
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        table.append(f"| {name} | {killed} | {found} | {share:.1%}{plus_minus} | {seconds} |")
    table += ["", "| where | mutant | why it lives |", "|---|---|---|"]
    for name, row in rows.items():
        for line, change in row["alive"]:
            table.append(f"| {name}:{line} | {change} | {reasons.get((name, change), '?')} |")
    above = section.partition("| module |")[0] or "\n\n"
    before = before if section else f"{before.rstrip()}\n\n"
    REPORT.write_text(f"{before}{heading}{above}" + "\n".join(table) + f"\n{more}{after}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--sample", type=int, help="try only so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    given = parser.parse_args()
    names = given.modules or list(TESTS)
    if given.sample:
        heading = SOME if given.modules else SAMPLE
        path = BUILD / f"mutation_{given.sample}_{given.seed}.json"
        chosen = sample_of_all(names, given.sample, given.seed)
    else:
        heading, path = ALL, BUILD / "mutation.json"
        chosen = {name: mutants(name) for name in names}
    for name, found in chosen.items():
        if found:
            rows = json.loads(path.read_text()) if path.exists() else {}
            rows[name] = test_module(name, found, rows.get(name, {}).get("seconds"))
            path.write_text(json.dumps(rows))
            write_report(rows, heading)
