"""Detection sets: stateless, what is trained on and what is scored against, sizes and splits."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_files import coco_content, polygon, voc_xml, write_coco, write_voc
from PIL import Image
from pycocotools.coco import COCO

from attneck.data import TrainBatches, loader
from attneck.data.augment.geometry import Sample
from attneck.data.detection import open_detection
from attneck.data.drawn import shapes
from attneck.data.drawn.scenes import MOST
from attneck.data.readers.annotations import Records
from attneck.data.readers.voc import CLASSES
from attneck.data.table import BOXES


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_coco(tmp_path, coco_content())
    return tmp_path


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    images = {
        "000005": voc_xml(40, 30, [("dog", 0, [3, 4, 20, 30]), ("person", 1, [1, 1, 40, 30])]),
        "000007": voc_xml(40, 30, [("cat", 1, [5, 5, 9, 9])]),
        "000009": voc_xml(40, 30, []),
    }
    write_voc(tmp_path, images)
    return tmp_path


@pytest.fixture(params=[(name, augment) for name in ("coco", "shapes", "voc2007") for augment in BOXES])
def dataset(request: pytest.FixtureRequest) -> Any:
    name, augment = request.param
    options: dict[str, Any] = {"augment": augment, "seed": 5, "image_size": 96}
    if augment == "scale_jitter":
        options["jitter"] = (0.3, 1.5)
    if name == "shapes":
        options["size"] = 4
    else:
        options["root"] = request.getfixturevalue({"coco": "coco", "voc2007": "voc"}[name])
    return open_detection(name, "train", **options)


def same(one: Any, other: Any) -> bool:
    (image, target), (other_image, other_target) = one, other
    return torch.equal(image, other_image) and all(
        torch.equal(value, other_target[key]) for key, value in target.items()
    )


def test_items_are_what_torchvisions_detectors_take(dataset: Any) -> None:
    for index in range(len(dataset)):
        image, target = dataset[2, index]
        assert image.dtype == torch.float32
        assert image.shape == (3, 96, 96)
        assert image.is_contiguous()
        assert image.min() >= 0
        assert image.max() <= 1
        count = len(target["boxes"])
        assert target["boxes"].shape == (count, 4)
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].shape == target["area"].shape == target["iscrowd"].shape == (count,)
        assert target["labels"].dtype == target["image_id"].dtype == torch.int64
        assert ((target["labels"] >= 1) & (target["labels"] <= len(dataset.classes))).all()
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 96)).all()
        assert (target["boxes"][:, :2] < target["boxes"][:, 2:]).all()
        assert target["image_id"].item() == dataset.record(index).id
        assert ("masks" in target) == dataset.masks
        if dataset.masks:
            assert target["masks"].shape == (count, 96, 96)
            assert target["masks"].dtype == torch.uint8
            assert torch.equal(target["area"], target["masks"].sum(dim=(1, 2)).float())


def test_workers_give_the_same_bits(dataset: Any) -> None:
    batches = TrainBatches(len(dataset), 2, seed=5, steps=3)
    state, numpy_state = torch.get_rng_state(), pickle.dumps(np.random.get_state())
    alone, forked = (list(loader(dataset, batches, workers)) for workers in (0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert numpy_state == pickle.dumps(np.random.get_state())
    assert len(alone) == len(forked) == 3
    for keys, one, other in zip(batches, alone, forked, strict=True):
        assert isinstance(one[0], list)
        for key, *item, other_image, other_target in zip(keys, *one, *other, strict=True):
            assert same(item, (other_image, other_target))
            assert same(item, dataset[key])
            assert same(
                item, pickle.loads(pickle.dumps(dataset))[key]
            )  # as workers that are not forked get it


def test_augmentation_depends_on_the_epoch_and_the_seed(dataset: Any) -> None:
    def items(epoch: int) -> list[Any]:
        return [dataset[epoch, index] for index in range(len(dataset))]

    def all_same(some: list[Any], others: list[Any]) -> bool:
        return all(image.equal(other) for (image, _), (other, _) in zip(some, others, strict=True))

    first = [items(epoch) for epoch in range(6)]
    dataset.seed += 1
    second = [items(epoch) for epoch in range(6)]
    fixed = dataset.augment == "none"
    assert all(all_same(first[0], other) for other in first) == fixed
    assert all(map(all_same, first, second)) == fixed


def test_every_second_image_is_mirrored() -> None:
    plain, flipped = (
        open_detection("shapes", "train", augment=augment, size=1) for augment in ("none", "flip")
    )
    (image, target), mirrored = plain[0, 0], 0
    for epoch in range(100):
        other, other_target = flipped[epoch, 0]
        if torch.equal(image, other):
            assert torch.equal(target["boxes"], other_target["boxes"])
            continue
        mirrored += 1
        assert torch.equal(image.flip(-1), other)
        assert torch.equal(target["masks"].flip(-1), other_target["masks"])
        expected = 256 - target["boxes"][:, [2, 1, 0, 3]]
        expected[:, 1::2] = target["boxes"][:, 1::2]
        assert torch.equal(expected, other_target["boxes"])
    assert 33 < mirrored < 67


def test_scale_jitter_draws_from_the_whole_range(coco: Path) -> None:
    dataset = open_detection(
        "coco", "train", root=coco, augment="scale_jitter", image_size=100, jitter=(0.2, 0.9)
    )
    sides = []
    for epoch in range(100):
        _, target = dataset[epoch, 2]  # one object 50 wide in an image of 64
        x0, _, x1, _ = target["boxes"][0].tolist()
        sides.append((x1 - x0) / 50 * 64)
    assert 19 < min(sides) < 25
    assert 85 < max(sides) < 91.5
    assert 48 < np.mean(sides) < 62


def test_scale_jitter_s_draws_are_even_and_apart(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is mirrored, the factor, and what is cut at the top and at the left; and what then stays."""
    drawn, mirrored = [], []

    def cut(sample: Sample, side: int, factor: float, corner: tuple[float, float], fill: object) -> Sample:
        drawn.append((factor, *corner))
        boxes = np.array([[0, 0, 1, 1], [0, 0, 0.9, 5], [0, 0, 1.5, 1.5]], np.float32)
        return Sample(sample.image, boxes, np.ones((3, *sample.image.shape[:2]), np.uint8), np.zeros(3, int))

    monkeypatch.setattr("attneck.data.detection.resize_crop_pad", cut)
    monkeypatch.setattr("attneck.data.detection.mirror", lambda sample: mirrored.append(1) or sample)
    dataset = open_detection("coco", "train", root=coco, augment="scale_jitter", jitter=(0.5, 2.0))
    for epoch in range(500):
        _, target = dataset[epoch, 0]
        assert target["boxes"].tolist() == [[0, 0, 1, 1], [0, 0, 1.5, 1.5]]  # a pixel or more each way
    table = np.array(drawn)
    np.testing.assert_allclose(table.min(axis=0), [0.5, 0, 0], atol=0.02)
    np.testing.assert_allclose(table.max(axis=0), [2, 1, 1], atol=0.02)
    np.testing.assert_allclose(table.mean(axis=0), [1.25, 0.5, 0.5], rtol=0.05)
    assert np.abs(np.corrcoef(table.T) - np.eye(3)).max() < 0.1
    assert 225 < len(mirrored) < 275


