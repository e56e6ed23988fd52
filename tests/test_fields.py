"""Fields: look-ups against python loops, derivatives, starting state, optimiser, files."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import converged_field, plain_render, renderer_ratio
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from psd_mini._internal.adam import Adam
from psd_mini._internal.identity import spelled
from psd_mini.fields import (
    FIELDS,
    TriplaneField,
    VoxelField,
    load_field,
    make_field,
    make_optimizer,
    save_field,
)

pytestmark = pytest.mark.algebra

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(field: nn.Module, seed: int, scale: float = 1.0) -> Any:
    """The field in float64 with normal random numbers in every parameter."""
    field = field.double()
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, dtype=F64, generator=generator))
    return field


def softplus(raw: float) -> float:
    return math.log1p(math.exp(raw))


def sigmoid(raw: float) -> float:
    return 1 / (1 + math.exp(-raw))


def corner_and_fraction(coordinate: float, resolution: int, bound: float) -> tuple[int, float]:
    """Index i of the node below a coordinate, and the fraction of the way to the next.

    x_i = -b + 2 b i / (R - 1)
    """
    steps = (coordinate + bound) / (2 * bound) * (resolution - 1)
    below = min(int(math.floor(steps)), resolution - 2)
    return below, steps - below


def interpolate(values, point, bound: float) -> float:
    """Multilinear look-up in nested lists values[last axis] ... [first axis], corner by corner.

    The sum over the 2^d corners of value(corner) times, for each axis, the fraction where the
    corner is the upper one, else 1 - fraction.
    """
    total = 0.0
    cells = [corner_and_fraction(c, len(values), bound) for c in point]
    for corner in range(2 ** len(point)):
        weight, entry = 1.0, values
        for axis in reversed(range(len(point))):  # the outermost list runs over the last coordinate
            below, fraction = cells[axis]
            upper = corner >> axis & 1
            weight *= fraction if upper else 1 - fraction
            entry = entry[below + upper]
        total += weight * entry
    return total


def probe_points(resolution: int, bound: float) -> torch.Tensor:
    """Random points of the cube, every kind of node and face, edge and corner of it."""
    step = 2 * bound / (resolution - 1)
    special = [
        (-bound, -bound, -bound),
        (bound, bound, bound),
        (bound, -bound, bound),
        (-bound + step, -bound + 2 * step, -bound),  # nodes
        (-bound + 2 * step, -bound, -bound + step),
        (0.3 * bound, bound, -0.2 * bound),  # faces
        (-bound, 0.1 * bound, 0.7 * bound),
        (0.3 * bound, -0.6 * bound, bound),
        (bound, 0.25 * bound, bound),  # an edge
        (-bound + step, 0.123 * bound, 0.456 * bound),  # faces between cells
        (0.123 * bound, -bound + step, -bound + 2 * step),
        (0.0, 0.0, 0.0),
    ]
    random = bound * (2 * torch.rand(40, 3, dtype=F64, generator=seeded(0)) - 1)
    return torch.cat((torch.tensor(special, dtype=F64).clamp(-bound, bound), random))


@pytest.mark.parametrize(
    ("resolution", "bound", "channels"), [(2, 1.0, 3), (5, 1.3, 4), (6, 0.7, 1)]
)
def test_voxels_against_a_hand_written_trilinear_lookup(resolution, bound, channels):
    """density = 10 softplus(sum_i w_i d_i), colour = sigmoid(sum_i w_i c_i) over eight corners."""
    field = randomised(VoxelField(resolution, bound, channels), seed=1, scale=2.0)
    points = probe_points(resolution, bound)
    density, colour = field(points)
    assert density.shape == (len(points),)
    assert colour.shape == (len(points), channels)
    assert density.dtype == colour.dtype == F64
    raw_density, raw_colour = field.density[0, 0].tolist(), field.colour[0].tolist()
    for n, point in enumerate(points.tolist()):
        assert density[n].item() == pytest.approx(
            10 * softplus(interpolate(raw_density, point, bound)), abs=1e-12
        )
        for c in range(channels):
            assert colour[n, c].item() == pytest.approx(
                sigmoid(interpolate(raw_colour[c], point, bound)), abs=1e-12
            )


def test_one_voxel_node_sits_at_its_own_place():
    """Parameter [.., k, j, i] acts at x = x_i, y = y_j, z = z_k, and at no other node."""
    resolution, bound, (i, j, k) = 5, 1.5, (1, 3, 4)
    field = VoxelField(resolution, bound).double()
    with torch.no_grad():
        field.density.zero_()
        field.density[0, 0, k, j, i] = 3.0
        field.colour[0, 2, k, j, i] = -2.0
    axis = [-bound + 2 * bound * n / (resolution - 1) for n in range(resolution)]
    nodes = [
        (a, b, c) for a in range(resolution) for b in range(resolution) for c in range(resolution)
    ]
    density, colour = field(
        torch.tensor([[axis[a], axis[b], axis[c]] for a, b, c in nodes], dtype=F64)
    )
    for n, node in enumerate(nodes):
        lit = node == (i, j, k)
        assert density[n].item() == pytest.approx(10 * softplus(3.0 if lit else 0.0), abs=1e-12)
        assert colour[n].tolist() == pytest.approx(
            [0.5, 0.5, sigmoid(-2.0) if lit else 0.5], abs=1e-12
        )


@pytest.mark.parametrize(("resolution", "bound", "channels"), [(5, 1.0, 3), (4, 1.3, 4)])
def test_triplane_against_a_hand_written_lookup_and_decoder(resolution, bound, channels):
    """The triplane's equations in plain numbers.

    f = F_xy + F_xz + F_yz
    (raw, c) = W_2 relu(W_1 f + b_1) + b_2
    density = 10 softplus(raw + soft ball)
    """
    features, hidden = 3, 6
    field = randomised(TriplaneField(resolution, bound, channels, features, hidden), seed=2)
    points = probe_points(resolution, bound)
    density, colour = field(points)
    assert density.dtype == colour.dtype == F64
    assert colour.shape == (len(points), channels)
    planes = field.planes.tolist()
    w_1, b_1, w_2, b_2 = (p.tolist() for p in (field.w_1, field.b_1, field.w_2, field.b_2))
    for n, (x, y, z) in enumerate(points.tolist()):
        f = [
            interpolate(planes[0][m], (x, y), bound)
            + interpolate(planes[1][m], (x, z), bound)
            + interpolate(planes[2][m], (y, z), bound)
            for m in range(features)
        ]
        h = [
            max(0.0, sum(w * v for w, v in zip(w_1[u], f, strict=True)) + b_1[u])
            for u in range(hidden)
        ]
        out = [
            sum(w * v for w, v in zip(w_2[u], h, strict=True)) + b_2[u] for u in range(1 + channels)
        ]
        ball = 4 * (0.8 - math.sqrt(x * x + y * y + z * z)) - 1
        assert density[n].item() == pytest.approx(10 * softplus(out[0] + ball), abs=1e-12)
        assert colour[n].tolist() == pytest.approx([sigmoid(c) for c in out[1:]], abs=1e-12)


@pytest.mark.parametrize(("plane", "axis"), [(0, 2), (1, 1), (2, 0)])
def test_each_plane_ignores_the_axis_it_was_projected_along(plane, axis):
    """One plane alone gives colours that are constant along the axis it was projected along."""
    field = randomised(TriplaneField(6, features=4, hidden=8), seed=3)
    with torch.no_grad():
        field.planes[[p for p in range(3) if p != plane]] = 0.0
    points = 1.6 * torch.rand(10, 3, dtype=F64, generator=seeded(4)) - 0.8
    for moved in range(3):
        shifted = points.clone()
        shifted[:, moved] *= -0.5
        change = (field(shifted)[1] - field(points)[1]).abs().amax(-1)
        assert (change < 1e-14).all() if moved == axis else (change > 1e-6).any()


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("channels", [3, 4])
def test_density_is_nonnegative_and_colours_lie_between_zero_and_one(kind, channels):
    """density >= 0 and 0 < colour < 1 for random parameters, in the cube and on its rim."""
    scale = {"voxel": 3.0, "triplane": 0.5}[
        kind
    ]  # raw values up to about 10, where float32's sigmoid is not yet 1
    field = randomised(make_field(kind, resolution=5, channels=channels), seed=5, scale=scale)
    for dtype in (F64, torch.float32):
        points = probe_points(5, 1.0).to(dtype)
        density, colour = field.to(dtype)(points)
        assert density.dtype == colour.dtype == dtype
        assert (density >= 0).all()  # exact: softplus is log1p of what is not negative
        assert ((colour > 1e-6) & (colour < 1 - 1e-6)).all()
        assert colour.shape == (len(points), channels)


@pytest.mark.parametrize("kind", FIELDS)
def test_outside_the_cube_the_rim_continues(kind):
    """colour(p) = colour(clamp(p, -bound, bound)): outside there is no void and no mirror image."""
    field = randomised(make_field(kind, resolution=4, bound=1.2), seed=6)
    outside = torch.tensor([[1.5, 0.3, -0.4], [-1.3, 1.4, 0.5], [0.1, 0.2, -1.25]], dtype=F64)
    torch.testing.assert_close(
        field(outside)[1], field(outside.clamp(-1.2, 1.2))[1], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kind", FIELDS)
def test_no_points_give_no_values(kind):
    """N = 0 is a valid batch: a picture whose rays all miss asks for it."""
    density, colour = make_field(kind, resolution=4, channels=4)(torch.zeros(0, 3))
    assert density.shape == (0,)
    assert colour.shape == (0, 4)


def test_voxels_start_as_a_grey_soft_ball():
    """At the nodes, density = 10 softplus(4 (0.8 - |p|) - 1) and colour = 1/2."""
    resolution, bound = 9, 1.1
    axis = torch.linspace(-bound, bound, resolution, dtype=F64)
    points = torch.cartesian_prod(axis, axis, axis)
    density, colour = VoxelField(resolution, bound).double()(points)
    expected = [10 * softplus(4 * (0.8 - math.dist(p, (0, 0, 0))) - 1) for p in points.tolist()]
    torch.testing.assert_close(
        density, torch.tensor(expected, dtype=F64), rtol=2e-6, atol=0
    )  # nodes made in float32
    torch.testing.assert_close(colour, torch.full_like(colour, 0.5), rtol=0, atol=1e-12)


def test_triplane_starts_near_a_grey_soft_ball():
    """Without planes the soft ball is exact; the random start stays within 10% of it."""
    points = probe_points(5, 1.0)
    ball = torch.tensor(
        [10 * softplus(4 * (0.8 - math.dist(p, (0, 0, 0))) - 1) for p in points.tolist()], dtype=F64
    )
    field = TriplaneField(8).double()
    density, colour = field(points)
    assert ((density / ball).log().abs() < 0.1).all()
    assert ((colour - 0.5).abs() < 0.1).all()
    assert colour.std() > 1e-4  # but not dead: something for the gradient to work on
    with torch.no_grad():
        field.planes.zero_()
    density, colour = field(points)
    torch.testing.assert_close(density, ball, rtol=1e-12, atol=0)
    torch.testing.assert_close(colour, torch.full_like(colour, 0.5), rtol=0, atol=1e-12)


def test_triplane_is_determined_by_its_generator():
    """Equal seeds give equal weights, None is seed 0; torch's global generator is not used."""
    state = torch.get_rng_state()

    def weights(generator):
        return torch.cat([p.flatten() for p in TriplaneField(4, generator=generator).parameters()])

    assert torch.equal(weights(seeded(7)), weights(seeded(7)))  # exact: one generator, one machine
    assert (weights(seeded(7)) - weights(seeded(8))).abs().max() > 1e-3
    assert torch.equal(weights(None), weights(seeded(0)))  # exact: one generator, one machine
    assert torch.equal(torch.get_rng_state(), state)


