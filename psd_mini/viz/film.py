"""A film of a field while it is trained: a callback that takes a picture every few steps.

film = Film()
generate("a red mushroom", callback=film)
film.gif("film.gif")
"""

from pathlib import Path
from typing import Any

import torch

from psd_mini._internal.arguments import at_least, validated
from psd_mini.cameras import orbit
from psd_mini.viz.pictures import Gif, gif, render_views

TURN = 4.0  # degrees of azimuth from one frame to the next, so that the film shows depth


@validated
class Film:
    """Pictures of the field after steps 0, every, 2 every, ..., from a camera that goes round.

    Args:
        every: steps from one picture to the next.
        resolution: height and width of a picture, pixels.

    `frames` holds the pictures so far, each (3, H, W) in [0, 1].
    """

    def __init__(self, every: int = 4, resolution: int = 64) -> None:
        at_least("every", every, 1)
        at_least("resolution", resolution, 1)
        self.every, self.resolution = every, resolution
        self.frames: list[torch.Tensor] = []

    def __call__(self, info: dict[str, Any]) -> None:
        """Take a picture if it is time: `info` is the dictionary that `distill` gives callbacks."""
        if info["step"] % self.every == 0:
            camera = orbit([30.0 + TURN * len(self.frames)], 20.0)
            self.frames.append(render_views(info["field"], camera, self.resolution)[0].cpu())

    def gif(self, path: str | Path | None = None, seconds: float = 4.0) -> Gif:
        """The film, shown by a notebook as the last value of a cell; see `viz.pictures.gif`.

        Raises:
            ValueError: nothing was filmed yet, or less than 0.02 s for a frame.
        """
        if not self.frames:
            raise ValueError("film: holds no frames yet; give it as callback to a run first")
        return gif(torch.stack(self.frames), path, seconds)
