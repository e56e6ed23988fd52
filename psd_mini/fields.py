"""Radiance fields: from points in space to density and colour.

A field is a module with a `bound` and `parameter_groups()` (for Adam) that is called as

    field(points (N, 3)) -> density (N,), colour (N, C)

`density` is extinction per unit length, in 1 / world units; `colour` is in (0, 1). A field lives in
the cube [-bound, bound]^3, and the renderer samples it inside the ball of radius `bound`. Neither
depends on the direction of view.

Two fields stand here. In a voxel grid every number has a place in space. In a triplane a small
network decodes three feature pictures. Both start as the same soft grey ball.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from psd_mini._internal.adam import Adam
from psd_mini._internal.arguments import at_least, named, one_of, validated
from psd_mini._internal.files import checksum, write_atomically

Points = Float[Tensor, "n 3"] | Float[Tensor, "0 3"]  # no points give no values
Values = tuple[Float[Tensor, " n"], Float[Tensor, "n c"]]  # density and colour

DENSITY_SCALE = 10.0  # density = 10 softplus(raw): raw = 0 is half transparent after 0.1 units
BALL_RADIUS = 0.8  # of the soft ball in which optimisation starts, world units
BALL_SHARPNESS = 4.0  # raw density falls by 4 per world unit: opaque centre, transparent rim
BALL_OFFSET = -1.0  # raw density at that radius
# grid_sample runs one CPU thread per element of its batch, so voxels give it four slabs of points
SLABS = 4


def soft_ball(points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
    """Raw density of the soft ball that every field starts from.

        raw(p) = sharpness (radius - |p|) + offset

    With too little density the pictures are all background; with too much no light reaches the
    inside. The values come from the sweep in tests/results/field_sweep.md.
    """
    return BALL_SHARPNESS * (BALL_RADIUS - points.norm(dim=-1)) + BALL_OFFSET


def _checked_settings(resolution: int, bound: float, **widths: int) -> dict[str, Any]:
    """A field's settings by name, after a look at their ranges."""
    at_least("resolution", resolution, 2)
    if not 0 < bound < math.inf:
        raise ValueError(f"bound: expected a positive length in world units, got {bound!r}")
    for name, width in widths.items():
        at_least(name, width, 1)
    return {"resolution": resolution, "bound": bound, **widths}


