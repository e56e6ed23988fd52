"""From a prompt to a turntable: the main job, assembled from the package's parts.

    field = make_field("voxel")
    distill(field, ToyWorldPrior(32), SDS(), "a red mushroom")
    judge(render_views(field, ...))

`generate` is these three calls, with a folder to keep the results in and checkpoints to survive in.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psd_mini._internal.arguments import validated
from psd_mini._internal.identity import identity
from psd_mini.distill import Options, distill
from psd_mini.fields import make_field
from psd_mini.methods import BASES, PREFERENCE_METHODS, make_method
from psd_mini.negative import NegativeEmbedding
from psd_mini.pipelines import folders
from psd_mini.pipelines.oracle import ORACLE_STEPS, oracle_distance
from psd_mini.pipelines.results import Generation, as_it_stands
from psd_mini.pretrained import make_prior
from psd_mini.pretrained.failures import memory_error_in_one_line
from psd_mini.pretrained.precision import choose_device, choose_dtype
from psd_mini.rewards import make_reward
from psd_mini.viz import pictures
from psd_mini.world.metrics import judge, judge_views
from psd_mini.world.text import VOCABULARY, caption, words

# Where a preference can act: x_t leaves open which of two pictures it holds only while
# alpha_t^2 ||mu_1 - mu_2||^2 / sigma_t^2 is of order 1. With 3,072 numbers a picture that ratio,
# between a grey object and its other colours, is 0.6 to 4.3 for t from 1 to 0.9 and already 48 to
# 113 at t = 0.5. So runs with a preference begin up there and come down; with t from 0.02 on, the
# nearest colour has won before any reward is heard (tests/results/psd.md).
PREFERENCE_TIMES: dict[str, Any] = {"t_min": (0.9, 0.02), "t_max": (1.0, 0.2)}
# Defaults per prior, where they are not those of `Options`. Those of the learned checkpoint come
# from tests/results/learned.md: fine patterns of colour hardly change the latents, so their
# gradient is mostly noise, and Adam makes whole steps of it: colours must learn slowly. And a run
# that begins at low noise keeps the ball that it starts from. At 512 pixels one camera a step is
# what fits beside the rest on a GPU of 15 GB.
DEFAULTS: dict[str, dict[str, Any]] = {
    "exact": {"guidance_scale": 1.0},
    "learned": {
        "guidance_scale": 7.5,
        "resolution": 64,
        "lr_scale": (1.0, 0.15),
        **PREFERENCE_TIMES,
    },
    "real": {"guidance_scale": 50.0, "resolution": 64, "steps": 5000, "cameras_per_step": 1},
    "a folder or hub id": {"guidance_scale": 7.5, "resolution": 64, "steps": 5000},
}
JUDGED = ("exact", "learned")  # priors of the toy world, whose results can be compared with a truth


@validated
@memory_error_in_one_line()
def generate(
    prompt: str,
    *,
    method: str | Callable = "psd",
    field: str = "voxel",
    prior: str = "exact",
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    conditioning: str = "camera",
    reward: str | Callable | None = None,
    preference_weight: float | None = None,
    negative: bool | NegativeEmbedding = False,
    steps: int | None = None,
    cameras_per_step: int | None = None,
    resolution: int | None = None,
    n_samples: int | None = None,
    t_min: tuple[float, float] | None = None,
    t_max: tuple[float, float] | None = None,
    lr_scale: float | tuple[float, float] | None = None,
    entropy_weight: float | None = None,
    background: float | Float[Tensor, "..."] | None = None,
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
        prompt: what to make, in words that the prior knows ("a red mushroom").
        method: a name in `psd_mini.methods.METHODS`, or a method of your own. The default adds a
            preference to SDS. Where a prompt leaves nothing open it changes nothing to be seen.
        field: "voxel" or "triplane".
        prior: "exact", "learned" (the small checkpoint in the package), "real" (Stable Diffusion),
            or the folder or hub id of a model in diffusers' format.
        guidance_scale: g of classifier-free guidance (1 = none).
        negative_prompt: what guidance pushes away from.
        conditioning: what the exact prior knows of the camera: "camera", "words" or "none" (shows
            the Janus problem); learned priors are told in words, or with "none" nothing.
        reward: "colorfulness", "color:NAME", "image-reward", "image-reward:FILE" or any function of
            pictures, for methods with a preference; None is colourfulness for those and nothing for
            the others.
        preference_weight: how strongly the reward pulls; None is the method's default.
        negative: optimise the negative embedding along with the field (needs a guidance scale other
            than 1, and a reward); a `NegativeEmbedding` of your own has its own schedule.
        steps, cameras_per_step, resolution, n_samples, t_min, t_max, lr_scale, entropy_weight,
            background: numbers of the run, see `distill`; None is the default of the prior
            (`DEFAULTS`). With a reward, but for sds, sds2 and csd, the range of timesteps is
            `PREFERENCE_TIMES`. Learned priors enlarge the renders to their own size; results are
            always rendered at 64 x 64.
        seed: of everything random; one seed, one machine and one thread count give one result, bit
            for bit.
        device, dtype: of a learned prior and the field, for example "cuda" and "float16"; the
            default is what there is.
        out: folder for results and checkpoints; None keeps everything in memory. A folder that
            holds another run, or this one unfinished, is refused. One that holds exactly this run,
            finished, gives its results back; nothing is computed.
        resume: continue the run in `out`.
        overwrite: replace what is in `out`, once the first step is done.
        checkpoint_every, progress, callback: see `distill`.

    Returns:
        `Generation`.

    Raises:
        ValueError: an argument that cannot be used, named, with the remedy; nothing already saved
            is touched.
    """
    started = time.perf_counter()
    if not (words(prompt) if prior in JUDGED else prompt.strip()):
        raise ValueError("prompt: names nothing; say what to make, for example 'a red mushroom'")
    plain = isinstance(method, str) and method in BASES
    if reward is None and (negative or (isinstance(method, str) and method in PREFERENCE_METHODS)):
        reward = "colorfulness"
    given = {
        "guidance_scale": guidance_scale,
        "steps": steps,
        "cameras_per_step": cameras_per_step,
        "resolution": resolution,
        "n_samples": n_samples,
        "t_min": t_min,
        "t_max": t_max,
        "lr_scale": lr_scale,
        "entropy_weight": entropy_weight,
        "background": background,
    }
    preference = bool(negative) or (reward is not None and not plain)
    numbers = with_defaults(prior, preference, given)
    g = numbers.pop("guidance_scale")
    options = Options(**numbers, seed=seed)
    the_method = make_method(method, g, preference_weight) if isinstance(method, str) else method
    the_field = make_field(field, torch.Generator().manual_seed(seed))
    config = options.as_config() | {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "method": identity(the_method),
        "field": {"kind": field, **the_field.settings},  # type: ignore[dict-item]
        "prior": prior,
        "conditioning": conditioning,
        "guidance_scale": g,
        "negative": negative if isinstance(negative, bool) else identity(negative),
        "reward": reward if isinstance(reward, str | None) else identity(reward),
    }
    if prior != "exact":
        config["device"] = str(choose_device(device))
        config["dtype"] = str(choose_dtype(choose_device(device), dtype))
    # before a network is loaded or a picture drawn: whether the folder is free
    if (state := folders.look(out, config, resume, overwrite)) is not None:
        known = (method, reward, negative, callback)
        named = all(isinstance(part, str | bool | None) for part in known)
        return as_it_stands(Path(str(out)), state, named)
    the_reward = None if reward is None else make_reward(reward, device)
    folder = folders.writable_folder(out)
    the_prior = make_prior(prior, options.resolution, conditioning, device, dtype)
    the_negative = negative if isinstance(negative, NegativeEmbedding) else None
    if negative is True:
        the_negative = make_negative(the_prior, negative_prompt, g)
    if prior != "exact":
        config["model"] = the_prior.name
        the_field.to(the_prior.device)
    with kept_in(folder, config, the_field, resume, overwrite, callback) as after_step:
        run = distill(
            the_field,
            the_prior,
            the_method,
            prompt,
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
    the_field.cpu()
    metrics = measure(the_field, field, prior, options) if prior in JUDGED else {}
    if the_negative is not None and prior == "exact":
        metrics["negative_words"] = the_negative.read(VOCABULARY)
    cost = asdict(run.cost)
    result = Generation(prompt, the_field, config, metrics, cost, 0.0, run.history, folder)
    if folder is not None:
        write_results(result, folder, started)
    result.seconds = result.seconds or time.perf_counter() - started
    return result


def with_defaults(prior: str, preference: bool, given: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a run: what was given, else what the prior and a preference ask for."""
    numbers = DEFAULTS.get(prior, DEFAULTS["a folder or hub id"]) | (
        PREFERENCE_TIMES if preference else {}
    )
    return numbers | {name: value for name, value in given.items() if value is not None}


def write_results(result: Generation, folder: Path, started: float) -> None:
    """Write everything into the folder; a full disk must not cost the result."""
    try:
        result.save(folder)
        result.seconds = time.perf_counter() - started
        result.write_run(folder)
    except OSError as error:
        result.out = None
        warnings.warn(
            f"the files of the result could not be written ({error}); it is still in memory",
            stacklevel=3,
        )


@contextmanager
def kept_in(
    folder: Path | None,
    config: dict[str, Any],
    field: nn.Module,
    resume: bool,
    overwrite: bool,
    callback: Callable | None,
):
    """Around a run: claims the folder at the first step, and shows how far an interrupted run came.

    Yields the callback for the loop, which calls the user's too.
    """
    begun = resume or folder is None

    def claim() -> None:
        nonlocal begun
        if not begun and folder is not None:
            folders.claim(folder, config, overwrite)
        begun = True

    def after_step(info: dict[str, Any]) -> None:
        claim()
        if callback is not None:
            callback(info)

    try:
        yield after_step
    except KeyboardInterrupt:
        if folder is not None and (begun or not overwrite):
            claim()
            frames = pictures.render_views(field.cpu(), pictures.turntable_cameras(8), 64)
            sheet = pictures.contact_sheet(frames, title=f"{config['prompt']}, interrupted")
            pictures.save_png(sheet, folder / "views.png")
        raise


def make_negative(prior: Any, negative_prompt: str, guidance_scale: float) -> NegativeEmbedding:
    """A negative embedding that starts at a prompt and moves as its prior asks for."""
    start = prior.embed_negative(negative_prompt)[0]
    return NegativeEmbedding(start, guidance_scale, **prior.negative_settings(start))


def measure(field: nn.Module, kind: str, prior: str, options: Options) -> dict[str, Any]:
    """What the judge says of a finished field, and the distance of the oracle beside it."""
    views = judge_views()
    found = judge(pictures.render_views(field, views.cameras, views.resolution))
    # one yardstick for every learned prior: the oracle of the exact world's default
    resolution = options.resolution if prior == "exact" else Options().resolution
    steps = min(options.steps, ORACLE_STEPS)
    return {
        "true_view_distance": found.true_view_distance,
        "oracle_distance": oracle_distance(kind, found.recognised, resolution, steps),
        "log_density_gap": found.log_density_gap,
        "recognised": caption(*found.recognised),
    }
