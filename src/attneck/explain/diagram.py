"""Boxes and arrows, top to bottom: a row for each step, and room beside boxes for what goes past them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from attneck.explain.inside import Box
from attneck.explain.neck import KINDS, PAPER
from attneck.explain.plain import printable
from attneck.explain.sheet import DARK, LETTER, LIGHT

EDGE, GAP, LANE = 0.3, 0.34, 0.45
"""Inches: of the page's margin, between two rows, and for an arrow that goes past a box."""
LINE, PAD, SIZE = 0.19, 0.09, 9.0
"""Inches of a line in a box and around its lines; points of its letters."""


@dataclass
class Spot:
    """A box in its row, or room for an arrow there (box None)."""

    box: int | None
    before: list[tuple[Spot, str]]
    x: float = 0.0
    top: float = 0.0
    bottom: float = 0.0


def diagram(parts: Sequence[tuple[str, Sequence[Box]]], *, dark: bool = False) -> Figure:
    """Each part, (title, boxes in the order in which they run), beside the one before."""
    colours = DARK if dark else LIGHT
    rows = [_rows(boxes) for _, boxes in parts]
    wide = [_placed(row, boxes, title) for row, (title, boxes) in zip(rows, parts, strict=True)]
    tall = [_heights(row, boxes) for row, (_, boxes) in zip(rows, parts, strict=True)]
    size = sum(wide) + EDGE * (len(parts) + 1), max(tall) + 2 * EDGE + 0.45
    figure = Figure(figsize=size, facecolor=colours["paper"])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axes.set_axis_off()
    left = EDGE
    for (title, boxes), spots, width in zip(parts, rows, wide, strict=True):
        words: dict[str, Any] = {
            "fontsize": 12,
            "weight": "bold",
            "color": colours["ink"],
            "parse_math": False,
        }
        axes.text(left, EDGE, printable(title), va="top", **words)
        for row in spots:
            for spot in row:
                _draw(axes, spot, boxes, left, EDGE + 0.45, dark)
        left += width + EDGE
    return figure


def _rows(boxes: Sequence[Box]) -> list[list[Spot]]:
    """Boxes by how far they are from what goes in, with room in each row that an arrow passes."""
    depth: list[int] = []
    for box in boxes:
        depth.append(1 + max((depth[number] for number, _ in box.inputs), default=-1))
    for at, box in enumerate(boxes):  # what is learnt, or goes in later, stands right before it is used
        if at and not box.inputs:
            uses = [depth[to] for to, other in enumerate(boxes) if at in dict(other.inputs)]
            depth[at] = min(uses, default=1) - 1
    rows: list[list[Spot]] = [[] for _ in range(max(depth) + 1)]
    spots: list[Spot] = []
    passing: dict[tuple[int, str, int], Spot] = {}
    for at, box in enumerate(boxes):
        before = []
        for number, words in box.inputs:
            last, said = spots[number], words
            for row in range(depth[number] + 1, depth[at]):
                if (number, words, row) not in passing:
                    passing[number, words, row] = Spot(None, [(last, said)])
                    rows[row].append(passing[number, words, row])
                last, said = passing[number, words, row], ""
            before.append((last, said))
        spots.append(Spot(at, before))
        rows[depth[at]].append(spots[at])
    return rows


def _width(box: Box) -> float:
    return 2 * PAD + LETTER * SIZE * max(map(len, [*box.words, box.shape]), default=1)


def _half(spot: Spot, boxes: Sequence[Box]) -> float:
    """Half of its width."""
    return (LANE if spot.box is None else _width(boxes[spot.box])) / 2


def _placed(rows: list[list[Spot]], boxes: Sequence[Box], title: str) -> float:
    """Give each spot its x, under what comes before it; how wide all is."""
    for row in rows:
        for spot in row:
            spot.x = min((other.x for other, _ in spot.before), default=0.0)
        row.sort(key=lambda spot: (spot.x, spot.box is None))
        edge = float("-inf")
        for spot in row:
            half = _half(spot, boxes)
            spot.x = max(spot.x, edge + half)
            edge = spot.x + half + GAP * (spot.box is not None)
    halves = [(spot, _half(spot, boxes)) for row in rows for spot in row]
    first = min(spot.x - half for spot, half in halves)
    for spot, _ in halves:
        spot.x -= first
    return max([spot.x + half for spot, half in halves] + [LETTER * 12 * len(title)])


def _tall(box: Box) -> float:
    return 2 * PAD + LINE * (len(box.words) + 1)


def _heights(rows: list[list[Spot]], boxes: Sequence[Box]) -> float:
    """Give each spot its top and bottom, those of its row if it is no box; how high all is."""
    y = 0.0
    for row in rows:
        tall = max(_tall(boxes[spot.box]) for spot in row if spot.box is not None)
        for spot in row:
            half = (tall if spot.box is None else _tall(boxes[spot.box])) / 2
            spot.top, spot.bottom = y + tall / 2 - half, y + tall / 2 + half
        y += tall + GAP
    return y - GAP


def _draw(axes: Any, spot: Spot, boxes: Sequence[Box], left: float, top: float, dark: bool) -> None:
    colours = DARK if dark else LIGHT
    x = left + spot.x
    for other, words in spot.before:
        style = "-" if spot.box is None else "->"
        arrow = {"arrowstyle": style, "color": colours["soft"], "shrinkA": 0, "shrinkB": 0}
        end, start = (x, top + spot.top), (left + other.x, top + other.bottom)
        axes.annotate("", end, start, arrowprops=arrow)
        if words:
            near = [0.75 * there + 0.25 * here for there, here in zip(end, start, strict=True)]
            near[0] += 0.05
            axes.text(*near, words, va="center", fontsize=SIZE, style="italic", color=colours["ink"])
    if spot.box is None:
        axes.plot([x, x], [top + spot.top, top + spot.bottom], color=colours["soft"], linewidth=1)
        return
    box = boxes[spot.box]
    face, edge = PAPER["dark" if dark else "light"]
    width, ink = _width(box), colours["ink"]
    if box.attention:
        face, edge, ink = KINDS[box.attention][0], "none", "#10151a"
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, top + spot.top),
            width,
            spot.bottom - spot.top,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor=face,
            edgecolor=edge,
        )
    )
    for line, words in enumerate([*box.words, box.shape]):
        axes.text(
            x,
            top + spot.top + PAD + LINE * (line + 0.5),
            printable(words),
            ha="center",
            va="center",
            parse_math=False,
            fontsize=SIZE,
            weight="bold" if line == 0 else "normal",
            color=colours["soft"] if line == len(box.words) and not box.attention else ink,
        )
