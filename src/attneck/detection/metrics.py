"""Average precision of detections, by COCO's rules and by PASCAL VOC's.

Both take the ground truth in COCO's form (`images`, `annotations`, `categories`) and the detections as
COCO's results: a list of `image_id`, `category_id`, `score`, and `bbox` (x, y, width, height in pixels of the
image's file) or `segmentation` (run lengths) or both. Scores are fractions. A score is -1 where there are no
objects.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attneck.errors import brief

Truth = dict[str, list[dict[str, Any]]]
Detections = list[dict[str, Any]]

COCO_SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve: over IoU 0.5 … 0.95, at 0.5, at 0.75; of objects under 32², up to 96², over 96² pixels."""

RULES = ("11-point", "area")
"""VOC's, of 2007 and of 2010; see `voc_scores`."""

_FIELD = {"bbox": "bbox", "segm": "segmentation"}


def coco_scores(
    ground_truth: Truth, detections: Detections, kinds: Sequence[str] = ("bbox", "segm")
) -> dict[str, dict[str, float]]:
    """COCO's twelve scores of boxes ("bbox") and of masks ("segm"), as pycocotools has them.

    A detection on a crowd counts as neither right nor wrong. For "segm" the area of a detection is its
    mask's. Only the 100 best detections of an image and a class count.

    Raises ValueError for detections of images or categories that the ground truth does not have, for a score
    that is no finite number, a box that is not four numbers, a mask of another size than its image, and if
    boxes or masks are asked for and some objects or detections have none.
    """
    evaluators = coco_evaluators(ground_truth, detections, kinds)
    return {kind: coco_stats(evaluator) for kind, evaluator in evaluators.items()}


def coco_stats(evaluator: Any) -> dict[str, float]:
    """COCO's twelve scores of an evaluator that has run."""
    return dict(zip(COCO_SCORES, map(float, evaluator.stats), strict=True))


def coco_evaluators(
    ground_truth: Truth, detections: Detections, kinds: Sequence[str] = ("bbox", "segm")
) -> dict[str, Any]:
    """faster-coco-eval's evaluator of each kind, after its run; see `coco_scores`.

    Its images and categories are numbered from 1, in the order of their ids: it keeps ids as doubles, and
    from 2^53 on would take two for one. As there, objects of images that are not listed do not count.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if unknown := [kind for kind in kinds if kind not in _FIELD]:
        raise ValueError(f"kinds={brief(unknown)}: wanted of {', '.join(_FIELD)}")
    images, categories = numbers_of(ground_truth["images"]), numbers_of(ground_truth["categories"])

    def is_listed(row: dict[str, Any]) -> bool:
        return row["image_id"] in images and row["category_id"] in categories

    def numbered(row: dict[str, Any]) -> dict[str, int]:
        return {"image_id": images[row["image_id"]], "category_id": categories[row["category_id"]]}

    frame = ground_truth | {
        "images": [image | {"id": images[image["id"]]} for image in ground_truth["images"]],
        "categories": [one | {"id": categories[one["id"]]} for one in ground_truth["categories"]],
    }
    evaluators = {}
    for kind in kinds:
        field = _FIELD[kind]
        check_detections(ground_truth, detections, kind)
        # The evaluator writes into its arguments, and reads an annotation's id of 0 as "no match".
        annotations = enumerate(filter(is_listed, ground_truth["annotations"]), 1)
        objects = [row | numbered(row) | {"id": i} for i, row in annotations]
        truth = COCO(frame | {"annotations": objects})
        rows = [
            numbered(detection) | {key: detection[key] for key in ("score", field)}
            for detection in detections
        ]
        # Before 1.8 loadRes looks at the first row.
        found = truth.loadRes(rows) if rows else COCO(frame | {"annotations": []})
        evaluators[kind] = COCOeval_faster(truth, found, kind)
        evaluators[kind].run()
    return evaluators


def numbers_of(rows: list[dict[str, Any]]) -> dict[int, int]:
    """The number of each id, from 1 in the order of the ids."""
    return {id_: number for number, id_ in enumerate(sorted({row["id"] for row in rows}), 1)}


def voc_scores(
    ground_truth: Truth, detections: Detections, rule: Literal["11-point", "area"] = "11-point"
) -> tuple[float, dict[str, float]]:
    """mAP at IoU 0.5 and each class's AP, by the rules of VOC's devkit.

    rule "11-point" is VOC 2007's: the mean over recall 0, 0.1 … 1 of the best precision at that recall or
    more. "area" is that of 2010 and later: the area under that best precision.

    Detections of a class are taken from the highest score down, equal ones in the order given. Each belongs
    to the object that it overlaps most. It is right if the IoU is 0.5 or more and no detection before it was
    right for that object; a second one is wrong. One of a `difficult` object counts as neither. The devkit's
    boxes include their last pixel, so they are xmax - xmin + 1 wide; that is `width` here. The mean is over
    the classes that have objects which are not difficult.

    Raises ValueError as `coco_scores` does, and for another rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule={brief(rule)}: wanted one of {', '.join(RULES)}")
    check_detections(ground_truth, detections, "bbox")
    objects, found = by_category(ground_truth["annotations"]), by_category(detections)
    scores = {
        category["name"]: _voc_class(objects[category["id"]], found[category["id"]], rule)
        for category in ground_truth["categories"]
    }
    there = [score for score in scores.values() if score >= 0]
    return sum(there) / len(there) if there else -1.0, scores


