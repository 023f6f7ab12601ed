"""A run's records as a table that any spreadsheet opens."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from attneck.files import write_atomic
from attneck.training.records import Record

CSV = "metrics.csv"
"""The file in a run's folder."""


def write_csv(folder: Path, history: Sequence[Record]) -> None:
    """Write `metrics.csv` whole, as RFC 4180 has it: a row a record, its columns in the records' own order.

    A score that a record doesn't have leaves its field empty.

    Raises:
        NotWritten: what was there stays as it was.
    """
    columns = list(dict.fromkeys(name for record in history for name in record))
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, columns, lineterminator="\r\n")
    rows.writeheader()
    rows.writerows(history)
    write_atomic(folder / CSV, text.getvalue().encode())
