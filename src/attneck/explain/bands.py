"""Curves of several seeds: their mean, and a band from the least to the greatest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from attneck.explain.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from attneck.explain.plain import plain
from attneck.explain.vector import save

Curve = list[tuple[int, float]]
"""A number, of training images seen say, and the score there."""

# Without yellow, which is no line on white; told apart in grey by a line and a mark of their own.
COLOURS = ("#000000", ORANGE, BLUE, VERMILION, GREEN, PURPLE, SKY)
LINES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def draw(
    problems: Mapping[str, Mapping[str, Mapping[int, Curve]]],
    metric: str,
    path: Path,
    threshold: float | None = None,
    what: str = "training images seen",
) -> None:
    """One plot a problem, a line a variant: the mean over its seeds, and from the least to the greatest.

    Args:
        problems: by problem, variant and seed. A variant's curves need not be equally long: the mean is over
            those that have come so far.
        metric: the score's name.
        path: .png, .svg or .pdf.
        threshold: a score that is marked.
        what: the curves' first numbers are.
    """
    columns = min(3, len(problems))
    rows = -(-len(problems) // columns)
    figure = Figure(figsize=(1.5 + 4.2 * columns, 0.6 + 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Line2D] = {}
    for axes, (problem, variants) in zip(grid.flat, problems.items(), strict=False):
        for number, (variant, curves) in enumerate(variants.items()):
            if not curves:
                continue
            points: dict[int, list[float]] = {}
            for curve in curves.values():
                for images, score in curve:
                    points.setdefault(images, []).append(score)
            x = sorted(points)
            means = [sum(points[at]) / len(points[at]) for at in x]
            colour = COLOURS[number % len(COLOURS)]
            (line,) = axes.plot(
                x,
                means,
                LINES[number // len(COLOURS) % len(LINES)],
                color=colour,
                marker=MARKS[number % len(MARKS)],
                markevery=max(1, len(x) // 6),
                markersize=4,
                linewidth=1.4,
            )
            low, high = [min(points[at]) for at in x], [max(points[at]) for at in x]
            axes.fill_between(x, low, high, color=colour, alpha=0.15)
            handles.setdefault(variant, line)
        if threshold is not None:
            axes.axhline(threshold, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(title=plain(problem), xlabel=what, ylabel=metric)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(problems) :]:
        axes.set_axis_off()
    figure.legend(
        [*handles.values()],
        [*map(plain, handles)],
        loc="outside right upper",
        fontsize="small",
        title="line: mean of the seeds\nband: least to greatest",
        title_fontsize="small",
    )
    save(figure, path, dpi=120)
