"""From a prompt to a turntable: the main job, assembled from the package's parts.

    field = make_field("voxel")
    distill(field, ToyWorldPrior(32), SDS(), "a red mushroom")
    judge(render_views(field, ...))

`generate` is these three calls, with a folder to keep the results in and checkpoints to survive in.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psd_mini._internal.arguments import named, one_of, validated
from psd_mini._internal.identity import identity, in_config
from psd_mini._internal.runs import plain_torch, tell
from psd_mini.distill import Options, distill
from psd_mini.fields import FIELDS, load_field, make_field
from psd_mini.methods import BASES, PREFERENCE_METHODS, NegativeWords, make_method
from psd_mini.methods.negative_words import CHOICES, make_negative
from psd_mini.negative import NegativeEmbedding, check_negative_prompt
from psd_mini.pipelines import folders
from psd_mini.pipelines.results import (
    EXACT,
    JUDGED,
    Generation,
    measure,
    save,
    save_views,
    write_out,
    write_run,
)
from psd_mini.pretrained import make_prior
from psd_mini.pretrained.failures import memory_error_in_one_line
from psd_mini.pretrained.precision import choose_device, choose_dtype
from psd_mini.rewards import make_reward
from psd_mini.viz import pictures
from psd_mini.world.objects import COLOURS, OBJECTS
from psd_mini.world.text import words

# Where a preference can act: x_t leaves open which of two pictures it holds only while
# alpha_t^2 ||mu_1 - mu_2||^2 / sigma_t^2 is of order 1. With 3,072 numbers a picture that ratio,
# between a grey object and its other colours, is 0.6 to 4.3 for t from 1 to 0.9 and already 48 to
# 113 at t = 0.5. So runs with a preference begin up there and come down; with t from 0.02 on, the
# nearest colour has won before any reward is heard (tests/results/psd.md).
PREFERENCE_TIMES: dict[str, Any] = {"t_min": (0.9, 0.02), "t_max": (1.0, 0.2)}
# Defaults per prior, and field, that are not those of `Options`. The learned checkpoint's come
# from tests/results/learned.md: fine patterns of colour hardly change the latents, so the gradient
# enters at the picture, and colours still learn slowly; a run that begins at low noise keeps its
# first ball. One camera of 512 pixels a step fits on a GPU of 15 GB.
DEFAULTS: dict[str, dict[str, Any]] = {
    "exact": {"guidance_scale": 1.0},
    # voxels leave white specks where white matter costs nothing, triplanes do not
    # (tests/results/objects.md)
    "exact with voxel": {"opacity_weight": 0.01},
    "dull": {"guidance_scale": 2.0},
    "learned": {
        **{"guidance_scale": (1.0, 3.0), "residual": "image"},
        **{"resolution": 64, "lr_scale": (1.0, 0.15), **PREFERENCE_TIMES},
    },
    "real": {"guidance_scale": 50.0, "resolution": 64, "steps": 5000, "cameras_per_step": 1},
    "a folder or hub id": {"guidance_scale": 7.5, "resolution": 64, "steps": 5000},
}
REFINING_TIMES: dict[str, Any] = {"t_min": (0.02, 0.02), "t_max": (0.98, 0.2)}


@validated
@plain_torch()
@memory_error_in_one_line()
def generate(
    prompt: str,
    *,
    method: str | Callable = "psd",
    field: str = "voxel",
    prior: str = "exact",
    guidance_scale: float | tuple[float, float] | None = None,
    residual: str | None = None,
    negative_prompt: str = "",
    conditioning: str = "camera",
    reward: str | Callable | None = None,
    preference_weight: float | None = None,
    negative: bool | str | NegativeEmbedding | NegativeWords = False,
    init_from: str | Path | None = None,
    steps: int | None = None,
    cameras_per_step: int | None = None,
    resolution: int | None = None,
    n_samples: int | None = None,
    t_min: tuple[float, float] | None = None,
    t_max: tuple[float, float] | None = None,
    lr_scale: float | tuple[float, float] | None = None,
    entropy_weight: float | None = None,
    background: float | Float[Tensor, "..."] | None = None,
    annealing: str | None = None,
    variance_weight: float | None = None,
    opacity_weight: float | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 50,
    progress: bool = True,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Generation:
    """Make the object that a prompt names, and judge it against the true world.

    Args:
        prompt: what to make, in words that the prior knows, for example "a red mushroom".
        method: a name in `psd_mini.methods.METHODS`. The default adds a preference to SDS.
        field: "voxel" or "triplane".
        prior: "exact", "dull" (exact, of a world in dull colours), "learned" (the small checkpoint
            in the package), "real" (Stable Diffusion), or the folder or hub id of a model.
        guidance_scale: g of classifier-free guidance (1 = none); a pair is g below and above t =
            0.6 of the schedule, and a preference then speaks above only (`ByNoiseLevel`).
        residual: where the gradient enters: "latent" or "image" (`methods.image_residual`).
        negative_prompt: what guidance pushes away from.
        conditioning: what the exact prior knows of the camera: "camera", "words" or "none" (shows
            the Janus problem); learned priors are told in words, or with "none" nothing.
        reward: "colorfulness", "color:NAME", "proxy:KIND" or the name of a network, see
            `make_reward`, for methods with a preference; by default colourfulness for those and
            nothing for the others.
        preference_weight: how strongly the reward pulls; by default the method's own.
        negative: optimise the negative embedding along with the field (needs a guidance scale other
            than 1, and a reward); "random" and "bandit" choose words: `methods.negative_words`.
        init_from: the folder of a finished run (or its field), whose object is to be refined.
        seed: of everything random; seed, machine and thread count give one result, bit for bit.
        device, dtype: of a learned prior and the field ("cuda", "float16"); else what there is.
        out: folder for results and checkpoints; None keeps everything in memory. A folder that
            holds a run, this one or another, is refused. At the command line the default is a
            folder in psd_mini_out/ that is named after every setting given.
        resume: continue the run in `out`; of a finished one, the results are written again.
        overwrite: replace what is in `out`, once the first step is done.
        checkpoint_every, progress, callback: see `distill`.

    The other numbers, from steps to opacity_weight, are those of `distill`; None is the default of
    the prior (`DEFAULTS`). With a reward that the method uses, the range of timesteps is
    `PREFERENCE_TIMES`; with `init_from` it is `REFINING_TIMES`. Learned priors enlarge the renders
    to their own size; results are always 64 x 64. `method` may also be a method of your own, and
    then has its own guidance and residual, `reward` any function, `negative` a `NegativeEmbedding`.

    Returns:
        `Generation`.

    Raises:
        ValueError: an argument that cannot be used, with the remedy; nothing saved is touched.
    """
    started = time.perf_counter()
    look_at_words(prompt, prior, negative)
    name = method if isinstance(method, str) else None
    if reward is None and (negative or name in PREFERENCE_METHODS):
        reward = "colorfulness"
    preference = bool(negative) or (reward is not None and name not in BASES)
    given: dict[str, Any] = dict(guidance_scale=guidance_scale, residual=residual, steps=steps)
    given |= dict(cameras_per_step=cameras_per_step, n_samples=n_samples, t_min=t_min, t_max=t_max)
    given |= dict(entropy_weight=entropy_weight, background=background, resolution=resolution)
    given |= dict(variance_weight=variance_weight, opacity_weight=opacity_weight)
    given |= dict(lr_scale=lr_scale, annealing=annealing)
    numbers = with_defaults(prior, field, preference, init_from is not None, given)
    g, residual = numbers.pop("guidance_scale"), numbers.pop("residual", "latent")
    options = Options(**numbers, seed=seed)
    the_method: Any = make_method(name, g, preference_weight, residual) if name else method
    check_negative_prompt(negative_prompt, the_method)
    the_field, start = first_field(field, seed, init_from)
    config = options.as_config() | {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "method": identity(the_method),
        "field": {"kind": field, **the_field.settings},  # type: ignore[dict-item]
        "prior": prior,
        "conditioning": conditioning,
        "guidance_scale": g,
        "negative": in_config(negative),
        "reward": in_config(reward),
        "init_from": start,
    }
    if prior not in EXACT:
        config["device"] = str(choose_device(device))
        config["dtype"] = str(choose_dtype(choose_device(device), dtype))
    # before a network is loaded or a picture drawn: whether the folder is free
    folders.look(out, config, resume, overwrite)
    the_reward = None if reward is None else make_reward(reward, device)
    folder = folders.writable_folder(out)
    the_prior = make_prior(prior, options.resolution, conditioning, device, dtype)
    the_negative = make_negative(negative, the_prior, prompt, negative_prompt, g)
    if prior not in EXACT:
        config["model"] = the_prior.name
        the_field.to(the_prior.device)
    with kept_in(folder, config, overwrite, the_field, callback) as after_step:
        run = distill(
            *(the_field, the_prior, the_method, prompt),
            negative_prompt=negative_prompt,
            **vars(options),
            reward=the_reward,
            negative=the_negative,
            callback=after_step,
            checkpoint=folder and folder / "checkpoint.pt",
            checkpoint_every=checkpoint_every,
            resume=resume,
            overwrite=True,  # the folder was looked at; an equal run beside this writes the same
            config=config,
            progress=progress,
        )
    result = Generation(prompt, the_field, config, {}, vars(run.cost), 0.0, run.history, folder)
    finish(result, options, the_negative, the_reward, progress)
    result.seconds = time.perf_counter() - started
    write_out(write_run, result)
    return result


def finish(
    result: Generation, options: Options, negative: Any, reward: Callable | None, progress: bool
) -> None:
    """Show the object, then write its other files, then judge it, which may take longest."""
    write_out(save_views, result)
    tell(result.out and progress, f"{result.out}/views.png shows it; mesh and turntable follow")
    write_out(save, result)
    tell(progress and result.config["prior"] in JUDGED, "comparing it with the true pictures")
    result.metrics = measure(result.field, result.config, options, negative, reward, progress)
    write_out(save_views, result)  # with the verdict as its title


def look_at_words(prompt: str, prior: str, negative: Any) -> None:
    """Refuse a prompt that names nothing, words the toy world does not know, an unknown choice."""
    if isinstance(negative, str):
        one_of("negative", negative, CHOICES)
    named = words(prompt) if prior in JUDGED else [prompt.strip()]
    for kind in (OBJECTS, COLOURS):
        if len(several := {word: None for word in named if word in kind}) > 1:
            what = f"names {' and '.join(several)}; the toy world makes one object in one colour"
            warnings.warn(f"prompt: {what}, which the run will choose", stacklevel=5)
    if not any(named):
        raise ValueError("prompt: names nothing; say what to make, for example 'a red mushroom'")


def first_field(kind: str, seed: int, init_from: str | Path | None) -> tuple[nn.Module, str | None]:
    """The field that a run begins with, and a digest of the file that it was read from."""
    if init_from is None:
        return make_field(kind, torch.Generator().manual_seed(seed)), None
    one_of("field", kind, FIELDS)
    path = Path(init_from)
    path = path / "field.safetensors" if path.is_dir() else path
    with named("init_from: expected the folder of a finished run", "give one"):
        field = load_field(path)
    if not isinstance(field, FIELDS[kind]):
        what = f"{path} holds a {type(field).__name__}, this run makes a {kind} field"
        raise ValueError(f"init_from: {what}; give field as it was there")
    return field, hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def with_defaults(
    prior: str, field: str, preference: bool, refining: bool, given: dict[str, Any]
) -> dict[str, Any]:
    """The numbers of a run: what was given, else what its task, prior and field ask for."""
    times = REFINING_TIMES if refining else PREFERENCE_TIMES if preference else {}
    numbers = DEFAULTS.get(prior, DEFAULTS["a folder or hub id"]) | times
    numbers |= DEFAULTS.get(f"{prior} with {field}", {})
    return numbers | {name: value for name, value in given.items() if value is not None}


@contextmanager
def kept_in(
    folder: Path | None, config: dict, overwrite: bool, field: nn.Module, callback: Callable | None
) -> Iterator[Callable]:
    """Around a run: its claim on the folder, and a picture of how far an interrupted one came.

    Yields the loop's callback: it claims the folder after the first step, and calls the user's.
    """
    steps_done = []

    def after_step(info: dict[str, Any]) -> None:
        if folder is not None and info["step"] == 0:
            folders.claim(folder, config, overwrite)
        steps_done.append(info["step"])
        if callback is not None:
            callback(info)

    try:
        yield after_step
    except KeyboardInterrupt:
        if folder is not None and steps_done:
            frames = pictures.render_views(field.cpu(), pictures.turntable_cameras(8), 64)
            sheet = pictures.contact_sheet(frames, title=f"{config['prompt']}, interrupted")
            pictures.save_png(sheet, folder / "views.png")
        raise
    finally:
        field.cpu()
