"""The language of the toy world: from a prompt to an embedding vector, as a bag of known words.

    embedding(prompt)_w = WORD_STRENGTH if word w stands in the prompt, else 0
    key(object, colour, view)_w = 1 if w names that object, that colour or that view, else 0

A component of the world's mixture gets weight proportional to exp(<embedding, key>). A word that is
named makes the components it describes exp(WORD_STRENGTH) times as likely, words left out leave the
choice open, and everything is differentiable in the embedding. The null prompt is the zero
embedding: every object in every colour.
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini._internal.arguments import in_words, validated
from psd_mini.cameras import Cameras
from psd_mini.world.objects import COLOURS, OBJECTS

# Log-weight that a named word adds. At low noise a picture of D = 3,072 numbers argues for its own
# component with thousands of nats; a prompt must outweigh that, or a red mushroom that looks a
# little pink turns pink.
WORD_STRENGTH = 1e4
# where the camera is, every 45 degrees of azimuth from 0 on; left and right are those of a viewer
# who looks at the front
DIRECTIONS = (
    *("front", "front right", "right", "back right"),
    *("back", "back left", "left", "front left"),
)
VIEWS = DIRECTIONS[::2]  # the words of the toy world's own prompts, every 90 degrees
VOCABULARY = (*OBJECTS, *COLOURS, *VIEWS)
SYNONYMS = {"grey": "gray", "doughnut": "donut", "sphere": "ball", "box": "cube", "behind": "back"}
SYNONYMS |= {"violet": "purple", "automobile": "car", "home": "house", "cup": "mug", "rose": "pink"}
FILLERS = {"a", "an", "the", "of", "from", "seen", "photo", "picture", "view", "side", "in", "at"}


@validated
def words(prompt: str) -> list[str]:
    """The known words of a prompt, in order, without fillers.

    Raises:
        ValueError: a word that the world does not know (the message lists all that it knows), or
            not a string.
    """
    found = map(_known_word, re.findall(r"[^\s,.;:!?-]+", prompt.lower()))
    return [word for word in found if word in VOCABULARY]


def _known_word(word: str) -> str:
    """The world's own word for what a person typed: a synonym, or a plural."""
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        known_word = SYNONYMS.get(form, form)
        if known_word in VOCABULARY or known_word in FILLERS:
            return known_word
    near = get_close_matches(word, [*VOCABULARY, *SYNONYMS], 1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    known = f"objects: {', '.join(OBJECTS)}; colours: {', '.join(COLOURS)}"
    known += f"; views: {', '.join(VIEWS)}"
    raise ValueError(f"prompt: the toy world does not know {in_words(word)}{meant}; {known}")


def caption(name: str, colour: str | None = None, view: str | None = None) -> str:
    """The sentence that describes a view, such as "a red mushroom seen from the left"."""
    described = f"{colour} {name}" if colour else name
    article = "an" if described[0] in "aeiou" else "a"
    place = f" seen from the {view}" if view else ""
    return f"{article} {described}{place}"


def view_words(cameras: Cameras, names: Sequence[str] = VIEWS) -> list[str]:
    """The word for where each camera is: the names stand for equal sectors, from azimuth 0 on.

    A word of `VIEWS` covers 45 degrees to either side, one of `DIRECTIONS` 22.5.
    """
    return [names[side] for side in cameras.side(len(names)).tolist()]


def embed(prompts: Iterable[str]) -> Float[Tensor, "n v"]:
    """Embeddings of N prompts, (N, V) float32 in log-weight units; "" is the zero vector."""
    return WORD_STRENGTH * _keys(words(prompt) for prompt in prompts)


def components() -> list[tuple[str, str]]:
    """Names (object, colour) of the world's M components, object-major."""
    return [(name, colour) for name in OBJECTS for colour in COLOURS]


def component_keys() -> Float[Tensor, "m v"]:
    """Keys of the components, in the order of `components` and without a view: (M, V)."""
    return _keys(components())


def view_keys(cameras: Cameras) -> Float[Tensor, "b v"]:
    """Keys of the views of B cameras, without object and colour: (B, V)."""
    return _keys([view] for view in view_words(cameras))


def _keys(descriptions: Iterable[Iterable[str]]) -> Float[Tensor, "n v"]:
    """For each description: 1 at the words in it, 0 at the others."""
    rows = [[float(word in named) for word in VOCABULARY] for named in descriptions]
    return torch.tensor(rows, device="cpu").reshape(-1, len(VOCABULARY))
