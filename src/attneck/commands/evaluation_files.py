"""What an evaluation says class by class: words for the screen, tables in CSV, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attneck.runs.class_table import ALL, BEST, PAIRS, WORST, Row, class_table

if TYPE_CHECKING:
    from attneck.tasks.task import Evaluation


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
