"""How images become a batch for R-CNN, and detections come back into their coordinates.

Letters: B batch, H×W of the batch in pixels, h×w of an image, n objects.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from attneck.imagenet import MEAN, STD

STEP = 64
"""The pixels that a cell of p6 stands for: sides of a batch are multiples of it."""


class Transform(GeneralizedRCNNTransform):
    """Images [3, h, w] between 0 and 1 → a normalised batch [B, 3, H, W], zeros right of and below each.

    - In training an image is taken as it comes, for the data have scaled, jittered and cropped it; scaled to
      a fixed size here, as torchvision's own transform does, the jitter would be undone. The batch is as
      large as its largest image.
    - In evaluation an image is scaled, its sides in proportion, until it just fits into `size`, and the batch
      is of that size whatever its images: the square (BoTNet A.2) that position tables are made for, so that
      none is resampled. Boxes and masks come back in the image's own pixels.

    H and W are rounded up to multiples of `step`, so that each map of the pyramid is exactly half the one
    before, and to two of them at least, so that BatchNorm has more than one cell of the coarsest.

    Attributes:
        size: (height, width) in pixels; it may be changed at any time.
    """

    def __init__(self, size: tuple[int, int], step: int) -> None:
        super().__init__(min(size), max(size), [*MEAN], [*STD], size_divisible=step)
        self.size = size

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """image [3, h, w] → as it is in training, fitted into `size` in evaluation; no target is changed."""
        if self.training:
            return image, target
        scale = min(side / of_image for side, of_image in zip(self.size, image.shape[1:], strict=True))
        fitted = [max(1, round(scale * side)) for side in image.shape[1:]]
        if fitted != list(image.shape[1:]):
            image = F.interpolate(image[None], size=fitted, mode="bilinear", antialias=True)[0]
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int | None = None) -> Tensor:
        """[3, h, w] each → [B, 3, H, W]."""
        largest = [max(sides) for sides in zip(*(image.shape[1:] for image in images), strict=True)]
        H, W = canvas(largest if self.training else self.size, self.size_divisible)
        batch = images[0].new_zeros(len(images), 3, H, W)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return batch

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, step={self.size_divisible})"


def canvas(size: tuple[int, int] | list[int], step: int) -> tuple[int, int]:
    """(height, width) rounded up to multiples of `step`, two of them at least."""
    height, width = (step * max(2, -(-side // step)) for side in size)
    return height, width
