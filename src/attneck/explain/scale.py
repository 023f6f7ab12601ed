"""From which value to which the colours of a map go: one rule for the pictures, the reports and the page.

A scale that went from a map's least value to its greatest would show what is the same everywhere, up to a
hundredth, as strongly as a peak.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EVEN = 2
"""The scale of weights ends at so many times an even one at least, which then lies in its middle."""


def ends(unit: str, *maps: NDArray[np.floating], places: int = 1) -> tuple[float, float]:
    """The ends of the scale that these maps share.

    Args:
        unit: "gate", after a sigmoid: 0 to 1. "logit": as far below 0 as above, to what makes 0.27 and 0.73
            of a gate at least. "weight", of attention: from 0 to the greatest, or to EVEN / `places`. Of
            magnitudes and anything else: from 0 to the greatest.
        places: of the whole map, over which the weights sum to one.
    """
    if unit == "gate":
        return 0.0, 1.0
    greatest = max(float(each.max()) for each in maps)
    if unit == "logit":
        reach = max(1.0, greatest, *(-float(each.min()) for each in maps))
        return -reach, reach
    return 0.0, max(greatest, EVEN / places) if unit == "weight" else greatest


def told(low: float, high: float) -> tuple[str, str]:
    """The ends of a scale by two significant digits, or by so many more that they differ: 0.31, 45, −1.2.

    An end that is next to nothing beside the other one is 0.
    """
    least = 0.005 * (high - low)
    ends = [0.0 if abs(end) < least else end for end in (low, high)]
    for digits in (2, 3, 4, 2):
        words = [f"{end:.0f}" if abs(end) >= 100 else f"{end:.{digits}g}" for end in ends]
        if words[0] != words[1]:
            break
    return words[0].replace("-", "−"), words[1].replace("-", "−")


def span(values: NDArray[np.floating]) -> str:
    """From which value to which a map goes, in words."""
    least, most = told(float(values.min()), float(values.max()))
    return f"{least} everywhere" if least == most else f"{least} to {most}"
