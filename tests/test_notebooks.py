"""Course notebooks: outputs belong to cells, readers find what they need, all run (notebooks)."""

import ast
import base64
import html
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import run_notebooks as tools
from count_lines import code_lines
from PIL import Image
from worlds import mostly_slow

PATHS = sorted(tools.NOTEBOOKS.glob("*.ipynb"))
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
# In order, the phrase with which the checker names each stub's mistake. None: it does not, or it
# also names a wrong one.
NOT_RIGHT = "WRONG|not yet|not answered|could not run"
NOTHING = "it returned None"
MISTAKES = {
    "00_text_to_3d_in_one_minute": (
        "a single mushroom",
        "full of green light too; subtract what is not green",
        "below 0.05, but twice",
        NOTHING,
    ),
    "01_radiance_field": (
        "upside down (row 0 is the top row), not through the centres (half a pixel), too wide",
        "delta is missing: opacity must not depend on the number of samples; the transmittance is",
        "zyx: the last index is x; nearest: not interpolated",
        NOTHING,
    ),
    "02_score_distillation": (
        "the noise is not subtracted",
        "your scale acts as g + 1",
        "a variance of 0.8 is left, 0 is possible",
        "the noise is subtracted: this is SDS; CSD is the difference of two predictions",
        NOTHING,
    ),
    "03_rewards_and_why_pixel_gradients_fail": (
        "redness returned shape (), expected (8,), one per image",
        "sigma_t is missing; the sign is flipped",
        "the denoiser's Jacobian is missing",
        "no gradient path: the loss does not depend on x as far as autograd knows",
        NOTHING,
    ),
    "04_preference_score_distillation": (
        None,
        "the noise is not subtracted in the preference term",
        None,
        NOTHING,
    ),
    "05_negative_embeddings": (
        "the factor is g, not g - 1; the sign is flipped",
        "is it under no_grad, or is the loss detached?",
        "a point inside is moved out",
        NOTHING,
    ),
    "06_stable_diffusion_on_colab": (
        "a sector begins 22.5 degrees before its name",
        "the gradient flows through the UNet (its Jacobian)",
        "one number for all pictures cannot rank them",
        "one call with a batch of 4 was expected, not []",
    ),
    "07_find_the_bug": (
        "look again at A, B, C, D, E",
        "the residual is taken at x_t instead of x",
        "the reward is shown the noisy x_t",
        "x0_hat is not divided by alpha_t",
        NOTHING,
    ),
    "08_beyond_sds": (
        "this is SDS, with y_src as negative",
        "the noised particles sit at alpha_t x_j",
        "the model is asked before it learns: this is VSD",
        NOTHING,
    ),
    "psd_in_one_notebook": ("not yet, expected a tensor", "not yet, expected a tensor"),
}
# Exercises without a first attempt to repair: wrong answers, and the phrase that names each.
WRONG = {
    "00": {
        "winner = lambda a, b, r: a if r(a).max() > r(b).max() else b": "and not one view",
        "winner = lambda a, b, r: torch.where((r(a) > r(b))[:, None, None, None], a, b)": (
            "each view has a winner of its own"
        ),
    },
    "01": {
        "median_depth = lambda w, z, far: (w * z).sum(1) / w.sum(1)": "the mean depth",
        "median_depth = lambda w, z, far: z[0, w.argmax(1)]": "the sample with the most weight",
    },
    "02": {
        "denoised_from_score = lambda x, score, a, s: (x + s * score) / a": "wants a square",
        "denoised_from_score = lambda x, score, a, s: (x - s**2 * score) / a": "it is added",
    },
    "03": {
        "tilted_probabilities = lambda p, r, beta: (r / beta).softmax(0)": "the prior is forgotten",
        "tilted_probabilities = lambda p, r, beta: p * (r / beta).exp()": "not normalised",
    },
    "04": {
        "pair_gradient = lambda h, R, lam, tau: h.mean(0) + lam * torch.tanh((R[0] - R[1]) / tau)"
        "[:, None] * (h[0] - h[1])": "2 tau belongs under the gap",
        "pair_gradient = lambda h, R, lam, tau: h.mean(0) + lam * torch.sign(R[0] - R[1])"
        "[:, None] * (h[0] - h[1])": "this is a hard omega",
    },
    "05": {
        "inversion_loss = lambda e, eps, R: (e - eps).square().sum(-1)"
        ".gather(0, R.argmax(0)[None]).sum()": "the winner is described",
        "inversion_loss = lambda e, eps, R: (e - eps).square().sum()": "both described",
    },
    "06": {
        "guided = lambda unet, x, t, y, n, g: pm.cfg(*unet(torch.cat((x, x)), torch.cat((t, t)),"
        "encoder_hidden_states=torch.cat((n, y))).sample.chunk(2), g)": "are exchanged",
        "guided = lambda unet, x, t, y, n, g: pm.cfg(*(unet(x, t, e).sample for e in (y, n)), g)": (
            "one call with a batch of 4 was expected, not [2, 2]"
        ),
    },
    "07": {
        "points_home = lambda G, x, x0: (G * (x - x0)).sum() > 0": "one answer for the whole batch",
        "points_home = lambda G, x, x0: (G * (x0 - x)).flatten(1).sum(1) > 0": "sign is flipped",
    },
    "08": {
        "def lags(path, rho):\n    m, found = path[0], []\n    for x in path:\n"
        "        m = m + rho * (x - m)\n        found.append(x - m)\n"
        "    return torch.stack(found)": "it learns first and answers then",
        "def lags(path, rho):\n    m, found = path[0], []\n    for x in path:\n"
        "        found.append(x - m)\n        m = rho * m + (1 - rho) * x\n"
        "    return torch.stack(found)": "rho and 1 - rho are exchanged",
    },
    "psd": {
        "duel = lambda gap, tau: torch.sigmoid(gap / tau)": "this is P(1 wins)",
        "duel = lambda gap, tau: torch.tanh(gap / tau)": "tau, not 2 tau",
        "def preference_of_many(h, R):\n    signs = (R[:, None] - R).sign()[..., None]\n"
        "    return (signs * (h[:, None] - h)).sum((0, 1)) / 2": "a sum, not a mean",
        "def preference_of_many(h, R):\n    signs = (R[:, None] - R).sign()[..., None]\n"
        "    return (signs * (h[:, None] - h)).mean((0, 1))": "not i = j",
    },
}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def solutions(notebook):
    """The folded code under each exercise, in order."""
    return re.findall(r"<details>.*?```python\n(.*?)```.*?</details>", prose(notebook), re.DOTALL)


