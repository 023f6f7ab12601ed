"""Squeeze-and-excitation (arXiv 1709.01507), as BoTNet's SENets (section 4.8) and BAM's Table 5 use it.

Letters: B batch, C channels, H x W map.
"""

from torch import Tensor, nn


class SqueezeExcite2d(nn.Module):
    """x times one weight a channel, found from the map's mean: [B, C, H, W] -> [B, C, H, W].

    Mean over the map, 1x1 convolution C -> C // reduction, ReLU, 1x1 back, sigmoid. The parameters are
    `fc1.weight` [C//r, C, 1, 1] and `fc2.weight` [C, C//r, 1, 1], and with `bias` one vector each.

    Args:
        channels: C.
        reduction: r, 16 in both papers.
        bias: BoTNet's printed parameters have none, those of BAM's SE baseline (Table 5) have.

    Raises:
        ValueError: for a reduction that leaves no channel.
    """

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = False) -> None:
        super().__init__()
        if reduction < 1 or channels // reduction == 0:
            raise ValueError(
                f"{channels} channels at reduction {reduction} leave no hidden channel; choose a reduction "
                f"from 1 to {channels}"
            )
        self.fc1 = nn.Conv2d(channels, channels // reduction, kernel_size=1, bias=bias)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(channels // reduction, channels, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; channels_last stays so."""
        pooled = x.mean(dim=(2, 3), keepdim=True)  # [B, C, 1, 1]
        return x * self.fc2(self.relu(self.fc1(pooled))).sigmoid()  # [B, C, H, W]
