"""SSD's augmentation (Liu et al. 2016, section 2.2), by torchvision's transforms."""

from operator import itemgetter
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from attneck.data.augment.geometry import FILL, Colour, Sample
from attneck.data.sampling import generators

LEAST = 4
"""Pixels of a side, from which on a cut of 0.3 of it leaves one."""


class Colours(v2.RandomPhotometricDistort):
    """Brightness, contrast, saturation and hue; the channels keep the order that torchvision shuffles."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """As torchvision's, without an order."""
        drawn: dict[str, Any] = super().make_params(flat_inputs)
        return drawn | {"channel_permutation": None}


class SSDAugment:
    """Colours distorted, zoomed out, cut so that an object stays in it, resized to side × side, mirrored.

    The draws' ranges are torchvision's, which are near those of the authors' code: a cut of 0.3 to 1 of each
    side, where that code draws the square root of the cut's area from 0.3 to 1 (the paper's text from 0.1 to
    1); hues half as far apart as there; brightness multiplied, where that code adds. An image of under 4
    pixels a side is not cut. What lies around it is of the colour `fill`.
    """

    def __init__(self, side: int, fill: Colour = FILL) -> None:
        steps = [
            Colours(),
            v2.RandomZoomOut(fill={tv_tensors.Image: fill.tolist(), "others": 0}),
            v2.RandomIoUCrop(),
            v2.Resize((side, side), antialias=False),  # as torchvision's SSD resizes what it is scored on
            v2.RandomHorizontalFlip(),
            v2.ClampBoundingBoxes(),  # rounding puts some 1e-6 outside, which the next would take out
            v2.SanitizeBoundingBoxes(labels_getter=itemgetter("kept")),
        ]
        self._transform = v2.Compose(steps)
        self._uncut = v2.Compose([step for step in steps if not isinstance(step, v2.RandomIoUCrop)])

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """The sample at side × side pixels; the same for the same `seed`."""
        image = tv_tensors.Image(torch.from_numpy(sample.image).permute(2, 0, 1))
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(sample.boxes), format="XYXY", canvas_size=tuple(image.shape[1:])
        )
        before = {"image": image, "boxes": boxes, "kept": torch.from_numpy(sample.kept)}
        if sample.masks is not None:
            before["masks"] = tv_tensors.Mask(torch.from_numpy(sample.masks))
        transform = self._transform if min(image.shape[1:]) >= LEAST else self._uncut
        with generators() as reseed:
            reseed(seed)
            after = transform(before)
        masks = None if sample.masks is None else after["masks"].numpy()
        return Sample(
            after["image"].permute(1, 2, 0).numpy(), after["boxes"].numpy(), masks, after["kept"].numpy()
        )
