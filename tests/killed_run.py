"""A run for tests that kill it: PSD with the negative embedding on, which has the most state.

python killed_run.py FOLDER     the whole run in an interpreter of its own
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from worlds import small_world

from psd_mini import PSD, SDS, VoxelField, distill, make_reward
from psd_mini.negative import NegativeEmbedding

STEPS = 40


def run(folder: Path, kill_write: int = 0, told: Any = None) -> None:
    """Make the run in `folder`, or go on with it, and leave its result there as field.pt.

    Args:
        folder: has or gets the checkpoint c.pt, every second step.
        kill_write: dies in that write of a checkpoint, counted from 1; 0 is in none.
        told: the end of a pipe that is sent each step when it is done.
    """
    torch.set_num_threads(1)
    fsync, written = os.fsync, []

    def dying_fsync(number):
        written.append(number)
        if len(written) == kill_write:  # the new file is there in half, and not yet renamed
            os.truncate(number, os.fstat(number).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(number)

    os.fsync = dying_fsync
    prior, field, path = small_world(), VoxelField(8), folder / "c.pt"
    negative = NegativeEmbedding(prior.embed([""])[0], 2.0)
    options: dict[str, Any] = {"steps": STEPS, "resolution": 8, "cameras_per_step": 2}
    options |= {"n_samples": 8, "progress": False, "reward": make_reward("colorfulness")}
    options |= {"checkpoint": path, "checkpoint_every": 2, "resume": path.exists()}
    if told is not None:
        options["callback"] = lambda info: told.send(info["step"])
    distill(field, prior, PSD(SDS(2.0)), "a mushroom", negative=negative, **options)
    moved = {"negative": negative.embedding.detach()}
    torch.save({**field.state_dict(), **moved}, folder / "field.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
