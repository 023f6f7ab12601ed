"""Pictures laid out as tables: tiles with their own scale bars, by rows and columns that have names.

Lengths are in inches, placed by hand: a layout engine takes seconds for a hundred tiles.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
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
GAP, BAR, HEADING = 0.14, 0.07, 0.3


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
    """Tiles by rows and columns, each with its name; None where there is nothing."""

    rows: Sequence[str]
    columns: Sequence[str]
    tiles: Sequence[Sequence[Tile | None]]
    width: float = 1.5
    """Of a tile."""

    @property
    def gutter(self) -> float:
        """What the names of the rows take."""
        return 0.1 + LETTER * TEXT * max(len(line) for name in self.rows for line in name.split("\n"))

    @property
    def noted(self) -> bool:
        return any(tile and tile.note for row in self.tiles for tile in row)

    def size(self, aspect: float) -> tuple[float, float]:
        """Width and height of all of it, where a photo is `aspect` times as high as wide."""
        across = self.gutter + len(self.columns) * (self.width + GAP)
        return across, self.head + len(self.rows) * self.pitch(aspect)

    @property
    def head(self) -> float:
        """The height of the columns' names."""
        return 0.05 + LINE * TEXT * max(name.count("\n") + 1 for name in self.columns)

    def pitch(self, aspect: float) -> float:
        """From a row to the next."""
        return self.width * aspect + BAR + 3.2 * LINE * SMALL + GAP + self.noted * LINE * SMALL


@dataclass(frozen=True)
class Section:
    """A heading, and tables side by side, or one under the other where `stacked`."""

    heading: str
    tables: Sequence[Table]
    stacked: bool = False

    def size(self, aspect: float) -> tuple[float, float]:
        widths, heights = zip(*(table.size(aspect) for table in self.tables), strict=True)
        across = max(widths) if self.stacked else sum(widths) + BETWEEN * (len(widths) - 1)
        down = sum(heights) if self.stacked else max(heights)
        return max(across, LETTER * LARGE * len(self.heading)), HEADING + down


class Place(NamedTuple):
    """A place that is asked about, in the pixels of the photo that is drawn, and what it is called."""

    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Column:
    """All that is said of one model: a title, the photo in colour with lines under it, and sections."""

    title: str
    lines: Sequence[str]
    window: Window
    places: Sequence[Place]
    sections: Sequence[Section] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """The lines, broken to the photo's width."""
        most = int(PHOTO / (LETTER * TEXT))
        return [part for line in self.lines for part in (textwrap.wrap(line, most) or [""])]

    def placed(self, aspect: float) -> list[tuple[Section, float, float]]:
        """The sections and where they stand, in shelves that are as wide as a screen or the widest of them.

        The first shelf begins with the photo.
        """
        sizes = [section.size(aspect) for section in self.sections]
        most = max([SCREEN, *(width for width, _ in sizes)])
        left, top = PHOTO + BETWEEN, 0.0
        shelf = PHOTO * aspect + LINE * TEXT * 1.3 * len(self.words) + 0.15
        found = []
        for section, (width, height) in zip(self.sections, sizes, strict=True):
            if left > 0 and left + width > most:
                left, top, shelf = 0.0, top + shelf + 0.1, 0.0
            found.append((section, left, top))
            left, shelf = left + width + BETWEEN, max(shelf, height)
        return found

    def size(self, aspect: float) -> tuple[float, float]:
        corners = [
            (left + section.size(aspect)[0], top + section.size(aspect)[1])
            for section, left, top in self.placed(aspect)
        ]
        photo = (PHOTO, PHOTO * aspect + LINE * TEXT * 1.3 * len(self.words) + 0.15)
        across, down = (max(sides) for sides in zip(photo, *corners, strict=True))
        return max(across, LETTER * 13 * len(self.title)), down + TITLE


PHOTO = 2.6
"""The width of the photo in colour."""
LONGEST = 8
"""How many times as high as wide a photo is drawn at most; a longer one is drawn shorter."""
SCREEN = 15.5
EDGE, TITLE, BETWEEN = 0.25, 0.4, 0.4


def sheet(photo: Image.Image, columns: Sequence[Column], *, dark: bool = False) -> Figure:
    """Models side by side, each with its photo and sections.

    photo: all windows are of one of this size.
    """
    colours = DARK if dark else LIGHT
    aspect = min(photo.height / photo.width, LONGEST)
    sizes = [column.size(aspect) for column in columns]
    width = sum(across for across, _ in sizes) + 2 * EDGE + 2 * BETWEEN * (len(columns) - 1)
    height = max(down for _, down in sizes) + 2 * EDGE
    page = _Page(photo, Figure(figsize=(width, height), facecolor=colours["paper"]), colours, aspect)
    left = EDGE
    for column, (across, _) in zip(columns, sizes, strict=True):
        page.column(column, left, EDGE)
        left += across + 2 * BETWEEN
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
            y = top + PHOTO * self.aspect + 0.1 + number * LINE * TEXT * 1.3
            self.text(left, y, line, TEXT)
        for section, x, y in column.placed(self.aspect):
            self.section(section, left + x, top + y)

    def section(self, section: Section, left: float, top: float) -> None:
        self.text(left, top, section.heading, LARGE, weight="bold")
        top += HEADING
        for table in section.tables:
            self.table(table, left, top)
            across, down = table.size(self.aspect)
            left, top = (left, top + down) if section.stacked else (left + across + BETWEEN, top)

    def table(self, table: Table, left: float, top: float) -> None:
        step = table.width + GAP
        for number, name in enumerate(table.columns):
            middle = left + table.gutter + number * step + table.width / 2
            self.text(middle, top + table.head - 0.04, name, TEXT, ha="center", va="bottom")
        for row, (name, tiles) in enumerate(zip(table.rows, table.tiles, strict=True)):
            y = top + table.head + row * table.pitch(self.aspect)
            y += table.noted * LINE * SMALL
            high = table.width * self.aspect
            self.text(left, y + high / 2, name, TEXT, va="center")
            for column, tile in enumerate(tiles):
                if tile is not None:
                    self.tile(tile, left + table.gutter + column * step, y, table.width)

    def tile(self, tile: Tile, left: float, top: float, width: float) -> None:
        height = width * self.aspect
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
        self.text(left + width / 2, under, tile.unit, SMALL, True, ha="center")
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
