"""docs/gains.svg: what attention gains over the same network without, of the reports in results/studies."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from table_parts import RESULTS, ROOT

from attneck.explain import differences
from attneck.explain.differences import Gain, Line
from attneck.explain.palette import BLUE, GREEN, ORANGE, PURPLE, SKY

PICTURE = ROOT / "docs" / "gains.svg"
STYLES: dict[str, dict[str, Any]] = {
    "BoTNet's attention": {"color": BLUE, "marker": "o"},
    "BAM": {"color": ORANGE, "marker": "s"},
    "both": {"color": GREEN, "marker": "^"},
    "BoTNet-S1": {"color": SKY, "marker": "v"},
    "BoTNet-S1 and BAM": {"color": PURPLE, "marker": "D"},
}
"""Told apart without colour, too."""
SERIES = {
    "bot": "BoTNet's attention",
    "bam": "BAM",
    "bot_bam": "both",
    "botnet": "BoTNet's attention",
    "resnet_bam": "BAM",
    "botnet_bam": "both",
    "botnet_s1": "BoTNet-S1",
    "botnet_s1_bam": "BoTNet-S1 and BAM",
}
"""By the studies' variants."""
PARTS: dict[str, list[tuple[str, str, str, str]]] = {
    "Drawn marks, a narrow net (top-1)": [
        ("are two alike?", "relations", "same", ""),
        ("are any two of four alike?", "relations", "twins", ""),
        ("are half of eight alike?", "relations", "identity", ""),
        ("is one left of the other?", "relations", "left_of", ""),
        ("is a dot inside a curve?", "relations", "inside", ""),
        ("is the disc the nearest?", "relations", "nearest", ""),
        ("does a line join two?", "relations", "path", ""),
    ],
    "Photographs of 64 pixels, 20 classes, a thin ResNet-26 (top-1)": [
        ("after 10 epochs", "tiny-imagenet", "regime_100", ""),
        ("after 20", "tiny-imagenet", "regime_200", ""),
        ("after 35", "tiny-imagenet", "regime_350", ""),
    ],
    "Photographs of 32 pixels, 100 classes, a narrow net (top-1)": [("after 10 epochs", "cifar100", "", "")],
    "At twice the side of training's images, BatchNorm's statistics taken anew (top-1)": [
        ("are two alike? (64 pixels)", "resolutions", "same", "64"),
        ("photographs, enlarged to 128", "zoom", "", "128"),
    ],
    "Drawn scenes, a thin Mask R-CNN (box AP)": [("after 3 epochs", "botnet-2", "epochs_3", "")],
}
"""What is drawn: a line's label, study, problem, and the side in pixels where that is not training's."""


def draw(path: Path = PICTURE) -> None:
    """A line a problem: the mean difference to the net without attention, and its 95 % interval."""
    parts: dict[str, list[Line]] = {}
    for heading, lines in PARTS.items():
        parts[heading] = []
        for label, *where in lines:
            base, gains = _gains(*where)
            parts[heading].append(Line(label, gains, f"{base:.1f}"))
    axis = (
        "points gained over the same net without attention, whose score stands at the right\n"
        "(means of three seeds; the lines are 95 % intervals of the gain)"
    )
    differences.draw(parts, path, axis, "without", STYLES)


def _gains(study: str, problem: str, side: str) -> tuple[float, dict[str, Gain]]:
    """The baseline's mean, and by series the mean difference to it, with its interval if there is one."""
    report = json.loads((RESULTS / "studies" / study / "report.json").read_bytes())
    base: str = report["baseline"]
    if side:
        anew = "_recalibrated"
        sizes, pairs = (
            [row for row in report[part] if (row["problem"], row["metric"]) == (problem, "top1")]
            for part in ("sizes", "size_differences")
        )
        (score,) = (fmean(row["scores"][side].values()) for row in sizes if row["name"] == base + anew)
        differences = {
            row["name"].removesuffix(anew): row["differences"][side]
            for row in pairs
            if row["less"] == base + anew and row["name"].endswith(anew)
        }
    else:
        rows = {row["variant"]: row for row in report["rows"] if row["problem"] == problem}
        score, differences = rows[base]["mean"], {name: row["difference"] for name, row in rows.items()}
    found: dict[str, Gain] = {}
    for variant, name in SERIES.items():
        if variant in differences:
            of = differences[variant]
            assert of["n"] == 3, f"{study} {problem} {variant}: the axis says three seeds"
            found[name] = of["mean"], of["interval"]
    return score, found


if __name__ == "__main__":
    draw()
