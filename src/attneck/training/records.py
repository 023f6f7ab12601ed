"""A run's records, one for each time that the held-out images were scored: as lines of JSON, and a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attneck.errors import UserError, one_line
from attneck.files import number, strict, write_atomic, write_csv

Record = dict[str, Any]
"""`epoch`, `step`, means of training since the last, and scores of the held-out images."""
RECORDS = "metrics.jsonl"
"""Their file in a run's folder."""
TABLE = "metrics.csv"
"""They again, as a table that any spreadsheet opens."""


def write_records(folder: Path, records: Sequence[Record]) -> None:
    """All of them, in place of those that are there.

    The table has a row a record, its columns in the records' own order; a score that a record doesn't have
    leaves its field empty.

    Raises:
        NotWritten: the file stays as it was.
    """
    write_atomic(folder / RECORDS, "".join(json.dumps(strict(record)) + "\n" for record in records).encode())
    columns = list(dict.fromkeys(name for record in records for name in record))
    write_csv(folder / TABLE, [columns, *([record.get(name) for name in columns] for record in records)])


def read_records(folder: Path) -> list[Record]:
    """Those so far, none before the first.

    Raises:
        UserError: a file that cannot be read, or with lines that are no records.
    """
    file = folder / RECORDS
    try:
        records = [json.loads(line) for line in file.read_bytes().splitlines()]
        for record in records:
            int(record["step"]), float(record["epoch"])
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"{file} is damaged ({type(error).__name__}: {one_line(error, 80)}): it is written anew when the "
            "run goes on (--resume)"
        ) from None
    return [{name: number(value) for name, value in record.items()} for record in records]
