"""ResNet's own augmentation on ImageNet (He et al. 2016, section 3.4), which BAM's text names (4.3)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from attneck.data.augment.inception import Inception
from attneck.data.readers.decode import Box

SHORTER = 256 / 224, 480 / 224
"""The least and the greatest length of the shorter side, over the side that is cut out."""
STRENGTH = 0.1
"""Of the colours' change: the standard deviation of what the principal components are weighed by."""
VALUES = 0.2175, 0.0188, 0.0045
COMPONENTS = (-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)
"""Of ImageNet's pixels between 0 and 1: a row each for red, green and blue, a column a component."""


class ScaleCrop(Inception):
    """A square of an image whose shorter side has a random length, flipped or not, in other light.

    Of an image scaled so that its shorter side has 256 to 480 pixels a square of 224 is taken, wherever it
    lies; at other sizes in the same proportion. The colours are changed along the principal components of
    ImageNet's (Krizhevsky et al. 2012).
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.randaugment = None  # as `Inception`, but without torchvision: seconds of imports

    def at(self, size: int) -> ScaleCrop:
        """The same at another size."""
        return ScaleCrop(size)

    def box(self, of: tuple[int, int]) -> Box:
        """The square that is taken of an image `of` (width, height)."""
        least, most = SHORTER
        side = max(1, round(min(of) / (least + (most - least) * float(torch.rand(1)))))
        left, top = (int(torch.randint(length - side + 1, (1,))) for length in of)
        return left, top, left + side, top + side

    def __call__(self, part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part, uint8 [h, w, 3] → uint8 [size, size, 3]."""
        image = super().__call__(part)
        # NumPy's product: torch's is in bfloat16 where the training process loads for itself under autocast.
        change = 255 * np.array(COMPONENTS) @ (np.array(VALUES) * STRENGTH * torch.randn(3).numpy())  # [3]
        return (image + change).round().clip(0, 255).astype(np.uint8)
