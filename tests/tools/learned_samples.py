"""What the learned checkpoint draws for every caption, and how its parts do:
tests/results/learned_samples.json, learned_samples.png.

    python tests/tools/learned_samples.py [FOLDER] [--guidance 3]

For each (object, colour) eight pictures, one for each direction, by DDIM. A picture counts as what
it is nearest to, among all objects and colours at the 128 cameras of the pool, by root mean square
difference at 32 x 32. Also: the autoencoder's error, the time of one UNet evaluation of 8 pictures,
and the size of the folder."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from learned.data import directions_of
from torch.nn.functional import avg_pool2d

from psd_mini.cameras import orbit
from psd_mini.pretrained import learned
from psd_mini.pretrained.sampling import ddim_sample
from psd_mini.pretrained.stable_diffusion import StableDiffusionPrior
from psd_mini.viz.pictures import contact_sheet, save_png
from psd_mini.world.metrics import squared_distances
from psd_mini.world.objects import COLOURS, OBJECTS
from psd_mini.world.pool import fresh_cameras, make_views, pool_cameras
from psd_mini.world.text import DIRECTIONS, caption, components

ROOT = Path(__file__).parent.parent.parent


def nearest(image, views, directions):
    """(object, colour), direction and distance of the nearest picture of the pool."""
    squared = squared_distances(
        avg_pool2d(image[None], 2).expand(len(views.cameras), 3, 32, 32), views
    )
    camera, component = divmod(int(squared.argmin()), squared.shape[1])
    return components()[component], DIRECTIONS[directions[camera]], squared.min().sqrt().item()


def main(folder: Path, guidance: float, steps: int, seed: int) -> None:
    prior = StableDiffusionPrior.from_pretrained(
        folder, view_words=learned.VIEW_WORDS, elevations=learned.ELEVATIONS
    )
    views = make_views(pool_cameras(), 32)
    directions = directions_of(views.cameras).tolist()
    generator = torch.Generator().manual_seed(seed)
    cameras = orbit([45.0 * k for k in range(8)], 20.0)
    rows: list[torch.Tensor] = []
    failures, places, distances = [], 0, []
    for k, (name, colour) in enumerate(components()):
        x = ddim_sample(
            prior,
            caption(name, colour),
            torch.randn(8, 4, 16, 16, generator=generator),
            cameras=cameras,
            guidance_scale=guidance,
            steps=steps,
        )
        images = prior.decode(x)
        rows.append(images[k % 8])
        for image, direction in zip(images, DIRECTIONS, strict=True):
            seen, place, distance = nearest(image, views, directions)
            distances.append(distance)
            places += place == direction
            if seen != (name, colour):
                failures.append(f"{caption(name, colour, direction)} -> {caption(*seen)}")
    world = make_views(fresh_cameras(), 64)
    truth = world.pictures(torch.arange(24))[:, ::5].flatten(0, 1)
    with torch.no_grad():
        error = (prior.decode(prior.encode(truth)) - truth).square().mean((1, 2, 3)).sqrt()
    noise, seconds = torch.randn(8, 4, 16, 16), []
    for _ in range(12):
        started = time.perf_counter()
        prior.predict_noise(noise, torch.full((8,), 500), prior.embed(["a red ball"]), cameras)
        seconds.append(time.perf_counter() - started)
    total = 8 * len(components())
    result = {
        "guidance_scale": guidance,
        "ddim_steps": steps,
        "seed": seed,
        "object and colour right": f"{total - len(failures)} of {total}",
        "direction of the nearest view right": f"{places} of {total}",
        "distance to the nearest view, median": round(statistics.median(distances), 4),
        "autoencoder, root mean square error, median and largest": [
            round(error.median().item(), 4),
            round(error.max().item(), 4),
        ],
        "one UNet evaluation of 8 pictures, ms": round(1e3 * statistics.median(seconds), 1),
        "threads": torch.get_num_threads(),
        "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
        "failures": failures,
    }
    print(json.dumps(result, indent=1))
    out = ROOT / "tests" / "results"
    (out / "learned_samples.json").write_text(json.dumps(result, indent=1) + "\n")
    sheet = torch.stack(rows).view(len(OBJECTS), len(COLOURS), 3, 64, 64)
    save_png(
        contact_sheet(list(sheet), list(OBJECTS), list(COLOURS)),
        ROOT / "notebooks" / "images" / "learned_samples.png",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=learned.FOLDER)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    main(args.folder, args.guidance, args.steps, args.seed)
