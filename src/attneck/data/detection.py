"""What every detection set is: images with boxes and masks from stateless keys, and their ground truth."""

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from attneck.data.augment.geometry import Sample, colour, mirror, resize_crop_pad, resized, visible
from attneck.data.fingerprint import Fingerprint
from attneck.data.readers.annotations import Record, shown
from attneck.data.sampling import Key, item_seeds, key_of, uniforms
from attneck.data.skipping import Skipped
from attneck.data.table import open_data
from attneck.imagenet import MEAN

Item = tuple[Tensor, dict[str, Tensor]]
SIDES = {"scale_jitter": 1024, "ssd": 300}
"""The default image_size of these augmentations, in pixels."""


Batch = tuple[list[Tensor], list[dict[str, Tensor]]]
"""Images and targets as torchvision's detectors take them: a list of each."""


def collate(items: Sequence[Item]) -> Batch:
    """A batch of what a data set's `__getitems__` made, its images uint8."""
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


def floats(image: Tensor) -> Tensor:
    """A uint8 image on any device → float32 in 0 … 1, the same bits; one of floats is that already."""
    if image.is_floating_point():  # of a data set around this one, which has only its __getitem__
        return image
    return image.float() / torch.full((), 255.0, device=image.device)  # CUDA multiplies by 1 / a number


