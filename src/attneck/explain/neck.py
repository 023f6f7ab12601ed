"""A network drawn as its stages: maps, channels, costs, and the attention in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from attneck.explain.palette import GREEN, ORANGE, PURPLE, SKY, YELLOW
from attneck.explain.plain import printable, short
from attneck.explain.sheet import DARK, LIGHT
from attneck.explain.stages import Stage

KINDS = {
    "BAM": (ORANGE, "x + x · sigmoid(c + p): which channels c and which places p of a stage's map matter"),
    "ungated": (YELLOW, "x + (c + p), BAM's branches without its gate: a control, no paper has it"),
    "MHSA": (SKY, "self-attention, softmax(q·k + q·r) v in BoTNet: every place looks at every other"),
    "SE": (GREEN, "x · sigmoid(c): which channels matter"),
    "non-local": (PURPLE, "x + softmax(q·k) x: every place looks at every other, by content"),
}
"""Colour and one line for each kind of attention."""
WIDE, GAP, EDGE = 1.45, 0.3, 0.3
"""Inches: of a stage's box, between two, and of the page's margin."""
TALL, CHIP, WORDS, ROW = 1.15, 0.24, 0.95, 0.5
"""Inches: of the tallest box, of what is marked in it, of the lines under it, and of a network's title."""
MOST_BLOCKS = 3
"""So many that attend, where others do not, are named by their numbers."""
PAPER = {"light": ("#e7ecf1", "#b9c4cf"), "dark": ("#242c35", "#4a5866")}


class Drawn(NamedTuple):
    """A network: its title, (height, width) of its image, its stages, and the names of the changed ones."""

    title: str
    image_size: tuple[int, int]
    stages: Sequence[Stage]
    changed: frozenset[str] = frozenset()


def neck(networks: Sequence[Drawn], *, dark: bool = False) -> Figure:
    """Networks under each other, each from left to right, with a legend of their attention."""
    colours = DARK if dark else LIGHT
    most = max(len(network.stages) for network in networks)
    kinds = [kind for kind in KINDS if any(kind in one.attention for row in networks for one in row.stages)]
    width = max(2 * EDGE + (most + 1) * (WIDE + GAP), 10.0 if kinds else 0.0)
    row = ROW + TALL + WORDS + 0.25
    height = 2 * EDGE + row * len(networks) + 0.3 * len(kinds)
    figure = Figure(figsize=(width, height), facecolor=colours["paper"])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for number, network in enumerate(networks):
        _network(axes, network, EDGE + number * row, dark)
    for number, kind in enumerate(kinds):
        y = EDGE + row * len(networks) + 0.3 * number
        _chip(axes, EDGE, y, 0.9, kind, kind)
        axes.text(EDGE + 1.05, y + CHIP / 2, KINDS[kind][1], va="center", fontsize=9, color=colours["ink"])
    return figure


def _network(axes: Any, network: Drawn, top: float, dark: bool) -> None:
    colours = DARK if dark else LIGHT
    params, madds = (sum(getattr(stage, what) for stage in network.stages) for what in ("params", "madds"))
    title = {"fontsize": 12, "weight": "bold", "color": colours["ink"], "parse_math": False}
    axes.text(EDGE, top, printable(network.title), va="top", **title)
    total = f"{short(params)} parameters, {short(madds)} multiply-adds"
    right = EDGE + (len(network.stages) + 1) * (WIDE + GAP) - GAP
    axes.text(right, top + 0.02, total, va="top", ha="right", fontsize=9, color=colours["soft"])
    middle = top + ROW + TALL / 2
    H, W = network.image_size
    axes.text(
        EDGE + WIDE / 2,
        middle,
        f"image\n{H} × {W}",
        ha="center",
        va="center",
        fontsize=9.5,
        color=colours["ink"],
    )
    face, edge = PAPER["dark" if dark else "light"]
    names = _short_names([stage.name for stage in network.stages])
    for number, (stage, name) in enumerate(zip(network.stages, names, strict=True), start=1):
        left = EDGE + number * (WIDE + GAP)
        axes.annotate(
            "",
            (left - 0.03, middle),
            (left - GAP + 0.03, middle),
            arrowprops={"arrowstyle": "->", "color": colours["soft"]},
        )
        least = 0.3 + (CHIP + 0.06) * len(stage.attention)
        tall = max(least, TALL * _share(stage, network.image_size))
        changed = stage.name in network.changed
        axes.add_patch(
            FancyBboxPatch(
                (left, middle - tall / 2),
                WIDE,
                tall,
                boxstyle="round,pad=0,rounding_size=0.07",
                facecolor=face,
                edgecolor=colours["ink"] if changed else edge,
                linewidth=1.8 if changed else 1,
            )
        )
        inside = (CHIP + 0.06) * len(stage.attention)
        y = middle - (0.2 + inside) / 2
        axes.text(left + WIDE / 2, y + 0.1, name, ha="center", va="center", fontsize=10, color=colours["ink"])
        for at, (kind, count) in enumerate(stage.attention.items()):
            words = kind if count == 1 else f"{kind} × {count}"
            _chip(axes, left + 0.12, y + 0.26 + at * (CHIP + 0.06), WIDE - 0.24, kind, words)
        for line, words in enumerate(_words(stage)):
            axes.text(
                left + WIDE / 2,
                middle + TALL / 2 + 0.12 + 0.19 * line,
                words,
                ha="center",
                va="top",
                fontsize=8,
                color=colours["ink" if line == 0 else "soft"],
            )


def _words(stage: Stage) -> list[str]:
    """Under the box: map and channels, blocks and the attention among them, parameters, multiply-adds."""
    where = f"{stage.map_size[0]} × {stage.map_size[1]}" if stage.map_size else ""
    wide = "" if stage.channels is None else f"{stage.channels} channels"
    blocks = "" if not stage.blocks else "1 block" if stage.blocks == 1 else f"{stage.blocks} blocks"
    blocks += "".join(
        f", {kind} in {', '.join(map(str, numbers))}"
        for kind, numbers in stage.some.items()
        if len(numbers) <= MOST_BLOCKS
    )
    blocks += "".join(
        f", {kind} after {', '.join(map(str, numbers))}"
        for kind, numbers in stage.between.items()
        if len(numbers) <= MOST_BLOCKS
    )
    first = f"{where}, {wide}" if where and wide else where or wide
    cost = f"{short(stage.params)} parameters", f"{short(stage.madds)} multiply-adds"
    return [word for word in (first, blocks, *cost) if word]


def _chip(axes: Any, left: float, top: float, width: float, kind: str, words: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, top),
            width,
            CHIP,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=KINDS[kind][0],
            edgecolor="none",
        )
    )
    axes.text(
        left + width / 2,
        top + CHIP / 2 + 0.01,
        words,
        ha="center",
        va="center",
        fontsize=8.5,
        weight="bold",
        color="#10151a",
    )


def _share(stage: Stage, image_size: tuple[int, int]) -> float:
    """Of the tallest box: by how often the map can be halved."""
    if stage.map_size is None:
        return 0.35
    return 0.35 + 0.65 * math.log2(max(stage.map_size)) / max(1.0, math.log2(max(image_size)))


def _short_names(names: Sequence[str]) -> list[str]:
    """Without the modules around them, where they still differ; a number keeps the name before it."""
    short = []
    for name in names:
        parts = name.split(".")
        short.append(".".join(parts[-2:]) if parts[-1].isdecimal() else parts[-1])
    return [one if short.count(one) == 1 else name for one, name in zip(short, names, strict=True)]
