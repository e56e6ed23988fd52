"""Running a submission in the exact world, and taking its gradient apart.

Every gradient of score distillation is a combination of a few known vectors: for one picture,

    G = sum_i ( c_i eps_cond(x_t^i) + u_i eps_uncond(x_t^i) + q_i eps_q(x_t^i) + n_i eps_i ) + other noises + b x

over the noised versions x_t^i that the submission asked about. The vectors are linearly independent here (see `world`), so
least squares finds the coefficients to machine precision, and they say what the code computes, whether or not the mistake
has ever been seen before. In the same way x_t = a x + s eps says how the noise was added.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from psd_mini.checks import world
from psd_mini.checks.stand_ins import TextEncoder
from psd_mini.checks.submission import Unreadable, arguments, environment, gradient_of, invoke, key_of, keys
from psd_mini.checks.trace import Trace, flows, flows_through

HALF = (torch.float16, torch.bfloat16)


@dataclass
class Group:
    """One noised version of one picture: x_t = a x + s eps at t, and what was predicted there, by embedding."""

    t: float
    x_t: Tensor
    eps_hat: dict[str, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    a: float = 0.0
    s: float = 0.0
    eps: Tensor | None = None


@dataclass
class Reading:
    """One picture of one run, taken apart. `coefficients[i]` belongs to `groups[i]`: cond, uncond, q, noise.

    other: coefficient of noises that are in no x_t; b: of x itself; leftover: relative size of what is none of all this.
    """

    g: float
    batch: int
    x: Tensor
    gradient: Tensor
    groups: list[Group]
    coefficients: list[dict[str, float]] = field(default_factory=list)
    other: float = 0.0
    b: float = 0.0
    leftover: float = 0.0

    @property
    def t(self) -> int:
        return round(self.groups[0].t) if self.groups else 0

    def total(self, label: str) -> float:
        """Coefficient of one kind of vector, summed over the noised versions."""
        return sum(c.get(label, 0.0) for c in self.coefficients)


@dataclass
class Run:
    """One call of a submission: its gradient (B, ...) in float64, how it came, and all that was recorded."""

    g: float
    x: Tensor
    gradient: Tensor
    style: str
    loss: Tensor | None
    trace: Trace
    readings: list[Reading]
    tolerance: float
    changed: list[str]

    def through_x_t(self) -> bool:
        return flows_through(self.trace, [call.x_t.detach() for call in self.trace.calls]) or flows_through(
            self.trace, [g.x_t[None].float() for r in self.readings[:1] for g in r.groups]
        )

    def through_unet(self) -> bool:
        return any(flows(call.eps_hat) for call in self.trace.calls)


class Prober:
    """Calls one submission again and again, in the form of input that it turned out to understand.

    Args:
        fn: from `submission.prepare`. names: parameter -> key, see `submission.arguments`.
        given: more values that it may ask for (a reward, a second network, ...), or a function (batch, seed) of them.
    """

    def __init__(self, fn: Callable, names: Mapping[str, str] | None = None, given: Mapping[str, Any] | None = None):
        self.fn, self.names, self.given = fn, names, environment() | dict(given or {})
        self.lenient = False  # a loss of something else than x (an embedding, a second network) is expected
        self.form: tuple[bool, bool] | None = None  # pictures instead of latents, stacked embeddings

    def run(self, batch: int = 1, g: float = 7.5, t: tuple[int, ...] = (500,), seed: int = 0, **more: Any) -> Run:
        """One call with B pictures at guidance scale g; t and noise are for those who take them.

        Raises:
            Unreadable: it failed, or its answer is none.
        """
        asked = keys(self.fn, self.names)
        likely = "image" in asked, "guidance_scale" in asked  # the most plausible form first, so that its error is shown
        forms = [(i, s) for i in (likely[0], not likely[0]) for s in (likely[1], not likely[1])]
        forms = [self.form] if self.form else forms
        failure: Exception | None = None
        for form in forms:
            try:
                run = self._attempt(form, batch, g, t, seed, more)
            except Unreadable as error:
                if error.verdict:
                    raise
                failure = failure or error
            else:
                self.form = form
                return run
        raise failure or Unreadable("it cannot be called")

    def _attempt(self, form: tuple[bool, bool], batch: int, g: float, t: tuple[int, ...], seed: int, more: Mapping) -> Run:
        images, stacked = form
        x = (world.picture(batch, seed, (3, 512, 512)) / 4 if images else world.picture(batch, seed)).float().requires_grad_()
        kinds = {kind: world.embedding(kind, batch) for kind in world.KINDS}
        noises = {
            name: world.normal(batch, *world.SHAPE, seed=1000 + 10 * seed + i).float()
            for i, name in enumerate(("eps", "eps_1", "eps_2"))
        }
        values = {**self.given, **more, "guidance_scale": g, "t": torch.tensor((t * batch)[:batch]), **noises}
        values |= {"cond": kinds["cond"], "uncond": kinds["uncond"], "n": kinds["negative"], "image" if images else "x": x}
        given = arguments(self.fn, values | {"eps_cond": None, "eps_uncond": None, "x_t": None, "x": x}, self.names)
        if stacked and not any(value is kinds["uncond"] for value in given.values()):
            both = torch.cat((kinds["uncond"], kinds["cond"]))  # diffusers stacks the unconditional one first
            given = {name: both if value is kinds["cond"] else value for name, value in given.items()}
        before = {name: value.detach().clone() for name, value in given.items() if isinstance(value, Tensor)}
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        try:
            with torch.enable_grad(), Trace() as trace:
                if {"eps_cond", "eps_uncond", "x_t"} & {name for name, value in given.items() if value is None}:
                    given = self._predicted(given, x, values, kinds)
                result = invoke(self.fn, given)
                with trace.paused():
                    try:
                        gradient, style, loss = self._gradient(result, x, trace)
                    except Unreadable:
                        if not self.lenient:
                            raise
                        gradient, style, loss = torch.zeros_like(x), "loss", None
        except Unreadable:
            raise
        except (Exception, SystemExit) as error:
            raise Unreadable(describe(error), verdict=False) from error
        finally:
            torch.set_rng_state(state)
        changed = [name for name, value in before.items() if not torch.equal(value, given[name].detach().to(value))]
        latents = (
            trace.encoded[-1].detach().double() * world.SCALING if trace.encoded and trace.encoded[-1].requires_grad else x
        )
        latents = latents.detach().double()
        half = any(call.x_t.dtype in HALF for call in trace.calls) or gradient.dtype in HALF
        gradient = gradient.detach().double()
        readings = _read(
            g, latents, gradient, trace, kinds, [e.double() for n, e in noises.items() if id(e) in map(id, given.values())]
        )
        return Run(g, latents, gradient, style, loss, trace, readings, 0.03 if half else 2e-3, changed)

    def ask(self, values: Mapping[str, Any]) -> tuple[Any, Trace]:
        """Call with these values on top of the environment, and nothing read into the answer.

        Raises:
            Unreadable: it failed.
        """
        given = arguments(self.fn, {**self.given, **values}, self.names)
        try:
            with torch.enable_grad(), torch.random.fork_rng(), Trace() as trace:
                torch.manual_seed(0)
                return invoke(self.fn, given), trace
        except (Exception, SystemExit) as error:
            raise Unreadable(describe(error), verdict=False) from error

    def _predicted(self, given: dict, x: Tensor, values: Mapping, kinds: Mapping[str, Tensor]) -> dict[str, Any]:
        """Noise predictions for those who take them as arguments."""
        with torch.no_grad():
            x_t = values["scheduler"].add_noise(x, values["eps"], values["t"])
            ready = {"x_t": x_t} | {
                f"eps_{k}": values["unet"](x_t, values["t"], encoder_hidden_states=kinds[k]).sample for k in ("cond", "uncond")
            }
        return {name: ready.get(key_of(name, self.names)) if value is None else value for name, value in given.items()}

    def _gradient(self, result: Any, x: Tensor, trace: Trace) -> tuple[Tensor, str, Tensor | None]:
        """The gradient with respect to the latents, x itself or what the autoencoder made of the picture."""
        if not trace.encoded:
            return gradient_of(result, x)
        latents = trace.encoded[-1]
        if not latents.requires_grad and x.shape[1] == 3:
            raise Unreadable("the latents were encoded under no_grad: no gradient can reach the picture")
        if not latents.requires_grad:
            return gradient_of(result, x)
        gradient, style, loss = gradient_of(result, latents)
        return (gradient / world.SCALING if style == "loss" else gradient), style, loss


def describe(error: BaseException) -> str:
    """An exception in one line: what, where, and the usual reason."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (line {frames[-1].lineno} of {frames[-1].name})" if frames else ""
    text = " ".join(str(error).split())[:300]
    hint = ""
    if "cuda" in text.lower() or "nvidia" in text.lower():
        hint = ": it moves tensors to cuda; use x.device instead of a fixed device"
    elif isinstance(error, SystemExit):
        hint = ": it calls exit"
    elif "leaf Variable" in text or "modified by an inplace" in text:
        hint = ": it changes its input in place"
    elif "out of bounds" in text or "out of range" in text:
        hint = f": was t outside 0..{world.T - 1}?"
    elif "backward through the graph a second time" in text:
        hint = ": it back-propagates the same graph twice"
    return f"it raised {type(error).__name__}{where}: {text}{hint}"