def texts(cell):
    """All text that a cell wrote."""
    return "\n".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    )


def test_there_are_notebooks():
    assert PATHS


@each
def test_outputs_come_from_these_cells(path):
    notebook = read(path)
    remedy = f"run python tests/tools/run_notebooks.py {path.stem}"
    assert notebook.metadata.get("psd_mini", {}).get("code_hash") == tools.code_hash(notebook), (
        remedy
    )
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), remedy
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"], remedy


def test_the_hash_sees_a_changed_cell_but_not_the_address():
    notebook = read(PATHS[0])
    before = tools.code_hash(notebook)
    code_cells(notebook)[-1].source += "\n1 + 1"
    assert tools.code_hash(notebook) != before
    notebook = read(PATHS[0])
    for cell in tools.tagged(notebook, tools.INSTALL):
        cell.source += "  # another address"
    assert tools.code_hash(notebook) == before


@each
def test_badge_and_install_cell_are_generated(path):
    notebook, fresh = read(path), tools.generated_cells(path.stem)
    assert notebook.cells[0].source == fresh[0].source
    assert [c.source for c in tools.tagged(notebook, tools.INSTALL)] == [
        c.source for c in fresh[1:]
    ]
    if path.stem in tools.SELF_CONTAINED:
        assert "psd_mini" not in "\n".join(
            re.findall(r"^\s*(?:import|from) .*", code_of(notebook), re.MULTILINE)
        )


@each
def test_links_to_other_notebooks_lead_there(path):
    """And each of the course has one to the notebook before and after it."""
    (first, *_), numbered = read(path).cells, [p.stem for p in PATHS if p.stem[0] == "0"]
    for target in re.findall(r"\]\(([\w/.]+)\)", prose(read(path))):
        assert (tools.NOTEBOOKS / target).exists(), target
    if path.stem in numbered:
        at = numbered.index(path.stem)
        neighbours = numbered[max(at - 1, 0) : at] + numbered[at + 1 : at + 2]
        assert all(f"({stem}.ipynb)" in first.source for stem in neighbours)


