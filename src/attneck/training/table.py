"""A run's records as a table that any spreadsheet opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attneck import files
from attneck.training.records import Record

CSV = "metrics.csv"
"""The file in a run's folder."""


def write_csv(folder: Path, history: Sequence[Record]) -> None:
    """Write `metrics.csv` whole: a row a record, its columns in the records' own order.

    A score that a record doesn't have leaves its field empty.

    Raises:
        NotWritten: what was there stays as it was.
    """
    columns = list(dict.fromkeys(name for record in history for name in record))
    rows = ([record.get(name) for name in columns] for record in history)
    files.write_csv(folder / CSV, [columns, *rows])
