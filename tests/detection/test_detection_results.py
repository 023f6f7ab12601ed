"""Detections as COCO's JSON: perfect ones score 1, whatever form the image came in; the tables."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from torch import Tensor

from attneck.data.detection import open_detection
from attneck.detection.metrics import coco_scores, voc_scores
from attneck.detection.results import to_coco_detections
from attneck.detection.score_tables import bam_coco_table, botnet_table, voc_table


def perfect(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output of a detector that finds exactly the objects of a target."""
    count = len(target["labels"])
    output = {key: target[key] for key in ("boxes", "labels")} | {"scores": torch.linspace(0.5, 1, count)}
    return output | {"masks": target["masks"][:, None].float()} if "masks" in target else output


def scored(name: str, split: str, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    dataset = open_detection(name, split, **options)
    targets = [dataset[0, index][1] for index in range(len(dataset))]
    detections = to_coco_detections([perfect(target) for target in targets], targets, dataset.category_ids)
    return dataset.ground_truth(), json.loads(json.dumps(detections))


def test_perfect_detections_score_one() -> None:
    truth, detections = scored("shapes", "val", size=12)
    scores = coco_scores(truth, detections)
    assert scores["bbox"]["AP"] == scores["segm"]["AP"] == 1
    assert voc_scores(truth, detections)[0] == 1


def test_masks_and_boxes_come_back_from_the_square() -> None:
    """From 256 pixels a side to 352 and back: boxes are exact, masks except at their edges."""
    dataset = open_detection("shapes", "val", size=6)
    truth, targets, outputs = dataset.ground_truth(), [], []
    for index in range(6):
        _, target = dataset[0, index]
        big = {
            "boxes": target["boxes"] * 1.375,
            "labels": target["labels"],
            "scores": torch.ones(len(target["labels"])),
        }
        masks = torch.nn.functional.interpolate(
            target["masks"][:, None].float(), size=(352, 352), mode="bilinear"
        )
        outputs.append(big | {"masks": torch.nn.functional.pad(masks, (0, 48, 0, 98))})
        targets.append(target | {"size": torch.tensor([352, 352])})
    scores = coco_scores(truth, to_coco_detections(outputs, targets, dataset.category_ids))
    assert scores["bbox"]["AP"] == 1
    assert scores["segm"]["AP"] > 0.97


def test_the_best_come_first_and_figures_are_short() -> None:
    output = {
        "boxes": torch.tensor([[1.23456, 2, 11.5, 12], [0, 0, 5, 5], [3, 3, 4, 9]]),
        "labels": torch.tensor([2, 1, 1]),
        "scores": torch.tensor([0.25, 1 / 3, 0.01]),
    }
    detections = to_coco_detections([output], [{"image_id": torch.tensor(7)}], (1, 18), min_score=0.05)
    assert detections == [
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.3333333},
        {"image_id": 7, "category_id": 18, "bbox": [1.23, 2, 10.27, 10], "score": 0.25},
    ]
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    target = {"image_id": torch.tensor(7), "orig_size": torch.tensor([4, 4]), "size": torch.tensor([8, 8])}
    assert to_coco_detections([nothing], [target], (1,)) == []
    assert to_coco_detections([nothing | {"masks": torch.zeros(0, 1, 8, 8)}], [target], (1,)) == []


def test_each_side_has_its_own_ratio() -> None:
    """An image that was squeezed: what fills a box of its input fills that of the file, pixel by pixel."""
    target = {"image_id": torch.tensor(1), "orig_size": torch.tensor([8, 40]), "size": torch.tensor([16, 10])}
    masks, wanted = torch.zeros(1, 1, 16, 10), np.zeros((8, 40))
    masks[..., 4:12, 1:3], wanted[2:6, 4:12] = 1, 1
    output = {
        "boxes": torch.tensor([[1.0, 4, 3, 12]]),
        "labels": torch.tensor([1]),
        "scores": torch.ones(1),
        "masks": masks,
    }
    (found,) = to_coco_detections([output], [target], (1,))
    assert found["bbox"] == [4, 2, 8, 4]
    np.testing.assert_array_equal(rle.decode(found["segmentation"]), wanted)


def test_bounds_belong_to_what_is_kept() -> None:
    """A score of just the least one, and a pixel of just 0.5."""
    output = {
        "boxes": torch.tensor([[0.0, 0, 2, 1]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.25]),
        "masks": torch.tensor([[[[0.5, 0.49]]]]),
    }
    (found,) = to_coco_detections([output], [{"image_id": torch.tensor(1)}], (1,), min_score=0.25)
    assert rle.decode(found["segmentation"]).tolist() == [[1, 0]]


def test_equal_scores_stay_in_order() -> None:
    boxes = torch.arange(100.0)[:, None] + torch.tensor([0, 0, 1, 1])
    output = {"boxes": boxes, "labels": torch.ones(100).long(), "scores": torch.full((100,), 0.5)}
    found = to_coco_detections([output], [{"image_id": torch.tensor(1)}], (1,))
    assert [row["bbox"][0] for row in found] == [*range(100)]


