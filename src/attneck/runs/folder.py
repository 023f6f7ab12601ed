"""Where runs lie: runs/NAME, runs/NAME-2 and so on; and what is in the folder of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attneck.errors import UserError
from attneck.files import numbered

PICTURES = "pictures"
"""What the last evaluation said: classes, confused pairs, and the images of predictions.png."""


def take_folder(name: str) -> Path:
    """Make the first of runs/NAME, runs/NAME-2, … that is not there: who asks at the same time gets another.

    Raises:
        OSError: it cannot be made.
    """
    for folder in _folders(name):
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise AssertionError("there is no end of numbers")


def present(name: str) -> list[Path]:
    """Those of runs/NAME, runs/NAME-2, … that are there, the newest last."""
    found = []
    for folder in _folders(name):
        if not folder.exists():
            break
        found.append(folder)
    return found


def newest_folder(name: str) -> Path:
    """The last of `present`.

    Raises:
        UserError: there is none.
    """
    if found := present(name):
        return found[-1]
    raise UserError(f"there is no run runs/{name}: say where it is with --out, or start it without --resume")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What goes wrong in making or writing the folder is the user's to mend: UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}: give --out a folder that can be made and written"
        ) from error
    except ValueError as error:
        raise UserError(f"--out {str(folder)!r}: {error}: give the name of a folder") from error


def _folders(name: str) -> Iterator[Path]:
    return map(Path("runs").joinpath, numbered(name))
