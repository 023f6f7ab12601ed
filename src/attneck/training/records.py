"""A run's records, one for each time that the held-out images were scored: a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attneck.errors import UserError, one_line
from attneck.files import write_atomic

Record = dict[str, Any]
"""`epoch`, `step`, means of training since the last, and scores of the held-out images."""
RECORDS = "metrics.jsonl"
"""Their file in a run's folder."""


def write_records(folder: Path, records: Sequence[Record]) -> None:
    """All of them, in place of those that are there."""
    write_atomic(folder / RECORDS, "".join(json.dumps(record) + "\n" for record in records).encode())


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
    return records
