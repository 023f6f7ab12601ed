"""Labels beside points, none of which covers another, a point, or the edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.path import Path
from matplotlib.transforms import Bbox

AROUND = 16
"""Directions that are tried."""
DISTANCES = (3, 7, 12, 18, 26, 36, 48, 62, 80, 100, 130)
"""Points of type between a marker's edge and its label; from the second on a line joins them."""
CLEAR = 2
"""Points of type that are kept free around a label."""


def label_points(
    axes: Any,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    colours: Sequence[str],
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    size: float = 7.5,
    marker: float = 6,
) -> list[Any]:
    """Write each name beside its point, the most crowded first; the texts, in the order of the points.

    The figure must be laid out already: what moves the axes later moves the labels off.

    Args:
        axes: with its limits and scales set.
        points: in the axes' own units.
        lines: crossed only where there is no other place.
        size: of the type. marker: a marker's width, in points of type.

    Raises:
        ValueError: a label has no free place.
    """
    figure = axes.figure
    dot = figure.dpi / 72  # pixels of a point of type
    at = [tuple(axes.transData.transform(point)) for point in points]
    paths = [[tuple(axes.transData.transform(point)) for point in line] for line in lines]
    half = marker / 2 * dot
    markers = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in at]
    inside = axes.get_window_extent()
    taken: list[Bbox] = []
    texts: list[Any] = [None] * len(points)

    def crowd(i: int) -> float:
        return sum(1 / (1 + math.dist(at[i], other)) for other in at)

    for i in sorted(range(len(points)), key=crowd, reverse=True):
        probe = axes.annotate(names[i], points[i], fontsize=size)
        extent = probe.get_window_extent()
        probe.remove()
        w, h = extent.width + CLEAR * dot, extent.height + CLEAR * dot  # a file's own type may be wider
        best: tuple[float, float, Bbox] | None = None
        for reach in DISTANCES:
            for turn in range(AROUND):
                angle = 2 * math.pi * turn / AROUND
                # The nearest point of the label's box lies `reach` beyond the marker in that direction.
                x = at[i][0] + math.cos(angle) * (half + reach * dot + w / 2)
                y = at[i][1] + math.sin(angle) * (half + reach * dot + h / 2)
                box = Bbox.from_extents(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                if not (inside.x0 < box.x0 and box.x1 < inside.x1):
                    continue
                if not (inside.y0 < box.y0 and box.y1 < inside.y1):
                    continue
                if any(box.overlaps(other) for other in [*taken, *markers]):
                    continue
                cost = reach + 6 * sum(_crosses(box, path) for path in paths)
                gaps = [_gap(box, point) for point in at]
                cost += 12 * sum(gap < gaps[i] + 2 * CLEAR * dot for j, gap in enumerate(gaps) if j != i)
                if reach > DISTANCES[0]:  # its line should run through no other label or point
                    others = [*taken, *markers[:i], *markers[i + 1 :]]
                    cost += 20 * sum(_crosses(other, [at[i], (x, y)]) for other in others)
                if best is None or cost < best[0]:
                    best = (cost, reach, box)
            if best is not None and best[0] < reach:
                break
        if best is None:
            raise ValueError(f"there is no place for the label {names[i]!r}: make the picture larger")
        _, away, box = best
        taken.append(box)
        centre = ((box.x0 + box.x1) / 2 - at[i][0], (box.y0 + box.y1) / 2 - at[i][1])
        texts[i] = axes.annotate(
            names[i],
            points[i],
            (centre[0] / dot, centre[1] / dot),
            textcoords="offset points",
            fontsize=size,
            color=colours[i],
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.5, "shrinkB": marker / 2}
            if away > DISTANCES[0]
            else None,
        )
    return texts


def _gap(box: Bbox, point: tuple[float, float]) -> float:
    """How far a point lies outside a box."""
    return math.hypot(
        max(box.x0 - point[0], 0, point[0] - box.x1), max(box.y0 - point[1], 0, point[1] - box.y1)
    )


def _crosses(box: Bbox, path: Sequence[tuple[float, float]]) -> bool:
    """Whether a line of several points runs through a box."""
    return len(path) > 1 and bool(Path(path).intersects_bbox(box, filled=False))
