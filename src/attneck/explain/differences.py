"""Differences with their intervals, line by line: what is surely above or below 0 is seen at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attneck.explain.palette import BLUE
from attneck.explain.plain import plain
from attneck.explain.vector import save

Gain = tuple[float, tuple[float, float] | None]
"""A mean difference, and its interval if it has one."""
ONLY: Mapping[str, dict[str, Any]] = {"": {"color": BLUE, "marker": "o"}}
"""The style where a line has one difference."""
APART = 0.15
"""Between the differences of a line, of the distance between lines."""
WHITE = {"color": "white", "pad": 1}


class Line(NamedTuple):
    """A label, its differences by series, and what stands at the right of them."""

    label: str
    gains: Mapping[str, Gain]
    beside: str


def draw(
    parts: Mapping[str, Sequence[Line]],
    path: Path,
    axis: str,
    beside: str = "",
    styles: Mapping[str, dict[str, Any]] = ONLY,
) -> None:
    """A marker a difference, hollow where the interval holds 0 or there is none, and its interval as a line.

    Args:
        parts: lines under their headings.
        path: .png, .svg or .pdf.
        axis: what the differences are.
        beside: what stands at the right of each line.
        styles: marker and colour by series; named above the lines where there are several.
    """
    count = sum(bool(heading) + len(lines) for heading, lines in parts.items())
    figure = Figure(figsize=(9, 0.4 * count + 1.2), layout="constrained")
    axes = figure.subplots()
    right = axes.get_yaxis_transform()
    axes.text(1.01, -0.6, plain(beside), fontsize=9, transform=right)
    labels: list[tuple[int, str]] = []
    place = -1
    for heading, lines in parts.items():
        if heading:
            place += 1
            bold: dict[str, Any] = {"fontsize": 9, "weight": "bold", "va": "center", "bbox": WHITE}
            axes.text(0, place + 0.1, plain(heading), transform=right, **bold)
        for line in lines:
            place += 1
            labels.append((place, plain(line.label)))
            axes.text(1.01, place, plain(line.beside), fontsize=9, va="center", transform=right)
            for number, (name, (mean, interval)) in enumerate(line.gains.items()):
                at = place + APART * (number - (len(line.gains) - 1) / 2)
                sure = interval is not None and interval[0] * interval[1] > 0
                colour = styles[name]["color"]
                axes.plot(mean, at, markersize=5, markerfacecolor=colour if sure else "white", **styles[name])
                if interval is not None:
                    axes.plot(interval, (at, at), color=colour, linewidth=1.2, zorder=1)
    axes.axvline(0, color="0.4", linewidth=1, zorder=0)
    axes.set_ylim(place + 0.6, -0.6)
    axes.set_yticks(*zip(*labels, strict=True), fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(plain(axis), fontsize=9)
    marks = [Line2D([], [], linestyle="", label=name, **style) for name, style in styles.items() if name]
    marks += [
        Line2D([], [], linestyle="", marker="o", color="0.4", markerfacecolor=filled, label=label)
        for label, filled in (("interval without 0", "0.4"), ("interval with 0, or none", "white"))
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    save(figure, path, dpi=120, as_text=True)
