"""The language of the toy world: from a prompt to an embedding vector, as a bag of known words.

    embedding(prompt)_w = WORD_STRENGTH if word w stands in the prompt, else 0
    key(object, colour, view)_w = 1 if w names that object, that colour or that view, else 0

A component of the world's mixture gets weight proportional to exp(<embedding, key>), so a word that
is named makes the components it describes exp(WORD_STRENGTH) times as likely, words left out leave
the choice open, and everything is differentiable in the embedding. The null prompt is the zero
embedding: every object in every colour."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini.cameras import Cameras
from psd_mini.world.objects import COLOURS, OBJECTS

# Log-weight that a named word adds. At low noise a picture of D = 3,072 numbers argues for its own
# component with thousands of nats; a prompt must outweigh that, or a red mushroom that looks a
# little pink turns pink.
WORD_STRENGTH = 1e4
VIEWS = (
    "front",
    "right",
    "back",
    "left",
)  # azimuths 0, 90, 180, 270 degrees: where the viewer who faces the front walks to
# the same and the corners between them, for captions that place a camera to 22.5 degrees
DIRECTIONS = (
    "front",
    "front right",
    "right",
    "back right",
    "back",
    "back left",
    "left",
    "front left",
)
VOCABULARY = (*OBJECTS, *COLOURS, *VIEWS)
SYNONYMS = {"grey": "gray", "doughnut": "donut", "sphere": "ball", "box": "cube", "behind": "back"}
FILLERS = {"a", "an", "the", "of", "from", "seen", "photo", "picture", "view", "side", "in", "at"}


def words(prompt: str) -> list[str]:
    """The known words of a prompt, in order, without fillers and repetitions.

    Raises:
        ValueError: a word that the world does not know (the message lists all that it knows), or
            not a string.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: expected a string, got {type(prompt).__name__}")
    found = [SYNONYMS.get(word, word) for word in re.findall(r"[^\s,.;:!?]+", prompt.lower())]
    unknown = [word for word in found if word not in VOCABULARY and word not in FILLERS]
    if unknown:
        raise ValueError(
            f"prompt: the toy world does not know {unknown[0]!r}; objects: {', '.join(OBJECTS)}; "
            f"colours: {', '.join(COLOURS)}; views: {', '.join(VIEWS)}"
        )
    return list(dict.fromkeys(word for word in found if word in VOCABULARY))


def embed(prompts: list[str]) -> Float[Tensor, "k v"]:
    """Embeddings of K prompts, (K, V) float32 in log-weight units; the empty prompt is the zero
    vector."""
    embeddings = torch.zeros(len(prompts), len(VOCABULARY))
    for row, prompt in zip(embeddings, prompts, strict=True):
        for word in words(prompt):
            row[VOCABULARY.index(word)] = WORD_STRENGTH
    return embeddings


def caption(name: str, colour: str | None = None, view: str | None = None) -> str:
    """The sentence that describes a view, such as "a red mushroom seen from the left"."""
    described = f"{colour} {name}" if colour else name
    article = "an" if described[0] in "aeiou" else "a"
    place = f" seen from the {view}" if view else ""
    return f"{article} {described}{place}"


def component_keys() -> Float[Tensor, "m v"]:
    """Keys of the M = objects x colours components, object-major, without a view: (M, V) of
    zeros and ones."""
    keys = torch.zeros(len(OBJECTS) * len(COLOURS), len(VOCABULARY))
    for row, (name, colour) in zip(keys, components(), strict=True):
        row[VOCABULARY.index(name)] = row[VOCABULARY.index(colour)] = 1.0
    return keys


def components() -> list[tuple[str, str]]:
    """Names (object, colour) of the components, in the order of `component_keys`."""
    return [(name, colour) for name in OBJECTS for colour in COLOURS]


def view_keys(cameras: Cameras) -> Float[Tensor, "b v"]:
    """Which view word describes each camera: (B, V) of zeros and one 1 per row. A word covers 45
    degrees to either side."""
    keys = torch.zeros(len(cameras), len(VOCABULARY))
    keys[
        torch.arange(len(cameras)),
        torch.tensor([VOCABULARY.index(view) for view in VIEWS])[cameras.side(4)],
    ] = 1.0
    return keys
