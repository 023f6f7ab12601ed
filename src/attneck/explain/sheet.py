"""Pictures laid out as tables: tiles with their own scale bars, by rows and columns that have names.

Lengths are in inches, placed by hand: a layout engine takes seconds for a hundred tiles.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from attneck.explain.palette import HEAT, VERMILION
from attneck.explain.photo import Window
from attneck.explain.plain import printable
from attneck.explain.scale import span, told

LIGHT = {"ink": "#1d2733", "soft": "#5b6875", "paper": "#ffffff"}
DARK = {"ink": "#e8edf2", "soft": "#9aa7b4", "paper": "#14181d"}
OPACITY = 0.7
"""How much of an overlay is the map, the rest the photo in grey."""
SHARP = 320
"""Pixels of a tile's longer side; more would not be seen."""
SMALL, TEXT, LARGE = 7, 8, 10.5
"""Points."""
LETTER = 0.0085
"""The width of a letter for each point of its size, in inches, on the safe side."""
LINE = 0.0195
"""The height of a line, likewise."""
GAP, BAR, HEADING = 0.12, 0.07, 0.25


@dataclass(frozen=True)
class Tile:
    """A map of values [H, W] with its scale bar.

    Attributes:
        unit: what the values are, under the bar.
        window: where they lie on the photo; None for a matrix by itself.
        limits: of the scale, the values that are seen being told under it; where None those of the values.
        cell: the (row, column) of the place that is asked about, outlined.
        note: a few words above it.
        ticks: of a matrix, the words at its first, middle and last row.
    """

    values: NDArray[np.floating]
    unit: str
    window: Window | None = None
    limits: tuple[float, float] | None = None
    cell: tuple[int, int] | None = None
    note: str = ""
    ticks: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Table:
    """Under a heading, tiles by rows and columns, each with its name; None where there is nothing."""

    heading: str
    rows: Sequence[str]
    columns: Sequence[str]
    tiles: Sequence[Sequence[Tile | None]]
    width: float = 1.15
    """Of a tile."""
    aspect: float | None = None
    """How many times as high as wide a tile is; the photo's where None."""

    @property
    def gutter(self) -> float:
        """What the names of the rows take."""
        return 0.1 + LETTER * TEXT * max(len(line) for name in self.rows for line in name.split("\n"))

    @property
    def bands(self) -> list[range]:
        """The columns, as evenly as may be in bands that are no wider than MAPS."""
        count = len(self.columns)
        most = max(1, int((MAPS - self.gutter + GAP) / (self.width + GAP)))
        size = ceil(count / ceil(count / most))
        return [range(count)[at : at + size] for at in range(0, count, size)]

    @property
    def noted(self) -> bool:
        return any(tile and tile.note for row in self.tiles for tile in row)

    def size(self, aspect: float) -> tuple[float, float]:
        """Width and height of all of it, where a photo is `aspect` times as high as wide."""
        across = self.gutter + len(self.bands[0]) * (self.width + GAP) - GAP
        down = HEADING + len(self.bands) * self.band(aspect)
        return max(across, LETTER * LARGE * len(self.heading)), down

    @property
    def head(self) -> float:
        """The height of the columns' names."""
        return 0.1 + LINE * TEXT * max(name.count("\n") + 1 for name in self.columns)

    def band(self, aspect: float) -> float:
        """The height of a band."""
        return self.head + len(self.rows) * self.pitch(aspect)

    def high(self, aspect: float) -> float:
        """The height of a tile."""
        return self.width * (self.aspect or aspect)

    def pitch(self, aspect: float) -> float:
        """From a row to the next."""
        return self.high(aspect) + BAR + 2.8 * LINE * SMALL + GAP + self.noted * LINE * SMALL


