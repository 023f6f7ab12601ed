"""Bars of what each change brings, from the row that it is compared with."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from attneck.explain.palette import BLUE, ORANGE
from attneck.explain.vector import save


@dataclass(frozen=True)
class Bar:
    """A row: what it gains, what is written at its end, and the same of a measured score, if there is one."""

    name: str
    gain: float
    said: str
    measured: tuple[float, str] | None = None


@dataclass(frozen=True)
class Group:
    """Bars with one base: its name and score stand over them."""

    title: str
    bars: Sequence[Bar]


def draw(title: str, unit: str, groups: Sequence[Group], told: Sequence[str], path: Path) -> None:
    """Draw groups of bars one over the other, from 0, into `path`: .svg, .pdf or .png.

    Measured bars are hatched.
    """
    sizes = [len(group.bars) + 1 for group in groups]
    figure = Figure(figsize=(7.2, 0.32 * sum(sizes) + 0.35 * len(groups) + 1.5), layout="constrained")
    grid: Any = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
    every = [bar.gain for group in groups for bar in group.bars]
    every += [bar.measured[0] for group in groups for bar in group.bars if bar.measured]
    for axes, group in zip(grid, groups, strict=True):
        for place, bar in enumerate(group.bars):
            thick = 0.36 if bar.measured else 0.7
            shift = 0.19 if bar.measured else 0
            axes.barh(place - shift, bar.gain, thick, color=BLUE)
            _end(axes, bar.gain, place - shift, bar.said)
            if bar.measured:
                gain, said = bar.measured
                axes.barh(place + shift, gain, thick, color=ORANGE, hatch="///", edgecolor="black")
                _end(axes, gain, place + shift, said)
        axes.set_yticks(range(len(group.bars)), [bar.name for bar in group.bars], fontsize="small")
        axes.set_ylim(len(group.bars) - 0.4, -0.6)
        axes.set_title(group.title, fontsize="medium", loc="left")
        axes.set_xlim(min(0, *every) * 1.3, max(0, *every) * 1.3 or 1)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1].set_xlabel(unit)
    figure.suptitle(title, fontsize="large")
    words = "\n".join(textwrap.fill(one, 100) for one in told)
    figure.supxlabel(words, fontsize="x-small", color="#444444", x=0.01, ha="left")
    save(figure, path)


def _end(axes: Any, gain: float, place: float, said: str) -> None:
    """What is written at a bar's end."""
    axes.annotate(
        said,
        (gain, place),
        (3 if gain >= 0 else -3, 0),
        textcoords="offset points",
        ha="left" if gain >= 0 else "right",
        va="center",
        fontsize="small",
    )
