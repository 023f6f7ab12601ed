"""What an evaluation says class by class: words for the screen, tables in CSV, and a picture."""

from __future__ import annotations

from pathlib import Path
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


def told(evaluation: Evaluation) -> str:
    """The worst classes first, all of up to ALL; then the pairs that are confused most often."""
    heads, rows = class_table(evaluation)
    there = sorted((row for row in rows if row[2] is not None), key=lambda row: row[2])
    lines: list[Row] = [*there]
    if len(there) > ALL:
        lines = [*there[:WORST], ["…", *[""] * (len(heads) - 1)], *there[-BEST:]]
    cells = [[_cell(cell) for cell in row] for row in lines]
    parts = [_aligned([heads, *cells])] if lines else []
    if missing := len(rows) - len(there):
        parts.append(f"classes with nothing to score: {missing}")
    confusion = evaluation.confusion
    if confusion is not None and (pairs := confusion.pairs()):
        totals = {row[0]: row[1] for row in rows}
        names = [(confusion.classes[label], confusion.classes[other], n) for label, other, n in pairs[:PAIRS]]
        table = [[f"{name} → {other}", f"{times} of {totals[name]}"] for name, other, times in names]
        more = f", {PAIRS} of {len(pairs):,} pairs" if len(pairs) > PAIRS else ""
        parts.append(f"most confused (is → taken for{more})\n{_aligned(table)}")
    return "\n\n".join(parts)


def write_details(folder: Path, evaluation: Evaluation, title: str) -> list[Path]:
    """per-class.csv, and of a classifier confusion.csv and .png, of a detector pr-curves.png.

    Raises NotWritten where they cannot be written.
    """
    from attneck.files import write_csv
    from attneck.runs.pictures import evaluation_picture

    heads, rows = class_table(evaluation)
    table = folder / "per-class.csv"
    write_csv(table, [heads, *([_cell(cell, "") for cell in row] for row in rows)])
    files = [table]
    confusion = evaluation.confusion
    if confusion is not None and (counts := confusion.counts()) is not None:
        files.append(folder / "confusion.csv")
        named = zip(confusion.classes, counts.tolist(), strict=True)
        write_csv(
            files[-1], [["is \\ taken for", *confusion.classes], *([name, *row] for name, row in named)]
        )
    return files + evaluation_picture(folder, evaluation, title)


def _cell(cell: Any, nothing: str = "–") -> str:
    return nothing if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def _aligned(table: list[Row]) -> str:
    """Words to the left, figures to the right."""
    columns = [*zip(*table, strict=True)]
    left = [all(not cell[:1].isdigit() for cell in column[1:]) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if words else cell.rjust(width)
            for cell, width, words in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in table
    )
