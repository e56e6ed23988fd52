"""The oracle: a yardstick for a run's result. Below 1 relative to it, the run came nearer.

distance = true_view_distance of a field that was fitted to the true pictures by regression
"""

import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from psd_mini import cameras, fields, rendering, schedule, sds, world
from psd_mini._internal.files import write_atomically
from psd_mini._internal.identity import made_of
from psd_mini.distill import distill
from psd_mini.methods import Regression, regression
from psd_mini.viz import pictures
from psd_mini.world import metrics
from psd_mini.world import prior as exact
from psd_mini.world.pool import cache_folder, world_in_words

# as many as a default run (regression on a blue chair: 0.0446 after 100 steps, 0.0444 after 500)
ORACLE_STEPS = 120
# every module whose code takes part in the number: an oracle of another code is another yardstick
MAKERS = (
    *(sys.modules[__name__], sys.modules[distill.__module__], cameras, fields, sds, regression),
    *(exact, rendering, schedule, pictures, metrics),
    *(world.objects, world.pool, world.text, world.views),
)

# distances of the default settings to four digits, field -> caption -> distance, and the digest of
# the code that they belong to (tests/tools/oracles.py); another code fits its own oracles
SHIPPED = Path(__file__).with_name("oracles.json")


def shipped_distances(field: str) -> dict[str, float]:
    """Caption -> distance of a kind of field, or nothing if the code is not what they belong to."""
    table = json.loads(SHIPPED.read_text())
    return table.get(field, {}) if table["made_of"] == made_of(MAKERS) else {}


def oracle_distance(
    field: str,
    target: tuple[str, str],
    resolution: int = 32,
    steps: int = ORACLE_STEPS,
    progress: bool = False,
) -> float:
    """What a field of this kind can express: its `true_view_distance` after regression.

    The field starts as for distillation and sees the same cameras with the same optimiser, but is
    pulled to the true pictures of `target` = (object, colour) (see `methods.regression`), for as
    many steps as the run that it is compared with, at most `ORACLE_STEPS`. Numbers of the default
    settings come with the package (`SHIPPED`); others are kept in the cache folder. `progress`
    shows a bar.
    """
    the_field = fields.make_field(field)
    if (resolution, steps) == (32, ORACLE_STEPS) and (shipped := shipped_distances(field)):
        return shipped[world.text.caption(*target)]
    settings = (field, the_field.settings, target, resolution, steps, torch.get_num_threads())
    path = cache_folder() / f"oracle-{made_of(MAKERS, *settings, world_in_words())}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there yet, or damaged
        known = float(json.loads(path.read_text())["distance"])
        if 0 <= known < math.inf:
            return known
    prior, caption = exact.ToyWorldPrior(resolution), world.text.caption(*target)
    numbers: dict[str, Any] = {"steps": steps, "resolution": resolution, "progress": progress}
    distill(the_field, prior, Regression(target), caption, **numbers)
    views = metrics.judge_views()
    seen = metrics.judge(pictures.render_views(the_field, views.cameras, views.resolution))
    distance = float(seen.distances[world.text.components().index(target)])
    with suppress(OSError):  # the world's views have warned already
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"distance": distance, "target": target, "field": field}
        write_atomically(path, json.dumps(record).encode())
    return distance
