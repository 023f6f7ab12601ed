"""COCO's scores: pycocotools' own figures, on its fixtures and on drawn detections."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as reference_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attneck.detection.metrics import COCO_SCORES, coco_evaluators, coco_scores
from attneck.detection.precision_recall import COLUMNS, coco_curves


def reference(truth: dict[str, Any], detections: list[dict[str, Any]], kind: str) -> list[float]:
    """pycocotools' twelve figures."""
    field = {"bbox": "bbox", "segm": "segmentation"}[kind]
    keys = ("image_id", "category_id", "score", field)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        if detections:
            found = coco.loadRes([{key: detection[key] for key in keys} for detection in detections])
        else:  # which loadRes does not take
            found = COCO()
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(figure) for figure in evaluation.stats]


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    found = reference_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def drawn(seed: int, objects: int = 7, crowds: float = 0.2, detections: int = 12) -> tuple[Any, Any]:
    """A ground truth of boxes whose masks are ellipses, some of them crowds, and detections near them."""
    rng = np.random.default_rng(seed)
    height, width = 120, 160
    y, x = np.mgrid[:height, :width] + 0.5

    def ellipse(box: list[float]) -> dict[str, Any]:
        u, v = (x - box[0]) / box[2] * 2 - 1, (y - box[1]) / box[3] * 2 - 1
        return runs_of(u * u + v * v <= 1)

    images = [{"id": 10 * i, "width": width, "height": height} for i in range(1, 7)]
    categories = [{"id": number, "name": f"kind {number}"} for number in (3, 5, 11)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        boxes = []
        for _ in range(rng.integers(0, objects + 1)):
            size = rng.uniform(6, 110, 2) * rng.uniform(0.2, 1)
            corner = rng.uniform(0, 1, 2) * ([width, height] - size)
            boxes.append([*corner.tolist(), *size.tolist()])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice([3, 5])),
                    "bbox": boxes[-1],
                    "area": boxes[-1][2] * boxes[-1][3] * 0.8,
                    "iscrowd": int(rng.uniform() < crowds),
                    "segmentation": ellipse(boxes[-1]),
                }
            )
        for _ in range(detections):
            box = np.array(boxes[rng.integers(len(boxes))] if boxes else [20.0, 20, 40, 40])
            box[:2] += rng.normal(0, 3, 2)
            box[2:] *= rng.uniform(0.8, 1.25, 2)
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": int(rng.choice([3, 5, 11])),
                    "bbox": box.tolist(),
                    "score": float(rng.integers(0, 20)) / 20,  # with ties
                    "segmentation": ellipse(box.tolist()),
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories}, results


