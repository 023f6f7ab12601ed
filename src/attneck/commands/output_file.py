"""A file that a command is asked to write: whether it can, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from attneck.errors import UserError, shown_path
from attneck.files import numbered

PICTURES = (".png", ".svg", ".pdf")


def check_output(flag: str, path: Path, endings: Sequence[str]) -> None:
    """Raises UserError for another ending, a folder, and a file in no folder or in one that takes none.

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
    try:
        with TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {shown_path(path)}: nothing can be written there ({error.strerror}); give another place"
        ) from None


def picture_file(flag: str, given: Path | None, stem: str) -> Path:
    """The picture's path: as given, or `stem`.png here, with a number where that is taken.

    Raises UserError as `check_output`.
    """
    if given is None:
        return next(path for name in numbered(stem) if not (path := Path(f"{name}.png")).exists())
    check_output(flag, given, PICTURES)
    return given


def write_picture(figure: Any, file: Path) -> None:
    """As its ending says; whole or not at all."""
    from attneck.explain.vector import save

    save(figure, file, dpi=110, as_text=True)