def test_coco_trains_without_crowds_and_boxes_of_no_size(coco: Path) -> None:
    dataset = open_detection("coco", "train", root=coco)
    assert dataset.classes == ("person", "dog", "toothbrush")
    assert dataset.category_ids == (1, 18, 90)
    assert (len(dataset), dataset.dropped) == (3, 1)
    image, target = dataset[0, 0]
    pixels = np.array(Image.open(coco / "coco" / "train2017" / "a.png"))
    assert pixels.shape == (60, 80, 3)
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    assert target["image_id"] == 7
    assert target["boxes"].tolist() == [[10.5, 20, 40.5, 45.25], [60, 5, 80, 25]]
    assert target["labels"].tolist() == [2, 3]
    assert target["iscrowd"].tolist() == [0, 0]
    assert target["masks"][1].nonzero().min(dim=0).values.tolist() == [5, 60]
    image, target = dataset[0, 1]
    assert image.shape == (3, 70, 50)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 70, 50)
    _, target = dataset[0, 2]
    assert target["labels"].tolist() == [1]
    assert target["masks"].sum() == (20 + 14) * 40


def test_cocos_ground_truth_is_the_file(coco: Path) -> None:
    truth = open_detection("coco", "train", root=coco).ground_truth()
    content = coco_content()
    assert truth["annotations"] == content["annotations"]
    assert truth["categories"] == content["categories"]
    assert [{**image, "file_name": Path(image["file_name"]).name} for image in truth["images"]] == content[
        "images"
    ]
    json.dumps(truth)


def test_coco_without_masks(coco: Path) -> None:
    content = coco_content()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    write_coco(coco, content, "val")
    with pytest.raises(
        ValueError, match=r"instances_val\.json: image 7 \(a\.png\): annotation 1: it has no mask"
    ):
        open_detection("coco", "val", root=coco)
    dataset = open_detection("coco", "val", root=coco / "coco", masks=False)
    assert "masks" not in dataset[0, 0][1]
    assert dataset[0, 0][1]["area"].tolist() == [30 * 25.25, 400]