class Place(NamedTuple):
    """A place that is asked about, in the pixels of the photo that is drawn, and what it is called."""

    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Column:
    """All that is said of one model: a title, the photo in colour with lines under it, and maps."""

    title: str
    lines: Sequence[str]
    window: Window
    places: Sequence[Place]
    tables: Sequence[Table] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """The lines, broken to the photo's width."""
        most = int(PHOTO / (LETTER * TEXT))
        return [part for line in self.lines for part in (textwrap.wrap(line, most) or [""])]

    def photo(self, aspect: float) -> float:
        """The height of the photo and the lines."""
        return PHOTO * aspect + LINE * TEXT * len(self.words) + 0.15

    def placed(self, aspect: float) -> list[tuple[Table, float, float]]:
        """The tables and where they stand: in shelves, of which the first begins with the photo.

        Those below stand under the first shelf's tables if the sheet is no wider for it, else at the left.
        """
        sizes = [table.size(aspect) for table in self.tables]
        start = left = PHOTO + BETWEEN
        top = shelf = 0.0
        found = []
        for number, (table, (width, height)) in enumerate(zip(self.tables, sizes, strict=True)):
            if shelf and left + width > PHOTO + BETWEEN + MAPS:
                if top == 0 and start + max(sizes[number:])[0] > left - BETWEEN:
                    start, shelf = 0.0, max(shelf, self.photo(aspect))
                left, top, shelf = start, top + shelf + 0.1, 0.0
            found.append((table, left, top))
            left, shelf = left + width + BETWEEN, max(shelf, height)
        return found

    def size(self, aspect: float) -> tuple[float, float]:
        corners = [(PHOTO, self.photo(aspect))]
        for table, left, top in self.placed(aspect):
            across, down = table.size(aspect)
            corners.append((left + across, top + down))
        across, down = (max(sides) for sides in zip(*corners, strict=True))
        return max(across, LETTER * 13 * len(self.title)), down + TITLE


PHOTO, MAPS = 2.2, 9.9
"""The width of the photo in colour, and the most that maps beside it take: together they fit on a screen."""
LONGEST = 8
"""How many times as high as wide a photo is drawn at most; a longer one is drawn shorter."""
EDGE, TITLE, BETWEEN = 0.22, 0.4, 0.35


def sheet(photo: Image.Image, columns: Sequence[Column], *, dark: bool = False) -> Figure:
    """Models side by side, or under each other where they are too wide for that.

    photo: all windows are of one of this size.
    """
    colours = DARK if dark else LIGHT
    aspect = min(photo.height / photo.width, LONGEST)
    across, down = zip(*(column.size(aspect) for column in columns), strict=True)
    apart = 2 * BETWEEN
    wide = sum(across) + apart * (len(columns) - 1)
    beside = wide <= PHOTO + BETWEEN + MAPS
    high = max(down) if beside else sum(down) + apart * (len(columns) - 1)
    size = (wide if beside else max(across)) + 2 * EDGE, high + 2 * EDGE
    page = _Page(photo, Figure(figsize=size, facecolor=colours["paper"]), colours, aspect)
    left = top = EDGE
    for column, width, height in zip(columns, across, down, strict=True):
        page.column(column, left, top)
        left, top = (left + width + apart, top) if beside else (left, top + height + apart)
    return page.figure


