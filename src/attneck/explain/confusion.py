"""A confusion matrix as a picture that can be read, for two classes or a thousand."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attneck.explain.fonts import savefig
from attneck.explain.plain import printable

LABELS = 40
"""Class names on an axis at most; of more classes every so many-th is named."""
NUMBERED = 20
"""Classes up to which each cell has its number."""
LONGEST = 24
"""Letters of a class's name."""


def confusion_picture(counts: NDArray[np.int64], classes: Sequence[str], title: str) -> bytes:
    """A PNG: a row for each class that images are of, a column for each that they were taken for.

    The colour is the share of the row's images; of few classes the numbers are written in. counts: [K, K].
    """
    number = len(classes)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    side = min(12.0, 4.0 + 0.22 * min(number, LABELS))  # inches
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    # By the root of the share: a few mistakes of many images would not be seen.
    drawn = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    every = -(-number // LABELS)
    ticks = range(0, number, every)
    shown = map(printable, classes)
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in shown]
    # A name may have dollars, which would be read as formulas.
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(ticks, [names[i] for i in ticks], fontsize=8, parse_math=False)
    axes.set(xlabel="taken for", ylabel="is")
    whole = title if every == 1 else f"{title} (one class in {every} named)"
    axes.set_title(textwrap.fill(whole, int(9 * side)), parse_math=False)
    if number <= NUMBERED:
        for row, column in zip(*counts.nonzero(), strict=True):
            dark = shares[row, column] > 0.3
            axes.text(
                column,
                row,
                f"{counts[row, column]}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    figure.colorbar(
        drawn, ax=axes, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], label="share of the class's images", shrink=0.8
    )
    file = io.BytesIO()
    savefig(figure, file, format="png", dpi=120)
    return file.getvalue()
