"""An evaluation class by class, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attneck.tasks.task import Evaluation

ALL, WORST, BEST, PAIRS = 20, 10, 5, 10
"""Classes up to which all are shown, else so many of the worst and best; and confused pairs."""

Row = list[Any]


def class_table(evaluation: Evaluation) -> tuple[list[str], list[Row]]:
    """Names of columns, and a row for each class; the third column is what classes are ordered by.

    Of a classifier class, images, accuracy in per cent, right, most_taken_for, times; of a detector class,
    objects, and AP in per cent of boxes, and masks. None where a class has none.
    """
    if evaluation.confusion is not None:
        heads = ["class", "images", "accuracy", "right", "most_taken_for", "times"]
        found = evaluation.confusion.by_class()
        return heads, [
            [row.name, row.images, row.accuracy, row.right, row.taken_for, row.times] for row in found
        ]
    curves = evaluation.curves or {}
    heads = ["class", "objects", *(f"AP_{kind}" for kind in curves)]
    rows = [
        [of_class[0].name, of_class[0].objects, *(100 * one.ap if one.ap >= 0 else None for one in of_class)]
        for of_class in zip(*curves.values(), strict=True)
    ]
    return heads, rows
