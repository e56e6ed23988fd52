"""The loop: cameras -> field -> render -> prior's space -> method -> gradient -> optimiser.

    repeat for every step:
        camera ~ the prior's cameras,  t ~ U{t_min(step) .. t_max(step)},  eps ~ N(0, I)
        x = encode(render(field, camera))
        G = method(x, t, eps)                        a direction in x, same shape
        L = (1/B) 0.5 ||x - stopgrad(x - G)||^2      + entropy_weight * C h w * H(opacity)       x is (B, C, h, w)
        field <- Adam(field, dL/dfield)                                                      betas 0.9 and 0.99

One torch.Generator makes every random choice, and it is part of the checkpoint: a run that was killed and resumed ends in
the same bits as one that was not, on one machine with one thread count.
"""

from __future__ import annotations

import inspect
import signal
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psd_mini.arguments import at_least, needs, validated
from psd_mini.checkpoint import identity, read_checkpoint, write_checkpoint
from psd_mini.failures import NonFiniteError, check_finite
from psd_mini.formulas import surrogate_loss
from psd_mini.methods.context import Context, Cost, answer
from psd_mini.negative import NegativeEmbedding
from psd_mini.priors import embed_negative
from psd_mini.rendering import render
from psd_mini.schedule import annealed, sample_timesteps


