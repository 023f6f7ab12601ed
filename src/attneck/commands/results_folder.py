"""Folders that commands write results into: new or empty, so that nothing that is there is written to."""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from itertools import count
from pathlib import Path

from attneck.errors import UserError, shown_path
from attneck.files import numbered

LONGEST_NAME = 200
"""Bytes of a file's name without its ending; file systems take 255."""


def folder_for(run: Path, name: str, out: Path | None) -> Path:
    """`out`, which must be new or empty, or a new folder in the run's: `name`, `name`-2 and so on.

    Raises UserError where there can be none, and for an `out` with something in it.
    """
    folder = run / name if out is None else out
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            if any(out.iterdir()):
                raise UserError(
                    f"--out {shown_path(out)} has files in it, and nothing that is there is written to: give "
                    f"a new folder, such as {shown_path(out / name)}"
                )
            return out
        for folder in map(run.joinpath, numbered(name)):
            with suppress(FileExistsError):
                folder.mkdir()  # of two that start at once one makes it
                break
        return folder
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown_path(folder)}: {reason}: give another folder in --out") from None


def free_name(stem: str, taken: dict[str, int]) -> str:
    """A picture's name: its image's, with a number where one of `taken` has that; notes it there.

    Names that differ in capitals or in how an accent is encoded are one file on some systems.
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    raw = os.fsencode(stem)
    if len(raw) > LONGEST_NAME:
        stem = raw[:LONGEST_NAME].decode(errors="ignore")
    for number in count(taken.get(key(stem), 0) + 1):
        name = stem if number == 1 else f"{stem}-{number}"
        if key(name) not in taken:
            taken[key(stem)] = number
            taken.setdefault(key(name), 1)
            return name
    raise AssertionError
