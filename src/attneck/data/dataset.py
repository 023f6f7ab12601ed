"""What every classification set is: images from stateless keys, and the loader that feeds them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from attneck.data.sampling import Key
from attneck.data.workers import SteadyLoader, worker_init

Batch = tuple[Tensor, Tensor]
"""Images [B, 3, H, W] float32 normalised, and labels [B] int64."""


class ClassificationDataset(Dataset[tuple[Tensor, int]]):
    """Images with labels, indexed by (epoch, index); every random draw is a function of (seed, epoch, index).

    `dataset[key]` is one image [3, H, W], float32, normalised with `mean` and `std`, and its label.
    `dataset.__getitems__(keys)`, which DataLoader calls, is the whole batch at once (see `Batch`); its
    images are the same bits. Both lie in memory channels last.

    A kind of data set gives `pixels` and `labels`; and `crop_pct`, the share of a resized image's side that
    is cut out of its centre in evaluation.
    """

    crop_pct = 1.0

    def __init__(
        self,
        *,
        classes: tuple[str, ...],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        image_size: int,
        labels: NDArray[np.int64],
    ) -> None:
        self.classes, self.mean, self.std, self.image_size = classes, mean, std, image_size
        self.labels = labels
        # (x / 255 - mean) / std as one subtraction and one multiplication, each rounded by itself: the
        # result of an image does not depend on the batch it comes in. A row of pixels at a time, because
        # numpy is slow over a last dimension of 3.
        self._offset = np.tile(np.array(mean) * 255, image_size).astype(np.float32)
        self._scale = np.tile(1 / (np.array(std) * 255), image_size).astype(np.float32)

    def pixels(self, keys: Sequence[Key]) -> NDArray[np.uint8]:
        """The images as they are after augmentation, in [0, 255], uint8 [B, H, W, 3]."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        pixels = self.pixels(keys)
        rows = pixels.reshape(*pixels.shape[:2], -1) - self._offset
        rows *= self._scale
        images = rows.reshape(pixels.shape)
        labels = self.labels[[index for _, index in keys]]
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([key])
        return images[0], int(labels[0])


def collate(batch: Batch) -> Batch:
    """Hands on the finished batch that `__getitems__` made."""
    return batch


def loader(
    dataset: Dataset[Any],
    batches: Sampler[list[Key]],
    workers: int = 0,
    collate: Callable[[Any], Any] = collate,
) -> DataLoader[Any]:
    """The DataLoader over `batches` (`TrainBatches` or `EvalBatches`).

    Its workers run in process groups of their own (see `worker_init`) and end with each iteration; memory is
    pinned where CUDA is there. Iterating draws nothing from torch's global generator.
    """
    return SteadyLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=worker_init,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        persistent_workers=False,
        generator=torch.Generator(),
    )
