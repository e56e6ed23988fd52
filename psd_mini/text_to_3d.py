"""From a prompt to a turntable: the main job, assembled from the package's parts.

    field = make_field("voxel");  distill(field, ToyWorldPrior(32), SDS(), "a red mushroom");  judge(render_views(field, ...))

`generate` is these three calls, with a folder to keep the results in and checkpoints to survive in.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psd_mini import fields, folders, viz, world
from psd_mini import mesh as mesh_module
from psd_mini.arguments import check_options, validated
from psd_mini.checkpoint import identity
from psd_mini.distill import distill, settings_of
from psd_mini.failures import memory_error_in_one_line
from psd_mini.files import write_atomically
from psd_mini.methods import BASES, PREFERENCE_METHODS, make_method
from psd_mini.negative import NegativeEmbedding
from psd_mini.oracle import ORACLE_STEPS, oracle_distance
from psd_mini.precision import choose_device, choose_dtype
from psd_mini.priors import embed_negative, make_prior
from psd_mini.rewards import make_reward
from psd_mini.world.metrics import Judgement, judge, judge_views
from psd_mini.world.text import words

JUDGED = ("exact", "toy")  # priors of the toy world, whose results have a truth to be compared with
# Where a preference can act: x_t leaves open which of two pictures it holds only while alpha_t^2 ||mu_1 - mu_2||^2 / sigma_t^2
# is of order 1. With 3,072 numbers a picture that ratio, between a grey object and its other colours, is 0.6 to 4.3 for t
# from 1 to 0.9 and already 48 to 113 at t = 0.5. So runs with a preference begin up there and come down; with t from 0.02
# on, the nearest colour has won before any reward is heard (tests/results/psd.md).
PREFERENCE_TIMES: dict[str, Any] = {"t_min": (0.9, 0.02), "t_max": (1.0, 0.2)}
# Defaults per prior. Those of the toy checkpoint come from tests/results/toy.md: fine patterns of colour hardly change the
# latents, so their gradient is mostly noise, and Adam makes whole steps of it: colours must learn slowly. And a run that
# begins at low noise keeps the ball that it starts from.
GUIDANCE_SCALES = {"exact": 1.0, "toy": 7.5, "real": 50.0}  # 7.5 for a model by folder or id
OPTIONS: dict[str, dict[str, Any]] = {
    "toy": {"lr_scale": (1.0, 0.15), **PREFERENCE_TIMES},
    "real": {"cameras_per_step": 1},  # at 512 pixels one camera a step is what fits beside the rest on a GPU of 15 GB
}


@validated
@dataclass
class Generation:
    """A finished object and everything that is known about it.

    field: the trained field; config, metrics, cost, seconds: as in run.json; history: numbers per step; out: the folder.
    """

    prompt: str
    field: nn.Module
    config: dict[str, Any]
    metrics: dict[str, Any]
    cost: dict[str, Any]
    seconds: float
    history: list[dict[str, float]]
    out: Path | None = None

    def frames(self, n_frames: int = 24, size: int = 64) -> Tensor:
        """A full turn at 20 degrees elevation: (n_frames, 3, size, size) in [0, 1]."""
        return viz.render_views(self.field, viz.turntable_cameras(n_frames), size)

    def turntable(self, path: str | Path | None = None) -> viz.Gif:
        """The turntable as an animated gif, which notebooks play; also written to `path`."""
        return viz.gif(self.frames(), path)

    def views(self):
        """Contact sheet: eight views around the object, as a `PIL.Image`."""
        labels = [f"{azimuth}°" for azimuth in range(0, 360, 45)]
        return viz.contact_sheet(self.frames(8), column_labels=labels, title=self.summary())

    def mesh(self) -> mesh_module.Mesh:
        """Coloured triangle mesh of the object's surface."""
        return mesh_module.extract_mesh(self.field)

    def summary(self) -> str:
        """One line: what was asked, what the judge saw."""
        m = self.metrics
        if "recognised" not in m:
            steps, prior, method = (self.config.get(name, "unknown") for name in ("steps", "prior", "method"))
            return f"{self.prompt}: {steps} steps against {prior}, {method}"
        return (
            f"{self.prompt}: recognised as {m['recognised']}, true-view distance {m['true_view_distance']:.3f} "
            f"(oracle {m['oracle_distance']:.3f})"
        )


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
    seed: int = 0,
    resolution: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callback: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> Generation:
    """Make the object that a prompt names, and judge it against the true world.

    Args:
        prompt: what to make, in words that the prior knows ("a red mushroom").
        method: a name in `psd_mini.methods.METHODS`, or a method of your own. The default adds a preference to SDS.
            Where a prompt leaves nothing open it changes nothing that can be seen.
        field: "voxel" or "triplane".
        prior: "exact", "toy" (the small trained model in `psd_mini.toy`), "real" (Stable Diffusion), or the folder
            or hub id of a model in diffusers' format.
        guidance_scale: g of classifier-free guidance (1 = none); default per prior.
        negative_prompt: what guidance pushes away from.
        conditioning: what the exact prior knows of the camera: "camera", "words" or "none" (shows the Janus problem);
            learned priors are told in words, or with "none" nothing.
        reward: "colorfulness", "color:NAME", "image-reward", "image-reward:FILE" or any function of pictures, for methods
            with a preference; None is colourfulness for those and nothing for the others.
        negative: optimise the negative embedding along with the field (needs a guidance scale other than 1, and a reward);
            a `NegativeEmbedding` of your own has its own schedule.
        preference_weight: how strongly the reward pulls; None is the method's default.
        steps: optimiser steps; default 120 in the toy world, 5,000 for full-size models.
        seed: of everything random; one seed, one machine and one thread count give one result, bit for bit.
        resolution: pixels per side of the training renders, default 32, for learned priors 64 (they enlarge them to their
            own size). Results are always rendered at 64 x 64, and judged where the prior is of the toy world.
        device, dtype: of a learned prior and the field, for example "cuda" and "float16"; the default is what there is.
        out: folder for results and checkpoints; None keeps everything in memory. A folder that holds another run, or this one
            unfinished, is refused. One that holds exactly this run, finished, gives its results back; nothing is computed.
        resume: continue the run in `out`.
        overwrite: replace what is in `out`, once the first step is done.
        progress, callback, options: for `distill`, which documents them. Runs with a reward, but for sds, sds2 and csd, have
            `PREFERENCE_TIMES` as their range of timesteps.

    Returns:
        `Generation`.

    Raises:
        ValueError: an argument that cannot be used, named, with the remedy; nothing already saved is touched.
    """
    started = time.perf_counter()
    check_options(distill, options)
    if not (words(prompt) if prior in JUDGED else prompt.strip()):
        raise ValueError("prompt: names nothing; say what to make, for example 'a red mushroom'")
    if negative or (isinstance(method, str) and method in PREFERENCE_METHODS):
        reward = "colorfulness" if reward is None else reward
    if negative or (reward is not None and not (isinstance(method, str) and method in BASES)):
        options = {**PREFERENCE_TIMES, **options}
    options = {**OPTIONS.get(prior, {}), **options}
    steps = (120 if prior in JUDGED else 5000) if steps is None else steps
    g = GUIDANCE_SCALES.get(prior, 7.5) if guidance_scale is None else float(guidance_scale)
    the_method = make_method(method, g, preference_weight) if isinstance(method, str) else method
    if resume and out is None:
        raise ValueError("resume: needs `out`, the folder of the run to continue")
    if resume and overwrite:
        raise ValueError("resume, overwrite: one goes on with what is in the folder, the other replaces it; choose one")
    the_field = fields.make_field(field, torch.Generator().manual_seed(seed))
    resolution = (32 if prior == "exact" else 64) if resolution is None else resolution
    config = settings_of(
        {**options, "prompt": prompt, "negative_prompt": negative_prompt, "steps": steps, "size": resolution, "seed": seed}
    ) | {
        "method": identity(the_method),
        "field": {"kind": field, **the_field.settings},  # type: ignore[dict-item]
        "prior": prior,
        "conditioning": conditioning,
        "guidance_scale": g,
        "negative": negative if isinstance(negative, bool) else identity(negative),
        "reward": reward if isinstance(reward, str | None) else identity(reward),
        "resolution": resolution,
    }
    if prior != "exact":
        config["device"] = str(choose_device(device))
        config["dtype"] = str(choose_dtype(choose_device(device), dtype))
    # before a network is loaded or a picture drawn: whether the folder is free
    if out is not None and (state := folders.look(Path(out), config, resume, overwrite)):
        named = isinstance(method, str) and isinstance(reward, str | None) and isinstance(negative, bool) and callback is None
        return _as_it_stands(Path(out), state, named)
    the_reward = None if reward is None else make_reward(reward, device)
    folder = folders.writable_folder(out)
    the_prior = make_prior(prior, resolution, conditioning, device, dtype)
    the_negative = negative if isinstance(negative, NegativeEmbedding) else None
    if negative is True:
        the_negative = make_negative(the_prior, negative_prompt, g)
    if prior != "exact":
        config["model"] = the_prior.name
        the_field.to(the_prior.device)
    begun = resume

    def after_step(info: dict[str, Any]) -> None:
        nonlocal begun
        if folder is not None and not begun:
            folders.claim(folder, config, overwrite)
        begun = True
        if callback is not None:
            callback(info)

    try:
        run = distill(
            the_field,
            the_prior,
            the_method,
            prompt,
            negative_prompt=negative_prompt,
            steps=steps,
            size=resolution,
            reward=the_reward,
            negative=the_negative,
            seed=seed,
            callback=after_step,
            checkpoint=folder and folder / "checkpoint.pt",
            resume=resume,
            overwrite=True,  # the folder was looked at; an equal run beside this one writes the same bits
            config=config,
            progress=progress,
            **options,
        )
    except KeyboardInterrupt:
        if folder is not None and (begun or not overwrite):  # how far it came can be looked at; `resume` goes on from there
            if not begun:
                folders.claim(folder, config)
            frames = viz.render_views(the_field.cpu(), viz.turntable_cameras(8), 64)
            viz.save_png(viz.contact_sheet(frames, title=f"{prompt}, interrupted"), folder / "views.png")
        raise
    the_field.cpu()
    metrics: dict[str, Any] = {}
    if prior in JUDGED:
        judgement = judge(viz.render_views(the_field, judge_views().cameras, judge_views().size))
        metrics = {
            "true_view_distance": judgement.true_view_distance,
            # one yardstick for every learned prior: the oracle of the exact world's default
            "oracle_distance": oracle_distance(
                field, judgement.recognised, resolution if prior == "exact" else 32, min(steps, ORACLE_STEPS)
            ),
            "log_density_gap": judgement.log_density_gap,
            "recognised": caption_of(judgement),
        }
    if the_negative is not None and prior == "exact":
        metrics["negative_words"] = the_negative.read(world.text.VOCABULARY)
    result = Generation(prompt, the_field, config, metrics, asdict(run.cost), 0.0, run.history, folder)
    try:
        if folder is not None:
            save(result, folder)
        result.seconds = time.perf_counter() - started
        if folder is not None:
            _write_run(result, folder)
    except OSError as error:  # a full disk must not cost the result
        result.out = None
        warnings.warn(f"the files of the result could not be written ({error}); it is still in memory", stacklevel=2)
    return result


