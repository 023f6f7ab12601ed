"""Precision by recall of a detector's classes, as a picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from attneck.explain.fonts import savefig
from attneck.explain.palette import LINES
from attneck.explain.plain import plain

NAMED = 10
"""Classes with a colour and a name at most; the others are grey."""


def pr_picture(curves: Mapping[str, Sequence[Any]], title: str) -> bytes:
    """A PNG with a panel for each kind ("boxes", "masks").

    curves: of each kind the classes' `attneck.detection.precision_recall.Curve`s. The classes with the most
        objects are named, with their AP.
    """
    figure = Figure(figsize=(6.5 * len(curves), 5), layout="constrained")
    for axes, (kind, rows) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        there = sorted((row for row in rows if row.objects), key=lambda row: (-row.objects, row.name))
        for number, row in reversed([*enumerate(there)]):
            named = number < NAMED
            name = row.name if len(row.name) <= 20 else f"{row.name[:19]}…"
            axes.plot(
                row.recall,
                row.precision,
                color=LINES[number % len(LINES)] if named else "0.8",
                linestyle="--" if len(LINES) <= number < NAMED else "-",
                linewidth=1.4 if named else 0.7,
                label=plain(f"{name}: {100 * row.ap:.1f}") if named else None,
            )
        axes.set(
            xlabel="recall",
            ylabel="precision",
            xlim=(0, 1.01),
            ylim=(0, 1.02),
            title=f"{textwrap.fill(title, 60)}\n{kind}",
        )
        axes.grid(alpha=0.3)
        if there:
            more = f", {NAMED} of {len(there)} classes" if len(there) > NAMED else ""
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(
                handles[::-1], labels[::-1], title=f"AP (%){more}", fontsize="small", title_fontsize="small"
            )
        else:
            axes.text(0.5, 0.5, "no objects", ha="center", transform=axes.transAxes)
    file = io.BytesIO()
    savefig(figure, file, format="png", dpi=120)
    return file.getvalue()
