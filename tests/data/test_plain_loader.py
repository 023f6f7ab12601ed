"""Data sets in a plain DataLoader: the same images as with our batches, and no augmentation that repeats."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from attneck.data import open_dataset, open_detection
from attneck.data.detection import DetectionDataset


@pytest.mark.parametrize("workers", [0, 1])
def test_a_detection_set(workers):
    scenes = open_detection("shapes", "val", size=5, image_size=80)
    batches = [*DataLoader(scenes, batch_size=2, num_workers=workers, collate_fn=scenes.collate)]
    images = [image for batch, _ in batches for image in batch]
    targets = [target for _, batch in batches for target in batch]
    assert len(images) == 5
    (image, _), (pixels, _) = scenes[0, 1], scenes.__getitems__([(0, 1)])[0]
    assert pixels.dtype == torch.uint8
    assert np.array_equal(image.numpy(), pixels.numpy() / np.float32(255))
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        wanted, boxes = scenes[0, index]
        assert torch.equal(image, wanted)
        assert torch.equal(target["boxes"], boxes["boxes"])
        assert torch.equal(target["masks"], boxes["masks"])
    assert isinstance(scenes, DetectionDataset)


def test_a_classification_set():
    shapes = open_dataset("shapes", "val", size=6, image_size=24)
    images, labels = next(iter(DataLoader(shapes, batch_size=6, collate_fn=shapes.collate)))
    wanted, right = shapes.collate(shapes.__getitems__([(0, index) for index in range(6)]))
    assert images.dtype == torch.float32
    assert torch.equal(images, wanted)
    assert torch.equal(labels, right)
    assert torch.equal(shapes[3][0], wanted[3])


@pytest.mark.parametrize(
    "images",
    [
        open_detection("shapes", "train", size=2, image_size=80, augment="flip"),
        open_dataset("shapes", "train", size=2, image_size=24, augment="crop_flip"),
    ],
    ids=["detection", "classification"],
)
def test_an_augmentation_needs_an_epoch(images):
    with pytest.raises(ValueError, match=r"index 1 has no epoch.*batch_sampler=attneck.data.TrainBatches"):
        images[1]


def test_scenes_in_another_data_set_are_as_bright():
    """It has no `__getitems__`, so that its images come as floats already."""
    scenes = open_detection("shapes", "val", size=4, image_size=80)

    class Mine(Dataset):
        def __len__(self):
            return len(scenes)

        def __getitem__(self, index):
            return scenes[index]

    wanted = [scenes[index][0] for index in range(2)]
    for around in (scenes, Subset(scenes, [0, 1]), ConcatDataset([scenes, scenes]), Mine()):
        images, _ = next(iter(DataLoader(around, batch_size=2, collate_fn=scenes.collate)))
        assert all(map(torch.equal, images, wanted))
        assert max(image.max() for image in images) > 0.5
