"""From a layer's map, by what the network was given, back to the pixels of the photo.

Letters: H x W a map. Coordinates are continuous: pixel (x, y) covers x to x+1 and y to y+1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from attneck.data.readers.folder import centre


@dataclass(frozen=True)
class Window:
    """Which part of a photo a network's input shows; a map covers all of the input.

    Attributes:
        photo: the photo's (width, height) in pixels.
        box: (left, top, right, bottom) of the input, in the photo's pixels. It lies inside the photo where
            the centre is cut out, and beyond its edges where the input is padded.
    """

    photo: tuple[int, int]
    box: tuple[float, float, float, float]

    def cell(self, x: float, y: float, map_size: tuple[int, int]) -> tuple[int, int] | None:
        """The (row, column) of the map's place that covers a point of the photo; None outside the input."""
        left, top, right, bottom = self.box
        H, W = map_size
        row, column = (y - top) / (bottom - top) * H, (x - left) / (right - left) * W
        return (int(row), int(column)) if 0 <= row < H and 0 <= column < W else None

    def of_cell(self, row: int, column: int, map_size: tuple[int, int]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of a place of the map, in the photo's pixels."""
        left, top, right, bottom = self.box
        H, W = map_size
        wide, high = (right - left) / W, (bottom - top) / H
        return (
            left + column * wide,
            top + row * high,
            left + (column + 1) * wide,
            top + (row + 1) * high,
        )

    def shown(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """The part of a map [H, W] that the photo has, from the first pixel's place to the last's."""
        left, top, right, bottom = self.box
        (H, W), (width, height) = values.shape, self.photo
        high, wide = (bottom - top) / H, (right - left) / W
        first = max(0, floor((0.5 - top) / high)), max(0, floor((0.5 - left) / wide))
        last = floor((height - 0.5 - top) / high), floor((width - 0.5 - left) / wide)
        return values[first[0] : last[0] + 1, first[1] : last[1] + 1]

    def spread(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """A map's values [H, W] → at each pixel of the photo [height, width], NaN outside the input.

        A pixel takes the value of the place that covers its centre.
        """
        left, top, right, bottom = self.box
        H, W = values.shape
        width, height = self.photo
        rows = np.floor((np.arange(height) + 0.5 - top) / (bottom - top) * H).astype(int)
        columns = np.floor((np.arange(width) + 0.5 - left) / (right - left) * W).astype(int)
        inside = ((rows >= 0) & (rows < H))[:, None] & ((columns >= 0) & (columns < W))
        taken = values[rows.clip(0, H - 1)[:, None], columns.clip(0, W - 1)]
        found: NDArray[np.floating] = np.where(inside, taken, np.nan)
        return found


def centred(photo: tuple[int, int], side: int, crop_pct: float) -> Window:
    """Of a classifier, whose photo is resized and the square of `side` in its centre cut out."""
    (width, height), (left, top) = centre(photo, side, crop_pct)
    across, down = photo[0] / width, photo[1] / height  # pixels of the photo in one of the resized
    return Window(photo, (left * across, top * down, (left + side) * across, (top + side) * down))


def fitted(photo: tuple[int, int], seen: tuple[int, int], image_size: tuple[int, int]) -> Window:
    """Of a detector, whose photo fills `seen` (height, width) of its input, from the top left corner.

    See `attneck.explain.Maps` for both.
    """
    across, down = photo[0] / seen[1], photo[1] / seen[0]
    return Window(photo, (0.0, 0.0, image_size[1] * across, image_size[0] * down))