def check_detections(ground_truth: Truth, detections: Detections, kind: str) -> None:
    """ValueError unless each detection belongs to the ground truth and is well formed; see `coco_scores`.

    kind: what is scored, which all objects and detections must have: "bbox" or "segm".
    """
    field = _FIELD[kind]
    if lacking := [row for row in (*ground_truth["annotations"], *detections) if field not in row]:
        raise ValueError(
            f"{len(lacking)} objects or detections have no {field}, the first of image "
            f"{lacking[0].get('image_id')}: score {kind} only where all have one"
        )
    sizes = {image["id"]: [image["height"], image["width"]] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for detection in detections:
        for key, known in (("image_id", sizes.keys()), ("category_id", categories)):
            if detection.get(key) not in known:
                raise ValueError(
                    f"a detection has {key} {detection.get(key)!r}, which is none of the ground truth's "
                    f"{len(known)}: give detections of the same images and categories"
                )
        where, score = f"a detection of image {detection['image_id']}", detection.get("score")
        if not _finite(score):
            raise ValueError(f"{where} has score {score!r}: give a finite number")
        box = detection.get("bbox", (0, 0, 0, 0))
        if not hasattr(box, "__len__") or len(box) != 4 or not all(map(_finite, box)):
            raise ValueError(f"{where} has bbox {box!r}: give x, y, width and height")
        runs = detection.get("segmentation")
        if runs is not None and list(runs["size"]) != sizes[detection["image_id"]]:
            raise ValueError(
                f"{where} has a mask of size {runs['size']}: give the image's {sizes[detection['image_id']]}"
            )


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def by_category(rows: Detections) -> defaultdict[int, Detections]:
    """The rows of each category's id."""
    groups: defaultdict[int, Detections] = defaultdict(list)
    for row in rows:
        groups[row["category_id"]].append(row)
    return groups


def _voc_class(objects: Detections, found: Detections, rule: str) -> float:
    """The AP of one class; -1 if it has no objects, or only difficult ones."""
    right, total = voc_right(objects, found)
    return average_precision(right, total, rule) if total else -1.0


def voc_right(objects: Detections, found: Detections) -> tuple[NDArray[np.bool_], int]:
    """Which detections of one class are right, from the highest score down, and how many objects there are.

    Those of difficult objects are left out, and such objects do not count.
    """
    difficult = np.array([bool(row.get("difficult")) for row in objects], dtype=bool)
    order = np.argsort([-row["score"] for row in found], kind="stable")
    hit = _most_overlapped(objects, found)[order]  # the object of each detection, -1 for none
    first = np.zeros(len(hit), dtype=bool)
    first[np.unique(hit, return_index=True)[1]] = True
    ignored = (hit >= 0) & np.append(difficult, False)[hit]
    right: NDArray[np.bool_] = (first & (hit >= 0))[~ignored]
    return right, int((~difficult).sum())


def average_precision(right: NDArray[np.bool_], total: int, rule: str) -> float:
    """AP of detections, right or wrong, from the highest score down, where there are `total` objects.

    Raises ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule={brief(rule)}: wanted one of {', '.join(RULES)}")
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or more
    if rule == "area":
        return float(best[right].sum() / total)
    # Recall of k/10 or more, in whole numbers: 0.1 + 0.2 is not 0.3 in floating point.
    indices = np.searchsorted(10 * hits, np.arange(11) * total)
    return float(np.append(best, 0.0)[indices].sum() / 11)


def _most_overlapped(objects: Detections, found: Detections) -> NDArray[np.int64]:
    """The object that each detection overlaps most, -1 where the IoU is below 0.5: int64 [len(found)]."""
    hit = np.full(len(found), -1, dtype=np.int64)
    by_image: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for kind, rows in enumerate((objects, found)):
        for i, row in enumerate(rows):
            by_image[row["image_id"]][kind].append(i)
    for of_objects, of_found in by_image.values():
        if of_objects and of_found:
            overlap = _iou([found[i]["bbox"] for i in of_found], [objects[i]["bbox"] for i in of_objects])
            most = overlap.argmax(axis=1)
            half = overlap.max(axis=1) >= 0.5
            hit[of_found] = np.where(half, np.array(of_objects)[most], -1)
    return hit


def _iou(first: list[list[float]], second: list[list[float]]) -> NDArray[np.float64]:
    """Intersection over union of boxes x, y, width, height: float64 [len(first), len(second)]."""
    a, b = np.array(first, dtype=np.float64)[:, None], np.array(second, dtype=np.float64)[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    common = (high - low).clip(0).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - common
    return common / np.where(union > 0, union, 1)
