"""The toy checkpoint: a text-to-image latent diffusion model of the toy world, 4 million
parameters, trained by us.

It has the parts of Stable Diffusion in small, in diffusers' folder format, so
`StableDiffusionPrior` loads it with the code that loads the real one:

    autoencoder     64 x 64 pictures <-> 16 x 16 latents with 4 channels
    text encoder    CLIP's architecture, two layers, over words of its own
    UNet            predicts v = alpha_t eps - sigma_t x, cross-attention to the text at 8 x 8
    schedule        Stable Diffusion's

`python tests/tools/learned/train.py FOLDER` makes it again from nothing: `data` draws captioned
pictures, `parts` builds the networks, `train` fits them stage by stage.
"""

from __future__ import annotations

from pathlib import Path

from psd_mini.world.text import DIRECTIONS

FOLDER = Path(__file__).parent / "checkpoint"

ELEVATIONS = (0.0, 45.0)  # degrees, where the cameras of its pictures stood
# what becomes of a prompt at a camera: the words that the pictures were captioned with
VIEW_WORDS = {direction: "{} seen from the " + direction for direction in DIRECTIONS}
