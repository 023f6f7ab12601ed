"""The images that a command's words name, files, folders at any depth and globs, and their classes."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import partial
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from attneck.errors import UserError, say, shown_path


class Given(NamedTuple):
    """An image's path as it was given or found, and its path from the folder that was given; a file's own."""

    path: str
    inside: str

    def label(self, classes: Collection[str]) -> str | None:
        """Its class, where it lies in a folder of that name: the outermost one of the given folder's.

        Its letters may be in another Unicode form: macOS takes them apart.
        """
        parts = Path(self.inside).parts[:-1]
        if (same := next((part for part in parts if part in classes), None)) is not None:
            return same
        if all(part.isascii() for part in parts):
            return None
        known = {normalize("NFC", name): name for name in classes}
        return next((known[part] for part in map(partial(normalize, "NFC"), parts) if part in known), None)


def given_images(words: Sequence[Path], max_pixels: int | None) -> list[Given]:
    """The images of files, folders and globs, those of a folder sorted; none is decoded.

    Of a folder's files those are taken whose name ends as an image's does; the rest is said in a line.

    Raises UserError for what is no image, is given twice, or a folder or glob without any.
    """
    from attneck.data.readers.decode import look_at

    found = [image for word in words for image in _expanded(word)]
    seen: set[str] = set()
    for path, _ in found:
        look_at(path, "predict", max_pixels)
        if os.path.abspath(path) in seen:
            raise UserError(f"{shown_path(path)} is given twice: give each image once")
        seen.add(os.path.abspath(path))
    return found


def _expanded(word: Path) -> list[Given]:
    """What one word stands for: a file or folder of that very name, or else a glob."""
    if not os.path.lexists(word) and has_magic(str(word)):
        there = [Path(path) for path in sorted(glob(str(word), recursive=True))]
        plain = [*takewhile(lambda part: not has_magic(part), word.parts)]
        base = Path(*plain)  # what is searched
        # With ** a folder's files are there by themselves.
        if found := [
            image if path.is_dir() else image._replace(inside=str(Path(_name(base), path.relative_to(base))))
            for path in there
            if not path.is_dir() or "**" not in str(word)
            for image in _at(path)
        ]:
            return found
        raise UserError(
            f"{shown_path(word)}: no image has such a name (where it has *, ? or [, it is a pattern)"
        )
    return _at(word)


def _at(path: Path) -> list[Given]:
    from attneck.data.readers.decode import SUFFIXES
    from attneck.data.readers.tree import files_under

    if not path.is_dir():
        return [Given(str(path), str(Path(_name(path.parent), path.name)))]
    names, left = files_under(path)
    if not names:
        raise UserError(f"{shown_path(path)} is a folder without images ({' '.join(SUFFIXES)}): give another")
    if line := left.line():
        say(f"not read in {shown_path(path)}: {line}")
    return [Given(str(path / name), str(Path(_name(path), name))) for name in names]


def _name(folder: Path) -> str:
    """Its own name, of . and .. too."""
    return os.path.basename(os.path.abspath(folder))
