"""Images that cannot be read and are left out of training: counted over all processes, and bounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from attneck.data.readers.decode import ImageTooLarge, UnreadableImage
from attneck.errors import say, shown_path

T = TypeVar("T")

SHARE = 0.01
"""Of a set's images that may be left out; one always may."""


def skips(on_bad_image: str) -> bool:
    """True for "skip", False for "stop"; ValueError for anything else."""
    if on_bad_image not in ("stop", "skip"):
        raise ValueError(f"on_bad_image is {on_bad_image!r}: choose stop or skip")
    return on_bad_image == "skip"


class Skipped:
    """The images of a set that were found unreadable by any worker so far.

    Another image takes the place of such a one, always the same one: which images a step sees depends on the
    files alone, not on the number of workers or on where training was resumed.

    Args:
        count: images in the set.
        file: the path of each.
    """

    def __init__(self, count: int, file: Callable[[int], str]) -> None:
        self.file = file
        self._marks = torch.zeros(count, dtype=torch.bool).share_memory_()  # workers write into it
        self._kept: Path | None = None
        self._strange: set[bytes] = set()

    def keep(self, file: Path) -> None:
        """Mark the images that `file` names, those of the starts before, and name there what is found.

        What it names elsewhere, as before the data was moved, is no image of this set: it does not count.
        """
        self._kept = file
        with suppress(OSError):  # nothing was found before
            known = {*file.read_bytes().splitlines()}
            self._strange = {*known}
            for index in range(len(self._marks) if known else 0):
                if (line := json.dumps(self.file(index)).encode()) in known:
                    self._marks[index] = True
                    self._strange.discard(line)

    def _told(self) -> int:
        """How many all processes of a run have found, by the file that they keep them in."""
        try:
            return 0 if self._kept is None else len({*self._kept.read_bytes().splitlines()} - self._strange)
        except OSError:
            return 0

    def files(self) -> list[str]:
        """The paths of those that were left out."""
        return [self.file(int(index)) for index in self._marks.nonzero()[:, 0]]

    def first(self, candidates: Iterable[int], read: Callable[[int], T]) -> T:
        """What `read` gives of the first candidate that it can read; a line on stderr for the others.

        Raises UnreadableImage where they are more than SHARE of the set, or all candidates; ImageTooLarge
        always, since another limit would change what is trained on.
        """
        for index in candidates:
            if self._marks[index]:
                continue
            try:
                return read(index)
            except ImageTooLarge:
                raise
            except UnreadableImage as error:
                self._marks[index] = True
                with suppress(OSError):  # what is not kept is found again
                    if self._kept is not None:
                        with self._kept.open("a") as kept:
                            kept.write(f"{json.dumps(self.file(index))}\n")
                found, count = max(int(self._marks.sum()), self._told()), len(self._marks)
                if found > max(1, int(SHARE * count)):
                    raise UnreadableImage(
                        f"{error} ({found} of {count} images cannot be read: over {SHARE:.0%} is not skipped)"
                    ) from None
                say(f"skipped: {error}")
        raise UnreadableImage(f"{self.file(index)}: neither it nor any that could take its place can be read")


def summary_of(files: Collection[str]) -> str:
    """How many were left out, and which first."""
    first = ", ".join(map(shown_path, sorted(files)[:3]))
    return f"images skipped in training: {len(files)} ({first}{', …' * (len(files) > 3)})"