def make_negative(prior: Any, negative_prompt: str, guidance_scale: float) -> NegativeEmbedding:
    """A negative embedding that starts at a prompt, with the step, trust region and times that its prior asks for."""
    start = embed_negative(prior, negative_prompt)[0]
    settings = prior.negative_settings(start) if hasattr(prior, "negative_settings") else {}
    return NegativeEmbedding(start, guidance_scale, **settings)


def caption_of(judgement: Judgement) -> str:
    """The recognised (object, colour) as a caption: "a red mushroom"."""
    return world.text.caption(*judgement.recognised)


def save(result: Generation, folder: Path) -> None:
    """Write turntable.gif, views.png, curves.png, mesh.glb and field.safetensors into a folder."""
    result.turntable(folder / "turntable.gif")
    viz.save_png(result.views(), folder / "views.png")
    viz.curves(result.history, folder / "curves.png")
    fields.save_field(result.field, folder / "field.safetensors")
    try:
        mesh_module.write_glb(result.mesh(), folder / "mesh.glb")
    except ValueError as error:  # an object that is all fog has no surface: the pictures still show it
        print(f"no mesh: {error}")


def _as_it_stands(folder: Path, state: dict[str, Any], named: bool) -> Generation:
    """The finished run in a folder, read back; refused where it cannot be known that the same call would end the same way.

    Args:
        folder: of the run; state: its checkpoint.
        named: the call names all its parts; a function or an object may have changed without a trace.
    """
    record = folders.read_record(folder)
    if not named or record.get("versions") != _versions():
        why = "its code or versions were other ones" if named else "a function or an object of yours may have changed since"
        raise ValueError(f"out: {folder} holds this run, finished, but {why}; {folders.REPLACE}")
    print(f"nothing computed: {folder} holds this run, finished; overwrite=True (--overwrite) makes it anew")
    field, parts = fields.load_field(folder / "field.safetensors"), ("config", "metrics", "cost", "seconds")
    return Generation(
        record["config"]["prompt"], field, **{name: record[name] for name in parts}, history=state["history"], out=folder
    )


def _versions() -> dict[str, Any]:
    package = Path(__file__).parent
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(package.rglob("*.py"))))
    return {
        "psd-mini": _own_version(),
        "code": code.hexdigest()[:8],
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def _write_run(result: Generation, folder: Path) -> None:
    record = {
        "config": result.config,
        "seed": result.config["seed"],
        "versions": _versions(),
        "seconds": result.seconds,
        "cost": result.cost,
        "metrics": result.metrics,
    }
    write_atomically(folder / "run.json", json.dumps(record, indent=2).encode())


def _own_version() -> str:
    try:
        return version("psd-mini")
    except PackageNotFoundError:  # run from a source folder that was never installed
        return "not installed"
