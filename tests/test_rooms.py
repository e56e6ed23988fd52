"""The package reads from top to bottom: a module imports only from those above it."""

import ast
import subprocess
import sys
from pathlib import Path

import psd_mini

CHAPTERS = (
    *("schedule", "cameras", "fields", "rendering", "mixture", "sds", "rewards", "psd"),
    *("negative", "distill"),
)
ROOMS = ("_internal", *CHAPTERS, "world", "methods", "pretrained", "viz", "pipelines", "checks")
# registers of names import what they name when it is asked for
REGISTERS = {"rewards.py": {"world", "pretrained"}, "pipelines/cli.py": {"checks"}}
DOORS = {"__init__", "__main__"}
PACKAGE = Path(psd_mini.__file__).parent


def imported_rooms(path: Path) -> set[str]:
    """First part of every psd_mini module that a file imports, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "psd_mini":
            parts = node.module.split(".")[1:]
            rooms |= {parts[0]} if parts else {alias.name for alias in node.names}
    return rooms


def looks_down(path: Path) -> list[str]:
    """Rooms below its own that a file imports from."""
    parts = path.relative_to(PACKAGE).parts
    own = ROOMS.index(parts[0].removesuffix(".py"))
    allowed = REGISTERS.get("/".join(parts), set())
    return [room for room in imported_rooms(path) - allowed if ROOMS.index(room) > own]


def test_every_module_is_in_a_room_and_looks_upwards():
    for path in PACKAGE.rglob("*.py"):
        if path.parent != PACKAGE or path.stem not in DOORS:
            assert not looks_down(path), path


def test_the_test_can_fail():
    assert "pretrained" in imported_rooms(PACKAGE / "rewards.py")
    assert ROOMS.index("pretrained") > ROOMS.index("rewards")


def test_the_root_holds_the_book_and_nothing_else():
    files = {path.stem for path in PACKAGE.glob("*.py")} - DOORS
    assert files == set(CHAPTERS)


def test_internal_imports_nothing_else_of_the_package():
    for path in (PACKAGE / "_internal").glob("*.py"):
        assert imported_rooms(path) <= {"_internal"}, path


def test_a_run_does_not_wait_for_what_it_does_not_use():
    """torch's compiler takes 2 s to import, and nothing is compiled: a step leaves it alone, though
    torch's optimisers and its switch to deterministic algorithms would import it."""
    code = """
import sys, torch, psd_mini as pm
from psd_mini.pipelines import generate as module
module.finish = lambda *parts: None
pm.generate("a cube", prior="exact", method="sds", steps=1, resolution=8)
heavy = "torch._dynamo", "sympy", "matplotlib", "diffusers"
print([name for name in heavy if name in sys.modules])
torch.optim.Adam([torch.zeros(1)])
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"], done.stderr
