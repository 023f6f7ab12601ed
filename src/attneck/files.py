"""Files that are written whole or not at all; what can't be written ends in one line."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from math import isfinite, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from attneck.errors import RunFailed

_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room or ask for a larger quota",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that can be written",
    errno.EPERM: "choose a place that can be written",
    errno.EIO: "look after the disk",
    errno.ENOENT: "its folder is gone; choose one that stays",
    errno.EISDIR: "move that folder away",
    errno.EEXIST: "what is there was not written by this program: move it away",
    errno.ENAMETOOLONG: "choose a shorter name",
}

_unfinished: set[Path] = set()


class NotWritten(RunFailed, OSError):  # noqa: N818 - a run's end, as its base is
    """A file could not be written: one line with its path and what to do. Exit code 1."""

    def __init__(self, path: Path, cause: OSError | ValueError) -> None:
        why, advice = str(cause), "choose another name"  # a NUL in it
        if isinstance(cause, OSError):
            why, advice = cause.strerror or why, _ADVICE.get(cause.errno or 0, "choose another place")
        shown = ascii(str(path))[1:-1] if "\0" in str(path) else str(path)
        shown = shown if len(shown) <= 150 else f"{shown[:60]}…{shown[-60:]}"
        super().__init__(f"{shown} could not be written: {why}; {advice}")
        if isinstance(cause, OSError):
            self.errno, self.strerror, self.filename = cause.errno, cause.strerror, str(path)

    def __str__(self) -> str:
        return str(self.args[0])


def numbered(name: str) -> Iterator[str]:
    """name, name-2, name-3 and so on without end."""
    return (name if number == 1 else f"{name}-{number}" for number in count(1))


def told_apart(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many more as tell it from the others."""
    parts = [path.resolve().parts for path in paths]

    def name(own: tuple[str, ...]) -> str:
        ends = (own[-count:] for count in range(1, len(own) + 1))
        few = next((end for end in ends if sum(one[-len(end) :] == end for one in parts) == 1), own[-1:])
        return Path(*few).as_posix()

    return [name(own) for own in parts]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong as `path` is written, as `NotWritten`."""
    try:
        yield
    except NotWritten:
        raise
    except (OSError, ValueError) as error:
        raise NotWritten(path, error) from error


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`, whole or not at all, even if the machine stops meanwhile.

    A file that was there keeps its mode.

    Raises:
        NotWritten: what was there stays as it was.
    """
    with _aside(path) as aside:
        with aside.open("wb") as file:
            with suppress(OSError):  # none was there, or a file system that has no such modes
                shutil.copymode(path, aside)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)


def link_atomic(source: Path, path: Path) -> None:
    """Make `path` another name of the file `source`, or a copy where the file system has no hard links.

    Raises:
        NotWritten: what was there stays as it was.
    """
    with _aside(path) as aside:
        aside.unlink(missing_ok=True)
        try:
            os.link(source, aside)
        except OSError:
            write_atomic(path, source.read_bytes())
        else:
            os.replace(aside, path)  # leaves both names where they are one file already
            _sync_folder(path.parent)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as `write_atomic` does: UTF-8, what is no text of a file's name escaped.

    Raises:
        NotWritten: what was there stays as it was.
    """
    lines: list[str] = []
    # Before Python 3.13 a \r is quoted only where it is a part of the line's end.
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n").writerows(rows)
    text = "".join(f"{line[:-2]}\n" for line in lines)
    write_atomic(path, text.encode(errors="backslashreplace"))


def strict(content: Any) -> Any:
    """`content` with None for each number that is not finite, which Python writes and JSON does not have."""
    if isinstance(content, dict):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    return None if isinstance(content, float) and not isfinite(content) else content


def number(value: Any) -> Any:
    """NaN where `strict` wrote None; all else as it is."""
    return nan if value is None else value


def write_json(path: Path, content: object) -> None:
    """Write as `write_atomic` does, `strict`, and in ASCII: a file's name may be no text.

    Raises:
        NotWritten: what was there stays as it was.
    """
    write_atomic(path, (json.dumps(strict(content), indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it is missing, cannot be read or holds anything else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A name beside `path` for what becomes it; nothing stays there. Faults are `NotWritten`."""
    with writing(path):
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        _unfinished.add(aside)
        try:
            yield aside
        finally:
            with suppress(OSError, ValueError):  # what broke the write may break this; it is said already
                aside.unlink(missing_ok=True)
            _unfinished.discard(aside)


def _sync_folder(folder: Path) -> None:
    """A rename in it lasts from then on."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems of shared folders have none of it
            raise
    finally:
        os.close(opened)


def remove_unfinished() -> None:
    """Removes what this process is writing just now; for one that ends at once, from another thread."""
    for path in tuple(_unfinished):
        with suppress(OSError):
            path.unlink(missing_ok=True)
