"""docs/attention-on-gpu.svg: attention's time and memory by the map's side, of results/gpu."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from table_parts import RESULTS, ROOT

from attneck.explain.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from attneck.explain.vector import save

PICTURE = ROOT / "docs" / "attention-on-gpu.svg"
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "triton": ("attneck, triton", {"color": BLUE, "marker": "o", "linewidth": 2.4}),
    "sdpa": ("attneck, sdpa (PyTorch's fused attention)", {"color": SKY, "marker": "s"}),
    "FlexAttention": ("PyTorch's FlexAttention", {"color": GREEN, "marker": "D"}),
    "plain": ("attneck, plain", {"color": PURPLE, "marker": "v", "linestyle": "--"}),
    "timm BottleneckAttn": ("timm", {"color": VERMILION, "marker": "X", "linestyle": "-."}),
    "bottleneck-transformer-pytorch": (
        "bottleneck-transformer-pytorch",
        {"color": ORANGE, "marker": "^", "linestyle": ":"},
    ),
}
"""The ways that are drawn, and how; told apart without colour, too."""
PANELS = {"ms": "milliseconds", "peak_mib": "MiB beyond the inputs"}
TOLD = ("triton", "timm BottleneckAttn")
"""Whose figures stand beside the points, of the two largest maps."""
SMALLEST = 20
"""On smaller maps every way waits for Python, as long as the next."""


def draw(path: Path = PICTURE) -> None:
    """Forward and backward, a panel each for time and memory, both axes logarithmic."""
    document = json.loads((RESULTS / "gpu" / "attention.json").read_bytes())
    batch, rows = _rows(document)
    figure = Figure(figsize=(10, 4.9), layout="constrained")
    figure.suptitle(
        f"Attention on an {document['where']['gpu']}: {batch} maps, C = 512, 4 heads, bfloat16, "
        "forward and backward",
        fontsize="medium",
    )
    for axes, (key, unit) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for name, (label, style) in STYLES.items():
            points = [(side, row[key][name]) for side, row in rows if name in row[key]]
            axes.plot(*zip(*points, strict=True), label=label, markersize=5, **style)
            for side, value in points[-2:] if name in TOLD else []:
                where = {"ha": "right", "va": "bottom"} if name != TOLD[0] else {"ha": "left", "va": "top"}
                away = (-6, 2) if name != TOLD[0] else (4, -6)
                axes.annotate(
                    f"{value:,.3g}" if value < 100 else f"{value:,.0f}",
                    (side, value),
                    away,
                    textcoords="offset points",
                    fontsize=8,
                    **where,
                )
        if key == "ms":
            floor = [(side, max(row["floor_ms"].values())) for side, row in rows]
            axes.plot(*zip(*floor, strict=True), color="grey", linewidth=1, label="what the products take")
            axes.set_ylim(bottom=0.3)
        axes.set(xscale="log", yscale="log", xlabel="side of the map", title=unit)
        axes.xaxis.set_major_locator(FixedLocator([side for side, _ in rows]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda side, _: f"{side:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.margins(x=0.08)
        axes.grid(alpha=0.3)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    save(figure, path, as_text=True)


def _rows(document: dict[str, Any]) -> tuple[int, list[tuple[int, dict[str, Any]]]]:
    """The batch, and by the map's side its row of forward and backward."""
    found, batches = [], set()
    for key, row in document["rows"].items():
        said = re.fullmatch(r"(\d+)×\1 b(\d+) bfloat16 forward\+backward", key)
        if said and int(said[1]) >= SMALLEST:
            found.append((int(said[1]), row))
            batches.add(int(said[2]))
    (batch,) = batches  # of several, a picture each
    return batch, sorted(found, key=lambda each: each[0])


if __name__ == "__main__":
    draw()
