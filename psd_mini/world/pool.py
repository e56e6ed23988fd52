"""The pictures that the toy world consists of: every object in every colour, from a camera pool.

Every object is shaded once per camera and recoloured on demand (`views.recolour`), because a
picture is affine in the main colour. The shaded layers are kept in the user's cache folder; they
are made again when the code that draws them or the objects change.
"""

import io
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psd_mini import cameras as cameras_module
from psd_mini._internal.arguments import at_least, validated
from psd_mini._internal.files import write_atomically
from psd_mini._internal.identity import made_of, spelled
from psd_mini._internal.runs import tell
from psd_mini.cameras import Cameras, orbit
from psd_mini.world import objects as objects_module
from psd_mini.world import views as views_module
from psd_mini.world.objects import COLOURS, OBJECTS
from psd_mini.world.views import recolour, render_world

POOL_SIZE = 128
GOLDEN_ANGLE = 180.0 * (3.0 - 5.0**0.5)  # degrees; successive multiples never bunch up


def pool_cameras(n: int = POOL_SIZE) -> Cameras:
    """The shared pool, a Fibonacci lattice: azimuths by the golden angle, elevations 0 to 45."""
    index = torch.arange(n, dtype=torch.float64)
    return orbit((index * GOLDEN_ANGLE) % 360.0, 45.0 * (index + 0.5) / n).numbered()


def fresh_cameras(n: int = 24) -> Cameras:
    """Cameras outside the pool: every 360 / n degrees, at elevations 8, 20 and 32 in turn."""
    index = torch.arange(n, dtype=torch.float64)
    return orbit(index * 360.0 / n, torch.tensor([8.0, 20.0, 32.0])[index.long() % 3])


# eq=False: two of them are equal only if they are one object
@dataclass(frozen=True, eq=False)
class WorldViews:
    """The toy world seen from P cameras.

    Args:
        cameras: P cameras.
        layers: (O, P, 4, H, W): for object o at camera p, base (3) and main (1) with picture = base
            + main * colour.
        vividness: how far the main colours c are from gray: gray + vividness (c - gray). Below 1 it
            is a world of dull colours.
    """

    cameras: Cameras
    layers: Float[Tensor, "o p 4 h w"]
    vividness: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.vividness <= 1:
            raise ValueError(f"vividness: expected a number in [0, 1], got {self.vividness!r}")
        object.__setattr__(self, "cameras", self.cameras.numbered())

    @property
    def resolution(self) -> int:
        """Pixels per side."""
        return self.layers.shape[-1]

    @property
    def colours(self) -> Float[Tensor, "c 3"]:
        """The main colours, rgb in [0, 1], in the order of `COLOURS`."""
        vivid = torch.tensor(list(COLOURS.values()), dtype=self.layers.dtype)
        gray = torch.tensor(COLOURS["gray"], dtype=self.layers.dtype)
        return torch.lerp(gray, vivid, self.vividness)

    def pictures(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b m 3 h w"]:
        """All M pictures, in the order of `text.components`, at the cameras `index`, in [0, 1]."""
        layers = self.layers[:, index].transpose(0, 1).contiguous()
        return recolour(layers, self.colours).flatten(1, 2)

    def index_of(self, cameras: Cameras) -> Int[Tensor, " b"]:
        """Places (B,) in `self.cameras` of cameras that were drawn from it.

        Raises:
            ValueError: a camera that is not one of these; the exact prior knows the world only from
                its own cameras.
        """
        fov, own = cameras.fov, self.cameras.fov
        if abs(fov - own) > 1e-6:
            raise ValueError(f"cameras: expected the fov of the pool, {own:g} radians, got {fov:g}")
        here, pool, index = cameras.positions().cpu(), self.cameras.positions(), cameras.index
        if index is None:  # made by hand: look for them
            index = torch.cdist(here.double(), pool.double()).argmin(dim=1)
        distance = (here - pool[index.clamp(max=len(pool) - 1)]).norm(dim=-1)
        if (distance > 1e-4).any():
            came, known = int(distance.argmax()), f"one of the {len(pool)} cameras of the pool"
            remedy = "use prior.draw_cameras, or views from make_views(cameras, resolution)"
            raise ValueError(f"cameras: camera {came} is not {known}; {remedy}")
        return index


def cache_folder() -> Path:
    """Where pictures are kept: $PSD_MINI_CACHE, or psd_mini in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("PSD_MINI_CACHE"):
        return Path(folder)
    places = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")
    # a relative one is not to be used (XDG); and a user without a home has "~" for it
    return Path(next(filter(os.path.isabs, places), tempfile.gettempdir())) / "psd_mini"


def world_in_words() -> str:
    """What pictures depend on besides their source code: objects and colours now, and torch."""
    return f"{spelled(OBJECTS)} {COLOURS} {torch.__version__}"


@validated
def make_views(cameras: Cameras, resolution: int) -> WorldViews:
    """Every object from every camera, from the cache or freshly drawn (seconds).

    Args:
        cameras: P cameras.
        resolution: pixels per side, at least 8.

    Raises:
        ValueError: resolution too small for an object to be seen.
    """
    at_least("resolution", resolution, 8)
    drawn_by = objects_module, views_module, cameras_module
    seen = spelled((cameras.azimuth, cameras.elevation, cameras.distance, cameras.fov))
    digest = made_of(drawn_by, resolution, seen, world_in_words())
    path = cache_folder() / f"views-{len(cameras)}x{resolution}-{digest}.npy"
    shape = (len(OBJECTS), len(cameras), 4, resolution, resolution)
    try:
        # a memory map: a damaged header that promises a huge shape costs no memory
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.shape == shape and found.dtype == np.float32 and np.isfinite(found).all():
            return WorldViews(cameras, torch.from_numpy(np.array(found)))
    except Exception:  # not there yet, or damaged, which numpy reports in many ways: draw it
        pass
    size = f"{len(cameras)} sides, {resolution} x {resolution} pixels"
    tell(True, f"drawing the toy world's {len(OBJECTS)} objects from {size}; kept for next time")
    layers = render_world(list(OBJECTS), cameras, resolution).float()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, layers.numpy(), allow_pickle=False)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        remedy = "set PSD_MINI_CACHE to a folder that can be written"
        warnings.warn(f"views are not cached ({error}); {remedy}", stacklevel=3)
    return WorldViews(cameras, layers)
