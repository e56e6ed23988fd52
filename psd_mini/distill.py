"""The loop: cameras -> field -> render -> prior's space -> method -> gradient -> optimiser.

    repeat for every step:
        camera ~ the prior's cameras,  t ~ U{t_min(step) .. t_max(step)},  eps ~ N(0, I)
        x = encode(render(field, camera))                                  x is (B, C, h, w)
        G = method(x, t, eps)                                              same shape
        L = (1/B) 0.5 ||x - stopgrad(x - G)||^2
        + C h w { entropy_weight H(opacity) + opacity_weight mean(opacity)
                  + variance_weight min(1, 2 progress) Var(depth) }
        (a method `on_pictures` has x = 2 render - 1 in these two lines)
        field <- Adam(field, dL/dfield)                                    betas 0.9 and 0.99

`one_step` is these lines in code; `distill` sets up, repeats it and finishes. One torch.Generator
makes every random choice, and it is part of the checkpoint: on one machine with one thread count,
a run that was killed and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psd_mini._internal.arguments import at_least, needs, numbers_known, one_of, validated
from psd_mini._internal.identity import identity
from psd_mini._internal.runs import Keeper, check_finite
from psd_mini.cameras import Cameras
from psd_mini.fields import make_optimizer
from psd_mini.rendering import Rendering, depth_variance, opacity_entropy, render
from psd_mini.schedule import ANNEALING, annealed, draw_noises, sample_timesteps
from psd_mini.sds import Context, Cost, Method, Prior, answer, surrogate_loss


@validated
@dataclass(frozen=True)
class Options:
    """The numbers of a run: the arguments of `distill` of the same names, which documents them.

    They identify a run (a checkpoint goes on only with the same), and defaults per prior and the
    command line's arguments are made of them.
    """

    steps: int = 120
    cameras_per_step: int = 4
    resolution: int = 32
    n_samples: int = 32
    t_min: tuple[float, float] = (0.02, 0.02)
    t_max: tuple[float, float] = (0.98, 0.2)
    lr_scale: float | tuple[float, float] = 1.0
    entropy_weight: float = 0.01
    background: float | Float[Tensor, "..."] = 1.0
    seed: int = 0
    annealing: str = "linear"
    variance_weight: float = 0.0
    opacity_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "cameras_per_step", "resolution", "n_samples"):
            at_least(name, getattr(self, name), 1)
        for low, high in zip(self.t_min, self.t_max, strict=True):
            if not 0 <= low <= high <= 1:
                expected = "expected 0 <= t_min <= t_max <= 1 at both ends"
                raise ValueError(f"t_min, t_max: {expected}, got {self.t_min!r} and {self.t_max!r}")
        one_of("annealing", self.annealing, ANNEALING)
        at_least("variance_weight", self.variance_weight, 0, whole=False)
        at_least("opacity_weight", self.opacity_weight, 0, whole=False)
        scales = self.lr_scale if isinstance(self.lr_scale, tuple) else (self.lr_scale,)
        for scale in scales:
            at_least("lr_scale", scale, 0, whole=False)

    def as_config(self) -> dict[str, Any]:
        """What identifies a run: name -> value, and the machine's threads and torch."""
        machine = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
        return {**vars(self), "background": identity(self.background), **machine}


