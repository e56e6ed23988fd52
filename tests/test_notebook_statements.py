"""Numbers in notebooks 02 to 04 are those that a cell printed or a file in tests/results holds."""

import json
import re
from pathlib import Path
from statistics import mean

import nbformat
import pytest

HERE = Path(__file__).parent


def notebook(number):
    (path,) = (HERE.parent / "notebooks").glob(f"{number}_*.ipynb")
    return nbformat.read(path, as_version=4)


def prose(number):
    text = "\n".join(cell.source for cell in notebook(number).cells if cell.cell_type == "markdown")
    return " ".join(text.replace("$", "").split())


def printed(number):
    outputs = (output for cell in notebook(number).cells for output in cell.get("outputs", []))
    return " ".join("\n".join(output.get("text", "") for output in outputs).split())


def records(name):
    return list(map(json.loads, (HERE / "results" / name).read_text().splitlines()))


SAID = [  # notebook, what its prose says, what a cell printed
    ("02", "mean* denoised picture is (0.03 from it", "E[x0_hat], weighted 0.03"),
    ("02", "a single one lies 1.14 away", "one x0_hat 1.14"),
    (
        "02",
        "end at a median of 11.7 instead of 3.5",
        "1500 shrinking steps: x_1 ends at 11.0 to 12.3, median 11.7",
    ),
    (
        "02",
        "end at a median of 11.7 instead of 3.5",
        "150 shrinking steps: x_1 ends at 2.3 to 4.8, median 3.5",
    ),
    (
        "02",
        "5.0 after 150 of them, 16.7 after 1,500 and 32.6 after 6,000",
        "{150: 5.0, 1500: 16.7, 6000: 32.6}",
    ),
    (
        "02",
        "In a right blob at low noise the generative part is all there is",
        "a right blob t = 100: 99.8%",
    ),
    (
        "02",
        "It is 1 to 2% only where the classifier has something to say",
        "wrong blob t = 100: 1.0% t = 500: 1.3% t = 900: 2.3%",
    ),
    ("04", "hard 2.26 \\lambda, gap 1.60", "hard rests at 2.26 lambda gap rests at 1.60 lambda"),
    ("04", "the duel 0.74", "bt rests at 0.74 lambda"),
    ("04", "the gate 0.47", "gated rests at 0.47 lambda"),
    ("04", "At t > 0 they are not", "three blobs, t = 400: the slopes differ by 60%"),
]


@pytest.mark.parametrize(("number", "sentence", "output"), SAID)
def test_a_cell_printed_what_is_said(number, sentence, output):
    assert sentence in prose(number) and output in printed(number)


def test_places_of_rest_in_notebook_04():
    """How far apart three noise levels put the place of rest, with lambda and lambda sigma_t."""
    found = re.findall(r"at weight 1 rest at (\S+), with lambda sigma_t at (\S+)", printed("04"))
    constant, scaled = ([float(number) for number in column] for column in zip(*found, strict=True))
    said = (
        f"factor of {max(scaled) / min(scaled):.1f} instead of {max(constant) / min(constant):.0f}"
    )
    assert len(found) == 3 and said in prose("04")


def test_cosines_in_notebook_03():
    """Undecided: all levels; settled: the two highest, and the three below."""

    def ranges(place, levels):
        for name in ("psd pair", "dps"):
            (row,) = re.findall(rf"cosine, {place} {name} ((?:t = \d+: \S+ ?)+)", printed("03"))
            values = [
                float(c)
                for level, c in re.findall(r"t = (\d+): (\S+)", row)
                if int(level) in levels
            ]
            yield f"{min(values):.2f} to {max(values):.2f}"

    assert "cosine {} against {})".format(*ranges("undecided", (600, 700, 800, 900, 980))) in prose(
        "03"
    )
    assert "good for both ({} against {})".format(*ranges("settled", (900, 980))) in prose("03")
    assert "the pair has {} and `dps` {}.".format(*ranges("settled", (600, 700, 800))) in prose(
        "03"
    )


def test_the_factor_of_sixteen_in_notebook_03():
    """Weights 0.25 to 4 with default settings: the range of mean gains, the colours that won."""
    default = {
        "omega": "hard",
        "pair_base": "mean",
        "antithetic": True,
        "over_views": True,
        "times": "high",
        "method": "psd",
    }
    runs = [
        r
        for r in records("psd_sweep.jsonl")
        if default.items() <= r.items() and 0.25 <= r["weight"] <= 4
    ]
    weights = sorted({r["weight"] for r in runs})
    gains = [mean(r["gain"] for r in runs if r["weight"] == weight) for weight in weights]
    assert weights[-1] / weights[0] == 16 and len(runs) == 4 * len(weights)
    assert (
        f"from 0.25 to 4, a factor of 16, with nearly the same *gain* ({min(gains):.2f} to"
        f" {max(gains):.2f}" in prose("03")
    )
    assert {r["recognised"].split()[1] for r in runs} == {
        "red",
        "orange",
    } and "red or orange" in prose("03")


def test_the_settled_mushroom_in_notebook_03():
    """Cosines of PSD's pairs and of dps at t = 600 to 800; the record has more cameras and noises
    than the cell.
    """
    settled = [
        r
        for r in records("reward_gradients.jsonl")
        if r["at"] == "settled" and 600 <= r["t"] <= 800
    ]
    pair, dps = (
        [r["cosine"] for r in settled if r["gradient"] == name] for name in ("psd pair", "dps")
    )
    assert (
        f"finds {min(pair):.2f} to {max(pair):.2f} and {min(dps):.2f} to {max(dps):.2f} at the"
        " same t" in prose("03")
    )