def fit(target: Tensor, vectors: list[Tensor]) -> tuple[list[float], float]:
    """Least squares target = sum_j c_j vectors_j: the coefficients, and the relative size of what is left."""
    size = target.norm().item()
    if not vectors or size == 0:
        return [0.0] * len(vectors), 0.0 if size == 0 else 1.0
    basis = torch.stack([v.flatten() for v in vectors], 1)
    norms = basis.norm(dim=0).clamp(min=1e-30)
    c = torch.linalg.lstsq(basis / norms, target.flatten()[:, None], driver="gelsd").solution[:, 0]
    left = (basis / norms @ c - target.flatten()).norm().item() / size
    return (c / norms).tolist(), left


def _read(g: float, x: Tensor, gradient: Tensor, trace: Trace, kinds: Mapping[str, Tensor], eps: list[Tensor]) -> list[Reading]:
    """Take every picture of a run apart. x and gradient (B, ...), eps: the noises that were given."""
    batch, event = len(x), x.shape[1:]
    pictures = (
        [Reading(g, batch, x[i], gradient[i], []) for i in range(batch)]
        if gradient.shape == x.shape and gradient.isfinite().all()
        else []
    )
    drawn = [d.double() for d in trace.draws if d.numel() in (x.numel(), x[0].numel())]
    noises = [torch.broadcast_to(d.reshape(-1, *event), x.shape) for d in drawn] + eps
    flat = x.flatten(1)
    for call in trace.calls if pictures else ():
        asked = call.x_t.detach().double()
        if asked[0].shape != event or not bool(asked.isfinite().all()):
            continue
        for row, t in enumerate(call.t.tolist()):
            # which picture is it? the one it resembles most
            i = int((torch.nn.functional.normalize(flat, dim=1) @ asked[row].flatten()).argmax())
            label = "q" if call.model == "q" else _label(call.embeddings[row], kinds) if call.embeddings is not None else "cond"
            groups = pictures[i].groups
            same = [group for group in groups if group.t == t and torch.allclose(group.x_t, asked[row], rtol=1e-4, atol=1e-5)]
            if not same:
                same = [Group(t, asked[row])]
                groups.append(same[0])
            same[0].eps_hat[label] = call.eps_hat[row].detach().double()
            if call.embeddings is not None:
                same[0].embeddings[label] = call.embeddings[row].detach()
    for i, picture in enumerate(pictures):
        if not any("cond" in group.eps_hat for group in picture.groups):  # own text encoder: the only prompt is the prompt
            for group in picture.groups:
                for known in (group.eps_hat, group.embeddings):
                    known |= {"cond": known.pop("other")} if "other" in known else {}
        _take_apart(picture, [noise[i] for noise in noises])
    return pictures


