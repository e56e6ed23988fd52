"""Write the part of tests/corpus that is made from templates: python tests/tools/corpus.py

A submission of SDS is a skeleton (how people lay out such code) with a slip (one line that is
replaced by another), a naming, and imports of libraries that are not installed. The four are varied
independently. PSD and VSD have skeletons and slips of their own. The verdicts of what is written
here are merged into tests/corpus/verdicts.json; those of the hand-written ones stay.
"""

from __future__ import annotations

import json
import re
from itertools import cycle
from pathlib import Path
from string import Template

from corpus_pairs import (
    GUIDED,
    PSD_PIECES,
    PSD_SKELETONS,
    PSD_SLIPS,
    VSD_CLASS,
    VSD_SLIPS,
    VSD_SWITCHES,
)
from corpus_sds_skeletons import SKELETONS
from corpus_sds_slips import NAMINGS, NEEDS, PIECES, SLIPS

CORPUS = Path(__file__).parent.parent / "corpus"
LIBRARIES = (
    "import peft",
    "from torchvision import transforms",
    "from einops import rearrange",
    "import kornia",
    "from loguru import logger",
    "from omegaconf import OmegaConf",
    "from utils import seed_everything",
    "from .utils import save_image_grid",
    "from nerf.utils import Trainer",
    "",
)


def renamed(code: str, names: dict[str, str]) -> str:
    """The code with every neutral name replaced, where it stands as a whole word."""

    def name_of(match: re.Match) -> str:
        return names.get(match.group(), match.group())

    return re.sub(r"\b[A-Za-z_]\w*\b", name_of, code)


def doors_of(words: str, library: str, slip: str) -> list[str]:
    """The doors of a submission made here: its skeleton's, its library's and its slip."""
    doors = words.split()
    if library:
        doors.append("import:" + library.split()[1])
    return doors + ([] if slip.startswith("right") else [f"slip:{slip}"])


def sds_submissions() -> dict[str, tuple[str, dict]]:
    """File name -> (source, verdict): every slip, in one skeleton and naming after the other."""
    made = {}
    skeletons, namings, libraries = cycle(SKELETONS), cycle(NAMINGS), cycle(LIBRARIES)
    for number, (slip, (expected, words, changed, w, factor)) in enumerate(SLIPS.items()):
        skeleton = next(skeletons)
        while NEEDS.get(slip, "") not in SKELETONS[skeleton][0]:
            skeleton = next(skeletons)
        code, before, call, doors = SKELETONS[skeleton]
        library = next(libraries)
        pieces = PIECES | changed | {"library": library, "number": str(number)}
        names = dict(pair.split("=") for pair in next(namings).split())
        truth = {"pre": renamed(before, {"Guide": names["Guide"]}), "call": call, "batch": True}
        truth |= {"w": w, "factor": factor} if w else {}
        if slip == "mean" or slip == "mean-and-twice":
            truth["factor"] = f"{factor}/B"  # a mean over the batch too
        source = renamed(Template(code).substitute(pieces).replace("\n\n\n\n", "\n\n\n"), names)
        made[f"sds/made_{number:02d}_{skeleton.replace('-', '_')}.py"] = (
            source,
            {
                "kind": "sds",
                "expected": expected,
                "words": [part.strip() for part in words.split(";") if part],
                "style": skeleton,
                "doors": doors_of(doors, library, slip),
                "written": "from a template",
                "truth": truth,
            },
        )
    return made


def verdict(kind: str, slip: tuple, style: str, doors: list[str], truth: dict) -> dict:
    """An entry of the table."""
    expected, words, _ = slip
    return {
        "kind": kind,
        "expected": expected,
        "words": [words] if words else [],
        "style": style,
        "doors": doors,
        "written": "from a template",
        "truth": truth,
    }


def psd_submissions() -> dict[str, tuple[str, dict]]:
    """File name -> (source, verdict): every slip of a pair, function and class in turn."""
    made = {}
    skeletons, libraries = cycle(PSD_SKELETONS), cycle(LIBRARIES)
    for number, (name, slip) in enumerate(PSD_SLIPS.items()):
        skeleton, library = next(skeletons), next(libraries)
        code, before, call, doors = PSD_SKELETONS[skeleton]
        source = Template(code).substitute(PSD_PIECES | slip[2] | {"library": library})
        truth = {"pre": before, "call": call}
        if slip[0] == "right":
            omega = "tanh" if name == "right-tanh" else "sign"
            truth |= {"w": "1", "omega": omega, "factor": "1"}
        made[f"psd/made_{number:02d}_{skeleton}.py"] = (
            source.replace("\n\n\n\n", "\n\n\n"),
            verdict("psd", slip, skeleton, doors_of(doors, library, name), truth),
        )
    return made


def vsd_submissions() -> dict[str, tuple[str, dict]]:
    """File name -> (source, verdict): every slip, for both ways to switch one UNet."""
    made = {}
    libraries = cycle(LIBRARIES[1:])
    for way, (off, on, adapter) in VSD_SWITCHES.items():
        for name, slip in VSD_SLIPS.items():
            library = next(libraries)
            pieces = {"off": off, "on": on, "adapter": adapter, "library": library}
            pieces |= {"q_lora": "True", "grad": f"{GUIDED} - q"} | slip[2]
            truth = {"pre": "o = m.VSDGuidance(pipe)", "call": "o.vsd_loss(x, cond, uncond, g)"}
            truth |= {"w": "1", "factor": "1"} if slip[0] == "right" else {}
            doors = doors_of(f"vsd:one-unet vsd:{way} import:peft", library, name)
            source = Template(VSD_CLASS).substitute(pieces)
            made[f"vsd/made_{len(made):02d}_{way}.py"] = (
                source,
                verdict("vsd", slip, "class", doors, truth),
            )
    return made


def write(made: dict[str, tuple[str, dict]]) -> None:
    """Write the sources, and their verdicts beside those of the hand-written submissions."""
    table_file = CORPUS / "verdicts.json"
    table = json.loads(table_file.read_text()) if table_file.exists() else {}
    by_hand = {name: row for name, row in table.items() if row["written"] == "by hand"}
    for name, (source, _) in made.items():
        (CORPUS / name).write_text(source)
    rows = by_hand | {name: row for name, (_, row) in made.items()}
    rows = dict(sorted(rows.items()))
    table_file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(by_hand)} by hand, {len(made)} from templates")


if __name__ == "__main__":
    write(sds_submissions() | psd_submissions() | vsd_submissions())