@validated
class VoxelField(nn.Module):
    """A cube of R x R x R nodes, trilinearly interpolated.

        density(p) = 10 softplus(sum_i w_i(p) density_i)
        colour(p)  = sigmoid(sum_i w_i(p) colour_i)

    The sums run over the eight nodes i around p. The weights w_i are products of 1 - |distance|
    along the three axes, in units of the node spacing, and sum to one. The outermost nodes sit on
    the faces of the cube (align_corners).

    Args:
        resolution: R, nodes along each axis, at least 2.
        bound: half the side of the cube in world units.
        channels: colour channels C (3 for rgb, 4 for a latent-space field).
        generator: not used: voxels start without randomness. All fields are made alike.
    """

    def __init__(
        self,
        resolution: int = 32,
        bound: float = 1.0,
        channels: int = 3,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.settings = _checked_settings(resolution, bound, channels=channels)
        self.bound = bound
        axis = torch.linspace(-bound, bound, resolution)
        # laid out [z, y, x]; the coordinates of a node are (x, y, z)
        nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).flip(-1)
        self.density = nn.Parameter(soft_ball(nodes)[None, None])
        self.colour = nn.Parameter(torch.zeros(1, channels, *nodes.shape[:3]))

    def forward(self, points: Points) -> Values:
        """Density (N,) and colour (N, C) at points (N, 3)."""
        slabs = math.gcd(len(points), SLABS)
        grid = torch.cat((self.density, self.colour), dim=1).expand(slabs, -1, -1, -1, -1)
        # grid_sample reads its last coordinate axis as (x, y, z) against a grid laid out [z, y, x]
        where = (points / self.bound).view(slabs, 1, 1, len(points) // slabs, 3)
        raw = F.grid_sample(grid, where, align_corners=True, padding_mode="border")
        raw = raw.transpose(0, 1).reshape(grid.shape[1], len(points))
        return DENSITY_SCALE * F.softplus(raw[0]), torch.sigmoid(raw[1:]).T

    def parameter_groups(self) -> list[dict]:
        """Adam's groups with the learning rates found in tests/results/field_sweep.md."""
        return [{"params": [self.density], "lr": 0.3}, {"params": [self.colour], "lr": 0.2}]


@validated
class TriplaneField(nn.Module):
    """Three feature planes, summed and decoded by a small network.

        f(p) = F_xy(p_x, p_y) + F_xz(p_x, p_z) + F_yz(p_y, p_z)
        (raw, c) = W_2 relu(W_1 f + b_1) + b_2
        density(p) = 10 softplus(raw + soft_ball(p)),    colour(p) = sigmoid(c)

    Each plane is bilinearly interpolated. Memory grows with R^2 instead of R^3.

    Args:
        resolution: R, nodes along each side of a plane, at least 2.
        bound: half the side of the cube in world units.
        channels: colour channels C.
        features: feature channels per plane.
        hidden: width of the decoder.
        generator: draws the initial weights; None is a fixed seed of 0.

    Source: Chan et al. 2022 (arXiv 2112.07945), section 4.1.
    """

    def __init__(
        self,
        resolution: int = 48,
        bound: float = 1.0,
        channels: int = 3,
        features: int = 8,
        hidden: int = 24,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        widths = {"channels": channels, "features": features, "hidden": hidden}
        self.settings = _checked_settings(resolution, bound, **widths)
        self.bound = bound
        generator = generator or torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            drawn = torch.randn(shape, generator=generator, device=generator.device)
            return drawn.to(torch.get_default_device())

        self.planes = nn.Parameter(0.1 * normal(3, features, resolution, resolution))
        # He initialisation for the hidden layer
        self.w_1 = nn.Parameter(normal(hidden, features) * (2 / features) ** 0.5)
        self.b_1 = nn.Parameter(torch.zeros(hidden))
        # a small output layer keeps the first pictures close to the soft ball
        self.w_2 = nn.Parameter(normal(1 + channels, hidden) * 0.1 / hidden**0.5)
        self.b_2 = nn.Parameter(torch.zeros(1 + channels))

    def forward(self, points: Points) -> Values:
        """Density (N,) and colour (N, C) at points (N, 3)."""
        p = points / self.bound
        # bilinear look-ups in the three planes at once
        where = torch.stack((p[:, [0, 1]], p[:, [0, 2]], p[:, [1, 2]]))[:, None]  # (3, 1, N, 2)
        planes = F.grid_sample(self.planes, where, align_corners=True, padding_mode="border")
        # f = F_xy + F_xz + F_yz; planes is (3, F, 1, N)
        features = planes.sum(0)[:, 0].T
        # (raw, c) = W_2 relu(W_1 f + b_1) + b_2
        hidden = F.relu(F.linear(features, self.w_1, self.b_1))
        raw = F.linear(hidden, self.w_2, self.b_2)
        return DENSITY_SCALE * F.softplus(raw[:, 0] + soft_ball(points)), torch.sigmoid(raw[:, 1:])

    def parameter_groups(self) -> list[dict]:
        """Adam's groups with the learning rates found in tests/results/field_sweep.md."""
        decoder = [self.w_1, self.b_1, self.w_2, self.b_2]
        return [{"params": [self.planes], "lr": 0.04}, {"params": decoder, "lr": 0.01}]


FIELDS = {"voxel": VoxelField, "triplane": TriplaneField}


@validated
def make_field(kind: str, generator: torch.Generator | None = None, **settings) -> nn.Module:
    """A fresh field by name, "voxel" or "triplane", with the constructor's settings.

    Raises:
        ValueError: unknown kind; lists the known ones.
    """
    one_of("field: kind", kind, FIELDS)
    return FIELDS[kind](generator=generator, **settings)


@validated
def make_optimizer(field: nn.Module, lr_scale: float | tuple[float, float]) -> Adam:
    """The optimiser that trains a field: Adam with betas 0.9 and 0.99, on the field's own groups.

    Args:
        field: has `parameter_groups()`: one dictionary per group, with "params" and "lr".
        lr_scale: multiplies every group's learning rate; a pair has one factor for each of two
            groups (voxels: density, colour; triplane: planes, decoder).

    Raises:
        ValueError: a pair for a field that has not two groups.
    """
    groups = field.parameter_groups()  # type: ignore[operator]
    scales = lr_scale if isinstance(lr_scale, tuple) else (lr_scale,) * len(groups)
    if len(scales) != len(groups):
        expected = f"a number, the field has {len(groups)} groups of parameters"
        raise ValueError(f"lr_scale: expected {expected}; got {lr_scale!r}")
    groups = [{**g, "lr": g["lr"] * scale} for g, scale in zip(groups, scales, strict=True)]
    return Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


@validated
def save_field(field: nn.Module, path: str | Path) -> None:
    """Write a field to a safetensors file; its header has kind, settings and a checksum of all.

    Raises:
        ValueError: not one of the fields in `FIELDS`.
    """
    from safetensors.torch import save

    kind = next((name for name, cls in FIELDS.items() if type(field) is cls), None)
    if kind is None:
        raise ValueError(f"field: expected one of {', '.join(FIELDS)}, got {type(field).__name__}")
    settings: dict[str, Any] = {"kind": kind, **field.settings}  # type: ignore[dict-item]
    state = {name: value.detach().contiguous().cpu() for name, value in field.state_dict().items()}
    settings["sha256"] = checksum(state, settings)
    write_atomically(path, save(state, {"psd_mini_field": json.dumps(settings)}))


@validated
def load_field(path: str | Path) -> nn.Module:
    """Read a field that `save_field` wrote; it has the file's dtype and can be trained on.

    Raises:
        ValueError: not such a file, or damaged; names the file.
    """
    from safetensors import safe_open

    what = f"path: {path} is not a field file of psd-mini, or damaged"
    with named(what, "use save_field"), safe_open(path, framework="pt") as file:
        settings = json.loads((file.metadata() or {})["psd_mini_field"])
        if not isinstance(settings, dict):
            raise ValueError(f"its settings are {settings!r:.40}")
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        if settings.pop("sha256", None) not in (None, checksum(state, settings)):
            raise ValueError("its checksum does not fit")
    with named(f"path: {path}: the field's header and tensors disagree", "save the field again"):
        with torch.device("meta"):  # no memory before the shapes are known to agree
            field = make_field(settings.pop("kind"), **settings)
        field.load_state_dict(state, assign=True)  # assign keeps the file's dtype
    return field
