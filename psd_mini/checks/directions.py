"""The direction of a gradient: methods, and the tables of their slips.

    G = w(t) sign ( row of PREDICTIONS + row of SUBTRACTED )

or x minus a target, and a row of PLACES says whether x or x_t stands there.

Rows are formulas: eps stands for the noise that is in x_t, mean_eps for the mean of the noises of a
pair, another_noise for one that is in no x_t, eps_q for q's prediction, x for the picture. Each
noised version of the picture has a size of its own, w(t) times its weight; least squares finds it.

Sources of the methods: DreamFusion, arXiv 2209.14988, eq. 3; CSD, arXiv 2310.19415, eq. 9;
ProlificDreamer, arXiv 2305.16213, eq. 10.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from psd_mini.checks.reading import Group, Reading, Terms
from psd_mini.checks.tables import Row, Rows, Table, fewest_slips, formulas, slips_of


@dataclass(frozen=True)
class Method:
    """What is right: a row of PREDICTIONS, a row of SUBTRACTED.

    name: "SDS". equation: shown with a mistake. words: for the name of a row, of another method,
    or for "predictions" in general, what it means that this came instead; for "size", what comes
    before the cause of a wrong one. others: rows of its own, tried before those of SUBTRACTED.
    places: its own table in place of PLACES.
    """

    name: str
    equation: str
    predictions: str
    subtracted: str
    words: Mapping[str, str] = field(default_factory=dict)
    others: Rows = ()
    places: Rows = ()


GUIDED, DIFFERENCE = "uncond + g (cond - uncond)", "cond - uncond"
NO_Q = "q's prediction does not appear: is the pretrained network used for both?"
SDS_METHOD = Method("SDS", f"G = w(t) ({GUIDED} - eps)", GUIDED, "- eps")
SDS_NOT_CSD = "the noise is subtracted: this is SDS; CSD is the difference of two predictions"
CSD_WORDS = {"SDS": SDS_NOT_CSD, "predictions": "CSD is the difference cond - uncond alone"}
CSD_METHOD = Method("CSD", f"G = w(t) ({DIFFERENCE})", DIFFERENCE, "nothing", words=CSD_WORDS)
SDS_NOT_VSD = "the noise is subtracted instead of q's prediction: this is SDS, not VSD"
VSD_WORDS = {"SDS": SDS_NOT_VSD, "CSD": NO_Q, "nothing": NO_Q}
VSD_METHOD = Method("VSD", f"G = w(t) ({GUIDED} - eps_q)", GUIDED, "- eps_q", words=VSD_WORDS)
CFG_WORDS = {  # there is no w(t) in a prediction
    "CSD": "only the difference cond - uncond is used",
    "size": "guidance must be linear in the two predictions (was it rescaled?): ",
}
CFG_EQUATION = "eps_hat = eps_neg + g (eps_cond - eps_neg)"
CFG_METHOD = Method("classifier-free guidance", CFG_EQUATION, GUIDED, "nothing", words=CFG_WORDS)
METHODS = [SDS_METHOD, CSD_METHOD, VSD_METHOD]

S_PLUS_1 = "your scale acts as g + 1 (DreamFusion's convention, s+1): start from uncond, not cond"
CHUNKS = (
    "cond and uncond are swapped (order of the chunks?): flipped guidance, away from the prompt"
)
# what gradients are made of: the labels of `reading`, and the noises of other x_t
LABELS = (
    *("cond", "uncond", "eps_q", "eps", "another_noise", "x"),
    *("mean_eps", "first_eps", "next_eps"),
)
VECTORS = dict(zip(LABELS, torch.eye(len(LABELS), dtype=torch.float64), strict=True))
COND, UNCOND, Q, EPS, OTHER, X, *_ = VECTORS.values()
VECTORS["nothing"] = NOTHING = 0 * X
OWN_GUIDANCE = "guidance"  # the numbers say the rest
# what is said where another row was expected; of the method's own row nothing is said
PREDICTION_FORMULAS = {  # of the guidance scale g: the combination of predictions
    GUIDED: "the predictions are guided",
    DIFFERENCE: "only the difference cond - uncond is used",
    "cond + g (cond - uncond)": S_PLUS_1,
    "cond + g (uncond - cond)": CHUNKS,
    "uncond - g (cond - uncond)": "flipped guidance sign: it goes away from the prompt",
    "cond": "the guidance scale is ignored: this is the conditional prediction, g = 1",
    "uncond": "only the unconditional prediction is used: the prompt has no influence",
    "g (cond - uncond)": "the unconditional prediction in front is missing",
    "(g - 1) cond + (2 - g) uncond": "the scale behaves as s-1: g - 1 was taken for g",
}
PREDICTIONS = [
    *formulas("g", PREDICTION_FORMULAS, VECTORS),
    # any guidance, and any combination at all
    Row("guidance of its own", lambda g: UNCOND, OWN_GUIDANCE, 1.5, lambda g: [COND - UNCOND]),
    Row("another combination", lambda g: NOTHING, OWN_GUIDANCE, 2, lambda g: [COND, UNCOND]),
]

ALONE = "the noise is not subtracted: G is the noise prediction alone (same mean, other variance)"
NO_ALPHA = "it contains the picture itself: x0_hat is not divided by alpha_t"
NO_ROOTS = "it contains the picture itself: x0_hat is made with abar_t, its square root is missing"
BESIDE_Q = "the noise appears beside q's prediction: VSD subtracts q's prediction only"
RAW = "the noise is not subtracted in the preference term: raw form, eps_hat of winner minus loser"
SIZE_OF_NOISE = "the noise has another size than the predictions beside it"
SIZE_OF_Q = "q's prediction has another size than the guided prediction"
OTHER_TERM = "what is subtracted from the predictions is another term, or of another size"


# as above: "- eps" is right for SDS and wrong for CSD
SUBTRACTED_FORMULAS = {  # of alpha, sigma and g: what is subtracted from the predictions
    "- eps": "the noise is subtracted",
    "- eps_q": "q's prediction is subtracted",
    "- mean_eps": RAW,
    "nothing": ALONE,
    "+ eps": "the noise is added instead of subtracted",
    "+ eps_q": "the second prediction is added instead of subtracted",
    "- another_noise": "the noise was redrawn: the one that is subtracted is not the one in x_t",
    "- 2 eps": "the noise is subtracted twice: it stands in the gradient with the factor 2",
    "- g eps": "the noise is multiplied by g: it stands inside the guidance, and belongs outside",
    "- g eps_q": "q's prediction is multiplied by g: it belongs outside of the guidance",
    "- first_eps": "the first noise is subtracted from both predictions: each has its own",
    "- next_eps": "the noises of the pair are swapped: each belongs to its own prediction",
    "- cond": "eps_cond is subtracted where another belongs: is the same network used for both?",
    "- x": "it contains the picture itself: x is subtracted where the noise belongs",
    # (x - x0_hat) alpha / sigma with a wrong x0_hat: (x_t - eps_hat) / alpha,
    # x_t - sigma eps_hat, or (x_t - sigma^2 eps_hat) / alpha^2
    "- sigma eps": "the noise carries a sigma_t, the prediction none: x0_hat without its sigma_t?",
    "- eps + (1 - alpha) / sigma x": NO_ALPHA,
    "- alpha / sigma eps - alpha (1 - alpha) / sigma^2 x": NO_ROOTS,
    # of v = alpha eps - sigma x, with (alpha v + sigma x_t) or (alpha eps_hat - sigma x_t)
    "- alpha eps + sigma x": "the prediction is taken for a velocity (v_prediction): it is a noise",
    "- (1 + sigma^2) / alpha eps - sigma x": "the noise is subtracted from a velocity",
}
SUBTRACTED = [
    *formulas("alpha, sigma, g", SUBTRACTED_FORMULAS, VECTORS),
    Row("- k eps", lambda a, s, g: NOTHING, SIZE_OF_NOISE, 1.25, lambda a, s, g: [EPS]),
    Row("- k eps_q", lambda a, s, g: NOTHING, SIZE_OF_Q, 1.25, lambda a, s, g: [Q]),
    Row("- eps_q - eps", lambda a, s, g: NOTHING, BESIDE_Q, 1.5, lambda a, s, g: [Q, EPS]),
    Row("another term", lambda a, s, g: NOTHING, OTHER_TERM, 2, lambda a, s, g: [Q, EPS, OTHER]),
]

AT_X_T = "the residual is taken at x_t instead of x: the target is made of x_t, so x - x_t enters"
WITH_X = "it contains the picture itself: x0_hat or the target is not what it should be"
PLACES = [  # of alpha_t and sigma_t: where the residual is taken; free is what else enters
    Row("at x", lambda a, s: NOTHING),
    # x - x_t = (1 - a) x - s eps
    Row("at x_t", lambda a, s: NOTHING, AT_X_T, 1, lambda a, s: [(1 - a) * X - s * EPS]),
    Row("with x", lambda a, s: NOTHING, WITH_X, 2, lambda a, s: [X]),
]
ASCENT = "the sign is flipped: descent along it would climb (ascent)"
SIGNS = [Row("descent", lambda: 1), Row("ascent", lambda: -1, ASCENT)]


def coefficients(rows: Sequence[Row], g: float, a: float, s: float) -> Tensor:
    """What rows of (PREDICTIONS, SUBTRACTED, PLACES) bring together for one x_t, by LABELS."""
    predictions, subtracted, place = rows[:3]
    return predictions.value(g) + subtracted.value(a, s, g) + place.value(a, s)


def _noised(label: str, number: int, groups: list[Group]) -> list[Group]:
    """Whose noises a label means at the x_t of this number."""
    if label == "mean_eps":
        return groups
    return [groups[{"eps": number, "first_eps": 0, "next_eps": number - 1}[label]]]


def _placed(reading: Reading, parts: Mapping[int, Tensor]) -> Terms:
    """Coefficients (by LABELS) of each x_t, by its number, as terms of the whole picture."""
    terms: Terms = defaultdict(float)
    for number, row in parts.items():
        for label, value in zip(LABELS, row.tolist(), strict=True):
            if value == 0:
                continue
            if label.endswith("eps"):
                noised = _noised(label, number, reading.groups)
                for group in noised:  # without any noise in x_t, the one that was drawn
                    key = ("another_noise", 0) if group.eps is None else ("eps", group.noise)
                    terms[key] += value * group.ratio / len(noised)
            else:
                terms[label, 0 if label in ("another_noise", "x") else number] += value
    return terms


def fit_rows(
    reading: Reading, rows: Sequence[Row], tolerance: float = math.inf
) -> list[float] | None:
    """Least squares of a picture's terms by one row each of PREDICTIONS, SUBTRACTED, PLACES.

    Returns:
        The size of the gradient of every noised version. None where the rows bring nothing that
        could have a size, or where more is left than `tolerance`, in units of the largest size.
    """
    predictions, subtracted, place = rows[:3]
    columns: list[Terms] = []
    free: list[Terms] = []
    entering, g = dict[int, Tensor](), reading.g
    for i, group in enumerate(reading.groups):
        a, s = group.a, group.s
        columns.append(_placed(reading, {i: coefficients(rows, g, a, s)}))
        for parts in (*predictions.free(g), *subtracted.free(a, s, g)):
            free.append(_placed(reading, {i: parts}))
        for parts in place.free(a, s):
            entering[i] = parts
    if not columns or not all(columns):
        return None
    n, columns = len(columns), [*columns, *free, _placed(reading, entering)]
    keys = list(dict.fromkeys([*reading.terms, *(key for column in columns for key in column)]))
    matrix = torch.tensor([[c.get(key, 0.0) for c in columns] for key in keys]).double()
    target = torch.tensor([reading.terms.get(key, 0.0) for key in keys]).double()
    found = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0]
    # guided predictions come with coefficients of g
    units = torch.tensor([1 + abs(g) * (k in ("cond", "uncond")) for k, _ in keys])
    largest = found[:n].abs().max().clamp(min=1e-30)
    rest = ((matrix @ found - target).abs() / units / largest).max().item()
    return found[:n].tolist() if rest <= tolerance else None


def tables_of(method: Method) -> list[Table]:
    """The four tables with the words of this method: its own rows are right."""
    general = method.words.get("predictions", "")
    predictions = _worded(PREDICTIONS, method.predictions, method.words, general)
    subtracted = _worded(SUBTRACTED, method.subtracted, method.words, "")
    return [predictions, [*method.others, *subtracted], method.places or PLACES, SIGNS]


def _worded(table: Table, right: str, words: Mapping[str, str], general: str) -> list[Row]:
    rows = []
    for row in table:
        cause = words.get(row.name) or general or row.cause
        rows.append(row._replace(cause="" if row.name == right else cause))
    return rows


def right_rows(method: Method) -> Rows:
    """What is right for a method: a row of each of the four tables."""
    return tuple(next(row for row in table if not row.cause) for table in tables_of(method))


def explain_direction(
    method: Method, readings: Sequence[Reading], tolerance: float, signed: bool = True
) -> Rows | None:
    """The rows of the four tables, with the fewest slips, that give all these gradients.

    Every weight is free but for its sign; of a pair (signed=False) the sign is free too. None where
    no rows fit.
    """

    def fits(*rows: Row) -> bool:
        sign = rows[3].value()
        for reading in readings:
            weights = fit_rows(reading, rows, tolerance)
            if weights is None:
                return False
            towards = [sign * weight for weight in weights]
            if signed and min(towards) < -tolerance * max(towards):
                return False
        return True

    tables = tables_of(method)
    rows = fewest_slips(tables if signed else [*tables[:3], SIGNS[:1]], fits)
    if signed and (rows is None or slips_of(rows) >= 1):
        for other in METHODS:  # the right rows of another method are one slip
            predictions, subtracted, *rest = right_rows(other)
            if other.name != method.name and fits(predictions, subtracted, *rest):
                words = method.words.get(other.name, f"this is {other.name}, not {method.name}")
                return predictions, subtracted._replace(cause=words), *rest
    return rows


def reference(method: Method, reading: Reading, weights: Sequence[float]) -> Tensor:
    """The exact gradient of one picture at the x_t that it asked about, up to a positive factor.

    weights: of its noised versions.
    """
    total, rows = torch.zeros_like(reading.x), right_rows(method)
    for group, weight in zip(reading.groups, weights, strict=True):
        parts = coefficients(rows, reading.g, group.a, group.s).tolist()
        for label, value in zip(LABELS, parts, strict=True):
            if value:
                total += weight * value * (reading.x if label == "x" else group.vector(label))
    return total