@dataclass
class Run:
    """What a distillation leaves behind besides the field that it trained in place.

    history: one dictionary of numbers per step, with "step"; cost: totals, see `Cost`; steps: how many were done.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    steps: int = 0


# the arguments of `distill` that decide a run's outcome: a checkpoint keeps them, and a resumed run must have the same
SETTINGS = (
    *("prompt", "negative_prompt", "steps", "cameras_per_step", "size", "n_samples", "t_min", "t_max", "lr_scale"),
    *("entropy_weight", "seed"),
)


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """What decides the outcome of `distill` besides its objects: these arguments (or their defaults), threads and torch."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(distill).parameters.items()}
    used = {**defaults, **given}
    settings = {name: used[name] for name in SETTINGS}
    return {
        **settings,
        "background": identity(used["background"]),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def opacity_entropy(opacity: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean binary entropy of the pixels' opacities, in nats: 0 where each pixel is clearly object or clearly background.

        H(o) = -o log o - (1 - o) log(1 - o)

    Pulls fog apart into surface and empty space (threestudio calls it the opaque loss).
    """
    o = opacity.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


@contextmanager
def deterministic():
    """Switch torch's deterministic algorithms on for a block (they only warn where a GPU kernel has none)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # nothing here reads such memory, and filling it takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fills


@contextmanager
def interrupts_deferred():
    """Let the first Ctrl-C wait for the end of a step: yields a list that is empty until then. A second one acts at once."""
    interrupted: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(number)

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread, which alone receives signals
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


@validated
def distill(
    radiance_field: nn.Module,
    prior: Any,
    method: Callable,
    prompt: str,
    *,
    negative_prompt: str = "",
    steps: int = 120,
    cameras_per_step: int = 4,
    size: int = 32,
    n_samples: int = 32,
    t_min: tuple[float, float] = (0.02, 0.02),
    t_max: tuple[float, float] = (0.98, 0.2),
    lr_scale: float | tuple[float, float] = 1.0,
    entropy_weight: float = 0.01,
    background: float | Float[Tensor, "..."] = 1.0,
    reward: Callable | None = None,
    negative: NegativeEmbedding | None = None,
    seed: int = 0,
    callback: Callable[[dict[str, Any]], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    overwrite: bool = False,
    config: dict[str, Any] | None = None,
    progress: bool = True,
) -> Run:
    """Train a field so that its renders please a prior (or a reward), by the equations above.

    Args:
        radiance_field: the field, trained in place; see `psd_mini.fields`.
        prior: see `psd_mini.priors`.
        method: a function of your own or one of `psd_mini.methods`, which say what it is given and returns; one with
            `state_dict` and `load_state_dict` has its state in the checkpoint.
        prompt, negative_prompt: what to make, and what guidance pushes away from ("" is the null prompt).
        steps: optimiser steps, at least 1.
        cameras_per_step: B, pictures rendered per step.
        size: pixels per side of the training renders; the prior's size in the exact world.
        n_samples: samples per ray.
        t_min, t_max: lowest and highest timestep, fractions of the schedule: each (at the first step, at the last), linear
            between.
        lr_scale: multiplies the field's own learning rates; a pair is for its two groups (voxels: density, colour).
        entropy_weight: weight of `opacity_entropy`, per number of a picture x.
        background: colour behind the object, in [0, 1].
        reward: handed to the method through the context.
        negative: a negative embedding that is optimised along with the field; replaces `negative_prompt`.
        seed: of every random choice of the run.
        callback: called after every step with a dictionary of all intermediates: step, cameras, rendering, x, t, eps, gradient,
            loss, metrics, field, optimizer, run, and context, whose `predictions` are x_t and the predicted noises.
        checkpoint: file to write every `checkpoint_every` steps and at the end; None writes none. A write that fails
            (a full disk) warns, keeps the older file and goes on.
        resume: go on from that file.
        overwrite: replace that file, if it is there; else it is refused.
        config: what else identifies the run (prompt, method, ...); must be equal on resume.
        progress: show a progress bar.

    Returns:
        `Run`; the field is left in its final state.

    Raises:
        ValueError: a value out of range, or a checkpoint that does not fit, named.
        KeyboardInterrupt: Ctrl-C, or a callback that raises it; the step is finished and a checkpoint written first.
        NonFiniteError: NaN or infinity; names the first tensor that had it among the field, the render, the prior's noise
            prediction, the negative embedding's gradient, the method's, the loss's; the last checkpoint is untouched and
            the field is back in its last good state: the start of the last step that found it finite, and its render.
    """
    settings = settings_of(locals())
    objects = {"method": method, "prior": prior, "reward": reward, "negative": negative}
    settings |= {name: identity(thing) for name, thing in objects.items()}
    settings |= {"field": f"{type(radiance_field).__name__} {getattr(radiance_field, 'settings', '')}", **(config or {})}
    counts = {"steps": steps, "cameras_per_step": cameras_per_step, "size": size, "checkpoint_every": checkpoint_every}
    for name, count in counts.items():
        at_least(name, count, 1)
    if not all(0 <= low <= high <= 1 for low, high in zip(t_min, t_max, strict=True)):
        raise ValueError(f"t_min, t_max: expected 0 <= t_min <= t_max <= 1 at both ends, got {t_min!r} and {t_max!r}")
    needs("prior", prior, "schedule", "embed", "encode", "predict_noise", "draw_cameras")
    needs("radiance_field", radiance_field, "parameter_groups")
    path = Path(checkpoint) if checkpoint is not None else None
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise ValueError(f"checkpoint: expected a file in a folder that exists, got {str(path)!r}")
    if path is not None and path.exists() and not (resume or overwrite):
        raise ValueError(f"checkpoint: {path} holds a run; go on with it by resume=True, or replace it by overwrite=True")
    # a text prior words the prompt for each view, but not what guidance pushes away from
    embeddings = torch.cat((getattr(prior, "embed_views", prior.embed)([prompt]), embed_negative(prior, negative_prompt)))
    generator = torch.Generator().manual_seed(seed)
    groups = radiance_field.parameter_groups()  # type: ignore[operator]
    scales = lr_scale if isinstance(lr_scale, tuple) else (lr_scale,) * len(groups)
    if len(scales) != len(groups):
        raise ValueError(f"lr_scale: expected a number, the field has {len(groups)} groups of parameters; got {lr_scale!r}")
    for scale in scales:
        at_least("lr_scale", scale, 0, whole=False)
    groups = [{**group, "lr": group["lr"] * scale} for group, scale in zip(groups, scales, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)
    run, T = Run(), prior.schedule.num_timesteps
    stateful: dict[str, Any] = {"field": radiance_field, "optimizer": optimizer}
    if hasattr(method, "state_dict"):
        stateful["method"] = method
    if negative is not None:
        stateful["negative"] = negative
    if resume:
        if path is None:
            raise ValueError("resume: there is nothing to resume from; give `checkpoint` too")
        state = read_checkpoint(path, settings)
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        run = Run(state["history"], Cost(**state["cost"]), state["step"])

    def save() -> None:
        if path is not None:
            state = {name: part.state_dict() for name, part in stateful.items()}
            state |= {"config": settings, "step": run.steps, "generator": generator.get_state()}
            try:
                write_checkpoint(path, {**state, "history": run.history, "cost": vars(run.cost)})
            except OSError as error:  # a full disk must not cost the run; the older checkpoint is still there
                warnings.warn(f"checkpoint of step {run.steps} not written, the run goes on: {error}", stacklevel=3)

    parameters = dict(radiance_field.named_parameters(prefix="field"))
    check_finite(parameters)
    last_good = _copy(radiance_field)
    between_steps = True
    bar = _progress_bar(steps, run.steps, prompt, progress)
    try:
        with deterministic(), interrupts_deferred() as interrupted:
            for step in range(run.steps, steps):
                between_steps = False
                with run.cost.timed("total"):
                    with run.cost.timed("render"):
                        cameras = prior.draw_cameras(cameras_per_step, generator)
                        rendering = render(
                            radiance_field, cameras, size, n_samples=n_samples, background=background, generator=generator
                        )
                        x = prior.encode(rendering.rgb)
                    check_finite({**parameters, "the render": x})
                    last_good = _copy(radiance_field)  # before its update, which may overflow
                    run.cost.renders += len(cameras)

                    # t ~ U{t_min .. t_max}, both moving over the run
                    progress_now = step / max(steps - 1, 1)
                    lowest, highest = (round(annealed(progress_now, *bound) * (T - 1)) for bound in (t_min, t_max))
                    n_timesteps = 1 if getattr(method, "shared_timestep", False) else len(cameras)
                    t = sample_timesteps(n_timesteps, lowest, highest, generator)
                    t = t.expand(len(cameras))
                    eps = torch.randn(getattr(method, "n_noises", 1), *x.shape, generator=generator).to(x)
                    context = Context(prior, embeddings, cameras, [prompt] * len(cameras), reward, run.cost)
                    moved: dict[str, float] = {}
                    if negative is not None:
                        moved = negative.step(progress_now, x.detach(), context, generator)
                        context.embeddings = torch.stack((embeddings[0], negative.embedding.detach()))
                    gradient, metrics = answer(method, x.detach(), t, eps, context)

                    with run.cost.timed("backward"):
                        loss = surrogate_loss(x, gradient)
                        if entropy_weight:
                            loss = loss + entropy_weight * x[0].numel() * opacity_entropy(rendering.opacity)
                        optimizer.zero_grad(set_to_none=True)
                        loss.backward()
                    gradients = {f"gradient of {name}": parameter.grad for name, parameter in parameters.items()}
                    # Adam divides by the root of squares: infinite ones would stop the field without a word
                    seen_by_adam = {"the loss (half the squared gradient)": loss, **gradients}
                    check_finite({"the method's gradient": gradient, **seen_by_adam})
                    optimizer.step()

                run.steps = step + 1
                run.history.append({"step": step, "opacity": rendering.opacity.mean().item(), **metrics, **moved})
                between_steps = True
                if callback is not None:
                    seen = ("step", "cameras", "rendering", "x", "t", "eps", "context", "gradient", "metrics", "loss", "run")
                    callback({name: value for name, value in locals().items() if name in seen} | stateful)
                bar.update(1)
                if run.steps % checkpoint_every == 0 or run.steps == steps:
                    check_finite(parameters)
                    save()
                if interrupted and run.steps < steps:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        if between_steps and all(p.isfinite().all() for p in radiance_field.parameters()):  # else the last one stays
            save()
        raise
    except NonFiniteError as error:
        radiance_field.load_state_dict(last_good)
        kept = f"; the checkpoint in {path} is untouched" if path is not None and path.exists() else ""
        raise NonFiniteError(f"step {step}: {error}; the field is back in its last good state{kept}") from None
    finally:
        bar.close()
    return run


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _progress_bar(steps: int, done: int, prompt: str, show: bool):
    from tqdm.auto import tqdm

    return tqdm(total=steps, initial=done, desc=prompt, unit="step", disable=not show, leave=False)
