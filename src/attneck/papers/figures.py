"""BoTNet's Figures 7 to 9 as data: every point's figures, and where each is from.

The figures have no numbers beside their points; the numbers are those of Table 14, and ViT's and DeiT's are
of their own papers. Nothing is read off a picture: where no paper prints a number, there is none here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attneck.papers.step_times import StepTimes
from attneck.papers.tables import Network, Row, load_paper

TABLES = ("14", "fig. 9")
"""Where the points are: Table 14, and the transformers beside it."""

BEYOND_83 = {"B6", "B7", "B7-RA", "S5", "T6", "T7", "T7-320"}
ABOVE_81 = {"B3", "B4", "B5", "B6", "B7", "B7-RA", "S1", "S2", "S3", "S4", "S5"}
ABOVE_81 |= {"T4", "T5", "T6", "T7", "T7-320", "DeiT-224", "DeiT-384"}

FIGURES: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "7": ("Table 14 up to EfficientNet-B5", lambda name: name not in BEYOND_83),
    "8": ("The better networks of Table 14", lambda name: name in ABOVE_81),  # the names in the figure
    "9": ("All networks of Table 14, ViT and DeiT", lambda name: True),
}
"""Each figure's title, and which points it has, by their names in it."""

FAMILIES = {"T": "BoTNets", "S": "SENets", "R": "ResNets", "B": "EfficientNets"}
"""By the first letter of a point's name."""
TRANSFORMERS = "ViT and DeiT"


@dataclass(frozen=True)
class Point:
    """A network of the figure, with what is known of it; None where there is no such number."""

    name: str
    """As in the figure: T7-320."""
    family: str
    row: Row
    top1: float
    """Per cent, as printed."""
    source: str
    """Where it is printed."""
    step_ms: float | None
    """A printed step: forward and backward of 32 images on a TPU-v3 core."""
    copied: bool
    """Whether the step time is one that the paper repeats from another row, by mistake."""
    madds: int | None
    """Computed, for one image."""
    measured_ms: tuple[float | None, ...]
    """Milliseconds an image, one for each of the documents given."""


def points(
    figure: str, madds: Callable[[Network], int | None], measured: Sequence[StepTimes] = ()
) -> list[Point]:
    """The points of Figure 7, 8 or 9, in the order of Table 14.

    Args:
        madds: counts a network's multiply-adds.
        measured: step times by `attneck bench step --table 14`.
    """
    paper, (_, belongs) = load_paper("botnet"), FIGURES[figure]
    found = []
    for number in TABLES:
        for row in paper.table(number).rows:
            name = name_of(row)
            if row.alternative or row.network is None or not belongs(name):
                continue
            step = row.printed.get("step_ms")
            found.append(
                Point(
                    name,
                    FAMILIES.get(name[0], TRANSFORMERS),
                    row,
                    float(row.printed["top1"]),
                    row.printed.get("source", f"Table {number}"),
                    None if step is None else float(step),
                    "step time are copies" in row.reason,
                    madds(row.network),
                    tuple(times.of(row) for times in measured),
                )
            )
    return found


def name_of(row: Row) -> str:
    """A row's name in the figures; those without one by their network: R50, R50-256, SE50."""
    name = row.printed.get("model", "-")
    if name != "-":
        return name
    network = re.sub(r"Net-", "", row.printed.get("backbone", row.label)).replace("Res", "R")
    side = row.printed.get("resolution")
    return network if side in (None, "224") else f"{network}-{side}"
