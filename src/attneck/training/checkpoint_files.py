"""The files of a run's checkpoints by their names: without torch, for whoever only looks."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from attneck.errors import UserError

NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})\.pt")
BEST = re.compile(r"best-([0-9]{8}|[1-9][0-9]{8,17})\.pt")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that have their sum, newest step first."""
    return [path for path in named(folder) if is_file(path) and is_file(sum_of(path))]


def named(folder: Path, name: re.Pattern[str] = NAME) -> list[Path]:
    """What has a checkpoint's name, newest step first."""
    try:
        found = [path for path in folder.iterdir() if name.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:  # a loop, a folder that may not be read, a NUL in its name
        raise UserError(
            f"{str(folder)[:150]!r} cannot be read: {getattr(error, 'strerror', error)}"
        ) from None
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name[5:-3])


def is_file(path: Path) -> bool:
    """A file itself, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def sum_of(path: Path) -> Path:
    """Where a checkpoint's SHA-256 is."""
    return path.with_name(f"{path.name}.sha256")
