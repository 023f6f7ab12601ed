"""CIFAR's augmentation (BAM section 4.1), a batch at a time."""

import numpy as np
from numpy.typing import NDArray


def crop_flip(images: NDArray[np.uint8], draws: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Pads, crops and flips uint8 [B, H, H, 3] by draws [B, 3] in [0, 1): top, left and flip."""
    count, side = images.shape[:2]
    pad = side // 8
    wide = side + 2 * pad
    padded = np.zeros((count, wide, wide, 3), dtype=np.uint8)
    padded[:, pad : pad + side, pad : pad + side] = images
    corners = (draws[:, :2] * (2 * pad + 1)).astype(np.int64)
    line = np.arange(side)
    rows = np.arange(count)[:, None] * wide + corners[:, :1] + line
    columns = corners[:, 1:] + np.where(draws[:, 2:] < 0.5, line[::-1], line)
    # Positions of the result's pixels among all padded ones, [B, H, H].
    positions = rows[:, :, None] * wide + columns[:, None, :]
    return padded.reshape(-1, 3).take(positions, axis=0)
