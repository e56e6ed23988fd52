"""The oracles that come with the package: python tests/tools/oracles.py [--check | --all]

psd_mini/pipelines/oracles.json spares the first run 4 s. It belongs to one state of the code. After
a change of that code, three of its numbers are fitted again: if they are right to a thousandth of a
picture's range, the table is marked as that of the new code, else nothing is written and --all fits
all 192 (20 minutes on two cores). --check only says, by the exit status, whether a change came.
"""

from __future__ import annotations

import json
import sys

import torch

from psd_mini._internal.identity import made_of
from psd_mini.pipelines import oracle
from psd_mini.world.text import caption, components

CHECKED = (("voxel", "mushroom", "red"), ("voxel", "house", "blue"), ("triplane", "car", "green"))
TOLERANCE = 1e-3


def renew(every: bool) -> int:
    """Mark the table as that of today's code, if it is; the exit status."""
    table = json.loads(oracle.SHIPPED.read_text())
    oracle.shipped_distances = lambda field: {}  # nothing is taken from what is to be checked
    todo = CHECKED
    if every:
        todo = tuple((kind, *c) for kind in ("voxel", "triplane") for c in components())
    for kind, name, colour in todo:
        found, words = oracle.oracle_distance(kind, (name, colour)), caption(name, colour)
        print(f"{kind}, {words}: {table[kind][words]:.4f}, now {found:.4f}", flush=True)
        if every:
            table[kind][words] = round(found, 4)
        elif abs(found - table[kind][words]) > TOLERANCE:
            print("the table is of another code; --all fits it anew")
            return 1
    table["made_of"] = made_of(oracle.MAKERS)
    oracle.SHIPPED.write_text(json.dumps(table, indent=0) + "\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--check" in sys.argv:
        fresh = bool(oracle.shipped_distances("voxel"))
        print(
            "oracles.json is", "of this code" if fresh else "of another code; run this to renew it"
        )
        sys.exit(not fresh)
    sys.exit(renew("--all" in sys.argv))
