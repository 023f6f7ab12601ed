"""Precision by recall of each class, as COCO's evaluator and VOC's devkit have it, at IoU 0.5."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attneck.detection.metrics import (
    Detections,
    Truth,
    average_precision,
    by_category,
    numbers_of,
    voc_right,
)

COLUMNS = {"bbox": "boxes", "segm": "masks"}
"""What COCO's kinds are called."""


class Curve(NamedTuple):
    """A class: its objects, its AP by the data set's rule, a share, -1 without objects; its curve at IoU 0.5.

    recall, precision: float64 [n], recall rising; empty where nothing was found of VOC.
    """

    name: str
    objects: int
    ap: float
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


def coco_curves(ground_truth: Truth, evaluators: dict[str, Any]) -> dict[str, list[Curve]]:
    """Of what `attneck.detection.metrics.coco_evaluators` gave: a curve for each class, by kind.

    The AP is over IoU 0.5 … 0.95, of objects of every size, with 100 detections an image.
    """
    there = Counter(row["category_id"] for row in ground_truth["annotations"] if not row.get("iscrowd"))
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    found = {}
    for kind, evaluator in evaluators.items():
        precision = np.asarray(evaluator.eval["precision"])[..., 0, -1]  # [IoUs, recalls, classes]
        recall = np.asarray(evaluator.params.recThrs, dtype=np.float64)
        rows = []
        for place, category in enumerate(numbers_of(ground_truth["categories"])):
            of_class = precision[..., place]
            ap = float(of_class.mean()) if there[category] else -1.0
            rows.append(Curve(names[category], there[category], ap, recall, of_class[0].clip(0)))
        found[COLUMNS[kind]] = rows
    return found


def voc_curves(ground_truth: Truth, detections: Detections, rule: str) -> dict[str, list[Curve]]:
    """A curve for each class, by the rules of `attneck.detection.metrics.voc_scores`."""
    objects, found = by_category(ground_truth["annotations"]), by_category(detections)
    rows = []
    for category in ground_truth["categories"]:
        right, total = voc_right(objects[category["id"]], found[category["id"]])
        hits = np.cumsum(right)
        recall, precision = hits / max(1, total), hits / np.arange(1, len(hits) + 1)
        ap = average_precision(right, total, rule) if total else -1.0
        rows.append(Curve(category["name"], total, ap, recall, precision))
    return {COLUMNS["bbox"]: rows}