def joined(values) -> torch.Tensor:
    """(density, colour) as one tensor: gradcheck misses it when one of two loses its graph."""
    return torch.cat((values[0][:, None], values[1]), dim=1)


def small(kind: str) -> nn.Module:
    extra: dict[str, Any] = {"features": 2, "hidden": 4} if kind == "triplane" else {}
    return randomised(make_field(kind, resolution=3, **extra), seed=9)


@pytest.mark.parametrize("kind", FIELDS)
def test_gradients_with_respect_to_every_parameter(kind):
    """d density / d theta and d colour / d theta equal central differences for all parameters."""
    field = small(kind)
    names = [name for name, _ in field.named_parameters()]
    points = 1.8 * torch.rand(4, 3, dtype=F64, generator=seeded(10)) - 0.9

    def values(*parameters):
        return joined(functional_call(field, dict(zip(names, parameters, strict=True)), (points,)))

    parameters = tuple(p.detach().clone().requires_grad_() for p in field.parameters())
    assert gradcheck(values, parameters, eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", FIELDS)
def test_gradients_with_respect_to_the_points(kind):
    """d density / d p and d colour / d p equal central differences, away from the nodes."""
    points = (1.8 * torch.rand(6, 3, dtype=F64, generator=seeded(11)) - 0.9).requires_grad_()
    assert (points.abs() > 1e-3).all()  # the nodes of a grid of 3 are at -1, 0, 1
    field = small(kind)
    assert gradcheck(lambda p: joined(field(p)), (points,), eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", FIELDS)
def test_parameter_groups_hold_every_parameter_once(kind):
    """The optimiser is given exactly what the field has: nothing frozen, nothing counted twice."""
    field: Any = make_field(kind, resolution=4)
    grouped = [id(p) for group in field.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in field.parameters())
    assert all(group["lr"] > 0 for group in field.parameter_groups())  # exact: a setting


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("scale", [2.0, (0.5, 3.0)])
def test_the_optimizer_is_adam_at_the_fields_own_rates(kind, scale):
    """Each group's rate is multiplied by its factor; Adam's first step is lr * sign(gradient)."""
    field: Any = randomised(make_field(kind, resolution=4), seed=13)
    factors = scale if isinstance(scale, tuple) else (scale, scale)
    optimizer = make_optimizer(field, scale)
    # exact: settings as they were given
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.99)] * 2
    before = [parameter.detach().clone() for parameter in field.parameters()]
    slope = sum(parameter.sum() for parameter in field.parameters())
    slope.backward()  # the gradient is 1 everywhere
    optimizer.step()
    rates = {}
    for group, factor in zip(field.parameter_groups(), factors, strict=True):
        rates |= {id(parameter): factor * group["lr"] for parameter in group["params"]}
    for start, parameter in zip(before, field.parameters(), strict=True):
        torch.testing.assert_close(start - parameter, torch.full_like(start, rates[id(parameter)]))


