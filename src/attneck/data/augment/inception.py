"""ImageNet's training augmentation by torchvision and timm, whose draws come from global generators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from attneck.data.readers.decode import Box
from attneck.data.sampling import generators

AREA, ASPECT = [0.08, 1.0], [3 / 4, 4 / 3]
"""Of the part of an image that is taken: the share of its area, and width over height."""
SHIFT, PIXELS = 0.45, 100
"""How far RandAugment's magnitude of 10 shifts: timm's share of the side, EfficientNet's pixels at most."""


class Inception:
    """A random part of an image at size × size pixels, flipped or not, with RandAugment's operations.

    The part is `box`, by torchvision's draws; calling resizes it as `torchvision.transforms.v2.Resize` does a
    tensor. RandAugment (BoTNet section 4.8) is timm's: each layer draws one of its 15 operations and applies
    it; EfficientNet's code has Cutout as a 16th. Magnitudes are on that code's scale, where 10 is 30 degrees
    of rotation (torchvision's 10 is 10 degrees) and a shift by 100 pixels, of small images by 0.45 of the
    side.

    Raises ValueError for a number of layers under 0 or a magnitude outside 0 … 30.
    """

    def __init__(self, size: int, randaugment_layers: int = 0, randaugment_magnitude: int = 10) -> None:
        from torchvision.transforms import RandomResizedCrop  # seconds of imports: only where used

        if randaugment_layers < 0 or not 0 <= randaugment_magnitude <= 30:
            raise ValueError(
                f"randaugment with {randaugment_layers} layers of magnitude {randaugment_magnitude}: "
                f"layers must be 0 or more, the magnitude 0 ... 30"
            )
        self.size, self.layers, self.magnitude = size, randaugment_layers, randaugment_magnitude
        self._draw_box = RandomResizedCrop.get_params
        self.randaugment: Callable[[Any], Any] | None = None
        if randaugment_layers:
            from timm.data.auto_augment import rand_augment_transform  # seconds of imports: only where used

            # p1: timm's default applies each drawn operation to every second image only, the paper's always.
            # mmax: timm's cap at 10 lifted, as the paper's 15 and 24 want it.
            form = f"rand-p1-m{randaugment_magnitude}-mmax{randaugment_magnitude}-n{randaugment_layers}"
            about = {"img_mean": (128, 128, 128), "translate_pct": min(SHIFT, PIXELS / size)}
            self.randaugment = rand_augment_transform(form, about)

    def at(self, size: int) -> Inception:
        """The same at another size."""
        return Inception(size, self.layers, self.magnitude)

    def generators(self) -> AbstractContextManager[Callable[[int], None]]:
        """In this context `box` and a call draw what is a function of the seed that was set last."""
        return generators(torch_alone=self.randaugment is None)

    def box(self, of: tuple[int, int]) -> Box:
        """The part that is taken of an image `of` (width, height)."""
        width, height = of
        blank = torch.empty(3, height, width, device="meta")
        top, left, high, wide = self._draw_box(blank, AREA, ASPECT)
        return left, top, left + wide, top + high

    def __call__(self, part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part, uint8 [h, w, 3] → uint8 [size, size, 3]."""
        pixels = torch.from_numpy(part).permute(2, 0, 1)[None]  # [1, 3, h, w]
        small = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        image: NDArray[np.uint8] = small[0].permute(1, 2, 0).numpy()
        if torch.rand(1) < 0.5:
            image = image[:, ::-1]
        return image if self.randaugment is None else np.array(self.randaugment(Image.fromarray(image)))
