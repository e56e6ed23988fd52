"""Captioned pictures of the toy world, drawn without end from one stack of shaded views.

A picture is base + main * colour (see `world.views`), so one shaded view of an object gives it in
every colour. Its caption names object, colour and direction, and now and then leaves something out:
the model must also know what a prompt means that says less, and what the null prompt means, which
classifier-free guidance subtracts (Ho & Salimans 2022, arXiv 2207.12598).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini.cameras import Cameras
from psd_mini.world.objects import COLOURS, OBJECTS
from psd_mini.world.pool import pool_cameras
from psd_mini.world.text import DIRECTIONS, SYNONYMS, caption, view_words
from psd_mini.world.views import recolour, render_layers

# how often a caption is empty, leaves out colour or direction, or uses another word for a thing
NULL, NO_COLOUR, NO_DIRECTION, SYNONYM = 0.1, 0.25, 0.15, 0.15
Layers = Float[Tensor, "o p 4 h w"]  # object, camera, base (3) and main (1)
Items = Int[Tensor, "3 n"]  # rows: number of the object, of the colour, of the camera

NAMES = tuple(OBJECTS)
COLOUR_NAMES = tuple(COLOURS)


def view_layers(n_cameras: int, resolution: int) -> tuple[Cameras, Layers]:
    """P cameras all around, 0 to 45 degrees high, and the layers of the objects from there."""
    cameras = pool_cameras(n_cameras)
    layers = [render_layers(name, cameras, resolution) for name in NAMES]
    return cameras, torch.stack(layers).float()


def directions_of(cameras: Cameras) -> list[str]:
    """The nearest of `DIRECTIONS` for each camera."""
    return view_words(cameras, DIRECTIONS)


def draw_items(n: int, shape: tuple[int, int, int], generator: torch.Generator) -> Items:
    """n random (object, colour, camera) triples, uniform; `shape` is how many there are of each."""
    return torch.stack([torch.randint(high, (n,), generator=generator) for high in shape])


def pictures(layers: Layers, items: Items) -> Float[Tensor, "n 3 h w"]:
    """The pictures of these items, in [0, 1]: base + main * colour."""
    palette = torch.tensor([COLOURS[name] for name in COLOUR_NAMES])
    return recolour(layers[items[0], items[2]], palette)[torch.arange(items.shape[1]), items[1]]


def captions(items: Items, directions: list[str], generator: torch.Generator) -> list[str]:
    """A caption for each item, with the omissions and synonyms of the module's constants."""
    others = {word: other for other, word in SYNONYMS.items() if word in (*NAMES, *COLOUR_NAMES)}
    texts = []
    for name, colour, camera in items.T.tolist():
        null, no_colour, no_direction, synonym = torch.rand(4, generator=generator).tolist()
        text = caption(
            NAMES[name],
            None if no_colour < NO_COLOUR else COLOUR_NAMES[colour],
            None if no_direction < NO_DIRECTION else directions[camera],
        )
        if synonym < SYNONYM:
            text = " ".join(others.get(word, word) for word in text.split())
        texts.append("" if null < NULL else text)
    return texts
