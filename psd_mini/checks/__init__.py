"""Checkers for other people's formulas: is this gradient right, and if not, which mistake is in it?

    from psd_mini.checks import check_sds
    print(check_sds(my_function))

A submission (function, loss or class, see `submission`) is run in an exact world (`world`) with
stand-ins for diffusers (`stand_ins`, `offline`) that write down what they were asked (`trace`); its
gradient is taken apart into the vectors that it is made of (`reading`), and the coefficients are
put into words (`diagnosis`). Checks report (`report`) and never raise."""

from psd_mini.checks.derivation import Estimate as Estimate
from psd_mini.checks.derivation import Statistics as Statistics
from psd_mini.checks.derivation import check_gradient as check_gradient
from psd_mini.checks.derivation import gradient_statistics as gradient_statistics
from psd_mini.checks.derivation import kl_objective as kl_objective
from psd_mini.checks.derivation import numeric_gradient as numeric_gradient
from psd_mini.checks.derivation import reward_objective as reward_objective
from psd_mini.checks.grading.offline import offline_diffusers as offline_diffusers
from psd_mini.checks.negative_embedding import check_negative_embedding as check_negative_embedding
from psd_mini.checks.preference import check_psd as check_psd
from psd_mini.checks.report import Finding as Finding
from psd_mini.checks.report import Report as Report
from psd_mini.checks.sds import check_cfg as check_cfg
from psd_mini.checks.sds import check_csd as check_csd
from psd_mini.checks.sds import check_sds as check_sds
from psd_mini.checks.sds import check_vsd as check_vsd
from psd_mini.checks.world_checks import check_renderer as check_renderer
from psd_mini.checks.world_checks import check_schedule as check_schedule