def code_of(notebook):
    return "\n".join(cell.source for cell in code_cells(notebook))


def test_the_install_cell_does_nothing_where_the_package_is(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it installed something"))
    exec(tools.install_cell(), {})


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Runs the install cell in tmp_path/notebooks without some modules; says what pip installs."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*absent):
        commands, find = [], importlib.util.find_spec
        with monkeypatch.context() as patch:
            patch.setattr(
                importlib.util, "find_spec", lambda name: None if name in absent else find(name)
            )
            patch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
            exec(tools.install_cell(), {})
        assert all(command[:4] == [sys.executable, "-m", "pip", "install"] for command in commands)
        assert not any("torch" in Path(word).name for command in commands for word in command[4:])
        return [command[4:] for command in commands]

    return folder, run


WHEEL = "psd_mini-0.1.0-py3-none-any.whl"


@pytest.mark.parametrize("where", [".", ".."])
def test_in_a_clone_the_install_cell_makes_it_importable_and_installs_only_what_it_needs(
    install, where
):
    """The notebook is in the clone or in its folder notebooks; a wheel beside it is ignored."""
    folder, run = install
    clone = (folder / where).resolve()
    (clone / "psd_mini").mkdir()
    (clone / "psd_mini" / "__init__.py").touch()
    (folder / WHEEL).touch()
    before = list(sys.path)
    assert run("psd_mini") == []
    assert sys.path == [str(clone), *before]
    assert run("psd_mini", "skimage", "jaxtyping") == [["-q", "jaxtyping", "scikit-image"]]


@pytest.mark.parametrize("wheel", [True, False])
def test_without_a_clone_the_install_cell_takes_the_wheel_or_else_the_repository(
    install, monkeypatch, wheel
):
    """Without dependencies, so that torch stays as it is; missing small ones come second."""
    folder, run = install
    monkeypatch.setattr(tools, "INSTALL_SOURCE", "git+https://somewhere.org/somebody/psd_mini")
    if wheel:
        (folder / WHEEL).touch()
    before, source = list(sys.path), str(folder / WHEEL) if wheel else tools.INSTALL_SOURCE
    assert run("psd_mini") == [["-q", "--no-deps", source]]
    assert run("psd_mini", "tqdm") == [["-q", "--no-deps", source], ["-q", "tqdm"]]
    assert sys.path == before


def test_without_clone_wheel_and_address_it_says_what_to_do(install, monkeypatch):
    """In one line, before pip fails on an address that does not exist."""
    monkeypatch.setattr(tools, "INSTALL_SOURCE", "git+https://github.com/OWNER/psd_mini@main")
    with pytest.raises(SystemExit, match="no public address yet: upload its wheel") as error:
        install[1]("psd_mini")
    assert "\n" not in str(error.value)


def test_titles_fold_code_and_one_notebook_asks_for_a_gpu():
    for path in PATHS:
        notebook = read(path)
        for cell in code_cells(notebook):
            assert (cell.metadata.get("cellView") == "form") == cell.source.startswith("# @title")
        gpu = "accelerator" in notebook.metadata
        assert gpu == (path.stem in tools.ON_A_GPU)


def test_all_notebooks_and_all_pictures_stay_small():
    assert sum(path.stat().st_size for path in PATHS) < 12e6
    assert sum(path.stat().st_size for path in (tools.NOTEBOOKS / "images").iterdir()) < 4e6


def test_pictures_get_smaller_but_keep_their_colours():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    flat = np.repeat(np.arange(0, 250, dtype=np.uint8), 64).reshape(125, 128, 1).repeat(3, 2)
    for pixels, shrinks in ((noise, False), (flat, True)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="png", compress_level=0)
        before = base64.b64encode(buffer.getvalue()).decode()
        output = nbformat.v4.new_output("display_data", {"image/png": before})
        tools.shrink_pictures(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])])
        )
        after = output.data["image/png"]
        assert (after != before) == shrinks
        # exact: pixels are whole numbers
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(after))).convert("RGB")), pixels
        )


