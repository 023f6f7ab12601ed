"""Not a test: small networks for the page, one with attention that is known."""

import torch
from torch import Tensor, nn

from attneck.layers import BAM, MHSA2d

SIDE = 64
FACTS = {
    "classes": ["cat", "dog", "a class with quite a long name"],
    "image_size": SIDE,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 1.0,
}


class Small(nn.Module):
    """Maps of 8 x 8 of an image of 64 x 64, a BAM or two, an MHSA, and three classes."""

    def __init__(self, bams: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.bams = nn.Sequential(*(BAM(16, reduction=4, dilation=1) for _ in range(bams)))
        self.attention = MHSA2d(16, 8, heads=2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attention(self.bams(self.stem(x))).mean((2, 3)))


def random() -> Small:
    """Attention that follows content and position, both far from even."""
    torch.manual_seed(0)
    model = Small()
    nn.init.normal_(model.attention.qkv.weight, std=2.0)
    return model.eval()


@torch.no_grad()
def looking_left() -> Small:
    """Its first head looks at the cell to the left of the place; its second one everywhere alike.

    Both by position: the content's logits are all zero.
    """
    model = Small(bams=0)
    nn.init.zeros_(model.stem.weight)
    nn.init.ones_(model.stem.bias)
    layer = model.attention
    for part in (layer.qkv.weight, layer.rel_h, layer.rel_w):
        nn.init.zeros_(part)
    layer.qkv.weight[0] = 1.0  # a query's first number, of the first head: 16
    layer.rel_w[7 - 1, 0] = layer.rel_h[7, 0] = 1.0  # one column to the left, in the same row
    return model.eval()
