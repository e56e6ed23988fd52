"""Check of a renderer that composites density and colour along rays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, allclose

from psd_mini.checks.exact_world import normal
from psd_mini.checks.grading.names import key_of, parameters
from psd_mini.checks.grading.submission import prepare, tensors_in
from psd_mini.checks.guard import guarded
from psd_mini.checks.probe import Prober
from psd_mini.checks.report import Report
from psd_mini.checks.tables import Row, Rows, Table, causes_of, fewest_slips, formulas

RENDER = (
    "rgb = sum_i T_i (1 - exp(-rho_i delta_i)) c_i + T_end b,  T_i = exp(-sum_{j<i} rho_j delta_j)"
)
RAYS, SAMPLES, BACKGROUND = 64, 12, 0.7


def later(passed: Tensor) -> Tensor:
    """Shifted by one: of an inclusive product, what reaches sample i through those before it."""
    return torch.cat((torch.ones_like(passed[:, :1]), passed[:, :-1]), -1)


OWN = "it is the width z_{i+1} - z_i of its own interval"
PREVIOUS, NEXT = f"delta is that of the previous sample: {OWN}", f"delta is that of the next: {OWN}"
REVERSED = "the order is reversed: transmittance comes from the far end"
OVER_RAYS = "the product runs over the rays (dim=0): it must run along each ray"
SUMMED = "T is 1 minus a sum of alphas: it is the product of 1 - alpha"
SHADOWED = "the transmittance is shifted the wrong way: T_i is what the samples before i let pass"
CLAMPED = "the opacity is a clamped sum of alphas: it is the sum of the weights T alpha"
ONE_WIDTH = "all samples of a ray get one delta: each has its own"
DROPPED = "the last sample is dropped: there are as many widths as samples"
OTHER_BACKGROUND = "the background is multiplied by something else than 1 - opacity"
NAMES: dict[str, Any] = {  # in formulas
    **{"later": later, "exp": torch.exp, "sigmoid": torch.sigmoid, "softplus": F.softplus},
    "ones_like": torch.ones_like,
    "rolled": lambda values, by: values.roll(by, -1),
    "previous": lambda delta: torch.cat((delta[:, :1], delta[:, :-1]), -1),
    "sooner": lambda values: torch.cat((values[:, 1:], torch.ones_like(values[:, :1])), -1),
    "flipped": lambda values: values.flip(-1),
    "up_to": lambda passed: torch.cumprod(passed, -1),
    "over_rays": lambda passed: torch.cumprod(passed, 0),
    "sum_to": lambda alpha: torch.cumsum(alpha, -1),
    "mean": lambda delta: delta.mean(-1, keepdim=True),
    "first": lambda delta: delta[:, :1],
    "total": lambda weights: weights.sum(-1, keepdim=True),
    "last": lambda values: values[:, -1:],
}
TABLES = {  # by what formulas are of; the first one is right
    "rho, delta": {  # alpha
        "1 - exp(-rho delta)": "",
        "1 - exp(-rho)": "delta is missing: opacity must not depend on the number of samples",
        "rho": "the weights are T rho: alpha = 1 - exp(-rho delta) belongs in place of rho",
        "rho delta": "alpha = rho delta without the exponential: exact for thin fog only",
        "exp(-rho delta)": "alpha and 1 - alpha are swapped: exp(-rho delta) is what passes",
        "1 - exp(-rho rolled(delta, 1))": PREVIOUS,
        "1 - exp(-rho previous(delta))": PREVIOUS,
        "1 - exp(-rho delta^2)": "alpha has delta twice: it is 1 - exp(-rho delta)",
        "1 - exp(-rho mean(delta))": ONE_WIDTH,
        "1 - exp(-rho first(delta))": ONE_WIDTH,
        "1 - exp(-rho rolled(delta, -1))": NEXT,
        "1 - exp(-sigmoid(rho) delta)": "the density goes through a sigmoid: it is one already",
        "1 - exp(-softplus(rho) delta)": "the density goes through a softplus: it is one already",
    },
    "rho, delta, alpha": {  # what each sample lets pass
        "1 - alpha": "",
        "exp(-rho delta)": "",
        "exp(-rho)": "delta is missing in the transmittance: T_i = exp(-sum rho_j delta_j)",
        "exp(-rho rolled(delta, 1))": f"in the transmittance {PREVIOUS}",
        "exp(-rho previous(delta))": f"in the transmittance {PREVIOUS}",
        "exp(-rho rolled(delta, -1))": f"in the transmittance {NEXT}",
    },
    "passed": {  # T, the transmittance
        "later(up_to(passed))": "",
        "up_to(passed)": "the transmittance is inclusive: sample i must not shadow itself",
        "ones_like(passed)": "the transmittance is missing: samples behind others are not shadowed",
        "flipped(later(up_to(flipped(passed))))": REVERSED,
        "sooner(up_to(passed))": SHADOWED,
        "rolled(up_to(passed), -1)": SHADOWED,
        "rolled(up_to(passed), 1)": "T of the first sample is T_end (roll): it must be 1",
        "later(later(up_to(passed)))": "T is shifted twice: sample i - 1 must shadow sample i",
        "over_rays(passed)": OVER_RAYS,
        "later(over_rays(passed))": OVER_RAYS,
        "passed": "the product is missing: T_i is what all samples before i let pass together",
        "2 - passed - sum_to(1 - passed)": SUMMED,
        "(2 - passed - sum_to(1 - passed)).clamp(min=0)": SUMMED,
    },
    "T, alpha": {  # weights
        "T alpha": "",
        "T alpha^2": "premultiplied twice: the colour is multiplied by alpha twice",
        "T alpha / total(T alpha)": "the weights are divided by their sum: empty rays turn opaque",
        "T alpha / alpha.shape[-1]": "the mean over samples is taken: it must be their sum",
        "T": "alpha is missing in the weights: they are T alpha",
        "T - alpha": "the weights are T - alpha: they must be the product T alpha",
    },
    "opacity, T, alpha": {  # how much of the background is seen
        "1 - opacity": "",
        "last(T (1 - alpha))": "",
        "0 opacity": "no background: (1 - opacity) b is missing",
        "0 opacity + 1": "the background is added in full: it must be multiplied by 1 - opacity",
        "last(T)": "the background shines through the last sample: T_end is behind it, not before",
        "1 - total(alpha).clamp(max=1)": CLAMPED,
        "alpha.shape[-1] - opacity": "the background is added at every sample: once is enough",
        "opacity": "the background is multiplied by the opacity: it must be 1 - opacity",
    },
    "colour": {
        "colour": "",
        "flipped(colour)": "the channels are in reverse order (BGR)",
        "sigmoid(colour)": "the colour goes through a sigmoid twice: it is in 0..1 already",
    },
}
RARE = (PREVIOUS, NEXT, ONE_WIDTH, SHADOWED, OVER_RAYS, SUMMED)
ANY_BACKGROUND = Row("any", lambda opacity, T, alpha: 0 * opacity, OTHER_BACKGROUND, 1.25)
# the width of the last sample is anybody's choice, where only depths are given
LAST_WIDTHS = [
    Row("0.1", lambda delta: 0.1),
    Row("1e10", lambda delta: 1e10),
    Row("as before", lambda delta: delta[:, -2:-1]),
    Row("any", lambda delta: None),
    Row("unlike", lambda delta: 0.0, "the last sample is not composited like the others", 1.25),
]
OF_WIDTHS = [LAST_WIDTHS[0], Row("0", lambda delta: 0.0, DROPPED)]


class Rays(NamedTuple):
    """What a renderer is given: (N, S), but colour (N, S, 3); what is behind has one grey."""

    rho: Tensor
    colour: Tensor
    delta: Tensor
    z: Tensor
    background: float = BACKGROUND


def _rays() -> Rays:
    """Rays with no or one sample of matter, and others; every second one ends empty."""
    n, s = RAYS, SAMPLES
    steps = torch.rand(n, s, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = 1 + torch.cumsum(0.05 + 0.2 * steps, -1)
    delta = torch.cat((z[:, 1:] - z[:, :-1], torch.full((n, 1), 0.1).double()), -1)
    colour = torch.rand(n, s, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rho = torch.linspace(0, 5, n).double()[:, None] * normal(n, s, seed=1).abs()
    rho[::2, -1] = 0
    rho[2:16:2] *= torch.eye(s)[:7]  # matter in one sample only
    return Rays(rho.requires_grad_(), colour, delta, z)


@guarded("the renderer")
def check_renderer(fn: Any) -> Report:
    """Does fn(density (N, S), colour (N, S, 3), deltas (N, S), background) composite along rays?

    The answer is rgb (N, 3), or weights (N, S), or both in a tuple. Who takes z_vals instead of
    deltas makes deltas of them; the width of the last sample does not matter then. Without a
    background parameter, black is expected.
    """
    fn = prepare(fn, ("render", "composite", "forward"))
    report, rays, prober = Report("check of the renderer"), _rays(), Prober(fn)
    if "background" not in prober.keys:
        rays = rays._replace(background=0.0)
    for name, parameter in parameters(fn).items():  # a switch such as `white_bkgd=True` is kept
        if parameter.default is True and key_of(name) == "background":
            rays = rays._replace(background=1.0)
    target = _rendered(prober, rays)
    best = explain_picture(target, rays, OF_WIDTHS if "widths" in prober.keys else LAST_WIDTHS)
    if best is None:
        read = "rgb" if target.shape[-1] == 3 else f"weights (rgb would be {(RAYS, 3)})"
        came = f"{tuple(target.shape)} came, read as {read}"
        causes = [f"none of the known slips, and {_simplest_wrong(target, rays)}; {came}"]
    else:
        causes = causes_of(best)
    came = "another" if causes else "as it should"
    report.add(not causes, "compositing", came, "the formula", "; ".join(causes), RENDER)
    if best is not None and best[4] is not ANY_BACKGROUND:
        _judge_gradient(report, target, composited(target, rays, best), rays.rho)
    return report


def _rendered(prober: Prober, rays: Rays) -> Tensor:
    """rgb (N, 3), or weights (N, S)."""
    n, s = rays.rho.shape
    # "sigma", "rgb" and "t" are other things to a renderer than to a denoiser
    prober.given = {"density": rays.rho, "x": rays.rho, "t": rays.z, "z_vals": rays.z}
    prober.given |= {"colour": rays.colour.clone(), "image": rays.colour.clone()}
    prober.given |= {"widths": rays.delta, "background": rays.background}
    prober.given["device"] = torch.device("cpu")
    answer, _ = prober.ask({})
    shapes, expected = ((n, 3), (n, s), (n, s, 1)), "rgb (N, 3), or weights (N, S)"
    return tensors_in(answer, shapes, expected)[0].reshape(n, -1)


def composited(target: Tensor, rays: Rays, rows: Sequence[Row]) -> Tensor:
    """What one row of each of TABLES gives: rgb or weights, as the target is."""
    alphas, passed, through, weights, background, colours = rows[:6]
    alpha = alphas.value(rays.rho, rays.delta)
    light = through.value(passed.value(rays.rho, rays.delta, alpha))
    w = weights.value(light, alpha)
    if target.shape[-1] != 3:
        return w
    behind = background.value(w.sum(-1, keepdim=True), light, alpha) * rays.background
    return torch.einsum("ns,nsc->nc", w, colours.value(rays.colour)) + behind


def _tables() -> list[list[Row]]:
    """The rows of TABLES; three mistakes at once are looked for among those that are not rare."""
    tables = []
    for arguments, rows in TABLES.items():
        table = formulas(arguments, rows, NAMES)
        tables.append([row._replace(slips=1.2) if row.cause in RARE else row for row in table])
    return tables


def explain_picture(target: Tensor, rays: Rays, last_widths: Table) -> Rows | None:
    """The rows with the fewest slips that give these rgb or weights."""
    tables = _tables()
    tables[4].append(ANY_BACKGROUND)
    if target.shape[-1] != 3:
        tables[4:] = [tables[4][:1], tables[5][:1]]
    came = target.detach().double()

    def fits(*rows: Row) -> bool:
        last = rows[6].value(rays.delta)
        told = slice(0, None, 2 if rows[6].name == "unlike" else 1)  # of rays that end empty
        with torch.no_grad():
            mine = _with_last(target, rays, rows, 0.0 if last is None else last)
            if last is None:  # any width: between none, and one that lets nothing pass
                added = _with_last(target, rays, rows, 1e10) - mine
                share = ((came - mine) * added).sum(-1, keepdim=True)
                share /= added.square().sum(-1, keepdim=True).clamp(min=1e-30)
                mine += share.clamp(0, 1) * added
        rest = came - mine
        if rows[4] is ANY_BACKGROUND:  # it is grey
            rest = rest - rest.mean(-1, keepdim=True)
        near = rest.abs() <= 1e-4 * mine.abs() + 1e-5
        return bool((near | (came.isnan() & mine.isnan()))[told].all())

    most = 3.0 if last_widths is OF_WIDTHS else 2.4  # more last widths take more time
    return fewest_slips([*tables, last_widths], fits, most)


def _simplest_wrong(target: Tensor, rays: Rays) -> str:
    """At how much matter it goes wrong, in rays whose last sample is empty."""
    right = composited(target, rays, [table[0] for table in _tables()])
    wrong = (target - right).abs().amax(-1) > 1e-4
    counts = (rays.rho > 0).sum(-1)[::2][wrong[::2]].tolist()
    words = ("empty rays are wrong", "one sample of matter is wrong", "several are")
    return words[min(counts + [2])] if counts else "only the last sample is wrong"


def _with_last(target: Tensor, rays: Rays, rows: Sequence[Row], last: float | Tensor) -> Tensor:
    """What these rows give where the last samples have this width."""
    delta = torch.cat((rays.delta[:, :-1], torch.zeros_like(rays.delta[:, :1]) + last), -1)
    return composited(target, rays._replace(delta=delta), rows)


def _judge_gradient(report: Report, target: Tensor, mine: Tensor, rho: Tensor) -> None:
    """Does autograd see through it as through the formula that gives the same numbers?"""
    if not target.requires_grad:
        cause = "no gradient reaches the density: detached, or under no_grad?"
        report.add(False, "gradient", "None", "a gradient of the density", cause)
        return
    got = torch.autograd.grad(target.sum(), rho, retain_graph=True)[0]
    want = torch.autograd.grad(mine.sum(), rho, retain_graph=True)[0]
    # where nobody's last width matters, and a ReLU of the density has a slope
    told = (rho[::2, :-1] > 0).detach()
    got, want = got[::2, :-1][told], want[::2, :-1][told]
    same = allclose(got, want, rtol=1e-3, atol=1e-5, equal_nan=True)
    came = "as the formula's" if same else "another"
    report.add(same, "gradient", came, "the formula's", "a part of it was detached")
