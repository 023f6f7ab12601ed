"""An image with its objects, changed together: mirrored, resized, cut, padded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attneck.imagenet import MEAN

Colour = NDArray[np.uint8]


def colour(mean: Sequence[float]) -> Colour:
    """What is added around an image, uint8 [3]: the mean colour, which detectors turn into zeros."""
    return np.array([round(255 * value) for value in mean], dtype=np.uint8)


FILL = colour(MEAN)
"""That of ImageNet's images."""


class Sample(NamedTuple):
    """image uint8 [H, W, 3]; boxes float32 [n, 4], x0 y0 x1 y1 in its pixels; masks uint8 [n, H, W] or None;
    kept int64 [n], the objects' positions before any was lost."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    masks: NDArray[np.uint8] | None
    kept: NDArray[np.int64]


def visible(sample: Sample, smallest: float = 0.0) -> Sample:
    """Without the objects that have no pixel in their mask, or no `smallest` pixels (over 0) on each side."""
    sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
    chosen = ((sides > 0) & (sides >= smallest)).all(axis=1)
    if sample.masks is None:
        return Sample(sample.image, sample.boxes[chosen], None, sample.kept[chosen])
    chosen &= sample.masks.any(axis=(1, 2))
    return Sample(sample.image, sample.boxes[chosen], sample.masks[chosen], sample.kept[chosen])


def mirror(sample: Sample) -> Sample:
    """Left to right."""
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = sample.image.shape[1] - boxes[:, [2, 0]]
    masks = None if sample.masks is None else sample.masks[..., ::-1]
    return Sample(sample.image[:, ::-1], boxes, masks, sample.kept)


def resized(height: int, width: int, longer: float) -> tuple[int, int]:
    """Height and width in whole pixels, one at least, when the longer of them becomes `longer`."""
    scale = longer / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_crop_pad(
    sample: Sample,
    side: int,
    factor: float = 1.0,
    corner: tuple[float, float] = (0.0, 0.0),
    fill: Colour = FILL,
) -> Sample:
    """Resized, and cut or padded to a square, as BoTNet's detectors have their images (section 4.1, A.2).

    torchvision's `ScaleJitter` and `RandomCrop` are not the same: they draw from a global generator, round
    sizes down, and pad on all sides. The paper's code rounds to the nearest, and pads below and on the right.

    The longer side becomes factor · side pixels. More than `side` is cut away: a share `corner`, from 0 to
    under 1, at the top and at the left, the rest on the other sides. Less is padded below and on the right,
    by `fill`.
    Boxes are cut with the image; masks take the nearest pixel.
    """
    height, width = sample.image.shape[:2]
    rows, columns = resized(height, width, factor * side)
    ratio_y, ratio_x = rows / height, columns / width
    tall, wide = min(rows, side), min(columns, side)
    top, left = int(corner[0] * (rows - tall + 1)), int(corner[1] * (columns - wide + 1))

    # What is kept, in the pixels of the image as it was: cutting and resizing are one step.
    window = (
        left / ratio_x,
        top / ratio_y,
        min((left + wide) / ratio_x, width),
        min((top + tall) / ratio_y, height),
    )
    picture = Image.fromarray(np.ascontiguousarray(sample.image))
    picture = picture.resize((wide, tall), Image.Resampling.BILINEAR, box=window)
    image = np.tile(fill, (side, side, 1))
    image[:tall, :wide] = np.asarray(picture)

    scale, shift = np.array([ratio_x, ratio_y] * 2), np.array([left, top] * 2)
    boxes = (sample.boxes * scale - shift).clip(0, [wide, tall] * 2).astype(np.float32)
    masks = None
    if sample.masks is not None:
        y = ((np.arange(tall) + top + 0.5) / ratio_y).astype(np.int64)
        x = ((np.arange(wide) + left + 0.5) / ratio_x).astype(np.int64)
        masks = np.zeros((len(sample.masks), side, side), dtype=np.uint8)
        masks[:, :tall, :wide] = sample.masks[:, y[:, None], x]
    return Sample(image, boxes, masks, sample.kept)