@validated
@dataclass
class Run:
    """What a distillation leaves behind besides the field that it trained in place.

    history: one dictionary of numbers per step, with "step"; cost: totals, see `Cost`; steps: how
    many were done.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    steps: int = 0


@dataclass
class Job:
    """What stays the same from step to step."""

    field: nn.Module
    prior: Any
    method: Method
    prompt: str
    embeddings: Tensor  # (2, ...): [prompt, negative prompt]
    reward: Callable | None
    negative: Any  # None, or what has `step` and `embedding`
    options: Options
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    cost: Cost
    keep: Callable[[], None]  # called when the field and its render are finite


@dataclass
class Step:
    """Everything that one step computed; a callback gets it as a dictionary.

    step: its number, from 0; x, t, eps, gradient: the loop's letters; context: what the method was
    given; metrics: what it answered; loss: a scalar whose gradient alone counts.
    """

    step: int
    cameras: Cameras
    rendering: Rendering
    x: Tensor
    t: Tensor
    eps: Tensor
    context: Context
    gradient: Tensor
    metrics: dict[str, float]
    moved: dict[str, float]  # numbers of the negative embedding
    loss: Tensor


def one_step(number: int, job: Job) -> Step:
    """One turn of the loop (equations: the module's docstring); the field moves in place.

    Raises:
        NonFiniteError: NaN or infinity, in the first tensor that had it.
    """
    options, prior, method, generator = job.options, job.prior, job.method, job.generator
    progress = number / max(options.steps - 1, 1)
    with job.cost.timed("render"):
        # x = encode(render(field, camera))
        cameras = prior.draw_cameras(options.cameras_per_step, generator)
        look: Any = {"n_samples": options.n_samples, "background": options.background}
        rendering = render(job.field, cameras, options.resolution, generator=generator, **look)
        parameters = dict(job.field.named_parameters(prefix="field"))
        # G enters at x, or at the picture itself: then the encoder has no part in the gradient
        x = prior.encode(rendering.rgb.detach() if method.on_pictures else rendering.rgb)
        entry = 2 * rendering.rgb - 1 if method.on_pictures else x
    check_finite({**parameters, "the render": x})
    job.keep()  # the last good state, before its update, which may overflow
    job.cost.renders += len(cameras)

    # t ~ U{t_min .. t_max}, both moving over the run;  eps ~ N(0, I)
    last = prior.schedule.num_timesteps - 1
    kind, bounds = options.annealing, (options.t_min, options.t_max)
    lowest, highest = (round(annealed(progress, *bound, kind) * last) for bound in bounds)
    n_timesteps = 1 if method.shared_timestep else len(cameras)
    t = sample_timesteps(n_timesteps, lowest, highest, generator).expand(len(cameras))
    eps = draw_noises(method.n_noises, x, generator)

    # G = method(x, t, eps)
    prompts = [job.prompt] * len(cameras)
    context = Context(prior, job.embeddings, cameras, prompts, job.reward, job.cost)
    context.images = rendering.rgb.detach()
    moved: dict[str, float] = {}
    if job.negative is not None:
        moved = job.negative.step(progress, x.detach(), context, generator)
        context.embeddings = torch.stack((job.embeddings[0], job.negative.embedding.detach()))
    gradient, metrics = answer(method, x.detach(), t, eps, context)

    with job.cost.timed("backward"):
        # L = (1/B) 0.5 ||x - stopgrad(x - G)||^2 + C h w { weighted entropy, opacity, variance }
        loss, numbers = surrogate_loss(entry, gradient), entry[0].numel()
        loss = loss + options.entropy_weight * numbers * opacity_entropy(rendering.opacity)
        loss = loss + options.opacity_weight * numbers * rendering.opacity.mean()
        if options.variance_weight:
            spread = min(1.0, 2 * progress) * depth_variance(rendering.weights, rendering.z)
            loss = loss + options.variance_weight * numbers * spread
        job.optimizer.zero_grad(set_to_none=True)
        loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in parameters.items()}
    # Adam divides by the root of squares: infinite ones would stop the field without a word
    seen_by_adam = {"the loss (half the squared gradient)": loss, **gradients}
    check_finite({"the method's gradient": gradient, **seen_by_adam})
    # field <- Adam(field, dL/dfield)
    job.optimizer.step()
    return Step(number, cameras, rendering, x, t, eps, context, gradient, metrics, moved, loss)


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
    resolution: int = 32,
    n_samples: int = 32,
    t_min: tuple[float, float] = (0.02, 0.02),
    t_max: tuple[float, float] = (0.98, 0.2),
    lr_scale: float | tuple[float, float] = 1.0,
    entropy_weight: float = 0.01,
    background: float | Float[Tensor, "..."] = 1.0,
    seed: int = 0,
    annealing: str = "linear",
    variance_weight: float = 0.0,
    opacity_weight: float = 0.0,
    reward: Callable | None = None,
    negative: Any = None,
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
        prior: see `psd_mini.sds.Prior`.
        method: a function of your own, SDS, CSD, PSD or one of `psd_mini.methods`. What it is given
            and returns, and what of it is in the checkpoint: `psd_mini.sds.Method`.
        prompt, negative_prompt: what to make, and what guidance pushes away from ("" is the null
            prompt).
        steps: optimiser steps, at least 1.
        cameras_per_step: B, pictures rendered per step.
        resolution: pixels per side of the training renders; the prior's own in the exact world.
        n_samples: samples per ray.
        t_min, t_max: lowest and highest timestep, fractions of the schedule: each (at the first
            step, at the last), with `annealing` between.
        lr_scale: multiplies the field's own learning rates; a pair is for its two groups (voxels:
            density, colour).
        entropy_weight: weight of `opacity_entropy`, per number of a picture x.
        background: colour behind the object, in [0, 1].
        seed: of every random choice of the run.
        annealing: how t_min and t_max move: "linear" or "sqrt".
        variance_weight: weight of `depth_variance`, per number of a picture x, warmed up over the
            first half of the run.
        opacity_weight: weight of the mean opacity, per number of a picture x. A small one removes
            matter in the background's colour, which no picture shows (tests/results/objects.md).
        reward: handed to the method through the context.
        negative: a `NegativeEmbedding`, optimised with the field, or `NegativeWords`; replaces
            `negative_prompt`.
        callback: called after every step with a dictionary of all intermediates: those of `Step`,
            and run, field, optimizer, method, and negative if there is one; `context.predictions`
            has x_t and the predicted noises (None if the method did not call `predict`).
        checkpoint: file to write every `checkpoint_every` steps and at the end; None writes none. A
            write that fails (a full disk) warns, keeps the older file and goes on.
        resume: go on from that file. More `steps` train longer; with another thread count or torch
            it goes on with a warning, since its bits may differ.
        overwrite: replace that file, if it is there; else it is refused.
        config: what else identifies the run; must be equal on resume.
        progress: show a progress bar.

    Returns:
        `Run`; the field is left in its final state.

    Raises:
        ValueError: a value out of range, or a checkpoint that does not fit, named.
        KeyboardInterrupt: Ctrl-C, or a callback that raises it; the step is finished first, and a
            checkpoint written if there is a file for it. A second Ctrl-C stops at once.
        NonFiniteError: NaN or infinity; names the step and the first tensor that had it among the
            field, the render, the prior's noise prediction, the negative embedding's gradient, the
            method's, the loss's. The last checkpoint is untouched and the field is back in its
            last good state: the start of the last step that found it and its render finite.
    """
    counts = (steps, cameras_per_step, resolution, n_samples)
    usual = (lr_scale, entropy_weight, background, seed)
    options = Options(*counts, t_min, t_max, *usual, annealing, variance_weight, opacity_weight)
    needs("prior", prior, "schedule", "embed", "encode", "predict_noise", "draw_cameras")
    needs("radiance_field", radiance_field, "parameter_groups")
    prior, the_method = Prior.of(prior), Method.of(method)
    # a text prior words the prompt for each view, but not what guidance pushes away from
    embeddings = torch.cat((prior.embed_views([prompt]), prior.embed_negative(negative_prompt)))
    optimizer = make_optimizer(radiance_field, options.lr_scale)
    generator = torch.Generator().manual_seed(seed)

    parts = {"field": radiance_field, "optimizer": optimizer, "method": the_method}
    if negative is not None:
        needs("negative", negative, "step", "embedding", "state_dict")
        parts["negative"] = negative
    objects = {"method": method, "prior": prior, "reward": reward, "negative": negative}
    settings = {
        **options.as_config(),
        **{name: identity(thing) for name, thing in objects.items()},
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "field": f"{type(radiance_field).__name__} {getattr(radiance_field, 'settings', '')}",
        **(config or {}),
    }
    keeper = Keeper(checkpoint, settings, parts, generator, checkpoint_every, steps)
    keeper.claim(resume, overwrite)
    run = Run()
    if resume:
        run = keeper.load(lambda done: Run(**(done | {"cost": Cost(**done["cost"])})))
    check_finite(dict(radiance_field.named_parameters(prefix="field")))
    parties = (radiance_field, prior, the_method, prompt, embeddings, reward, negative)
    job = Job(*parties, options, optimizer, generator, run.cost, keeper.keep)
    with keeper.watch(run, prompt, progress) as after_step:
        for number in range(run.steps, steps):
            with keeper.step(number), numbers_known(), run.cost.timed("total"):
                step = one_step(number, job)
            run.steps = number + 1
            opacity = step.rendering.opacity.mean().item()
            run.history.append({"step": number, "opacity": opacity, **step.metrics, **step.moved})
            if callback is not None:
                callback({**vars(step), "run": run, **parts})
            after_step()
    return run