def test_a_width_is_as_exact_as_its_corners() -> None:
    """Of bfloat16, which has 0.75, 100.5 and no 99.75; at the image's own size and at another."""
    output = {
        "boxes": torch.tensor([[0.75, 1, 100.5, 2]], dtype=torch.bfloat16),
        "labels": torch.tensor([1]),
        "scores": torch.ones(1),
    }
    target = {"image_id": torch.tensor(1)}
    (found,) = to_coco_detections([output], [target], (1,))
    assert found["bbox"] == [0.75, 1, 99.75, 1]
    target |= {"orig_size": torch.tensor([30, 1030]), "size": torch.tensor([10, 110])}
    (found,) = to_coco_detections([output], [target], (1,))
    assert found["bbox"] == pytest.approx([0.75 * 1030 / 110, 3, 99.75 * 1030 / 110, 3], abs=0.01)


@pytest.mark.parametrize("size", [(6, 8), (3, 4), (12, 16)])
def test_padding_belongs_to_no_object(size: tuple[int, int]) -> None:
    """A mask over the whole square, and a box over its edge, are those of the whole image."""
    target = {"image_id": torch.tensor(1), "orig_size": torch.tensor([6, 8]), "size": torch.tensor(size)}
    side = max(size)
    output = {
        "boxes": torch.tensor([[-1.0, 0.0, side + 5.0, side + 5.0]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.5]),
        "masks": torch.ones(1, 1, side, side),
    }
    (found,) = to_coco_detections([output], [target], (1,))
    assert found["bbox"] == [0, 0, 8, 6]
    assert found["segmentation"]["size"] == [6, 8]
    np.testing.assert_array_equal(rle.decode(found["segmentation"]), np.ones((6, 8)))


@pytest.mark.data
def test_perfect_detections_of_real_coco() -> None:
    """The file's own objects, as they are and through a square: crowds cost nothing."""
    truth, detections = scored("coco", "val")
    scores = coco_scores(truth, detections)
    assert scores["bbox"]["AP"] == scores["segm"]["AP"] == 1
    truth, detections = scored("coco", "val", image_size=640)
    scores = coco_scores(truth, detections)
    assert scores["bbox"]["AP"] == 1
    assert scores["segm"]["AP"] > 0.99


@pytest.mark.data
def test_perfect_detections_of_real_voc() -> None:
    for options in ({}, {"image_size": 300}):
        truth, detections = scored("voc2007", "val", **options)
        for rule in ("11-point", "area"):
            mean, scores = voc_scores(truth, detections, rule)  # type: ignore[arg-type]
            assert mean == pytest.approx(1)
            assert len(scores) == 20


def test_tables() -> None:
    def coco(base: float) -> dict[str, float]:
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        return {name: base + i / 100 for i, name in enumerate(names)}

    scores = {"maskrcnn_botnet50": {"bbox": coco(0.428), "segm": coco(0.38) | {"APs": -1.0}}}
    assert botnet_table(scores, sizes=True).splitlines() == [
        "                   APbb  APbb50  APbb75  APbbS  APbbM  APbbL"
        "  APmk  APmk50  APmk75  APmkS  APmkM  APmkL",
        "maskrcnn_botnet50  42.8    43.8    44.8   45.8   46.8   47.8"
        "  38.0    39.0    40.0      –   42.0   43.0",
    ]
    scores["fasterrcnn_resnet50"] = {"bbox": coco(0.412)}
    assert botnet_table(scores).splitlines() == [
        "                     APbb  APbb50  APbb75  APmk  APmk50  APmk75",
        "maskrcnn_botnet50    42.8    43.8    44.8  38.0    39.0    40.0",
        "fasterrcnn_resnet50  41.2    42.2    43.2     –       –       –",
    ]
    assert bam_coco_table(scores).splitlines() == [
        "                     mAP@.5  mAP@.75  mAP@[.5,.95]",
        "maskrcnn_botnet50      43.8     44.8          42.8",
        "fasterrcnn_resnet50    42.2     43.2          41.2",
    ]
    voc = {
        "ssd300_vgg16": (0.778, {"cat": 0.9, "dog": 0.656}),
        "stairnet_vgg16_bam": (0.793, {"cat": 1.0, "dog": -1}),
    }
    assert voc_table(voc).splitlines() == [
        "                    mAP@.5",
        "ssd300_vgg16          77.8",
        "stairnet_vgg16_bam    79.3",
    ]
    assert voc_table(voc, classes=True).splitlines() == [
        "        ssd300_vgg16  stairnet_vgg16_bam",
        "mAP@.5          77.8                79.3",
        "cat             90.0               100.0",
        "dog             65.6                   –",
    ]
