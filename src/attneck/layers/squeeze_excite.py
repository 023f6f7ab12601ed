"""Squeeze-and-excitation (arXiv 1709.01507), as BoTNet's SENets (section 4.8) and BAM's Table 5 use it.

Letters: B batch, C channels, H x W map.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from attneck.checks import flag
from attneck.layers.bam import check_start, hidden_channels
from attneck.layers.input import check_input


class SqueezeExcite2d(nn.Module):
    """x times one weight a channel, found from the map's mean: [B, C, H, W] -> [B, C, H, W].

    Mean over the map, 1x1 convolution C -> C // reduction, ReLU, 1x1 back, sigmoid. The parameters are
    `fc1.weight` [C//r, C, 1, 1] and `fc2.weight` [C, C//r, 1, 1], and with `bias` one vector each.

    `start="identity"` is for a trained network that gets it later: one parameter more, `gain` [C], zero at
    first, and the weights become 1 + gain * (weights - 1). As for BAM, x comes out to the last bit, and gains
    of 1 are the plain form.

    Args:
        channels: C.
        reduction: r; by the printed parameters 16 in both papers, whose texts do not say it.
        bias: BoTNet's printed parameters have none, those of BAM's SE baseline (Table 5) have.
        start: "paper", or "identity" for a gain that starts at zero.

    Raises:
        ValueError: for an unknown start, what is no whole number, a bias that is neither True nor False, or a
            reduction that leaves no channel.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        bias: bool = False,
        start: Literal["paper", "identity"] = "paper",
    ) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction)
        check_start(start)
        flag("bias", bias)
        self.channels = channels
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1, bias=bias)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1, bias=bias)
        self.gain = nn.Parameter(torch.zeros(channels)) if start == "identity" else None

    def reset_parameters(self) -> None:
        """The gain, if it has one, as at the start; its layers reset themselves."""
        if self.gain is not None:
            nn.init.zeros_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; channels_last stays so."""
        check_input(x, self.channels, self)
        pooled = x.mean(dim=(2, 3), keepdim=True)  # [B, C, 1, 1]
        weights = self.fc2(self.relu(self.fc1(pooled))).sigmoid()  # [B, C, 1, 1]
        if self.gain is not None:
            weights = 1 + self.gain[:, None, None].to(weights.dtype) * (weights - 1)
        return x * weights  # [B, C, H, W]
