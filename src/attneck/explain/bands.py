"""Curves of several seeds: a panel for each variant, against the baseline, so that none hides another."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from attneck.explain.palette import BLUE
from attneck.explain.plain import plain
from attneck.explain.vector import save

Curve = list[tuple[int, float]]
"""A number, of training images seen say, and the score there."""

# Told apart without colour too.
BASELINE: dict[str, Any] = {
    "color": "0.35",
    "linestyle": "--",
    "linewidth": 1.2,
    "marker": "s",
    "markersize": 3,
    "markerfacecolor": "white",
}
VARIANT: dict[str, Any] = {"color": BLUE, "marker": "o", "markersize": 3, "linewidth": 1.4}
COLUMNS = 4
"""Of the panels of one problem."""


def draw(
    problems: Mapping[str, Mapping[str, Mapping[int, Curve]]],
    metric: str,
    path: Path,
    baseline: str,
    threshold: float | None = None,
    what: str = "training images seen",
    likewise: Mapping[str, str] | None = None,
) -> None:
    """A row a problem, and in it a panel a variant: the mean over its seeds, and their least and greatest.

    Args:
        problems: by problem, variant and seed. A variant's curves need not be equally long: the mean is over
            those that have come so far.
        metric: the score's name.
        path: .png, .svg or .pdf.
        baseline: the variant that is in all panels; it has one of its own only where it is alone.
        threshold: a score that is marked where the curves come near it.
        what: the curves' first numbers are.
        likewise: what stands in a variant's panel in the baseline's place, scored as that variant is.
    """
    there = {name: None for variants in problems.values() for name, seeds in variants.items() if seeds}
    names = [name for name in there if name != baseline] or [baseline]
    beside = {name: (likewise or {}).get(name, baseline) for name in names}
    several = len(problems) > 1
    columns = len(names) if several else min(COLUMNS, len(names))
    rows = len(problems) * -(-len(names) // columns)
    width, height = (2.8, 2.3) if columns <= COLUMNS else (1.75, 1.6)
    figure = Figure(figsize=(0.8 + width * columns, 0.9 + height * rows), layout="constrained")
    sharey: Any = "row" if several else True
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=sharey)
    panels = [(problem, name) for problem in problems for name in names]
    for number, (axes, (problem, name)) in enumerate(zip(grid.flat, panels, strict=False)):
        for one, style in ((beside[name], BASELINE), (name, VARIANT)):
            _line(axes, problems[problem].get(one, {}), style)
        if number < columns or not several:
            # Broken behind an underscore, where it is long.
            words = textwrap.fill(name.replace("_", "_ "), int(10 * width)).replace("_ ", "_")
            axes.set_title(plain(words), fontsize="small")
        if number % columns == 0:
            axes.set_ylabel(plain(f"{problem}\n{metric}" if problem else metric), fontsize="small")
        axes.grid(alpha=0.3)
        lowest = number + columns >= len(panels)
        axes.tick_params(labelsize="x-small", labelbottom=lowest)
    for axes in grid.flat:
        if threshold is not None:  # without making room for it
            axes.autoscale(False)
            axes.axhline(threshold, color="0.5", linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    said = baseline if {*beside.values()} == {baseline} else f"{baseline}, scored likewise but beside itself"
    figure.supxlabel(what, fontsize="small")
    figure.legend(
        [Line2D([], [], **BASELINE), Line2D([], [], **VARIANT), Patch(color="0.8")],
        [plain(said), "the panel's variant, mean of the seeds", "least to greatest seed"],
        loc="outside upper center",
        ncols=3 if columns > 1 else 1,
        fontsize="small",
        frameon=False,
    )
    save(figure, path, dpi=120)


def _line(axes: Any, curves: Mapping[int, Curve], style: dict[str, Any]) -> None:
    """A variant's mean and its band."""
    points: dict[int, list[float]] = {}
    for curve in curves.values():
        for at, score in curve:
            points.setdefault(at, []).append(score)
    x = sorted(points)
    axes.plot(x, [sum(points[at]) / len(points[at]) for at in x], markevery=max(1, len(x) // 6), **style)
    low, high = [min(points[at]) for at in x], [max(points[at]) for at in x]
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=1.5)  # seen of one point too
