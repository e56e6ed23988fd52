"""Random calls of the command line and of the public API, several things odd at once: each does its
work or ends in one line.

`test_bad_values` changes one argument of a valid call; here methods, priors, rewards, fields and
numbers meet as nobody planned. A wrong implementation is any that ends in a traceback: an error of
another kind, or a message of several lines."""

import random
import warnings

import pytest
from test_bad_values import (  # the fixture small_world works in this module too
    COMMANDS,
    LARGE,
    LARGE_IS_FINE,
    SIGNATURES,
    TABLE,
    TEXTS,
    actions,
    bad_values,
    ended,
    is_finite,
    small_commands,
    small_world,
)

import psd_mini as pm
from psd_mini._internal.runs import NonFiniteError
from psd_mini.methods import METHODS

__all__ = ["small_commands", "small_world"]  # pytest finds fixtures by name

# what people type, by option: right, nearly right, and right only beside some others
TYPED = {
    "prompt": (
        "a ball",
        "a red mushroom",
        "A Grey house",
        "mushrooms",
        "a ball in a box",
        "x" * 500,
    ),
    "negative-prompt": ("", "red", "a blurry ball", "nobody knows this"),
    "reward": ("color:red", "colour:red", "proxy:rugged", "colorfulness", "image-reward", "color:"),
    "negative": ("random", "bandit", "true"),
    "conditioning": ("camera", "words", "none"),
    "prior": ("exact", "words", ".", "saved.safetensors", "someone/some-model", "https://x.org/m"),
    "device": ("cpu", "meta", "cuda:99", "mps", "gpu"),
    "dtype": ("float32", "float16", "bfloat16", "float8"),
    "init-from": ("saved.safetensors", ".", "right.py"),
    "methods": (",".join(METHODS), "sds,", "psd@4,sds", "psd@x", "sds sds"),
    "paths": ("right.py", ".", "saved.safetensors"),
    "out": ("out", ".", "right.py/out", "out/with spaces/ü"),
    "n-samples": ("1", "7", "64"),
    "cameras-per-step": ("1", "3"),
    "t-min": ("0", "0.5", "1"),
    "t-max": ("0", "0.02", "1"),
}
KINDS = ("sds", "csd", "vsd", "psd", "negative", "renderer", "schedule", "dreamdpo")


def choices():
    """(command, option) -> every text that a case may give it."""
    texts = {}
    for command, option, action in actions():
        known = tuple(str(choice) for choice in action.choices or ())
        known += KINDS if option == "kind" else ()
        odd = [t for t in TEXTS if option not in LARGE_IS_FINE or t[:2] != "10"]
        odd = [t for t in odd if option not in ("steps", "seeds", "timeout") or t != "1000000"]
        texts[command, option] = (COMMANDS[command][option], *known, *TYPED.get(option, ())), odd
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_commands_end_in_work_or_in_one_line(small_commands, capsys, seed):
    """Ten random commands of 40 seeds. Status 2 comes with one last line of at most 600 characters;
    status 1 is a checker's verdict."""
    draw, texts = random.Random(seed), choices()
    for _ in range(10):
        command = draw.choice(["generate", "generate", "generate", "compare", "check"])
        options = [option for name, option in texts if name == command]
        changed = {}
        for option in draw.sample(options, draw.randint(1, min(5, len(options)))):
            usual, odd = texts[command, option]
            changed[option] = draw.choice(odd if draw.random() < 0.2 else usual)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                status, error = ended(command, **changed), capsys.readouterr().err
            except BaseException as raised:
                raise AssertionError(f"{command} {changed}") from raised
        last = error.strip().splitlines()[-1:]
        assert status in ((0, 1, 2) if command == "check" else (0, 2)), (changed, error)
        if status == 2:
            assert last, changed
            assert len(last[0]) < 600, (changed, error)
            assert "Traceback" not in error, changed


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, valid) in TABLE.items() if len(valid) > 1])
def test_calls_with_two_odd_arguments_end_in_work_or_in_one_line(name):
    """Six pairs of bad values for every public name: an error that a caller can catch, or a result
    with finite numbers."""
    call, valid = TABLE[name]
    draw = random.Random(name)
    for _ in range(6):
        changed = {}
        for parameter in draw.sample(list(valid), 2):
            declared = SIGNATURES[name].parameters.get(parameter)
            bad = bad_values(valid[parameter], declared and declared.default)
            bad |= LARGE.get(parameter, {})
            what = draw.choice(list(bad))
            changed[parameter] = (what, bad[what])
        what = {parameter: description for parameter, (description, _) in changed.items()}
        try:
            result = call(**valid | {parameter: value for parameter, (_, value) in changed.items()})
        except (ValueError, TypeError, NonFiniteError, OSError) as error:
            assert "\n" not in str(error), what
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        else:
            assert isinstance(result, pm.checks.Report) or is_finite(result), what