def test_a_pair_of_factors_needs_two_groups():
    """A field with one group of parameters takes a number, not a pair."""

    class Plain(nn.Linear):
        def parameter_groups(self):
            return [{"params": list(self.parameters()), "lr": 0.1}]

    assert make_optimizer(Plain(2, 2), 3.0).param_groups[0]["lr"] == pytest.approx(0.3)
    message = "lr_scale: expected a number, the field has 1 groups"
    assert_one_line_error(lambda: make_optimizer(Plain(2, 2), (1.0, 2.0)), message, "(1.0, 2.0)")


SETTINGS: dict[str, dict[str, Any]] = {
    "voxel": {"resolution": 5, "bound": 1.1, "channels": 4},
    "triplane": {"resolution": 5, "bound": 0.9, "channels": 4, "features": 3, "hidden": 7},
}


def test_the_optimiser_is_adam():
    """m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, p <- p - lr m' / (sqrt(v') + eps), with m'
    and v' divided by 1 - b^n (Kingma & Ba 2015, algorithm 1)."""
    p = nn.Parameter(torch.randn(5, generator=seeded(0), dtype=F64))
    gradients = torch.randn(4, 5, generator=seeded(1), dtype=F64)
    expected = p.detach().clone()
    m, v = torch.zeros(5, dtype=F64), torch.zeros(5, dtype=F64)

    class Alone(nn.Module):
        def parameter_groups(self):
            return [{"params": [p], "lr": 0.3}]

    optimizer = make_optimizer(Alone(), 1.0)
    for n, g in enumerate(gradients, 1):
        optimizer.zero_grad()
        (p * g).sum().backward()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        expected -= 0.3 * (m / (1 - 0.9**n)) / ((v / (1 - 0.99**n)).sqrt() + 1e-15)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-10, atol=1e-10)