def alternative_texts(cell):
    """The alt of each picture that a cell shows, None where it has none."""
    found = re.findall(r"!\[(.*?)\]\(", cell.source) if cell.cell_type == "markdown" else []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            found.append(output.metadata.get("image/png", {}).get("alt"))
        images = re.findall(r"<img [^>]*>", data.get("text/html", ""))
        alts = [re.search(r'alt="([^"]*)"', image) for image in images]
        found += [html.unescape(alt[1]) if alt else None for alt in alts]
    return found


def is_a_description(text):
    """Some words on what one sees, and not that there is a picture."""
    return len((text or "").split()) >= 3 and not re.match(
        r"(a |the )?(figure|image|plot)", text, re.I
    )


@each
def test_every_picture_has_an_alternative_text(path):
    """Its cell's own, in the same order; no two pictures of a notebook share one."""
    said = []
    for cell in read(path).cells:
        texts, own = alternative_texts(cell), cell.metadata.get("alt", [])
        for text in texts:
            assert is_a_description(text), f"{cell.id}: {text!r}; write it into the cell's metadata"
        if cell.cell_type == "code":
            assert texts == ([own] if isinstance(own, str) else own), cell.id
            said += texts
    assert len(set(said)) == len(said)


def test_every_picture_of_a_page_has_an_alternative_text():
    pages = [tools.ROOT / "README.md", tools.NOTEBOOKS / "README.md"]
    for page in [*pages, *(Path(__file__).parent / "results").glob("*.md")]:
        for text in re.findall(r"!\[(.*?)\]\(", page.read_text(), re.DOTALL):
            assert is_a_description(text), f"{page.name}: {text!r}"


def test_texts_of_pictures_follow_their_cells():
    """To a picture's metadata and to the pictures of a page, in order; the old ones go."""
    page = '<img alt="old" src="1"> and <img src="2">'
    outputs = [
        nbformat.v4.new_output("display_data", data)
        for data in ({"image/png": ""}, {"text/plain": "1"}, {"text/html": page})
    ]
    alts = ["a ball", 'a "cube"', "a cone"]
    cell = nbformat.v4.new_code_cell("", outputs=outputs, metadata={"alt": alts})
    tools.describe_pictures(nbformat.v4.new_notebook(cells=[cell]))
    assert alternative_texts(cell) == alts
    assert "old" not in cell.outputs[2].data["text/html"]
    cell.metadata["alt"] = alts[:1]
    tools.describe_pictures(nbformat.v4.new_notebook(cells=[cell]))
    assert alternative_texts(cell) == ["a ball", "", ""]


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not here")
def test_notebooks_are_linted():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *map(str, PATHS)],
            cwd=tools.ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@each
def test_a_reader_finds_what_every_notebook_has(path):
    words = prose(read(path))
    for needed in (
        "you will be able to",
        "Minutes and hardware",
        "Predict before you run",
        "What to try next",
        "## References",
    ):
        assert needed.lower() in words.lower(), needed
    assert re.search(r"arXiv \d{4}\.\d{5}", words)
    n = len(re.findall(r"^#+ Exercise \d", words, re.MULTILINE))
    assert n >= (2 if path.stem in tools.SELF_CONTAINED else 4)
    assert n == len(solutions(read(path)))
    assert all(n == len(tools.tagged(read(path), tag)) for tag in ("stub", "check"))


@each
def test_every_section_has_a_picture(path):
    pictures, title = {}, None
    for cell in read(path).cells:
        heading = re.match(r"## (\d+\. .*)", cell.source) if cell.cell_type == "markdown" else None
        for part in (
            re.findall(r"^## (\d+\. .*)", cell.source, re.MULTILINE)
            if heading or "## " in cell.source
            else []
        ):
            title = part
            pictures.setdefault(title, 0)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if title and ("image/png" in data or "<img" in data.get("text/html", "")):
                pictures[title] += 1
    assert pictures and all(pictures.values()), [title for title, n in pictures.items() if not n]


def test_cells_are_short():
    """At most 26 lines of 88 columns: what 15 lines of 128 columns become."""
    for path in PATHS:
        for cell in code_cells(read(path)):
            generated = tools.INSTALL in cell.metadata.get("tags", [])
            short = len(code_lines(cell.source + "\n")) <= 26
            assert short or generated, f"{path.stem}: {cell.source[:80]}"


