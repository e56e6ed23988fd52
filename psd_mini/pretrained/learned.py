"""The learned checkpoint: a text-to-image latent diffusion model of the toy world, trained by us.

It has the parts of Stable Diffusion in small, 4 million parameters in diffusers' folder format, so
`StableDiffusionPrior` loads it with the code that loads the real one:

    autoencoder     64 x 64 pictures <-> 16 x 16 latents with 4 channels
    text encoder    CLIP's architecture, two layers, over words of its own
    UNet            predicts v = alpha_t eps - sigma_t x, cross-attention to the text at 8 x 8
    schedule        Stable Diffusion's

`python tests/tools/learned/train.py FOLDER` trains it again from random weights.
"""

from pathlib import Path
from typing import Any

from psd_mini.world.text import DIRECTIONS

FOLDER = Path(__file__).parent / "checkpoint"
# view -> prompt at a camera there, in the words of the captions that it was trained on
VIEW_WORDS = {direction: "{} seen from the " + direction for direction in DIRECTIONS}
ELEVATIONS = (0.0, 45.0)  # degrees, where the cameras of its pictures stood
SETTINGS: dict[str, Any] = {"view_words": VIEW_WORDS, "elevations": ELEVATIONS}
