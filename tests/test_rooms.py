"""The package reads from top to bottom: a module imports only from rooms above its own."""

import ast
from pathlib import Path

import psd_mini

ROOMS = (
    *("arguments", "files", "checkpoint", "failures", "precision", "schedule", "cameras", "fields", "rendering", "world"),
    *("formulas", "rewards", "toy", "priors", "methods", "negative", "distill", "viz", "oracle", "mesh", "viewer"),
    *("folders", "text_to_3d", "compare", "bench", "growth", "checks", "cli"),
)
PACKAGE = Path(psd_mini.__file__).parent


def imported_rooms(path: Path) -> set[str]:
    """First part of every psd_mini module that a file imports, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "psd_mini":
            parts = node.module.split(".")[1:]
            rooms |= {parts[0]} if parts else {alias.name for alias in node.names}
    return rooms


def test_every_module_is_in_a_room_and_looks_upwards():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imported_rooms(path):
            assert ROOMS.index(other) <= ROOMS.index(room), f"{path.name} in {room} imports {other}"


def test_no_file_is_longer_than_a_reader_bears():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path
