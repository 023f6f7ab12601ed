"""What networks cost that were counted before: the papers' and the catalog's, read without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from attneck.models import catalog
from attneck.models.options import FamilyOptions

FILE = Path(__file__).with_name("counts.json")
"""A row for each network, made by `make counts`; a test counts them all again."""


@dataclass(frozen=True)
class Counts:
    """What one image costs. A multiply-add is one multiplication with its addition: two FLOPs.

    `madds` has convolutions and matrix products, so the classifier and, of attention, q kᵀ, the weights
    times v, and q times both relative tables: N²d·2·h + N·d·(2H-1 + 2W-1)·h a layer. As both papers count,
    BatchNorm, activations, softmax, pooling, biases and sums are left out.

    A layer that attends and then pools by 2 (BoTNet A.4) is counted as published, all N×N×d of the weights
    times v. pool(P·V) = pool(P)·V, so a kernel that pools the weights first does a quarter of that product;
    its count stays the paper's.
    """

    params: int
    """All of them: `numel`."""
    params_paper: int
    """BatchNorm and MHSA's position tables left out: BoTNet's count."""
    params_weights: int
    """No biases, BatchNorm's shifts among them: the count of two rows of BAM's Table 1."""
    madds: int
    madds_no_classifier: int
    bias_adds: int
    """The additions of the convolutions' biases, one an output; in no other figure here."""
    stages: dict[str, tuple[int, int]] | None = None
    """(params, madds) by child of the model, what is no child's under "(rest)"; they add up to the totals."""


Key = tuple[FamilyOptions, int, int]
"""All options of a network, the image's side and the classes: what its counts depend on."""


def kept(options: FamilyOptions, image_size: int, num_classes: int) -> Counts | None:
    """The counts of a network that has them kept, under whatever name; None of any other."""
    return _table().get((options, image_size, num_classes))


def read_rows() -> list[dict[str, Any]]:
    """The file's rows: `model`, `options`, `image_size`, `num_classes`, and the fields of `Counts`."""
    rows: list[dict[str, Any]] = json.loads(FILE.read_text())
    return rows


@cache
def _table() -> dict[Key, Counts]:
    table = {}
    for row in read_rows():
        options = catalog.find(row.pop("model"), row.pop("options")).options
        key = options, row.pop("image_size"), row.pop("num_classes")
        table[key] = Counts(**row)
    return table