@pytest.mark.parametrize(
    "options",
    [{"seed": seed} for seed in range(4)]
    + [
        {"seed": 4, "crowds": 1.0},
        {"seed": 5, "crowds": 0.0},
        {"seed": 6, "objects": 0},
        {"seed": 7, "detections": 0},
        {"seed": 8, "detections": 130},
    ],
    ids=str,
)
def test_scores_are_pycocotools(options: dict[str, Any]) -> None:
    truth, detections = drawn(**options)
    before = json.dumps([truth, detections])
    scores = coco_scores(truth, detections)
    assert json.dumps([truth, detections]) == before
    for kind in ("bbox", "segm"):
        wanted = reference(truth, detections, kind)
        assert list(scores[kind]) == list(COCO_SCORES)
        np.testing.assert_allclose(list(scores[kind].values()), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_class_s_curve_is_that_of_its_scores(kind: str) -> None:
    """The mean of its precisions is AP50; of a class without objects they are 0."""
    truth, detections = drawn(3)
    curves = coco_curves(truth, coco_evaluators(truth, detections, [kind]))[COLUMNS[kind]]
    for row, curve in zip(truth["categories"], curves, strict=True):
        objects, found = (
            [each for each in rows if each["category_id"] == row["id"]]
            for rows in (truth["annotations"], detections)
        )
        scores = coco_scores(truth | {"annotations": objects}, found, [kind])[kind]
        assert curve.name == row["name"]
        assert curve.objects == sum(not each["iscrowd"] for each in objects)
        assert curve.ap == pytest.approx(scores["AP"], abs=1e-9)
        assert curve.precision.mean() == pytest.approx(max(0, scores["AP50"]), abs=1e-9)
        np.testing.assert_allclose(curve.recall, np.arange(101) / 100)
    assert (
        [curve.objects > 0 for curve in curves] == [curve.ap > 0 for curve in curves] == [True, True, False]
    )


def test_ids_of_annotations_do_not_matter() -> None:
    truth, detections = drawn(1)
    shifted = [annotation | {"id": annotation["id"] - 1} for annotation in truth["annotations"]]
    assert coco_scores(truth, detections) == coco_scores(truth | {"annotations": shifted}, detections)


def test_objects_of_images_that_are_not_listed_do_not_count() -> None:
    truth, detections = drawn(4)
    part = truth | {"images": truth["images"][:4]}
    listed = {image["id"] for image in part["images"]}
    found = [row for row in detections if row["image_id"] in listed]
    for kind, scores in coco_scores(part, found).items():
        np.testing.assert_allclose([*scores.values()], reference(part, found, kind), rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_large_ids_are_told_apart(key: str) -> None:
    """From 2^53 on two neighbours are one number as a double; ids that are hashes are as large."""
    truth, detections = drawn(3)
    wanted = coco_scores(truth, detections)
    of = {"image_id": "images", "category_id": "categories"}[key]
    ids = {row["id"]: 2**62 - number for number, row in enumerate(reversed(truth[of]))}
    large = truth | {of: [row | {"id": ids[row["id"]]} for row in truth[of]]}
    large["annotations"] = [row | {key: ids[row[key]]} for row in truth["annotations"]]
    found = [row | {key: ids[row[key]]} for row in detections]
    assert coco_scores(large, found) == wanted
    small, big = (
        coco_curves(ground, coco_evaluators(ground, rows))["boxes"]
        for ground, rows in ((truth, detections), (large, found))
    )
    assert [(one.name, one.ap) for one in big] == [(one.name, one.ap) for one in small]


def test_an_image_of_polygons_and_unpacked_runs() -> None:
    truth, detections = drawn(2, crowds=0)
    for number, annotation in enumerate(truth["annotations"]):
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if number % 3 == 0:
            annotation |= {"iscrowd": 1, "segmentation": {"size": [120, 160], "counts": [500, 700, 18_000]}}
    scores = coco_scores(truth, detections, ["segm"])["segm"]
    np.testing.assert_allclose(list(scores.values()), reference(truth, detections, "segm"), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, r"image_id 7, which is none of the ground truth's 6"),
        ({"category_id": 4}, r"category_id 4, which is none of the ground truth's 3"),
        ({"score": float("nan")}, r"image 10 has score nan: give a finite number"),
        ({"score": "0.5"}, r"has score '0.5'"),
        ({"bbox": [1, 2, 3, float("nan")]}, r"has bbox \[1, 2, 3, nan\]: give x, y, width and height"),
        ({"bbox": [1, 2, 3]}, r"has bbox \[1, 2, 3\]: give x, y, width and height"),
        (
            {"segmentation": {"size": [3, 4], "counts": "<"}},
            r"a mask of size \[3, 4\]: give the image's \[120, 160\]",
        ),
    ],
)
def test_detections_of_something_else_are_refused(change: dict[str, Any], message: str) -> None:
    truth, detections = drawn(0)
    with pytest.raises(ValueError, match=message):
        coco_scores(truth, [detections[0] | change, *detections[1:]])


def test_masks_are_asked_for_only_where_there_are_some() -> None:
    truth, detections = drawn(0)
    boxes = [{key: row[key] for key in row if key != "segmentation"} for row in detections]
    assert coco_scores(truth, boxes, ["bbox"]) == {"bbox": coco_scores(truth, detections)["bbox"]}
    assert coco_scores(truth, boxes, "bbox") == coco_scores(truth, boxes, ["bbox"])
    with pytest.raises(ValueError, match=r"kinds=.*mask.*: wanted of bbox, segm"):
        coco_scores(truth, boxes, ["mask"])
    with pytest.raises(
        ValueError, match="72 objects or detections have no segmentation, the first of image 10"
    ):
        coco_scores(truth, boxes)


@pytest.mark.data
def test_the_fixtures_of_cocoapi() -> None:
    folder = Path(os.environ["ATTNECK_DATA"]) / "coco-eval"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())
    for kind in ("bbox", "segm"):
        detections = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
        scores = coco_scores(truth, detections, [kind])[kind]
        assert len(expected[kind]) == 12
        np.testing.assert_allclose(list(scores.values()), expected[kind], rtol=0, atol=1e-6)
