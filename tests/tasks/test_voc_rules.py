"""A detector's run on VOC is scored by its devkit's rule, on the images that its split is of."""

import pytest
import torch
from detection_files import voc_xml, write_voc

from attneck.tasks import detection, open_task
from attneck.training.distributed import World
from attneck.training.recipe import Recipe

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def root(tmp_path):
    """Two dogs in 2007, three in 2012; each split has the same images."""
    dog = voc_xml(40, 30, [("dog", 0, [1, 1, 20, 30])])
    for split in ("train", "val", "test"):
        write_voc(tmp_path, {f"00000{i}": dog for i in range(2)}, split, "2007")
        write_voc(tmp_path, {f"2008_{i}": dog for i in range(3)}, split, "2012")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "split", "images", "mean"),
    [
        # The first image's dog is found, after a box of nothing: precision 1/2 at recall 1/n.
        # 11 points: recalls of 0, 0.1, … up to 1/n count, (1 + ⌊10/n⌋) / 11 · 1/2.  Area: 1/n · 1/2.
        ("voc2007", "val", 2, 6 / 11 / 2),
        ("voc2007", "test", 2, 6 / 11 / 2),
        ("voc2012", "val", 3, 1 / 3 / 2),
        ("voc0712", "val", 5, 1 / 5 / 2),
        ("voc0712", "test", 2, 6 / 11 / 2),
    ],
)
def test_the_rule_and_the_images_are_the_splits(root, name, split, images, mean, monkeypatch):
    recipe = Recipe.model_validate(
        {
            "model": {"name": "ssd300_mobilenet"},
            "data": {"name": name, "root": str(root), "val_split": split},
        }
    )
    task = open_task(recipe, ALONE)
    assert len(task.held_out) == images
    dog = 1 + task.held_out.classes.index("dog")
    found = [
        {"image_id": 1, "category_id": dog, "bbox": [25, 0, 10, 10], "score": 0.9},
        {"image_id": 1, "category_id": dog, "bbox": [0, 0, 20, 30], "score": 0.8},
    ]
    monkeypatch.setattr(detection, "detect", lambda *given: found)
    scores = task.report(torch.nn.Identity()).details
    assert scores["mAP"] == pytest.approx(mean)
