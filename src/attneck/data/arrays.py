"""Small images held in memory as one array and augmented a batch at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from attneck.data.augment.crop_flip import crop_flip
from attneck.data.classification import ClassificationDataset
from attneck.data.fingerprint import Fingerprint, of_arrays
from attneck.data.sampling import Key, split_keys, uniforms


class ArrayDataset(ClassificationDataset):
    """Square images uint8 [N, H, H, 3] with labels int64 [N].

    `augment="crop_flip"` is BAM section 4.1's for CIFAR: zeros (black) around the image, 4 pixels wide at
    32 x 32 (an eighth of the side), a random crop of the original size, and a horizontal flip of every second
    image. Of another side (`at`) they are resized after that, bilinearly and with antialiasing.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        classes: tuple[str, ...],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        augment: str,
        seed: int,
    ) -> None:
        super().__init__(classes=classes, mean=mean, std=std, image_size=images.shape[1], labels=labels)
        self.images, self.augment, self.seed = images, augment, seed

    def pixels(self, keys: Sequence[Key]) -> NDArray[np.uint8]:
        epochs, indices = split_keys(keys)
        images = self.images[indices]
        if self.augment != "none":
            images = crop_flip(images, uniforms(self.seed, epochs, indices, 3))
        side = self.image_size
        if images.shape[1] == side:
            return images
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)  # [B, 3, H, H]
        resized = F.interpolate(channels_first, (side, side), mode="bilinear", antialias=True)
        return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())

    def fingerprint(self) -> Fingerprint:
        return of_arrays(self.images, self.labels, self.classes)