def _label(e: Tensor, kinds: Mapping[str, Tensor]) -> str:
    """Which of the known embeddings this is."""
    e, empty = e.detach().double(), TextEncoder.table[ord(" ")].double()
    near = [kind for kind, known in kinds.items() if torch.allclose(e, known[0].double(), atol=2e-3)]
    return near[0] if near else "uncond" if torch.allclose(e, empty.expand_as(e), atol=2e-3) else "other"


def _take_apart(picture: Reading, noises: list[Tensor]) -> None:
    """Fill in a, s, eps of the groups, then the coefficients of the gradient."""
    ones = torch.ones_like(picture.x)
    for group in picture.groups:
        # x_t = a x + s eps (+ a constant, for noise that is not centred)
        c, left = fit(group.x_t, [picture.x, ones, *noises])
        alpha_t, sigma_t = world.alpha_sigma(round(group.t))
        used = [j for j, value in enumerate(c[2:]) if abs(value) > 1e-3]
        if left < 5e-3 and len(used) == 1 and abs(c[1]) < 1e-3:
            group.a, group.s, group.eps = c[0], abs(c[used[0] + 2]), noises[used[0]] * (1 if c[used[0] + 2] > 0 else -1)
        elif left < 5e-3 and not used:
            group.a = c[0]
        else:  # a noise that was transformed, or drawn elsewhere: what x_t implies
            group.a, group.s = (c[0] if left < 5e-3 else alpha_t), sigma_t
            group.eps = (group.x_t - group.a * picture.x) / sigma_t
    unused = [n for n in noises if not any(g.eps is not None and abs(_cosine(n, g.eps)) > 0.99 for g in picture.groups)]
    vectors, places = [picture.x], [(-1, "x")]
    seen: list[Tensor] = []
    for i, group in enumerate(picture.groups):
        known = group.eps_hat | ({"noise": group.eps} if group.eps is not None else {})
        for label, vector in known.items():
            # antithetic pairs share one noise: its second appearance adds nothing that the fit could tell apart
            if label != "noise" or not any(v is not None and abs(_cosine(v, vector)) > 0.99 for v in seen):
                vectors.append(vector)
                seen += [vector] if label == "noise" else []
                places.append((i, label))
    c, picture.leftover = fit(picture.gradient, vectors + unused)
    picture.coefficients = [{} for _ in picture.groups]
    for (i, label), value in zip(places, c, strict=False):
        if i >= 0:
            picture.coefficients[i][label] = value
    for group, parts in zip(picture.groups, picture.coefficients, strict=True):
        # a noise of another size, 0.1 eps, say: then it is subtracted at that size too, while a wrong sigma_t is not
        ratio, total = group.s / world.alpha_sigma(round(group.t))[1], parts.get("cond", 0.0) + parts.get("uncond", 0.0)
        if group.eps is not None and abs(ratio - 1) > 0.02 and abs(parts.get("noise", 0.0) + ratio * total) < 1e-2 * abs(total):
            group.eps, group.s, parts["noise"] = group.eps * ratio, group.s / ratio, parts["noise"] / ratio
    picture.b, rest = c[0], c[len(vectors) :]
    picture.other = max(rest, key=abs) if rest else 0.0


def _cosine(u: Tensor, v: Tensor) -> float:
    return ((u * v).sum() / (u.norm() * v.norm()).clamp(min=1e-30)).item()
