"""How well scores order the images of two classes, wherever a threshold would stand."""

from __future__ import annotations

from collections.abc import Sequence


def area(scores: Sequence[float], labels: Sequence[int]) -> float | None:
    """The area under the ROC curve, in per cent: how often an image of class 1 scores above one of class 0.

    A tie counts a half. Scores and labels, 0 or 1, are of the same images, in one order; None where a class
    has no image.
    """
    from scipy.stats import mannwhitneyu

    zeros, ones = ([score for score, label in zip(scores, labels, strict=True) if label == k] for k in (0, 1))
    if not ones or not zeros:
        return None
    return float(100 * mannwhitneyu(ones, zeros).statistic / (len(ones) * len(zeros)))
