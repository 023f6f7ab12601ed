"""Images → a batch for R-CNN; detections → the coordinates of their images.

Letters: B batch, H×W of the batch in pixels, h×w of an image, n objects.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from attneck.detection.interface import precise
from attneck.imagenet import MEAN, STD

STEP = 64
"""The stride of p6 in pixels; the sides of a batch are multiples of it."""


class Transform(GeneralizedRCNNTransform):
    """Images [3, h, w] between 0 and 1 → a normalised batch [B, 3, H, W], zeros right of and below each.

    - In training an image keeps its size: the data set has scaled, jittered and cropped it. torchvision's own
      transform would scale it to a fixed size and so undo the jitter. The batch is as large as its largest
      image.
    - In evaluation an image is scaled, with its proportions, until it just fits into `size`. The batch always
      has that size: the square (BoTNet A.2) that position tables are made for, so none is resampled. Boxes
      and masks come back in the image's own pixels.

    H and W are rounded up to multiples of `step`, so that each map of the pyramid is exactly half the one
    before, and to two steps at least, so that BatchNorm has more than one position on the coarsest map.

    Attributes:
        size: (height, width) in pixels, for torchvision's min_size and max_size; it can be changed at any
            time.
        whole: whether a batch has that size in training too.
    """

    def __init__(self, size: tuple[int, int], step: int) -> None:
        super().__init__(min(size), max(size), [*MEAN], [*STD], size_divisible=step)
        self.size = size
        self.whole = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("min_size", "max_size") and "size" in vars(self):  # torchvision's: nothing reads them
            raise AttributeError(f"{name}={value}: images are fitted into `size`, {self.size}: set that")
        super().__setattr__(name, value)

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """image [3, h, w] → the same in training, fitted into `size` in evaluation; the target stays."""
        if self.training:
            return image, target
        scale = min(side / of_image for side, of_image in zip(self.size, image.shape[1:], strict=True))
        fitted = [max(1, round(scale * side)) for side in image.shape[1:]]
        if fitted != list(image.shape[1:]):
            fits = F.interpolate(precise(image[None]), size=fitted, mode="bilinear", antialias=True)[0]
            image = fits.to(image.dtype)
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int | None = None) -> Tensor:
        """B images [3, h, w] → [B, 3, H, W]."""
        largest = [max(sides) for sides in zip(*(image.shape[1:] for image in images), strict=True)]
        alone = self.training and not self.whole
        H, W = canvas(largest if alone else self.size, self.size_divisible)
        if largest[0] > H or largest[1] > W:
            raise ValueError(
                f"an image of {largest[0]}×{largest[1]} does not fit into the batch's {H}×{W}: scale it "
                "before, or leave whole out"
            )
        batch = images[0].new_zeros(len(images), 3, H, W)
        for padded, image in zip(batch, images, strict=True):
            padded[:, : image.shape[1], : image.shape[2]] = image
        return batch

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, step={self.size_divisible})"


def canvas(size: tuple[int, int] | list[int], step: int) -> tuple[int, int]:
    """(height, width) rounded up to multiples of `step`, to two steps at least."""
    height, width = (step * max(2, -(-side // step)) for side in size)
    return height, width
