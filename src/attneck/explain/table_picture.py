"""A table as a picture: as wide as what it says, its footnotes under it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from attneck.explain.plain import plain
from attneck.explain.vector import save

SIZE = 9
"""Of the type, in points."""
ROW = 1.6 * SIZE / 72
"""Inches of a row."""
GAP = 0.18
"""Inches between columns."""
HEAD = 16
"""Letters of a line in the header, which is broken there."""


def draw(
    title: str,
    setup: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    footnotes: Sequence[str],
    path: Path,
) -> None:
    """Draw a table into `path`: .svg, .pdf or .png. The first column is set left, the others right.

    Lines stand over and under the header and at the end. Words alone carry what is said: no colour does.
    """
    figure = Figure(figsize=(1, 1))
    header = [textwrap.fill(word, HEAD, break_long_words=False) for word in header]
    lines = max(word.count("\n") + 1 for word in header)

    def wide(text: str, **style: Any) -> float:
        probe = figure.text(0, 0, plain(text), fontsize=SIZE, **style)
        inches = probe.get_window_extent().width / figure.dpi
        probe.remove()
        return inches

    widths = [
        max(wide(header[i], weight="bold"), *(wide(row[i]) for row in rows)) + GAP for i in range(len(header))
    ]
    width = max(sum(widths), 4.5, wide(title, weight="bold"))
    letters = int(width / wide("n") * 1.05)
    notes = [
        line for mark, note in enumerate(footnotes, 1) for line in textwrap.wrap(f"{mark}. {note}", letters)
    ]
    above = textwrap.wrap(setup, letters)
    height = ROW * (1.3 + len(above) + lines + len(rows) + len(notes) + 1.2)
    figure.set_size_inches(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()

    def write(x: float, y: float, text: str, **style: Any) -> None:
        axes.text(x, y, plain(text), fontsize=SIZE, **{"va": "center", "ha": "left"} | style)

    write(0, 0.6 * ROW, title, weight="bold")
    y = 1.3 * ROW
    for line in above:
        write(0, y + 0.4 * ROW, line, color="#444444")
        y += ROW
    y += 0.2 * ROW
    rule: Any = {"color": "black", "linewidth": 0.8}
    axes.plot([0, sum(widths)], [y, y], **rule)
    for cells, tall in [(header, lines), *((row, 1) for row in rows)]:
        x = 0.0
        for i, cell in enumerate(cells):
            weight = "bold" if cells is header else "normal"
            end = x + widths[i] - GAP / 2
            left = i == 0 or not any(row[i][:1].isdigit() for row in rows)
            write(x if left else end, y + tall * ROW / 2, cell, ha="left" if left else "right", weight=weight)
            x += widths[i]
        y += tall * ROW
        if cells is header:
            axes.plot([0, sum(widths)], [y, y], **rule)
    axes.plot([0, sum(widths)], [y, y], **rule)
    y += 0.4 * ROW
    for line in notes:
        write(0, y + 0.4 * ROW, line, color="#444444")
        y += ROW
    save(figure, path, tight=True)
