"""What every classification set is: images with labels, indexed by stateless keys."""

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from attneck.data.fingerprint import Fingerprint
from attneck.data.normalise import Normalise
from attneck.data.sampling import Key, SizedKey, key_of
from attneck.data.skipping import Skipped
from attneck.data.table import open_data

Batch = tuple[Tensor, Tensor]
"""Images [B, 3, H, W], uint8 until `Normalise` has had them, and labels [B] int64."""


class ClassificationDataset(Dataset[tuple[Tensor, int]]):
    """Images with labels, indexed by (epoch, index); every random draw is a function of (seed, epoch, index).

    `dataset[key]` is one image [3, H, W], float32, normalised with `mean` and `std`, and its label.
    `dataset.__getitems__(keys)`, which DataLoader calls, is the whole batch at once, its images uint8: a
    quarter of the bytes for workers, pinned memory and the bus. `Normalise(dataset.mean, dataset.std)` turns
    them into the same bits on their device; `dataset.collate` does so where they are loaded. All lie in
    memory channels last. A plain index is one of epoch 0; for a plain DataLoader give
    collate_fn=dataset.collate. Keys (epoch, index, side), the side the same in a batch, are of `at(side)`.

    A subclass gives `pixels`, `labels` and `fingerprint`; and `crop_pct`, the share of a resized image's side
    that is cut out of its centre in evaluation.
    """

    crop_pct = 1.0
    augment = "none"
    skipped: Skipped | None = None

    def __init__(
        self,
        *,
        classes: tuple[str, ...],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        image_size: int,
        labels: NDArray[np.int64],
    ) -> None:
        self.classes, self.image_size = classes, image_size
        self.labels = labels
        self.normalise(mean, std)

    def normalise(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Take these in place of the set's own, a number a channel: weights may want others."""
        self.mean, self.std = mean, std
        self._normalise = Normalise(mean, std)

    def at(self, side: int) -> Self:
        """The same images with another side in pixels; ValueError where they cannot have it."""
        other = copy(self)
        other.image_size = side
        return other

    def pixels(self, keys: Sequence[Key]) -> NDArray[np.uint8]:
        """The images as they are after augmentation, in [0, 255], uint8 [B, H, W, 3]."""
        raise NotImplementedError

    def targets(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        """The label of each key's image, [B]."""
        return self.labels[[index for _, index in keys]]

    def whole(self, index: int) -> Image.Image:
        """An image as it is before an evaluation cuts it, and resizes it where it is of a file."""
        return Image.fromarray(self.pixels([(0, index)])[0])

    def fingerprint(self) -> Fingerprint:
        """What shows that another set is in its place: see `attneck.data.fingerprint`."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[Key | SizedKey | int]) -> Batch:
        pairs = [key_of(key, self.augment) for key in keys]
        sides = {key[2] if isinstance(key, tuple) and len(key) == 3 else self.image_size for key in keys}
        if len(sides) > 1:
            raise ValueError(f"keys of one batch have the sides {sorted(sides)}: give one side a batch")
        own = self if sides <= {self.image_size} else self.at(*sides)
        images = torch.from_numpy(own.pixels(pairs)).permute(0, 3, 1, 2)
        return images, torch.from_numpy(self.targets(pairs))

    def collate(self, batch: Batch) -> Batch:
        """What `__getitems__` gives, with its images float32 and normalised."""
        return self._normalise(batch[0]), batch[1]

    def __getitem__(self, key: Key | SizedKey | int) -> tuple[Tensor, int]:
        images, labels = self.collate(self.__getitems__([key]))
        return images[0], int(labels[0])


def open_dataset(name: str, split: str, **options: Any) -> ClassificationDataset:
    """Opens a set of `attneck.data.table` for classification: see `open_data`."""
    opened: ClassificationDataset = open_data("classification", name, split, **options)
    return opened
