"""Checkers for other people's formulas: is this gradient right, and if not, which mistake is it?

    from psd_mini.checks import check_sds
    print(check_sds(my_function))

How a check works, and where:

    grading.submission  finds the code in a function, loss or class, and reads its answer
    grading.names       knows what a parameter of some name asks for
    exact_world         is the world that it runs in, where all predictions are known
    grading.stand_ins   answer for diffusers; grading.offline hands them out
    trace               records what the code asks and draws
    probe               runs the code, guard turns what it raises into a row
    reading             takes its gradient apart into the vectors that it is made of
    diagnosis           puts the coefficients into words
    judging             writes the rows of a report (report); checks never raise

`derivation` compares gradients that exist on paper only; `grading.grader` checks folders.
"""

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
from psd_mini.checks.renderer_and_schedule import check_renderer as check_renderer
from psd_mini.checks.renderer_and_schedule import check_schedule as check_schedule
from psd_mini.checks.report import Finding as Finding
from psd_mini.checks.report import Report as Report
from psd_mini.checks.sds import check_cfg as check_cfg
from psd_mini.checks.sds import check_csd as check_csd
from psd_mini.checks.sds import check_sds as check_sds
from psd_mini.checks.sds import check_vsd as check_vsd