@each
def test_one_style(path):
    """Of labels, solutions' lines and letters in pictures; mathematics in pictures is typeset."""
    words, code = prose(read(path)), code_of(read(path))
    for other in ("run:**", "hardware.**", "<summary>Solution"):
        assert other not in words, other
    for line in "".join(solutions(read(path))).splitlines():
        assert len(line) <= 88, line
    assert all(int(size) >= 9 for size in re.findall(r"fontsize=(\d+)", code))
    plain = r"\b(eps|alpha|beta|lambda|omega|rho|sigma|tau|grad)\b|_hat|_t\b|\|\|"
    for text in re.findall(r"(?:label|title)\(?\s*=?\s*r?f?\"(.*?)\"", code):
        assert not re.search(plain, re.sub(r"\$.*?\$", "", text)), text


@each
def test_the_stubs_fail_with_the_intended_messages(path):
    """In the committed outputs, where a reader meets them first."""
    checks = tools.tagged(read(path), "check")
    phrases = MISTAKES.get(path.stem, ())
    assert len(phrases) == len(checks)
    for phrase, check in zip(phrases, checks, strict=True):
        said = " ".join(texts(check).split())  # the reports are wrapped
        assert re.search(NOT_RIGHT, said), said
        assert phrase is None or phrase in said, said


@pytest.mark.parametrize("number", mostly_slow(WRONG))
def test_exercises_from_nothing_name_wrong_answers(number, capsys):
    """Their checkers need a notebook's imports and a helper or two, and nothing else of it."""
    (path,) = (path for path in PATHS if path.stem.startswith(number))
    helpers = {"seed", "doubles", "seeded", "verdict"}
    space: dict = {}
    for node in (n for cell in code_cells(read(path)) for n in ast.parse(cell.source).body):
        imports = isinstance(node, ast.Import | ast.ImportFrom)
        if imports or (isinstance(node, ast.FunctionDef) and node.name in helpers):
            exec(compile(ast.Module([node], []), path.stem, "exec"), space)
    for cell in code_cells(read(path)):
        if cell.id == "nothing-help":
            exec(cell.source, space)
    answers = {**WRONG[number], **dict.fromkeys(solutions(read(path)), ": right")}
    for check in tools.tagged(read(path), "check"):
        called = (re.findall(r"def (\w+)\(", before(path, check).source) or ["data"])[0]
        mine = {c: said for c, said in answers.items() if re.search(rf"\b{called}\b( =|\()", c)}
        if not any(code in WRONG[number] for code in mine):
            continue  # a stub to be repaired
        assert len(mine) == 3
        for code, phrase in mine.items():
            exec(code, space)
            exec(check.source, space)
            said = " ".join(capsys.readouterr().out.split())
            assert phrase in said, said
            assert (": right" in said) == (phrase == ": right")


def before(path, check):
    """The stub that a check belongs to."""
    notebook = read(path)
    return tools.tagged(notebook, "stub")[
        [cell.id for cell in tools.tagged(notebook, "check")].index(check.id)
    ]


@each
def test_the_minutes_are_counted(path):
    """In the notebook's own words and in the teachers' table."""
    says = rf"\b{tools.minutes(read(path))} minutes"
    (paragraph,) = re.findall(r"\*\*Minutes and hardware.*", prose(read(path)))
    assert re.search(says, paragraph), (says, paragraph)
    table = (tools.NOTEBOOKS / "README.md").read_text()
    (row,) = (row for row in table.splitlines() if row.startswith("|") and path.name in row)
    assert f"| {tools.minutes(read(path))} |" in row, (says, row)


