"""Pixels become what a network takes, on whatever device they are: a batch travels as bytes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """uint8 images [B, 3, H, W] → (image / 255 - mean) / std, float32, in memory channels last.

    It is one subtraction and one multiplication, each rounded by itself: an image has the same bits in every
    batch, on the CPU and on CUDA.

    Args:
        mean, std: of each channel, in [0, 1].
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        exact = torch.tensor([mean, std], dtype=torch.float64) * 255
        self.register_buffer("offset", exact[0].float())
        self.register_buffer("scale", (1 / exact[1]).float())

    def forward(self, images: Tensor) -> Tensor:
        """Raises ValueError for images that are not uint8, which may be normalised already."""
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}: give uint8, as a set's __getitems__ does")
        # A row of pixels at a time: the CPU is slow over a last dimension of 3.
        rows = images.permute(0, 2, 3, 1).flatten(2).float()  # [B, H, W·3]
        rows.sub_(self.offset.repeat(images.shape[3])).mul_(self.scale.repeat(images.shape[3]))
        return rows.unflatten(2, (images.shape[3], 3)).permute(0, 3, 1, 2)
