"""The README and the teachers' page: every command, snippet and link of them works."""

import re
import shlex
from pathlib import Path

import pytest
from worlds import quick_results

from psd_mini.pipelines.cli import main

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "notebooks/README.md")


def text_of(page):
    return (ROOT / page).read_text()


def blocks(page):
    """Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)


def commands(page):
    """Commands that begin with psd-mini, wherever they stand, without what is only a name."""
    found = re.findall(r"psd-mini (?:generate|compare) [^`\n]+", text_of(page))
    # an option that is quoted alone belongs to `generate "a mushroom"`
    alone = re.findall(r"`(--[a-z-]+ [a-z:]+)`", text_of(page))
    return found + [f'psd-mini generate "a mushroom" {option}' for option in alone]


def test_the_readme_is_one_page():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 160
    assert len(text.split()) <= 1600


@pytest.mark.parametrize("page", PAGES)
def test_what_is_linked_is_there(page):
    targets = re.findall(r"\]\(([^)#]+)\)", text_of(page))
    assert targets
    for target in targets:
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize(
    "page, number", [(page, number) for page in PAGES for number in range(len(blocks(page)))]
)
def test_snippets_run(page, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(page)[number], f"{page}, block {number + 1}", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands("README.md") if "real" not in c])
def test_commands_run(command, tmp_path, monkeypatch):
    """With two steps; Stable Diffusion's weights are not here, so what needs them is left out."""
    monkeypatch.chdir(tmp_path)
    quick_results(monkeypatch)
    main([*shlex.split(command)[1:], "--steps", "2"])
    assert list(tmp_path.glob("psd_mini_out/*"))
