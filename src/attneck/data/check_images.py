"""Reads every image of a list, many at a time, and says which cannot be read."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from attneck.data.readers.decode import UnreadableImage, decode
from attneck.data.readers.shards import Place

THREADS = min(32, os.cpu_count() or 1)
"""Pillow's decoders let other threads run meanwhile."""


class Reading:
    """Goes over files in their order: of each None, or the line that says why it cannot be read.

    As many images as THREADS are in memory at a time.

    Args:
        paths: of the images.
        name: the data set's, for the lines.
        max_pixels: see `decode`.
    """

    def __init__(self, paths: Sequence[Place], name: str, max_pixels: int | None = None) -> None:
        self.paths, self.name, self.max_pixels = paths, name, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[str | None]:
        ahead: deque[Future[str | None]] = deque()
        with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
            warnings.simplefilter("ignore")  # each thread sets and takes back what is the program's own
            for path in self.paths:
                ahead.append(pool.submit(self._problem, path))
                if len(ahead) > 4 * THREADS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _problem(self, path: Place) -> str | None:
        try:
            decode(path, self.name, self.max_pixels)
        except UnreadableImage as error:
            return str(error)
        return None
