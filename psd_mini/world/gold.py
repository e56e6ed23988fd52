"""Gold rewards: what the toy world's people truly want. No method ever calls them.

A method climbs a proxy, a network that was fitted to comparisons (`pretrained.proxy`). How far gold
rises with it, and where it falls although the proxy still rises, is the question of Gao et al.
Gold is a number of the finished object, so only the judge can give it:

    gold = value(colour of the recognised component)
           - DISTANCE_PENALTY max(0, true_view_distance - FREE_DISTANCE)

    smooth   value(r, g, b) = (w - min w) / (max w - min w) over the world's colours,
             w = r - 0.75 g - 0.5 b: warm colours, linear in RGB
    rugged   purple 1, green 6/7, yellow 5/7, gray 4/7, blue 3/7, orange 2/7, pink 1/7, red 0:
             neighbours in RGB may be worth the most and the least

Both are 1 for the best colour and 0 for the worst. The first term jumps where the judge changes
its mind about the colour; the second is continuous, and grows on the way there. The constants are
ours: fields that were fitted to the true views themselves have distances of 0.03 to 0.05.

Source: Gao, Schulman & Hilton 2022, "Scaling laws for reward model overoptimization" (arXiv
2210.10760); there gold is a larger network, here it is a formula.
"""

from __future__ import annotations

from psd_mini._internal.arguments import validated
from psd_mini.world.metrics import Judgement
from psd_mini.world.objects import COLOURS

RUGGED_ORDER = ("purple", "green", "yellow", "gray", "blue", "orange", "pink", "red")
DISTANCE_PENALTY = 5.0  # gold per unit of true_view_distance
FREE_DISTANCE = 0.05  # in [0, 1] units of the pictures


def smooth_values() -> dict[str, float]:
    """(w - min w) / (max w - min w) for each colour of the world, with w = r - 0.75 g - 0.5 b."""
    warmth = {colour: r - 0.75 * g - 0.5 * b for colour, (r, g, b) in COLOURS.items()}
    low, high = min(warmth.values()), max(warmth.values())
    return {colour: (w - low) / (high - low) for colour, w in warmth.items()}


# gold reward -> colour -> value
COLOUR_VALUES: dict[str, dict[str, float]] = {
    "smooth": smooth_values(),
    "rugged": {colour: 1 - rank / 7 for rank, colour in enumerate(RUGGED_ORDER)},
}


@validated
def gold_reward(judgement: Judgement, kind: str) -> float:
    """What a judged object is truly worth (equation: the module's docstring).

    Args:
        judgement: of `world.metrics.judge`.
        kind: "smooth" or "rugged".

    Returns:
        Gold, at most 1; below 0 for an object that looks like nothing.

    Raises:
        ValueError: another kind.
    """
    if kind not in COLOUR_VALUES:
        raise ValueError(f"kind: expected one of {', '.join(COLOUR_VALUES)}, got {kind!r}")
    value = COLOUR_VALUES[kind][judgement.recognised[1]]
    excess = max(0.0, judgement.true_view_distance - FREE_DISTANCE)
    return value - DISTANCE_PENALTY * excess
