r"""Many methods are one row of a table: a linear combination of noise predictions in the same x_t.

    x_t = alpha_t x + sigma_t eps
    G = w(t) [ c_y eps_y + c_n eps_n + c_0 eps_0 + c_e eps + c_q eps_q ]

eps_y, eps_n and eps_0 are the prior's predictions for the prompt, the negative prompt and the null
prompt, eps is the noise that made x_t, and eps_q is the prediction of a model of the renders, as in
VSD.

    method                        c_y   c_n    c_0      c_e       c_q    sum    prior's pictures
    SDS                           g     1-g    0        -1        0      0      2
    SJC as first written          g     1-g    0        0         0      1      2
    CSD                           1     -1     0        0         0      0      2
    CSD with negatives w1, w2     w1    -w2    w2-w1    0         0      0      3
    NFSD, t >= T / 5              g     -1     1-g      0         0      0      3
    NFSD, t < T / 5               g     0      1-g      0         0      1      2
    SDS-Bridge, second stage      g     -g     0        0         0      0      2
    VSD                           g     1-g    0        0         -1     0      2, and q
    ESD                           g     1-g    0        lam-1     -lam   0      2, and q

The last two rows stand here to be compared; their page is `vsd`.

What each coefficient does. c_y pulls to the prompt. c_n pushes away from the negative prompt; with
the bridge it is a text that describes what the render looks like now. c_0 = 1 - g or w2 - w1 makes
guidance relative to the null prompt. c_e = -1 takes the noise out, and c_q = -1 what the renders
look like.

What the sum means. Let all five predictions agree on eps. A row with sum 0 is then zero: where the
render is likely under every prompt, nothing moves. A row with sum 1 is w eps: nothing on average,
because E[eps] = 0, but noise is added. With sum 0 and c_e = 0, G depends on the noise only through
x_t: that is the name of NFSD (noise-free).

    NFSD, t >= T / 5:  eps_0 - eps_n + g (eps_y - eps_0)   = CSD with negatives, w1 = g, w2 = 1
    NFSD, t < T / 5:   eps_0 + g (eps_y - eps_0)           = SDS + eps, guided against null
    SDS-Bridge with the source n and the target y          = g CSD

NFSD's argument: a guided prediction is a direction to the data, one to the prompt, and noise that
the prior failed to recognise. At small t the noise is small; above, the negative prompt ("low
quality, blurry ...") has the same noise and a bad domain, so the difference is the domain alone. If
the negative prompt is the null prompt, that domain term is gone, and NFSD at t >= T / 5 is g CSD.

SDS-Bridge in this package is two runs: one with "sds", then one with `init_from` that folder, the
method "bridge", and a negative prompt that describes what came out of the first.

References: Wang et al. 2022 (SJC, arXiv 2212.00774); Yu et al. 2023 (CSD, arXiv 2310.19415); Katzir
et al. 2023 (NFSD, arXiv 2310.17590), guidance 7.5; McAllister et al. 2024 (SDS-Bridge, arXiv
2406.09417), guidance 40 in two dimensions; Wang et al. 2023 (VSD, arXiv 2305.16213); Wang et al.
2023 (ESD, arXiv 2401.00909). Tests assert each row against its own page or formula, and the two
sums.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from psd_mini._internal.arguments import needs, one_of, validated
from psd_mini.sds import SDS, Context, Noises, Renders, Timesteps, cfg, predict

LOW_NOISE = 0.2  # NFSD: below this fraction of the schedule the negative prompt is left out


class Coefficients(NamedTuple):
    """c_y, c_n, c_0, c_e and c_q: numbers, or tensors that broadcast against (N, B, C, h, w)."""

    prompt: float | Tensor = 0.0
    negative: float | Tensor = 0.0
    null: float | Tensor = 0.0
    noise: float | Tensor = 0.0
    own: float | Tensor = 0.0


# name -> its coefficients at guidance g; high is 1 where t >= LOW_NOISE T, else 0
ROWS: dict[str, Callable[[float, Tensor], Coefficients]] = {
    "sds": lambda g, high: Coefficients(g, 1 - g, noise=-1),
    "sjc": lambda g, high: Coefficients(g, 1 - g),
    "csd": lambda g, high: Coefficients(1, -1),
    "nfsd": lambda g, high: Coefficients(g, -high, 1 - g),
    "bridge": lambda g, high: Coefficients(g, -g),
    "vsd": lambda g, high: Coefficients(g, 1 - g, own=-1),
}


class Parts(NamedTuple):
    """The predictions that a row combines; one whose coefficient is 0 is another one's copy."""

    x_t: Noises
    eps_cond: Noises
    eps_neg: Noises
    eps_null: Noises
    row: Coefficients


@validated
@dataclass
class LinearCombination(SDS):
    """A row of the table as a method, with the settings of `SDS`.

    It asks the prior only for prompts that have a coefficient anywhere in the batch.

    Args:
        row: "sds", "sjc", "csd", "nfsd", "bridge", or `Coefficients` of your own, without `own`: a
            model of the renders is `methods.VSD`.
    """

    row: str | Coefficients = "sds"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.row, str):
            one_of("row", self.row, ROWS)
        own = self._coefficients(torch.ones(1)).own
        if own or not any(self._coefficients(torch.ones(1))[:3]):
            expected = "a coefficient of a prompt, and none of a model of the renders (methods.VSD)"
            raise ValueError(f"row: expected {expected}, got {self.row!r}")

    def _coefficients(self, high: Tensor) -> Coefficients:
        """This row's numbers; high is 1 where t is at least a fifth of the schedule, else 0."""
        if isinstance(self.row, str):
            return ROWS[self.row](self.guidance_scale, high)
        return self.row

    def predict(self, x: Renders, t: Timesteps, eps: Noises, context: Context) -> Parts:  # type: ignore[override]
        high = t >= LOW_NOISE * context.prior.schedule.num_timesteps
        row = self._coefficients(high.to(x).view(-1, 1, 1, 1))
        asked = [place for place in range(3) if torch.as_tensor(row[place]).any()]
        embeddings = context.embeddings
        if 2 in asked:
            needs("prior", context.prior, "embed")
            embeddings = torch.cat((embeddings, context.prior.embed([""]).to(embeddings)))
        of_row = replace(context, embeddings=embeddings[asked])
        predictions = predict(x, t, eps, of_row)
        context.predictions = predictions  # callbacks look at the loop's own context
        eps_hat: Any = predictions.eps_hat
        y, n, null = (eps_hat[asked.index(k) if k in asked else -1] for k in range(3))
        return Parts(predictions.x_t, y, n, null, row)

    def guided(self, predictions: Parts) -> Tensor:  # type: ignore[override]
        """Guided against the null prompt if the row has one, else against the negative prompt."""
        null = torch.as_tensor(predictions.row.null).any()
        second = predictions.eps_null if null else predictions.eps_neg
        return cfg(predictions.eps_cond, second, self.guidance_scale)

    def residual(self, predictions: Parts, eps: Noises) -> Tensor:  # type: ignore[override]
        # c_y eps_y + c_n eps_n + c_0 eps_0 + c_e eps
        row, (_, eps_cond, eps_neg, eps_null, _) = predictions.row, predictions
        of_prompts = row.prompt * eps_cond + row.negative * eps_neg + row.null * eps_null
        return of_prompts + row.noise * eps
