"""Accuracy against cost: a panel for each measure of cost, families by mark and line, every point named."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from attneck.explain.labels import label_points
from attneck.explain.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from attneck.explain.vector import save

# Told apart without colour, too: by a mark and a line of their own.
STYLES: tuple[tuple[str, str, str], ...] = (
    (VERMILION, "o", "-"),
    (BLUE, "s", "-."),
    (GREEN, "D", ":"),
    (ORANGE, "^", "--"),
    (PURPLE, "X", ""),
)


@dataclass(frozen=True)
class Dot:
    """A named point of a family; hollow where its cost is not to be trusted."""

    name: str
    family: str
    cost: float
    score: float
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """Dots against one measure of cost."""

    title: str
    unit: str
    dots: Sequence[Dot]


def draw(
    title: str, score: str, panels: Sequence[Panel], families: Sequence[str], told: Sequence[str], path: Path
) -> None:
    """Draw the panels side by side into `path`: .svg, .pdf or .png.

    A family's line joins its dots that no other of it beats at less cost. Costs are on a logarithmic axis.

    Args:
        score: the name and unit of the scores' axis.
        families: in the order of the legend, which `STYLES` follows; the last has no line.
        told: what is written under the picture, a paragraph each.
    """
    height = 5.6
    figure = Figure(figsize=(0.6 + 5.4 * len(panels), height + 0.8), layout="constrained")
    grid: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    styles = dict(zip(families, STYLES, strict=False))
    scores = [dot.score for panel in panels for dot in panel.dots]
    room = 0.06 * (max(scores) - min(scores))
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=True):
        axes.set(xscale="log", xlabel=panel.unit)
        axes.set_title(panel.title, fontsize="medium")
        costs = [dot.cost for dot in panel.dots]
        axes.set(xlim=(min(costs) / 1.25, max(costs) * 1.45), ylim=(min(scores) - room, max(scores) + room))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="major")
        for family, (colour, mark, line) in styles.items():
            own = [dot for dot in panel.dots if dot.family == family]
            if line and (best := frontier(own)):
                axes.plot(*zip(*best, strict=True), line, color=colour, linewidth=1.2, zorder=2)
            for dot in own:
                face = "white" if dot.hollow else colour
                axes.plot(
                    dot.cost, dot.score, mark, color=colour, markerfacecolor=face, markersize=6, zorder=3
                )
            if own and family not in handles:
                (handles[family],) = axes.plot([], [], mark + line, color=colour, markersize=6)
    grid[0].set_ylabel(score)
    figure.legend(
        [*handles.values()],
        [*handles],
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        title=title,
        title_fontsize="large",
    )
    words = "\n".join(textwrap.fill(one, 118 * len(panels)) for one in told)
    figure.supxlabel(words, fontsize="x-small", color="#444444", x=0.01, ha="left")
    figure.draw_without_rendering()  # lays it out
    figure.set_layout_engine("none")
    for axes, panel in zip(grid, panels, strict=True):
        label_points(
            axes,
            [(dot.cost, dot.score) for dot in panel.dots],
            [dot.name for dot in panel.dots],
            ["black"] * len(panel.dots),
            [
                frontier([dot for dot in panel.dots if dot.family == family])
                for family, (_, _, line) in styles.items()
                if line
            ],
        )
    save(figure, path)


def frontier(dots: Sequence[Dot]) -> list[tuple[float, float]]:
    """(cost, score) of the dots that none of the others beats at the same cost or less, by cost.

    Hollow ones, whose cost is not to be trusted, are left out.
    """
    best: list[tuple[float, float]] = []
    for dot in sorted((dot for dot in dots if not dot.hollow), key=lambda dot: (dot.cost, -dot.score)):
        if not best or dot.score > best[-1][1]:
            best.append((dot.cost, dot.score))
    return best
