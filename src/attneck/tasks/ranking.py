"""How well scores order the images of two classes, wherever a threshold would stand."""

from __future__ import annotations

from collections.abc import Sequence


def area(scores: Sequence[float], labels: Sequence[int]) -> float | None:
    """The area under the ROC curve, in per cent: how often an image of class 1 scores above one of class 0.

    A tie counts a half. Scores and labels, 0 or 1, are of the same images, in one order; None where a class
    has no image.
    """
    from scipy.stats import rankdata

    ones = sum(labels)
    zeros = len(labels) - ones
    if not ones or not zeros:
        return None
    ranks = rankdata(scores)  # from 1 on
    above = sum(rank for rank, label in zip(ranks, labels, strict=True) if label) - ones * (ones + 1) / 2
    return float(100 * above / (ones * zeros))