def test_the_optimiser_is_torchs_own_in_every_bit():
    """Also with a group that comes later, gradients that are set to zero, and after a state of
    torch's own Adam is loaded. A step keeps no graph."""
    ends = []
    for cls in (Adam, torch.optim.Adam):
        p, q = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
        optimizer = cls([p], lr=0.3, betas=(0.9, 0.99), weight_decay=0.1)
        for step in range(3):
            if step == 1:
                optimizer.add_param_group({"params": [q], "lr": 0.2})
            (p.sin().sum() + (2 * q).cos().sum()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=step == 0)
            assert p.grad is None if step == 0 else p.grad.abs().sum() == 0  # exact: set to zero
        again = torch.optim.Adam([{"params": [p]}, {"params": [q]}])
        again.load_state_dict(optimizer.state_dict())
        back = cls([{"params": [p]}, {"params": [q]}])
        back.load_state_dict(again.state_dict())
        (p.square() + q).sum().backward()
        assert back.step(lambda: torch.tensor(3.0)) == 3  # exact: handed on
        assert p.requires_grad and p.is_leaf
        ends.append((p.detach(), q.detach(), spelled(back.state_dict())))
    # exact: the same operations on the same numbers
    assert all(torch.equal(a, b) for a, b in zip(ends[0][:2], ends[1][:2], strict=True))
    assert ends[0][2] == ends[1][2]


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_saved_fields_come_back_bit_for_bit(kind, dtype, tmp_path):
    """A loaded field has the same kind, settings, dtype and values, and can be trained on."""
    field = randomised(make_field(kind, **SETTINGS[kind]), seed=12).to(dtype)
    save_field(field, tmp_path / "field.safetensors")
    loaded: Any = load_field(tmp_path / "field.safetensors")
    assert type(loaded) is type(field)
    assert loaded.settings == field.settings == SETTINGS[kind]
    for (name, value), (loaded_name, loaded_value) in zip(
        field.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert name == loaded_name
        assert loaded_value.dtype == dtype
        assert loaded_value.requires_grad
        assert torch.equal(value, loaded_value)  # exact: a file holds bits
    points = probe_points(5, 0.9).to(dtype)
    # exact: the same code on the same numbers
    assert all(torch.equal(a, b) for a, b in zip(field(points), loaded(points), strict=True))


def assert_one_line_error(action, *fragments: str) -> None:
    with pytest.raises(ValueError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_file(kept, tmp_path):
    """A file cut anywhere, in its header or its numbers, is reported as damaged, with its name."""
    whole, path = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_field(VoxelField(4), whole)
    content = whole.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert_one_line_error(lambda: load_field(path), str(path), "damaged", "save_field")


def test_flipped_bits(tmp_path):
    """One flipped bit anywhere, in the settings or the numbers, is noticed: there is no other
    field in the place of the one that was saved."""
    whole, path = tmp_path / "whole.safetensors", tmp_path / "flipped.safetensors"
    save_field(VoxelField(4, bound=1.5), whole)
    content = whole.read_bytes()
    places = torch.randint(8, len(content), (60,), generator=torch.Generator().manual_seed(0))
    bound = content.index(b"1.5") + 2  # 1.4 is a bound as well
    for place in [bound, *places.tolist()]:
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert_one_line_error(lambda: load_field(path), str(path))


def test_files_of_older_versions_have_no_checksum(tmp_path):
    save_field(VoxelField(4), tmp_path / "new.safetensors")
    header, state = {"kind": "voxel", "resolution": 4, "bound": 1.0, "channels": 3}, {}
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        assert set(json.loads(file.metadata()["psd_mini_field"])) == {*header, "sha256"}
        state = {name: file.get_tensor(name) for name in ("density", "colour")}
    save_file(state, tmp_path / "old.safetensors", {"psd_mini_field": json.dumps(header)})
    assert load_field(tmp_path / "old.safetensors").settings["resolution"] == 4


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_files_that_are_no_fields(tmp_path):
    """A missing file, a folder, foreign safetensors, a pickle: refused, nothing is unpickled."""
    foreign, pickled, trace = (
        tmp_path / "foreign.safetensors",
        tmp_path / "pickle.safetensors",
        tmp_path / "trace",
    )
    save_file({"weight": torch.zeros(3)}, foreign)
    pickled.write_bytes(pickle.dumps(Bomb(trace)))
    for path in (tmp_path / "missing.safetensors", tmp_path, foreign, pickled):
        assert_one_line_error(
            lambda path=path: load_field(path), str(path), "not a field file", "save_field"
        )
    assert not trace.exists()
    for header in ("3", '"x"', "null", "[]"):  # JSON, but no settings
        save_file({"weight": torch.zeros(3)}, foreign, {"psd_mini_field": header})
        assert_one_line_error(lambda: load_field(foreign), str(foreign), "not a field file")
    torch.save(VoxelField(4).state_dict(), pickled)
    assert_one_line_error(lambda: load_field(pickled), str(pickled), "not a field file")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"kind": "voxel", "resolution": 4}, "density"),  # other tensors
        ({"kind": "voxel", "resolution": 1}, "resolution"),
        ({"kind": "mesh", "resolution": 4}, "mesh"),
        ({"resolution": 4}, "kind"),
        ({"kind": "voxel", "colour": 4}, "colour"),  # an argument that no field has
    ],
)
def test_header_that_does_not_fit_the_tensors(header, reason, tmp_path):
    """Header and tensors that disagree are one line that says where, and no half-filled field."""
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(3)}, path, {"psd_mini_field": json.dumps(header)})
    assert_one_line_error(lambda: load_field(path), str(path), "disagree", reason)


