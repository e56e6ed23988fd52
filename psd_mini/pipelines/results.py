"""A finished object: what is known about it, its pictures, and its files in a folder."""

import json
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psd_mini._internal.arguments import validated
from psd_mini._internal.files import write_atomically
from psd_mini.distill import Options
from psd_mini.fields import save_field
from psd_mini.pipelines.oracle import ORACLE_STEPS, oracle_distance
from psd_mini.rewards import score
from psd_mini.viz import curves, export, mesh, pictures
from psd_mini.world.gold import gold_reward
from psd_mini.world.metrics import judge, judge_views
from psd_mini.world.text import VOCABULARY, caption

EXACT = ("exact", "dull")
# what the numbers of `Generation.summary` say
IN_WORDS = (
    "the distance is how far its pictures are from the true ones: 0 is equal, 1 black for white;\n"
    "the oracle's is what such a field comes to when it is fitted to the true pictures themselves"
)
JUDGED = (*EXACT, "learned")  # of the toy world, whose results can be compared with a truth


@validated
@dataclass
class Generation:
    """A finished object and everything that is known about it.

    field: the trained field; config, metrics, cost, seconds: as in run.json; history: numbers per
    step; out: the folder.
    """

    prompt: str
    field: nn.Module
    config: dict[str, Any]
    metrics: dict[str, Any]
    cost: dict[str, Any]
    seconds: float
    history: list[dict[str, float]]
    out: Path | None = None

    def frames(self, n_frames: int = 24, resolution: int = 64) -> Tensor:
        """A full turn at 20 degrees elevation: (n_frames, 3, H, W) in [0, 1]."""
        return pictures.render_views(self.field, pictures.turntable_cameras(n_frames), resolution)

    def turntable(self, path: str | Path | None = None) -> pictures.Gif:
        """The turntable as an animated gif, which notebooks play; also written to `path`."""
        return pictures.gif(self.frames(), path)

    def views(self, path: str | Path | None = None):
        """Contact sheet: eight views around the object, as a `PIL.Image`, which a notebook shows; a
        script writes it to `path`."""
        labels = [f"{azimuth}°" for azimuth in range(0, 360, 45)]
        sheet = pictures.contact_sheet(self.frames(8), column_labels=labels, title=self.summary())
        if path is not None:
            pictures.save_png(sheet, path)
        return sheet

    def mesh(self) -> mesh.Mesh:
        """Coloured triangle mesh of the object's surface."""
        return mesh.extract_mesh(self.field)

    def summary(self) -> str:
        """One line: what was asked, what the judge saw."""
        m = self.metrics
        if "recognised" not in m:
            names = ("steps", "prior", "method")
            steps, prior, method = (self.config.get(name, "unknown") for name in names)
            return f"{self.prompt}: {steps} steps against {prior}, {method}"
        distances = f"{m['true_view_distance']:.3f} (oracle {m['oracle_distance']:.3f})"
        return f"{self.prompt}: recognised as {m['recognised']}, true-view distance {distances}"


def measure(
    field: nn.Module,
    config: dict[str, Any],
    options: Options,
    negative: Any,
    reward: Callable | None,
    progress: bool = False,
) -> dict[str, Any]:
    """What judge and reward say of a finished field, and the oracle's distance; {} without a truth.

    A proxy is reported apart from the gold reward that it was trained to predict. With `progress`
    the fitting of an oracle shows a bar.
    """
    prior, kind = config["prior"], config["field"]["kind"]
    if prior not in JUDGED:
        return {}
    views = judge_views()
    images = pictures.render_views(field, views.cameras, views.resolution)
    found = judge(images)
    # one yardstick for every learned prior: the oracle of the exact world's default
    resolution = options.resolution if prior in EXACT else Options().resolution
    steps = min(options.steps, ORACLE_STEPS)
    metrics = {
        "true_view_distance": found.true_view_distance,
        "oracle_distance": oracle_distance(kind, found.recognised, resolution, steps, progress),
        "log_density_gap": found.log_density_gap,
        "recognised": caption(*found.recognised),
    }
    if negative is not None and prior in EXACT:
        metrics["negative_words"] = negative.read(VOCABULARY)
    if reward is not None:
        value = score(reward, images, [config["prompt"]] * len(images)).mean().item()
        name, _, proxied = str(config["reward"]).partition(":")
        metrics["proxy_reward" if name == "proxy" else "reward"] = value
        if name == "proxy":
            metrics["gold_reward"] = gold_reward(found, proxied.split("-")[0])
    return metrics


def save_views(result: Generation, folder: Path) -> None:
    """Write views.png, the first file of a run to look at."""
    result.views(folder / "views.png")


def save(result: Generation, folder: Path) -> None:
    """Write field.safetensors, turntable.gif, curves.png and mesh.glb."""
    save_field(result.field, folder / "field.safetensors")
    result.turntable(folder / "turntable.gif")
    curves.curves(result.history, folder / "curves.png")
    try:
        export.write_glb(result.mesh(), folder / "mesh.glb")
    except ValueError as error:  # an object that is all fog has no surface
        print(f"no mesh: {error}")


def write_run(result: Generation, folder: Path) -> None:
    """Write run.json, the last file of a run: its "seconds" say that the run is finished."""
    record = {"config": result.config, "seed": result.config["seed"], "versions": versions()}
    record |= {"seconds": result.seconds, "cost": result.cost, "metrics": result.metrics}
    write_atomically(folder / "run.json", json.dumps(record, indent=2).encode())


def write_out(write: Callable[[Generation, Path], None], result: Generation) -> None:
    """Write files of a result that has a folder; a full disk must not cost the result."""
    try:
        if result.out is not None:
            write(result, result.out)
    except OSError as error:
        result.out = None
        what = f"the files of the result could not be written ({error})"
        warnings.warn(f"{what}; it is still in memory", stacklevel=4)


def versions() -> dict[str, Any]:
    """What decides the bits of a result besides its settings."""
    try:
        own = version("psd-mini")
    except PackageNotFoundError:  # run from a source folder that was never installed
        own = "not installed"
    machine = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    return {"psd-mini": own, "torch": str(torch.__version__), **machine}