def test_measurements_written_down_in_a_notebook_are_the_recorded_ones():
    """Notebook 05 shows sixteen runs of the sweep: students do not have the hours to run them."""
    cells = [
        cell.source for cell in code_cells(read(tools.NOTEBOOKS / "05_negative_embeddings.ipynb"))
    ]
    shown = next(
        node
        for cell in cells
        if "GAINS = {" in cell
        for node in ast.parse(cell).body
        if node.targets[0].id == "GAINS"
    )
    records = map(
        json.loads,
        (Path(__file__).parent / "results" / "negative_sweep.jsonl").read_text().splitlines(),
    )
    default = {
        "objective": "reward",
        "lr": 0.2,
        "radius": 6.0,
        "t_low": 0.5,
        "t_high": 0.98,
        "until": 1.0,
        "control": None,
    }
    expected: dict = {name: {} for name in ("SDS", "SDS + n", "PSD", "PSD + n")}
    for record in (r for r in records if r["start"] == "high"):
        for name, settings in (("", dict.fromkeys(default)), (" + n", default)):
            if all(record.get(key) == value for key, value in settings.items()):
                where = ("a mushroom", "a car").index(record["prompt"]), record["seed"]
                expected[record["method"].upper() + name][where] = record["gain"]
    in_order = {
        name: tuple(gain for _, gain in sorted(runs.items())) for name, runs in expected.items()
    }
    assert ast.literal_eval(shown.value) == in_order


def test_nothing_of_the_machine_that_ran_them():
    """No home, temporary, checkout or environment folder: usual names and those of this machine."""
    usual = [f"/{name}/" for name in ("home", "tmp", "root", "Users")]
    here = [
        str(place)
        for place in (Path.home(), tempfile.gettempdir(), tools.NOTEBOOKS.parent, sys.prefix)
    ]
    for path in PATHS:
        said = re.sub(r"[A-Za-z0-9+/=]{200,}", "", path.read_text())  # without encoded pictures
        found = [text for text in (*usual, *here, "site-packages") if text in said]
        assert not found, f"{path.stem}: {found}"


@pytest.mark.notebooks
@each
def test_it_runs_and_the_solutions_pass(path):
    notebook = read(path)
    stubs, checks = tools.tagged(notebook, "stub"), tools.tagged(notebook, "check")
    # after the stubs, in the same kernel
    for solution, check in zip(solutions(notebook), checks, strict=True):
        notebook.cells += [nbformat.v4.new_code_cell(source) for source in (solution, check.source)]
    print(f"{path.stem}, fast: {tools.execute(notebook, fast=True, timeout=300):.0f} s")
    for cell in checks:
        assert re.search(NOT_RIGHT, texts(cell)), (
            f"the stub passes, or its checker says nothing: {texts(cell)}"
        )
    for cell in notebook.cells[len(notebook.cells) - 2 * len(stubs) + 1 :: 2] if stubs else []:
        assert re.search(r": right", texts(cell)), texts(cell)


def test_the_one_file_is_the_one_notebook():
    """The same code in the same order, and all prose but the badge, as comments."""
    (name,) = tools.SELF_CONTAINED
    notebook, script = read(tools.NOTEBOOKS / f"{name}.ipynb"), tools.SCRIPT.read_text()
    assert ast.dump(ast.parse(script)) == ast.dump(ast.parse(code_of(notebook)))
    comments = " ".join(line.lstrip("# ") for line in script.splitlines() if line[:1] == "#")
    for cell in notebook.cells[1:]:
        if cell.cell_type == "markdown":
            said = " ".join(line.lstrip("# ") for line in cell.source.splitlines())
            assert " ".join(said.split()) in " ".join(comments.split())


@pytest.mark.notebooks
def test_the_one_file_runs_as_it_is(tmp_path):
    environment = {**os.environ, "PSD_MINI_FAST": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, tools.SCRIPT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "best true mushroom: reward" in done.stdout


def test_handouts_have_the_exercises_and_not_the_solutions(tmp_path):
    """Outputs and solutions are gone, everything else is there; the originals are untouched."""
    before = [path.read_bytes() for path in PATHS]
    tools.main(["--handout", str(tmp_path)])
    assert [path.read_bytes() for path in PATHS] == before
    for name in ("README.md", "grading/rubric.md", "grading/run_autograder"):
        assert (tmp_path / name).read_text() == (tools.NOTEBOOKS / name).read_text()
    for path in PATHS:
        whole, handed = (
            nbformat.read(folder / path.name, as_version=4) for folder in (path.parent, tmp_path)
        )
        texts = "\n".join(cell.source for cell in handed.cells)
        assert not any(cell.get("outputs") for cell in handed.cells) and "<details>" not in texts
        assert tools.code_hash(handed) == tools.code_hash(whole)
        kept = re.sub(
            "<details>.*?</details>", "", "\n".join(cell.source for cell in whole.cells), flags=re.S
        )
        assert all(line in texts for line in kept.splitlines())
