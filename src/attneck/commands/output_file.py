"""A file that a command is asked to write: whether it can, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attneck.errors import UserError, shown_path

PICTURES = (".png", ".svg", ".pdf")


def check_output(flag: str, path: Path, endings: Sequence[str]) -> None:
    """Raises UserError for another ending, a folder, and a file in no folder.

    Args:
        flag: what it was given with, --save say.
    """
    if path.suffix.lower() not in endings or path.is_dir():
        *others, last = endings
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise UserError(f"{flag} {shown_path(path)}: wanted a file that ends in {wanted}")
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"{flag} {shown_path(path)}: there is no folder {shown_path(path.absolute().parent)}; make it "
            "first"
        )
