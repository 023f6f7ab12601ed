"""The Non-Local block (arXiv 1711.07971) in the form of BoTNet's Table 8.

Letters: B batch, C channels, H x W map, N = H*W tokens.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from attneck.checks import flag, whole
from attneck.layers.input import check_input


class NonLocal2d(nn.Module):
    """x + BN(W softmax(theta(x) phi(x)^T / sqrt(C/2)) x): [B, C, H, W] -> [B, C, H, W].

    One head, no positions, and no value projection: the weights average x itself. The parameters are
    `theta.weight` and `phi.weight` [C/2, C, 1, 1], `out.weight` [C, C, 1, 1], no biases, and the BatchNorm
    `norm`, whose gamma starts at 0, so that a new block changes nothing. The convolutions start as PyTorch's
    do; in the code that the paper names theta and phi are drawn from N(0, 0.01^2), and W with a
    variance of 2 / C.

    Args:
        channels: C, 2 or more.
        value: they average a projection of it, `value.weight` [C/2, C, 1, 1] as in the block's own paper, and
            `out.weight` is [C, C/2, 1, 1] (BoTNet A.5, which does not say how wide its own is).

    Raises:
        ValueError: for fewer than two channels, and a value that is neither True nor False.
    """

    def __init__(self, channels: int, *, value: bool = False) -> None:
        super().__init__()
        if whole("channels", channels) < 2:
            raise ValueError(
                f"a Non-Local block halves its channels and was given {channels}; it needs 2 or more"
            )
        flag("value", value)
        self.channels = channels
        self.theta = nn.Conv2d(channels, channels // 2, kernel_size=1, bias=False)
        self.phi = nn.Conv2d(channels, channels // 2, kernel_size=1, bias=False)
        self.value = nn.Conv2d(channels, channels // 2, kernel_size=1, bias=False) if value else None
        self.out = nn.Conv2d(channels // 2 if value else channels, channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The norm's gamma as at the start; its layers reset themselves, and have to do so before."""
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; channels_last stays so."""
        check_input(x, self.channels, self)
        H, W = x.shape[2:]
        averaged = x if self.value is None else self.value(x)  # [B, C or C/2, H, W]
        q, k, v = (
            maps.flatten(2).transpose(1, 2)[:, None] for maps in (self.theta(x), self.phi(x), averaged)
        )
        # q and k [B, 1, N, C/2], v [B, 1, N, C or C/2]; the default scale is one over the root of q's width.
        out = F.scaled_dot_product_attention(q, k, v)  # as v
        y = out[:, 0].transpose(1, 2).unflatten(2, (H, W))  # [B, C or C/2, H, W]
        return x + self.norm(self.out(y))  # [B, C, H, W]