def test_bad_settings_are_named():
    """One line with the argument, what was expected and what came."""
    assert_one_line_error(lambda: make_field("mesh"), "field: kind: 'mesh'", "voxel, triplane")
    assert_one_line_error(
        lambda: save_field(nn.Linear(2, 2), "never.safetensors"), "Linear", "voxel, triplane"
    )
    for kind in FIELDS:
        assert_one_line_error(
            lambda kind=kind: make_field(kind, resolution=1),
            "resolution: expected",
            "at least 2",
            "1",
        )
        assert_one_line_error(
            lambda kind=kind: make_field(kind, resolution=8.0), "resolution: expected", "8.0"
        )
        assert_one_line_error(
            lambda kind=kind: make_field(kind, channels=0), "channels: expected", "0"
        )
        for bound in (0.0, -1.0, float("nan"), float("inf")):
            assert_one_line_error(
                lambda kind=kind, b=bound: make_field(kind, bound=b), "bound: expected", repr(bound)
            )
    assert_one_line_error(lambda: TriplaneField(4, features=0), "features: expected", "0")
    assert_one_line_error(lambda: TriplaneField(4, hidden=0), "hidden: expected", "0")


@pytest.mark.parametrize("field", [VoxelField(), converged_field()], ids=["fresh", "converged"])
def test_the_renderer_that_is_timed_agrees_with_the_plain_one(field, monkeypatch):
    """Picture and gradients of every parameter, relative to their norm, as the bench compares."""
    _, difference = renderer_ratio(field, 1, size=32, n_samples=32)
    assert difference < 1e-6
    monkeypatch.setattr("bench.plain_render", lambda *settings: 1.001 * plain_render(*settings))
    _, difference = renderer_ratio(field, 1, size=32, n_samples=32)
    assert 5e-4 < difference < 2e-3  # it is the plain renderer that was compared
