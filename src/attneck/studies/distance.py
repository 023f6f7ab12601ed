"""How far the attention of a study's runs looks: of each head the mean over held-out images, in pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attneck.errors import EXPECTED, ending
from attneck.files import read_json
from attneck.runs.report.words import images_of
from attneck.runs.run import Run
from attneck.studies import kept
from attneck.studies.statistics import told
from attneck.studies.study import Cell, Study

if TYPE_CHECKING:
    from torch import Tensor

FILE = "distance.json"
"""Beside a run's summary: by the number of images, the layer's name, and its heads."""
Heads = dict[str, list[float]]


@dataclass
class DistanceRow:
    """A layer of a variant on a problem: by seed, of each head, the mean distance in pixels of the image."""

    problem: str
    variant: str
    layer: str
    heads: dict[int, list[float]] = field(default_factory=dict)


def find(study: Study, cells: Sequence[Cell], said: Callable[[str], None]) -> None:
    """Measure every finished run that isn't measured yet; a line for each one to `said`.

    So too for one that cannot be measured: the report is of the others.
    """
    for cell in cells:
        if not lacking(study, cell):
            continue
        images = _images(study, cell)
        try:
            kept.keep(cell.folder / FILE, str(images), _heads(cell, images))
        except EXPECTED as error:
            said(f"{cell.name}: no distances of attention: {ending(error)[1]}")
            continue
        said(f"{cell.name}: distances of attention over {images} images")


def lacking(study: Study, cell: Cell) -> bool:
    """Whether a finished run is still to be measured."""
    if not study.distance_images or not cell.done or not kept.has_weights(cell.folder):
        return False
    return str(_images(study, cell)) not in kept.read(cell.folder / FILE)


def collect(study: Study, cells: Sequence[Cell]) -> list[DistanceRow]:
    """A row for each layer of attention, from whatever has been measured."""
    rows: dict[tuple[str, str, str], DistanceRow] = {}
    for cell in cells:
        if not cell.done:
            continue
        found = kept.read(cell.folder / FILE)
        for layer, heads in found.get(str(_images(study, cell)), {}).items():
            key = cell.problem, cell.variant, layer
            rows.setdefault(key, DistanceRow(*key)).heads[cell.seed] = heads
    order = [(problem, variant) for problem in study.problems or [""] for variant in study.variants]
    return sorted(rows.values(), key=lambda row: order.index((row.problem, row.variant)))


def table(study: Study, rows: Sequence[DistanceRow]) -> tuple[list[str], list[list[str]]]:
    """The head, and a row of words for each layer.

    Heads have no order that two seeds share: they are sorted by their distance before they are averaged.
    """
    head = ["problem", "variant", "layer", "mean of the heads", "nearest head", "farthest head"]
    body = []
    for row in rows:
        means = {seed: sum(heads) / len(heads) for seed, heads in row.heads.items()}
        least, most = ({seed: pick(heads) for seed, heads in row.heads.items()} for pick in (min, max))
        body.append([row.problem, row.variant, row.layer, told(means), told(least), told(most)])
    if not study.problems:
        head, body = head[1:], [line[1:] for line in body]
    return head, body


def _images(study: Study, cell: Cell) -> int:
    """As many as the study wants, or all that the run holds out."""
    there = images_of(read_json(cell.folder / "data.json") or {}, "held-out")
    return min(study.distance_images, there or study.distance_images)


def _heads(cell: Cell, images: int) -> Heads:
    """By layer and head, in pixels; nothing of a network without attention."""
    from attneck.explain import maps
    from attneck.layers import MHSA2d

    run = Run(cell.folder)
    model = run.model()
    if not any(isinstance(module, MHSA2d) for module in model.modules()):
        return {}
    total: dict[str, Tensor] = {}
    seen: Counter[str] = Counter()  # a layer may run more than once in a pass
    for sample in run.samples(images, root=cell.recipe.data.root):  # where the study's data lies now
        for layer in maps(model, run.prepared(sample.image)).mhsas:
            total[layer.name] = total.get(layer.name, 0) + layer.distance()
            seen[layer.name] += 1
    return {name: (heads / seen[name]).tolist() for name, heads in total.items()}
