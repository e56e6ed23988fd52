"""The pictures that the toy world consists of: all objects in all colours, from one shared pool of
cameras.

Every object is shaded once per camera and recoloured on demand (`views.recolour`), because a
picture is affine in the main colour. The shaded layers are kept in the user's cache folder; they
are made again when the code that draws them or the objects change.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psd_mini import cameras as cameras_module
from psd_mini._internal.files import write_atomically
from psd_mini._internal.identity import made_of, spelled
from psd_mini.cameras import Cameras, orbit
from psd_mini.world import objects as objects_module
from psd_mini.world import views as views_module
from psd_mini.world.objects import COLOURS, OBJECTS
from psd_mini.world.views import recolour, render_layers

POOL_SIZE = 128
GOLDEN_ANGLE = 180.0 * (3.0 - 5.0**0.5)  # degrees; successive multiples never bunch up


def pool_cameras(n: int = POOL_SIZE) -> Cameras:
    """The shared pool: azimuths by the golden angle, elevations evenly from 0 to 45 degrees (a
    Fibonacci lattice)."""
    index = torch.arange(n, dtype=torch.float64)
    return orbit((index * GOLDEN_ANGLE) % 360.0, 45.0 * (index + 0.5) / n).numbered()


def fresh_cameras(n: int = 24) -> Cameras:
    """Cameras outside the pool, on which results are judged: every 360 / n degrees, at
    elevations 8, 20 and 32 in turn."""
    index = torch.arange(n, dtype=torch.float64)
    return orbit(index * 360.0 / n, torch.tensor([8.0, 20.0, 32.0])[index.long() % 3])


@dataclass(frozen=True)
class WorldViews:
    """The toy world seen from P cameras.

    Args:
        cameras: P cameras.
        layers: (O, P, 4, H, W): for object o at camera p, base (3) and main (1) with picture = base
            + main * colour.
    """

    cameras: Cameras
    layers: Float[Tensor, "o p 4 h w"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", self.cameras.numbered())

    @property
    def resolution(self) -> int:
        return self.layers.shape[-1]

    def pictures(self, index: Tensor) -> Float[Tensor, "b m 3 h w"]:
        """All M = objects x colours pictures, object-major, at the cameras `index` (B,): (B, M,
        3, H, W) in [0, 1]."""
        colours = torch.tensor(list(COLOURS.values()), dtype=self.layers.dtype)
        return recolour(self.layers[:, index].transpose(0, 1).contiguous(), colours).flatten(1, 2)

    def index_of(self, cameras: Cameras) -> Tensor:
        """Places (B,) in `self.cameras` of cameras that were drawn from it.

        Raises:
            ValueError: a camera that is not one of these; the exact prior knows the world only from
                its own cameras.
        """
        if abs(cameras.fov - self.cameras.fov) > 1e-6:
            raise ValueError(
                f"cameras: their fov is {cameras.fov:g} radians, that of the world's pool"
                f" {self.cameras.fov:g}; use the same"
            )
        here, pool, index = cameras.positions().cpu(), self.cameras.positions(), cameras.index
        if index is None:  # made by hand: look for them
            index = torch.cdist(here.double(), pool.double()).argmin(dim=1)
        distance = (here - pool[index.clamp(max=len(pool) - 1)]).norm(dim=-1)
        if (distance > 1e-4).any():
            raise ValueError(
                f"cameras: camera {int(distance.argmax())} is not one of the {len(pool)} cameras of"
                " the world's pool; draw cameras with prior.draw_cameras, or make views of your"
                " own with make_views(cameras, resolution)"
            )
        return index


def cache_folder() -> Path:
    """Where made pictures are kept: $PSD_MINI_CACHE, else $XDG_CACHE_HOME/psd_mini, else
    ~/.cache/psd_mini."""
    if folder := os.environ.get("PSD_MINI_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psd_mini"


def world_in_words() -> str:
    """What pictures of the world hang on besides their source code: objects and colours as they
    are now, and torch."""
    return f"{spelled(OBJECTS)} {COLOURS} {torch.__version__}"


def make_views(cameras: Cameras, resolution: int) -> WorldViews:
    """Every object from every camera, at resolution x resolution pixels, from the cache or freshly
    drawn (seconds).

    Args:
        cameras: P cameras.
        resolution: pixels per side, at least 8.

    Raises:
        ValueError: resolution too small for an object to be seen.
    """
    if resolution < 8:
        raise ValueError(f"resolution: expected at least 8 pixels per side, got {resolution}")
    angles = [
        (str(a.dtype), a.tolist()) for a in (cameras.azimuth, cameras.elevation, cameras.distance)
    ]
    digest = made_of(
        (objects_module, views_module, cameras_module),
        resolution,
        cameras.fov,
        angles,
        world_in_words(),
    )
    path = cache_folder() / f"views-{len(cameras)}x{resolution}-{digest}.npy"
    shape = (len(OBJECTS), len(cameras), 4, resolution, resolution)
    try:
        layers = np.load(
            path, mmap_mode="r", allow_pickle=False
        )  # maps: a huge shape in its header costs no memory
        if layers.shape == shape and layers.dtype == np.float32 and np.isfinite(layers).all():
            return WorldViews(cameras, torch.from_numpy(np.array(layers)))
    except Exception:  # not there yet, or damaged, for which numpy has many kinds: draw it
        pass
    layers = torch.stack([render_layers(name, cameras, resolution) for name in OBJECTS]).float()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, layers.numpy(), allow_pickle=False)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        warnings.warn(
            f"views are not cached ({error}); set PSD_MINI_CACHE to a folder that can be written",
            stacklevel=2,
        )
    return WorldViews(cameras, layers)
