"""Where runs lie: runs/NAME, runs/NAME-2 and so on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from attneck.errors import UserError


def next_folder(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, … that is not there."""
    return next(folder for folder in _folders(name) if not folder.exists())


def newest_folder(name: str) -> Path:
    """The last of runs/NAME, runs/NAME-2, … that is there.

    Raises:
        UserError: there is none.
    """
    newest = None
    for folder in _folders(name):
        if not folder.exists():
            break
        newest = folder
    if newest is None:
        raise UserError(
            f"there is no run runs/{name}: say where it is with --out, or start it without --resume"
        )
    return newest


def _folders(name: str) -> Iterator[Path]:
    return (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in count(1))