def test_a_box_past_the_edge_by_less_than_a_pixel_is_cut(coco: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = [-0.5, 20, 81, 40.5]
    content["annotations"][0]["segmentation"] = polygon(-0.5, 20, 81, 40.5)
    write_coco(coco, content)
    _, target = open_detection("coco", "train", root=coco)[0, 0]
    assert target["boxes"][0].tolist() == [0, 20, 80, 60]
    assert target["masks"][0].sum() == 80 * 40


def test_voc_counts_from_the_first_pixel_and_leaves_difficult_ones_out(voc: Path) -> None:
    dataset = open_detection("voc2007", "train", root=voc)
    assert dataset.classes == CLASSES
    assert list(CLASSES) == sorted(CLASSES)
    image, target = dataset[0, 0]
    assert image.shape == (3, 30, 40)
    assert target["boxes"].tolist() == [[2, 3, 20, 30]]
    assert [dataset.classes[label - 1] for label in target["labels"]] == ["dog"]
    assert "masks" not in target
    assert dataset[0, 1][1]["boxes"].shape == dataset[0, 2][1]["boxes"].shape == (0, 4)
    truth = dataset.ground_truth()
    kinds = [
        (row["id"], row["image_id"], row["category_id"], row.get("difficult", 0))
        for row in truth["annotations"]
    ]
    assert kinds == [(1, 1, 12, 0), (2, 1, 15, 1), (3, 2, 8, 1)]
    assert truth["annotations"][1]["bbox"] == [0, 0, 40, 30]
    assert len(truth["images"]) == 3


def test_voc_of_two_years(voc: Path) -> None:
    write_voc(voc, {"2008_000002": voc_xml(40, 30, [("sofa", 0, [1, 1, 2, 2])])}, year="2012")
    dataset = open_detection("voc0712", "train", root=voc / "VOCdevkit")
    assert [dataset.record(i).id for i in range(len(dataset))] == [1, 2, 3, 4]
    assert [row["id"] for row in dataset.ground_truth()["annotations"]] == [1, 2, 3, 4]
    assert dataset[0, 3][1]["boxes"].tolist() == [[0, 0, 2, 2]]


def test_shapes_are_scenes_of_one_to_six() -> None:
    train, val = (open_detection("shapes", split, size=60) for split in ("train", "val"))
    assert train.classes == shapes.CLASSES
    truth = train.ground_truth()
    counts = np.bincount([row["image_id"] for row in truth["annotations"]])[1:]
    assert set(counts) == set(range(1, MOST + 1))
    assert len({row["id"] for row in truth["annotations"]}) == len(truth["annotations"])
    image, target = train[0, 7]
    scene = shapes.scene(0, 7, 256, int(counts[7]))
    assert torch.equal(image, torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255)
    np.testing.assert_array_equal(target["boxes"], scene.boxes)
    np.testing.assert_array_equal(target["masks"], scene.masks)
    np.testing.assert_array_equal(target["labels"], scene.labels + 1)
    assert not torch.equal(image, val[0, 7][0])
    other_seed = open_detection("shapes", "train", size=60, seed=9)
    assert torch.equal(image, other_seed[3, 7][0])
    with pytest.raises(IndexError):
        train[0, 60]


def test_evaluation_says_how_to_go_back(coco: Path) -> None:
    dataset = open_detection("coco", "train", root=coco, image_size=120)
    image, target = dataset[0, 0]
    assert image.shape == (3, 120, 120)
    assert target["orig_size"].tolist() == [60, 80]
    assert target["size"].tolist() == [90, 120]
    assert target["boxes"][1].tolist() == [90, 7.5, 120, 37.5]
    fill = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    assert (image[:, 90:] - fill).abs().max() < 0.5 / 255 + 1e-6
    _, target = open_detection("coco", "train", root=coco)[0, 0]
    assert target["orig_size"].tolist() == target["size"].tolist() == [60, 80]


def test_size_spreads_over_the_set(coco: Path) -> None:
    dataset = open_detection("coco", "train", root=coco, size=2)
    assert [dataset.record(i).id for i in range(len(dataset))] == [7, 3]
    assert dataset.dropped == 0
    assert [row["image_id"] for row in dataset.ground_truth()["annotations"]] == [7, 7, 7]
    with pytest.raises(ValueError, match="size is 4 of 3 images"):
        open_detection("coco", "train", root=coco, size=4)


def test_records_come_back_as_they_were(coco: Path) -> None:
    dataset = open_detection("coco", "train", root=coco)
    records = [dataset.record(i) for i in range(3)]
    assert list(Records(records)) == records
    assert Records(records).counts == {
        "images": 3,
        "empty": 1,
        "objects": 5,
        "crowd": 1,
        "difficult": 0,
        "degenerate": 1,
    }
    assert list(Records([])) == []
    with pytest.raises(IndexError, match="record -2 of 3"):
        Records(records)[-2]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("cocoa", "train"), {}, "data set is 'cocoa': choose shapes, coco, voc2007, voc2012, voc0712"),
        (("cifar100", "train"), {}, "data set is 'cifar100': choose shapes, coco"),
        (("coco", "test"), {}, "split of coco is 'test': choose train, val"),
        (("voc2012", "test"), {}, "split of voc2012 is 'test'"),
        (("shapes", "val"), {"augment": "crop_flip"}, "augment for shapes is 'crop_flip': choose none, flip"),
        (("shapes", "val"), {"image_size": 0}, "image_size=0: wanted a whole number from 1"),
        (("shapes", "val"), {"image_size": 71}, "image_size is 71: 6 objects want 72 pixels"),
        (("shapes", "val"), {"jitter": (1.5, 0.5)}, "jitter goes with augment scale_jitter, not none"),
        (
            ("shapes", "train"),
            {"jitter": (1.5, 0.5), "augment": "scale_jitter"},
            r"jitter is \(1.5, 0.5\): give two factors over 0, the lesser one first",
        ),
        (("coco", "val"), {"md5": ["0"]}, "coco: md5 is given, but it takes root, image_size, augment"),
        (("voc2007", "val"), {"masks": True}, "voc2007: masks are asked for, but its objects have none"),
    ],
)
def test_what_there_is_not_is_refused(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_detection(*arguments, **options)


def test_opening_a_set_imports_no_torchvision() -> None:
    """Its seven seconds are for `ssd` alone."""
    program = (
        "import sys, attneck.data.check, attneck.data.readers.coco, attneck.data.readers.voc, "
        "attneck.data.drawn.scenes; sys.exit('torchvision' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def data_root() -> Path:
    return Path(os.environ["ATTNECK_DATA"])


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "images", "objects", "crowds"), [("train", 96, 853, 7), ("val", 50, 382, 5)]
)
def test_real_coco(split: str, images: int, objects: int, crowds: int) -> None:
    dataset = open_detection("coco", split)
    file = data_root() / "coco" / "annotations" / f"instances_{split}2017.json"
    content = json.loads(file.read_text())
    truth = dataset.ground_truth()
    assert len(dataset) == images
    assert len(dataset.classes) == 80
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    wanted = sorted(
        ({key: row[key] for key in keys} for row in content["annotations"]), key=lambda row: row["id"]
    )
    assert sorted(truth["annotations"], key=lambda row: row["id"]) == wanted
    assert dataset.records.counts == {  # type: ignore[attr-defined]
        "images": images,
        "empty": 2,
        "objects": objects,
        "crowd": crowds,
        "difficult": 0,
        "degenerate": 0,
    }
    reference = COCO()
    reference.dataset = content
    reference.createIndex()
    for index in range(0, images, 7):
        image, target = dataset[0, index]
        rows = reference.imgToAnns[int(target["image_id"])]
        rows = [row for row in rows if not row["iscrowd"]]
        assert len(rows) == len(target["labels"])
        assert [row["category_id"] for row in rows] == [dataset.category_ids[i - 1] for i in target["labels"]]
        for row, mask, box in zip(rows, target["masks"], target["boxes"].tolist(), strict=True):
            np.testing.assert_array_equal(mask, reference.annToMask(row))
            x, y, w, h = row["bbox"]
            np.testing.assert_allclose(box, [x, y, x + w, y + h], rtol=0, atol=1e-3)
        assert image.shape[1:] == target["masks"].shape[1:]


@pytest.mark.data
def test_real_voc() -> None:
    parts = {split: open_detection("voc2007", split) for split in ("train", "val", "trainval")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 330, "val": 330, "trainval": 660}
    truth = parts["trainval"].ground_truth()
    assert len(truth["annotations"]) == 2024
    assert sum(row.get("difficult", 0) for row in truth["annotations"]) == 400
    trained_on = sum(len(parts["trainval"].record(i).trained_on()) for i in range(660))
    assert trained_on == 1624
    assert {row["category_id"] for row in truth["annotations"]} == set(range(1, 21))
    dataset = open_detection("voc2007", "trainval", augment="ssd")
    assert dataset[0, 0][0].shape == (3, 300, 300)
