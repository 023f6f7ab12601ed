"""What a detector is trained on fits what it is scored on."""

import numpy as np
import pytest
import torch
from detection_files import coco_content, write_coco
from torchvision.transforms import v2

from attneck.data.augment.geometry import Sample
from attneck.data.augment.ssd import SSDAugment
from attneck.imagenet import MEAN
from attneck.models import create_model
from attneck.models.pretrained import normalisation
from attneck.tasks import open_task
from attneck.training.distributed import World
from attneck.training.recipe import Recipe

ALONE = World(0, 1, torch.device("cpu"))


def task(root, name="fasterrcnn_botnet26_thin", **data):
    content = {"model": {"name": name}, "data": {"name": "coco", "root": str(root), **data}, "batch": 1}
    return open_task(Recipe.model_validate(content), ALONE)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["dog", "person", "toothbrush"], "class 1, .* is 'person' in train and 'dog' in val"),
        (["person", "dog"], "class 3, .* is 'toothbrush' in train and not there in val"),
        (["person", "dog", "toothbrush"], None),
    ],
)
def test_a_label_is_the_same_class_on_both_sides(tmp_path, names, says):
    """Labels follow the ids of each file: another list of categories would give a label another meaning."""
    content = coco_content()
    write_coco(tmp_path, content, "train2017")
    categories = [{"id": number, "name": name} for number, name in zip([2, 20, 91], names, strict=False)]
    write_coco(tmp_path, content | {"categories": categories, "annotations": []}, "val2017")
    opened = task(tmp_path)
    if says is None:
        assert opened.training.classes == opened.held_out.classes
    else:
        with pytest.raises(ValueError, match=says) as error:
            opened.training  # noqa: B018
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("kind", ["none at all", "crowds", "of no size", "masks without a pixel"])
def test_a_set_without_anything_to_find_is_refused(tmp_path, kind):
    content = coco_content()
    rows = {
        "none at all": [],
        "crowds": [row for row in content["annotations"] if row["iscrowd"]],
        "of no size": [row for row in content["annotations"] if 0 in row["bbox"][2:]],
        "masks without a pixel": [
            content["annotations"][0] | {"segmentation": {"size": [60, 80], "counts": [60 * 80]}}
        ],
    }[kind]
    write_coco(tmp_path, content | {"annotations": rows}, "train2017")
    write_coco(tmp_path, content, "val2017")
    with pytest.raises(
        ValueError, match=r"coco: no object in the 3 images of train is trained on: .* crowds"
    ):
        task(tmp_path, "maskrcnn_botnet26_thin").training  # noqa: B018
    if kind == "masks without a pixel":  # which a detector of boxes does not ask for
        task(tmp_path).training  # noqa: B018


@pytest.mark.parametrize(("others", "said"), [(18, True), (19, False)])
def test_crowds_are_said_where_they_are_many(tmp_path, capsys, others, said):
    """Over one in twenty; some tools make every mask of a brush one."""
    content = coco_content()
    row, crowd = content["annotations"][:2]
    rows = [crowd, *(row | {"id": 100 + i} for i in range(others))]
    for split in ("train2017", "val2017"):
        write_coco(tmp_path, content | {"annotations": rows}, split)
    task(tmp_path).training  # noqa: B018
    says = f"coco: 1 of {others + 1} objects of train are crowds (iscrowd 1): they are not trained on. Some"
    assert (says in capsys.readouterr().err) == said


def test_boxes_of_no_size_are_said(tmp_path, capsys):
    for split in ("train2017", "val2017"):
        write_coco(tmp_path, coco_content(), split)
    assert task(tmp_path).training.dropped == 1
    assert "1 objects of train have boxes of no size: they are not trained on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["maskrcnn_botnet26_thin", "fasterrcnn_botnet26_thin"])
def test_masks_without_a_pixel_are_said_where_masks_are_trained_on(tmp_path, capsys, name):
    content = coco_content()
    row, *others = content["annotations"]
    point = {"bbox": [5.1, 5.1, 0.2, 0.2], "area": 0.04, "segmentation": [[5.1, 5.1, 5.3, 5.1, 5.3, 5.3]]}
    runs = {"segmentation": {"size": [60, 80], "counts": [60 * 80]}}
    rows = [row, *others, row | {"id": 50} | point, row | {"id": 51} | runs]
    for split in ("train2017", "val2017"):
        write_coco(tmp_path, content | {"annotations": rows}, split)
    training = task(tmp_path, name).training
    says = "coco: 2 objects of train have masks without a pixel: they are not trained on"
    masks = name.startswith("mask")
    assert (says in capsys.readouterr().err) == masks
    seen = sum(len(training[i][1]["labels"]) for i in range(len(training)))
    assert seen == (3 if masks else 5)


@pytest.mark.parametrize("objects", [True, False])
def test_a_held_out_set_without_objects_is_said(tmp_path, capsys, objects):
    content = coco_content()
    write_coco(tmp_path, content, "train2017")
    write_coco(tmp_path, content if objects else content | {"annotations": []}, "val2017")
    task(tmp_path).training  # noqa: B018
    said = "coco: there is nothing to find in the 3 images of val, every score will be -1"
    assert (said in capsys.readouterr().err) == (not objects)


@pytest.mark.parametrize("augment", ["ssd", "scale_jitter"])
def test_an_augmentation_to_a_square_makes_it_of_the_detectors_size(tmp_path, augment):
    for split in ("train2017", "val2017"):
        write_coco(tmp_path, coco_content(), split)
    opened = task(tmp_path, "ssd300_mobilenet", augment=augment)
    assert opened.training[0, 0][0].shape == (3, 300, 300)


def test_ssd_is_trained_on_images_as_sharp_as_those_it_is_scored_on():
    """An image that is only resized is what the detector itself makes of the whole one, to a rounding."""
    augment = SSDAugment(300)
    augment._transform.transforms = [
        step for step in augment._transform.transforms if type(step) is v2.Resize
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    nothing = np.zeros((0, 4), dtype=np.float32)
    small = augment(Sample(pixels, nothing, None, np.zeros(0, dtype=np.int64)), seed=0).image
    transform = create_model("ssd300_mobilenet", num_classes=2).eval().transform
    batch = transform([torch.from_numpy(pixels).permute(2, 0, 1) / 255])[0].tensors[0]
    mean, std = (
        torch.tensor(numbers)[:, None, None] for numbers in (transform.image_mean, transform.image_std)
    )
    seen = 255 * (batch * std + mean)
    assert (torch.from_numpy(small).permute(2, 0, 1) - seen).abs().max() < 1


@pytest.mark.parametrize("pretrained", [None, "resnet26.bt_in1k", "mobilenetv1_100.ra4_e3600_r224_in1k"])
def test_what_is_padded_is_zeros_for_the_weights_that_it_starts_from(tmp_path, pretrained):
    """Also where these want another mean than ImageNet's: no other parts of an image say where its end is."""
    for split in ("train2017", "val2017"):
        write_coco(tmp_path, coco_content(), split)
    content = {"name": "fasterrcnn_botnet26_thin", "pretrained": pretrained}
    data = {"name": "coco", "root": str(tmp_path), "augment": "scale_jitter", "image_size": 64}
    opened = open_task(Recipe.model_validate({"model": content, "data": data, "batch": 1}), ALONE)
    image, _ = opened.training[0, 0]
    mean = MEAN if pretrained is None else normalisation(pretrained)[0]
    assert (mean == MEAN) == (pretrained is None or pretrained.startswith("resnet"))
    np.testing.assert_allclose(image[:, -1, -1], mean, atol=0.5 / 255)
