"""Checkers for other people's formulas: is this gradient right, and if not, which mistake is in it?

    from psd_mini.checks import check_sds
    print(check_sds(my_function))

A submission (function, loss or class, see `submission`) is run in an exact world (`world`) with stand-ins for diffusers
(`stand_ins`, `offline`) that write down what they were asked (`trace`); its gradient is taken apart into the vectors that it
is made of (`reading`), and the coefficients are put into words (`diagnosis`). Checks report (`report`) and never raise.
"""

from psd_mini.checks.derivation import (
    Estimate,
    Statistics,
    check_gradient,
    gradient_statistics,
    kl_objective,
    numeric_gradient,
    reward_objective,
)
from psd_mini.checks.negative_embedding import check_negative_embedding
from psd_mini.checks.offline import offline_diffusers
from psd_mini.checks.preference import check_psd
from psd_mini.checks.report import Finding, Report
from psd_mini.checks.sds import check_cfg, check_csd, check_sds, check_vsd
from psd_mini.checks.world_checks import check_renderer, check_schedule

__all__ = [
    "Estimate",
    "Finding",
    "Report",
    "Statistics",
    "check_cfg",
    "check_csd",
    "check_gradient",
    "check_negative_embedding",
    "check_psd",
    "check_renderer",
    "check_schedule",
    "check_sds",
    "check_vsd",
    "gradient_statistics",
    "kl_objective",
    "numeric_gradient",
    "offline_diffusers",
    "reward_objective",
]