class _Page:
    """A figure that is painted on from its upper left corner, in inches."""

    def __init__(self, photo: Image.Image, figure: Figure, colours: dict[str, str], aspect: float) -> None:
        self.figure, self.colours, self.aspect = figure, colours, aspect
        self.size = photo.size
        self.colour = _shrunk(photo.convert("RGB"), 2 * SHARP)
        grey = np.asarray(_shrunk(photo.convert("L"), SHARP), dtype=np.float32)
        self.grey = 40 + grey * (175 / 255)  # neither black nor white: the map's colours are seen on both

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        W, H = self.figure.get_size_inches()
        axes = self.figure.add_axes((left / W, 1 - (top + height) / H, width / W, height / H))
        axes.set_axis_off()
        return axes

    def text(
        self, left: float, top: float, words: str, size: float, soft: bool = False, **style: Any
    ) -> None:
        W, H = self.figure.get_size_inches()
        own: dict[str, Any] = {"va": "top", "color": self.colours["soft" if soft else "ink"]}
        self.figure.text(
            left / W, 1 - top / H, printable(words), fontsize=size, parse_math=False, **own | style
        )

    def column(self, column: Column, left: float, top: float) -> None:
        self.text(left, top, column.title, 13, weight="bold")
        top += TITLE
        axes = self.axes(left, top, PHOTO, PHOTO * self.aspect)
        width, height = self.size
        axes.imshow(self.colour, extent=(0, width, height, 0), interpolation=self._smooth(self.colour.size))
        box = column.window.box  # beyond the photo where the input is padded
        self._frame(axes, (max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])), 1.6)
        for number, place in enumerate(column.places, start=1):
            axes.plot([place.x], [place.y], "o", markersize=9, color=VERMILION, markeredgecolor="white")
            if len(column.places) > 1:
                axes.text(place.x, place.y, str(number), color="white", fontsize=6, ha="center", va="center")
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
        for number, line in enumerate(column.words):
            y = top + PHOTO * self.aspect + 0.1 + number * LINE * TEXT
            self.text(left, y, line, TEXT)
        for table, x, y in column.placed(self.aspect):
            self.table(table, left + x, top + y)

    def table(self, table: Table, left: float, top: float) -> None:
        self.text(left, top, table.heading, LARGE, weight="bold")
        top += HEADING
        for band in table.bands:
            self.band(table, band, left, top)
            top += table.band(self.aspect)

    def band(self, table: Table, band: range, left: float, top: float) -> None:
        lefts = [left + table.gutter + number * (table.width + GAP) for number in range(len(band))]
        for column, x in zip(band, lefts, strict=True):
            name, middle = table.columns[column], x + table.width / 2
            self.text(middle, top + table.head - 0.04, name, TEXT, ha="center", va="bottom")
        top += table.head + table.noted * LINE * SMALL
        high = table.high(self.aspect)
        for name, tiles in zip(table.rows, table.tiles, strict=True):
            self.text(left, top + high / 2, name, TEXT, va="center")
            for column, x in zip(band, lefts, strict=True):
                if (tile := tiles[column]) is not None:
                    self.tile(tile, x, top, table.width, high)
            top += table.pitch(self.aspect)

    def tile(self, tile: Tile, left: float, top: float, width: float, height: float) -> None:
        seen = tile.values if tile.window is None else tile.window.shown(tile.values)
        low, high = tile.limits or (float(seen.min()), float(seen.max()))
        if tile.note:
            self.text(left + width / 2, top - 0.02, tile.note, SMALL, True, ha="center", va="bottom")
        scale = {"cmap": HEAT, "vmin": low, "vmax": high, "interpolation": "nearest"}
        if tile.window is None:
            axes = self.axes(left + 0.22, top, width - 0.22, height)
            axes.imshow(tile.values, aspect="auto", **scale)
            ends = ((0, "top"), (height / 2, "center"), (height, "bottom"))
            for (y, align), word in zip(ends, tile.ticks or ("", "", ""), strict=True):
                self.text(left + 0.18, top + y, word, SMALL, True, ha="right", va=align)
        else:
            axes = self.axes(left, top, width, height)
            W, H = self.size
            axes.imshow(
                self.grey,
                cmap="gray",
                vmin=0,
                vmax=255,
                extent=(0, W, H, 0),
                interpolation=self._smooth(self.grey.shape),
            )
            west, north, east, south = tile.window.box
            axes.imshow(tile.values, extent=(west, east, south, north), alpha=OPACITY, **scale)
            if tile.cell is not None:
                self._frame(axes, tile.window.of_cell(*tile.cell, tile.values.shape), 1.4)
            axes.set(xlim=(0, W), ylim=(H, 0), aspect="auto")
        bar = self.axes(left, top + height + 0.04, width, BAR)
        bar.imshow(np.linspace(0, 1, 64)[None], cmap=HEAT, aspect="auto")
        under = top + height + BAR + 0.06
        least, most = told(low, high)
        self.text(left, under, least, SMALL, True)
        self.text(left + width, under, most, SMALL, True, ha="right")
        between = left + (width + LETTER * SMALL * (len(least) - len(most))) / 2
        self.text(between, under, tile.unit, SMALL, True, ha="center")
        if tile.limits:
            self.text(left + width / 2, under + LINE * SMALL, span(seen), SMALL, True, ha="center")

    def _frame(self, axes: Any, box: tuple[float, float, float, float], width: float) -> None:
        """White on black, so that it is seen on everything."""
        left, top, right, bottom = box
        for line, colour in ((width + 1.2, "black"), (width, "white")):
            axes.add_patch(
                Rectangle(
                    (left, top), right - left, bottom - top, fill=False, linewidth=line, edgecolor=colour
                )
            )

    def _smooth(self, size: Sequence[int]) -> str:
        """Pixels of tiny images are left to be seen."""
        return "nearest" if max(size) <= 96 else "antialiased"


def wrapped(name: str, most: int) -> str:
    """A module's dotted name in lines of `most` letters, where it has dots to break at."""
    lines = [""]
    for part in name.replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > most:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    return image.resize(size, Image.Resampling.BILINEAR)
