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
    tables              is the engine: one row of every table, with the fewest slips, explains it
    directions, noise_schedule, sizes, rewarding, preference_weights, renderer
                        hold the tables: what people write, right or wrong, in rows
    judging             writes the rows of a report (report); checks never raise

A gradient is G = w(t) sign (predictions + what is subtracted), with the residual at x. Each part is
a table, {formula: what is wrong with it}. A formula is written as on paper, and computed; all
combinations of rows are tried, and the one with the fewest mistakes is the diagnosis.

A new mistake is one line of a table. In `directions.SUBTRACTED_FORMULAS`, of the vectors and of
alpha, sigma and g:

    "- eps / 3": "only a third of the noise is subtracted",

It is then found alone and beside every other slip, for every method. A new method names the rows
that are right; five lines are enough:

    from psd_mini.checks.directions import Method
    from psd_mini.checks.sds import check_method
    equation = "G = w(t) (cond - eps_q)"
    toy = Method("toy", equation, predictions="cond", subtracted="- eps_q")
    print(check_method(toy, my_function))

`psd-mini check --kind toy` needs a `check_toy` here, and its name in `grading.grader.KINDS`.

Newer kinds are SDS with another vector for the noise, and look at their x_t first:

    kind   for the noise                     module, and what it looks at
    sdi    kappa, found by DDIM inversion    sdi: every step of the way up from x
    pds    the source's prediction eps_src   pds: both x_t, prompts, scales; then x_{t-1} and mu
    flow   eps - x, of a velocity model      flow: x_t = (1 - t) x + t eps

What a size other than w(t) means is a matter of policy, see `sizes`. A check of another kind is the
same in small: `renderer` and `negative_embedding` are a table each, and a search in it.

`derivation` compares gradients that exist on paper only: `check_gradient(..., slips={...})` names
what each exercise lists; `guard.exercise` is for a notebook's own checker. `grading.grader` checks
folders, and `grading.command` writes what Gradescope reads.
"""

from psd_mini.checks.derivation import Estimate as Estimate
from psd_mini.checks.derivation import Statistics as Statistics
from psd_mini.checks.derivation import check_gradient as check_gradient
from psd_mini.checks.derivation import gradient_statistics as gradient_statistics
from psd_mini.checks.derivation import kl_objective as kl_objective
from psd_mini.checks.derivation import numeric_gradient as numeric_gradient
from psd_mini.checks.derivation import reward_objective as reward_objective
from psd_mini.checks.flow import check_flow as check_flow
from psd_mini.checks.grading.offline import offline_diffusers as offline_diffusers
from psd_mini.checks.negative_embedding import check_negative_embedding as check_negative_embedding
from psd_mini.checks.noise_schedule import check_schedule as check_schedule
from psd_mini.checks.pds import check_pds as check_pds
from psd_mini.checks.preference import check_psd as check_psd
from psd_mini.checks.renderer import check_renderer as check_renderer
from psd_mini.checks.report import Finding as Finding
from psd_mini.checks.report import Report as Report
from psd_mini.checks.sdi import check_sdi as check_sdi
from psd_mini.checks.sds import check_cfg as check_cfg
from psd_mini.checks.sds import check_csd as check_csd
from psd_mini.checks.sds import check_sds as check_sds
from psd_mini.checks.sds import check_vsd as check_vsd
