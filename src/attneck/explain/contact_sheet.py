"""Contact sheets: many images small on a page, with a few words under each."""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from attneck.explain.fonts import fitting
from attneck.explain.palette import GREEN, VERMILION

SIDE, COLUMNS, ROWS = 144, 8, 6
"""Pixels of the longer side of a small image, and images a page."""
PAGES = 4
"""Pages at most, whatever the number of images."""

_MARGIN, _LINE, _TEXT, _FRAME = 8, 16, 12, 3
_COLOURS = {None: "#888888", True: GREEN, False: VERMILION}


class Tile(NamedTuple):
    """A small image and the words under it; `right` frames it in green or, where False, in red."""

    image: Image.Image
    lines: tuple[str, ...]
    right: bool | None = None


class Best:
    """The tiles with the least keys of any number, so many that PAGES pages are full."""

    def __init__(self, most: int = PAGES * COLUMNS * ROWS) -> None:
        self.most = most
        self.count = 0
        self._heap: list[tuple[Any, Any]] = []  # the greatest key first

    def wants(self, key: Sequence[float]) -> bool:
        """Whether a tile with that key would stay now."""
        return len(self._heap) < self.most or self._entry(key) > self._heap[0][0]

    def add(self, key: Sequence[float], tile: Tile) -> None:
        """One more; of equal keys the first stays."""
        entry = (self._entry(key), tile)
        self.count += 1
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, entry)
        elif entry[0] > self._heap[0][0]:
            heapq.heapreplace(self._heap, entry)

    def tiles(self) -> list[Tile]:
        """The least key first."""
        return [tile for _, tile in sorted(self._heap, key=lambda entry: entry[0], reverse=True)]

    def _entry(self, key: Sequence[float]) -> tuple[float, ...]:
        return (*(-part for part in key), -self.count)


def small(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A copy with a longer side of `side` pixels; tiny images are enlarged, their pixels left to be seen."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    return image.convert("RGB").resize(size, how, reducing_gap=2.0)


def pages(tiles: Sequence[Tile], title: str, side: int = SIDE, columns: int = COLUMNS) -> Iterator[bytes]:
    """PNGs of `columns` × ROWS tiles, whose images are `small(image, side)`, with a title on every one."""
    size = columns * ROWS
    for first in range(0, len(tiles), size):
        yield _page(tiles[first : first + size], title, side, columns)


def _page(tiles: Sequence[Tile], title: str, side: int, columns: int) -> bytes:
    lines = max(len(tile.lines) for tile in tiles)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    wide, high = side + 2 * _MARGIN, side + lines * _LINE + 2 * _MARGIN
    width = max(columns * wide, 480)
    page = Image.new("RGB", (width, rows * high + 2 * _LINE), "white")
    pen = ImageDraw.Draw(page)
    pen.text((_MARGIN, _LINE // 2), _cut(title, width - 2 * _MARGIN), "black", fitting(title, _TEXT))
    for number, tile in enumerate(tiles):
        left = number % columns * wide + _MARGIN
        top = number // columns * high + 2 * _LINE
        x, y = left + (side - tile.image.width) // 2, top + (side - tile.image.height) // 2
        frame = (
            x - _FRAME,
            y - _FRAME,
            x + tile.image.width + _FRAME - 1,
            y + tile.image.height + _FRAME - 1,
        )
        pen.rectangle(frame, _COLOURS[tile.right])
        page.paste(tile.image, (x, y))
        for line, words in enumerate(tile.lines):
            place = (left, top + side + _FRAME + 2 + line * _LINE)
            colour = _COLOURS[False] if tile.right is False else "black"
            pen.text(place, _cut(words, side), colour, fitting(words, _TEXT))
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def _cut(words: str, width: int) -> str:
    """As much as fits into so many pixels, without what breaks a line."""
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    font = fitting(words, _TEXT)
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(f"{words}…") > width:
        words = words[:-1]
    return f"{words}…"
