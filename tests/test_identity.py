"""What tells methods, rewards, priors and cached files apart: the same where they do the same, in
this process or another."""

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from psd_mini._internal.identity import identity, in_config, made_of, spelled
from psd_mini.rewards import LinearReward, black_box


def made(source):
    space = {}
    exec(source, space)
    return space["mine"]


def enclosing(value):
    def mine(images, prompts):
        return images.sum((1, 2, 3)) * value

    return mine


DIFFERENT = {
    "in a comprehension": [
        made(f"def mine(x, p):\n    return [sum(i[c] for c in ({k},)) for i in x]") for k in (0, 1)
    ],
    "in a function within": [
        made(f"def mine(x, p):\n    return (lambda i: i * {k})(x)") for k in (2, 3)
    ],
    "in a default": [made(f"def mine(x, p, k={k}):\n    return x * k") for k in (2, 3)],
    "in what is enclosed": [enclosing(2.0), enclosing(3.0)],
    "in a function that is enclosed": [black_box(enclosing(2.0)), black_box(enclosing(3.0))],
    "in a digit of a tensor": [
        LinearReward(torch.tensor([0.12341])),
        LinearReward(torch.tensor([0.12344])),
    ],
    "in the middle of a long tensor": [
        LinearReward(torch.zeros(2000)),
        LinearReward(torch.eye(2000)[1000]),
    ],
}


@pytest.mark.parametrize("where", DIFFERENT)
def test_identities_of_different_things_differ(where):
    """What a checkpoint compares: two rewards that score differently are not taken for one."""
    one, other = DIFFERENT[where]
    assert identity(one) == identity(one) != identity(other) and "\n" not in identity(one)


def test_identities_are_short_and_of_one_line():
    """A function: its name and eight digits. A repr as it is, up to 400 characters, without
    addresses; a longer one, or one with a tensor's rounded numbers, by its class and a digest."""

    class Plain:
        pass

    class Long:
        def __init__(self, length):
            self.length = length

        def __repr__(self):
            return "x" * self.length

    assert re.fullmatch(r"mine [0-9a-f]{8}", identity(enclosing(2.0)))
    assert identity(Plain()) == repr(Plain()).partition(" at 0x")[0] + ">"
    assert identity(Long(400)) == "x" * 400
    assert re.fullmatch(r"Long [0-9a-f]{8}", identity(Long(401)))
    assert re.fullmatch(r"LinearReward [0-9a-f]{8}", identity(LinearReward(torch.ones(2))))
    for part in ("psd", True, False, None):
        assert in_config(part) is part
    assert in_config(3) == "3" and in_config(Long(2)) == "xx"


def test_values_are_spelled_in_full():
    """Every digit of a tensor and its precision, what is inside of what; sets in one order."""
    x = torch.tensor([0.5, 0.25])
    tensor = "Tensor('torch.float32', list(0.5, 0.25))"
    sets = "dict(tuple('a', set(['1', '2'])))"
    assert spelled((1, [x], {"a": {2, 1}})) == f"tuple(1, list({tensor}), {sets})"
    assert spelled(LinearReward(x, 2.0)) == f"LinearReward(tuple('v', {tensor}), tuple('c', 2.0))"
    assert spelled(LinearReward) == repr(LinearReward) and spelled(frozenset("ba")) == spelled(
        {*"ab"}
    )
    turning = [1]
    turning.append(turning)
    assert spelled(turning) == "list(1, itself)"
    assert spelled([[1], [1]]) == "list(list(1), list(1))"  # equal is not the same

    def named_only(*, k=2):
        return k

    before = spelled(named_only)
    named_only.__kwdefaults__ = {"k": 3}
    assert before != spelled(named_only)


def test_a_cached_file_is_named_by_what_makes_it(tmp_path):
    """Its name changes with the source of each module and with each value."""
    one, two = types.ModuleType("one"), types.ModuleType("two")
    one.__file__, two.__file__ = str(tmp_path / "one.py"), str(tmp_path / "two.py")
    names = set()
    for sources, values in [("ab", (1, 2)), ("ac", (1, 2)), ("cb", (1, 2)), ("ab", (1, 3))]:
        for module, source in zip((one, two), sources, strict=True):
            Path(module.__file__).write_text(source)
        names.add(made_of((one, two), *values))
        assert made_of((one, two), *values) in names
    assert len(names) == 4 and all(re.fullmatch("[0-9a-f]{16}", name) for name in names)


@pytest.mark.slow
def test_an_identity_is_the_same_in_every_process():
    """Also of a function that holds a set, whose order changes, or that encloses itself."""
    script = """
from psd_mini._internal.identity import identity, made_of
def made():
    def mine(x):
        return mine(x - 1) if x in {"red", "green", "blue", "pink"} else x
    return mine
print(list({"red", "green", "blue", "pink"}), identity(made()), sep="\\n")
"""
    orders, identities = set(), set()
    for seed in "12":  # which order the set differently
        run = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed},
        )
        assert run.returncode == 0, run.stderr
        order, made_identity = run.stdout.splitlines()
        orders.add(order)
        identities.add(made_identity)
    assert len(orders) == 2 and len(identities) == 1
