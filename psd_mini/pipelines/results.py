"""A finished object: what is known about it, its pictures, and its files in a folder."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psd_mini._internal.arguments import validated
from psd_mini._internal.files import write_atomically
from psd_mini.fields import save_field
from psd_mini.viz import mesh, pictures


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

    def views(self):
        """Contact sheet: eight views around the object, as a `PIL.Image`."""
        labels = [f"{azimuth}°" for azimuth in range(0, 360, 45)]
        return pictures.contact_sheet(self.frames(8), column_labels=labels, title=self.summary())

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


def save(result: Generation, folder: Path) -> None:
    """Write turntable.gif, views.png, curves.png, field.safetensors and mesh.glb."""
    result.turntable(folder / "turntable.gif")
    pictures.save_png(result.views(), folder / "views.png")
    pictures.curves(result.history, folder / "curves.png")
    save_field(result.field, folder / "field.safetensors")
    try:
        mesh.write_glb(result.mesh(), folder / "mesh.glb")
    except ValueError as error:  # an object that is all fog has no surface
        print(f"no mesh: {error}")


def write_run(result: Generation, folder: Path) -> None:
    """Write run.json, the last file of a run: its "seconds" say that the run is finished."""
    record = {"config": result.config, "seed": result.config["seed"], "versions": versions()}
    record |= {"seconds": result.seconds, "cost": result.cost, "metrics": result.metrics}
    write_atomically(folder / "run.json", json.dumps(record, indent=2).encode())


def versions() -> dict[str, Any]:
    """What decides the bits of a result besides its settings."""
    try:
        own = version("psd-mini")
    except PackageNotFoundError:  # run from a source folder that was never installed
        own = "not installed"
    machine = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    return {"psd-mini": own, "torch": str(torch.__version__), **machine}
