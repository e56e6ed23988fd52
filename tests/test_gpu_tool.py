"""The script for a machine with a GPU runs where there is none, in tiny sizes."""

import gpu
import pytest


@pytest.mark.slow
def test_every_row_is_there_and_counts_the_unets_work():
    """Rows of one UNet call: [prompt, negative] for each noise, so 2 for SDS and 4 for PSD; the
    negative embedding asks once more for its own step. On the CPU both sides of the comparison of
    devices are one computation."""
    rows = {row["step"]: row for row in gpu.steps_table("cpu", tiny=True)}
    asked = {name: row["unet rows"] for name, row in rows.items()}
    assert asked["latent SDS"] == asked["SDS"] == [2]
    assert asked["PSD, colorfulness"] == asked["PSD, ImageReward"] == [4]
    assert asked["PSD, ImageReward, negative embedding"][-1] == 4
    assert all(row["ms"] > 0 for row in rows.values())  # exact: a clock
    for row in gpu.rungs_table("cpu"):
        assert row["difference"] < 1e-5 and row["times faster"] > 0  # exact: a clock
    assert gpu.table(list(rows.values())).count("\n") == 1 + len(rows)