class DetectionDataset(Dataset[Item]):
    """Images with objects, indexed by (epoch, index); each random draw is a function of (seed, epoch, index).

    `dataset[key]` is an image, float32 [3, H, W] in 0 … 1, and its target as torchvision's detectors take it:
    `boxes` float32 [n, 4] (x0, y0, x1, y1 in the image's pixels), `labels` int64 [n] (1 … K; 0 is the
    background), `masks` uint8 [n, H, W] where the set was opened with them, `area` float32 [n] in pixels (of
    the mask, or else of the box), `iscrowd` int64 [n], all 0, and `image_id` int64. n may be 0: crowds,
    objects marked difficult and boxes of no size are not in it. All of them are in `ground_truth()`.

    Images without augmentation have two more entries that lead from them back to the file: `orig_size` int64
    [2], its height and width, and `size` int64 [2], those of the part of the image that is no padding.

    augment "none": the image as it is; where `image_size` is given, its longer side resized to that, and
    padded to a square below and on the right. "flip": the same, and every second one mirrored.
    "scale_jitter": every second one mirrored, then `resize_crop_pad` by a draw from `jitter` (BoTNet section
    4.1). "ssd": see `SSDAugment`.

    A plain index is one of epoch 0: DataLoader(dataset, batch_size=2, collate_fn=dataset.collate).
    `dataset.__getitems__(keys)`, which DataLoader calls, is a list of such pairs, their images uint8 still.

    A subclass gives `read`, `record`, `__len__`, `fingerprint` and `dropped`, the number of its objects that
    are left out of training because their box has no size; `blank`, of those whose mask has no pixel, and
    `crowds`, the number of those that are crowds, and that of all, where some may be.
    """

    dropped: int
    blank: int = 0
    crowds: tuple[int, int] = (0, 0)
    skipped: Skipped | None = None

    def __init__(
        self,
        *,
        classes: tuple[str, ...],
        category_ids: tuple[int, ...],
        masks: bool,
        augment: str,
        image_size: int | None,
        jitter: tuple[float, float],
        seed: int,
    ) -> None:
        if not 0 < jitter[0] <= jitter[1] < math.inf:
            raise ValueError(f"jitter is {jitter}: give two factors over 0, the lesser one first")
        self.classes, self.category_ids, self.masks = classes, category_ids, masks
        self.augment, self.jitter, self.seed = augment, jitter, seed
        self.image_size = image_size or SIDES.get(augment)
        self.pad_with(MEAN)

    def pad_with(self, mean: Sequence[float]) -> None:
        """Pad with the colour that the model turns into zeros: its mean by channel, 0 to 1."""
        self._fill = colour(mean)
        if self.augment == "ssd":
            from attneck.data.augment.ssd import SSDAugment  # seconds of imports: only where used

            assert self.image_size
            self._ssd = SSDAugment(self.image_size, self._fill)

    def read(self, index: int) -> tuple[NDArray[np.uint8], Record]:
        """An image as it is in its file, uint8 [H, W, 3], and its record."""
        raise NotImplementedError

    def record(self, index: int) -> Record:
        """The record of an image: its file, its size and its objects."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def fingerprint(self) -> Fingerprint:
        """What shows that another set is in its place: see `attneck.data.fingerprint`."""
        raise NotImplementedError

    @staticmethod
    def collate(items: Sequence[Item]) -> Batch:
        """A batch of what `__getitems__` or `__getitem__` made, with its images float32 in 0 … 1."""
        images, targets = collate(items)
        return [floats(image) for image in images], targets

    def __getitem__(self, key: Key | int) -> Item:
        image, target = self._item(key)
        return floats(image), target

    def __getitems__(self, keys: Sequence[Key | int]) -> list[Item]:
        return [self._item(key) for key in keys]

    def _item(self, key: Key | int) -> Item:
        epoch, index = key_of(key, self.augment)
        pixels, record = self.read(index)
        chosen = record.trained_on()
        masks = record.masks(chosen) if self.masks else None
        sample = Sample(pixels, record.boxes()[chosen], masks, np.array(chosen, dtype=np.int64))
        sample = self._augmented(visible(sample), epoch, index)

        boxes = torch.from_numpy(sample.boxes)
        labels = np.array([record.objects[i].label for i in sample.kept], dtype=np.int64)
        target = {
            "boxes": boxes,
            "labels": torch.from_numpy(labels),
            "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            "iscrowd": torch.zeros(len(labels), dtype=torch.int64),
            "image_id": torch.tensor(record.id),
        }
        if sample.masks is not None:
            target["masks"] = torch.from_numpy(np.ascontiguousarray(sample.masks))
            target["area"] = target["masks"].sum(dim=(1, 2)).float()
        if self.augment == "none":
            size = record.height, record.width
            target["orig_size"] = torch.tensor(size)
            target["size"] = torch.tensor(resized(*size, self.image_size) if self.image_size else size)
        return torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))), target

    def _augmented(self, sample: Sample, epoch: int, index: int) -> Sample:
        if self.augment == "ssd":
            (seed,) = item_seeds(self.seed, epoch, index)
            return visible(self._ssd(sample, seed))
        coin, share, *corner = uniforms(self.seed, epoch, [index], 4)[0].tolist()
        if self.augment != "none" and coin < 0.5:
            sample = mirror(sample)
        if self.image_size is None:
            return sample
        if self.augment != "scale_jitter":
            return visible(resize_crop_pad(sample, self.image_size, fill=self._fill))
        low, high = self.jitter
        factor = low + share * (high - low)
        cut = resize_crop_pad(sample, self.image_size, factor, (corner[0], corner[1]), self._fill)
        return visible(cut, smallest=1.0)

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """All objects in COCO's form, in the pixels of the files: what detections are scored against."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            record = self.record(index)
            images.append(
                {
                    "id": record.id,
                    "file_name": record.file,
                    "width": record.width,
                    "height": record.height,
                }
            )
            annotations += self.annotations(record)
        named = zip(self.category_ids, self.classes, strict=True)
        categories = [{"id": category_id, "name": name} for category_id, name in named]
        return {"images": images, "annotations": annotations, "categories": categories}

    def annotations(self, record: Record) -> list[dict[str, Any]]:
        """The objects of one image in COCO's form.

        Difficult objects (VOC) carry `difficult`: 1, objects with a mask their `segmentation`.
        """
        found = []
        for object in record.objects:
            annotation = {
                "id": object.id,
                "image_id": record.id,
                "category_id": self.category_ids[object.label - 1],
                "bbox": list(object.bbox),
                "area": object.area,
                "iscrowd": int(object.crowd),
            }
            if object.difficult:
                annotation["difficult"] = 1
            if object.segmentation is not None:
                annotation["segmentation"] = object.segmentation
            found.append(annotation)
        return found


def open_detection(name: str, split: str, **options: Any) -> DetectionDataset:
    """Opens a set of `attneck.data.table` for detection: see `open_data`."""
    opened: DetectionDataset = open_data("detection", name, split, **options)
    return opened


def check_same_classes(sets: Mapping[str, tuple[str, ...]]) -> None:
    """ValueError unless a label is the same class in each split; `sets` has the classes of each."""
    for label, names in enumerate(zip_longest(*sets.values()), 1):
        if len(set(names)) > 1:
            said = [
                f"{shown(name)} in {split}" if name is not None else f"not there in {split}"
                for split, name in zip(sets, names, strict=True)
            ]
            raise ValueError(
                f"class {label}, in the order of the source's ids, is {' and '.join(said)}: give each split "
                "the same categories, those without objects too"
            )
