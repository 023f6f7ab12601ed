"""BAM's branches without its gate: a control, which no paper has.

Letters: B batch, C channels, H x W map.
"""

from typing import Any

from torch import Tensor, fx, nn

from attneck.layers.bam import BAM
from attneck.layers.tracing import recorded


class UngatedBAM(nn.Module):
    """F + (Mc(F) + Ms(F)), where BAM is F + F * sigmoid(Mc(F) + Ms(F)): [B, C, H, W] -> [B, C, H, W].

    It sees as far as BAM, by the same convolutions and with the same parameters, and only adds what it sees.
    So the difference between the two is the gate's.

    Args:
        channels: C.
        options: `reduction`, `dilation`, `branches` and `variant`, as `BAM` has them.

    Raises:
        ValueError: as `BAM`.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.branches = BAM(channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        if isinstance(x, fx.Proxy):
            return recorded(self, x)
        which, out = self.branches.branches, x
        if which != "spatial":
            out = out + self.branches.channel_attention(x)[:, :, None, None].to(x.dtype)
        if which != "channel":
            out = out + self.branches.spatial_attention(x).to(x.dtype)
        return out
