"""What stands behind the pyramid: region proposals, boxes and masks, with BatchNorm throughout (BoTNet A.2).

torchvision's heads where they take a norm, ours where they do not; the fully connected layer and the masks'
deconvolution have one too, as in the code base that the paper names.

Letters: B batch, C channels of the pyramid, H×W of one of its maps, A anchors a cell, R regions of a batch,
K classes with the background.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from attneck.detection.interface import at_least_float32, precise

BOX_CELLS, MASK_CELLS = 7, 14
"""Sides of what is cut out for a region; a mask has twice as many, 28."""


class Anchors(AnchorGenerator):
    """Three boxes a cell, twice as wide as high, square, twice as high as wide; one scale (A.2).

    Their side is eight times what a cell of the map should stand for: 32 pixels on p2 to 512 on p6.

    Args:
        first: the pixels that a cell of the finest map stands for; each level doubles them.
        levels: how many maps there are.
    """

    def __init__(self, first: int, levels: int) -> None:
        super().__init__(
            tuple((8 * first * 2**level,) for level in range(levels)), ((0.5, 1.0, 2.0),) * levels
        )

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Boxes in float32, also where the maps are bfloat16."""
        super().set_cell_anchors(at_least_float32(dtype), device)


class RPNHead(nn.Module):
    """3×3 convolutions, then for each anchor whether it has an object, and how far its box is off.

    The levels share the convolutions; each has BatchNorms of its own, as in that code base, for their
    statistics differ, and running averages over all levels would fit none.

    Args:
        channels: C.
        anchors: A.
        convs: how many convolutions (2; A.2).
        levels: how many maps there are.
    """

    def __init__(self, channels: int, anchors: int, convs: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(convs)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(convs)) for _ in range(levels)
        )
        self.cls_logits = nn.Conv2d(channels, anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
        for last in (self.cls_logits, self.bbox_pred):
            assert last.bias is not None
            nn.init.zeros_(last.bias)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """[B, C, H, W] each → logits [B, A, H, W] each, offsets [B, 4A, H, W] each."""
        logits, offsets = [], []
        for x, norms in zip(maps, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            for conv, norm in zip(self.convs, norms, strict=True):
                x = norm(conv(x)).relu()
            logits.append(precise(self.cls_logits(x)))
            offsets.append(precise(self.bbox_pred(x)))
        return logits, offsets


def box_head(channels: int, convs: int, features: int) -> nn.Sequential:
    """3×3 convolutions and a fully connected layer: [R, C, 7, 7] → [R, features]."""
    head: nn.Sequential = FastRCNNConvFCHead(
        (channels, BOX_CELLS, BOX_CELLS), [channels] * convs, [], norm_layer=nn.BatchNorm2d
    )
    head.append(nn.Linear(channels * BOX_CELLS**2, features, bias=False))
    head.append(nn.BatchNorm1d(features))
    return head.append(nn.ReLU(inplace=True))


class BoxPredictor(FastRCNNPredictor):
    """Class logits and, for each class, offsets: [R, features] → [R, K], [R, 4K]."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, offsets = super().forward(x)
        return precise(logits), precise(offsets)


class MaskPredictor(nn.Sequential):
    """A mask for each class: [R, C, 14, 14] → logits [R, K, 28, 28]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)
        logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (deconv, logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        assert logits.bias is not None
        nn.init.zeros_(logits.bias)
        super().__init__(
            OrderedDict(
                conv5_mask=deconv,
                norm=nn.BatchNorm2d(channels),
                relu=nn.ReLU(inplace=True),
                mask_fcn_logits=logits,
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return precise(super().forward(x))


class RoIAlign(MultiScaleRoIAlign):
    """torchvision's, told what a cell of each map stands for.

    torchvision guesses it from the first images that it sees, before they were padded, and keeps the guess:
    after a wide image on a square canvas every region would be cut out at the wrong place.

    Args:
        names: of the maps, finest first.
        cells: of a region, along each side.
        reductions: the pixels that a cell of each map stands for.
    """

    def __init__(self, names: list[str], cells: int, reductions: list[int]) -> None:
        super().__init__(names, cells, sampling_ratio=2)
        self.scales = [1 / reduction for reduction in reductions]
        finest, coarsest = (round(math.log2(reduction)) for reduction in (reductions[0], reductions[-1]))
        self.map_levels = LevelMapper(finest, coarsest, self.canonical_scale, self.canonical_level)


class MaskRoIAlign(RoIAlign):
    """As its base, but in training it cuts out one region at least: the whole first image, if no other.

    Of images without objects no region has a mask to learn. BatchNorm refuses an empty batch, and where
    several processes train, the others wait for this one's statistics and gradients. torchvision's loss for a
    mask that no object answers is zero, and so is its gradient.
    """

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Maps [B, C, H, W] by name, boxes [r, 4] of each image, their (height, width) → [R, C, 14, 14]."""
        if self.training and not any(len(of_image) for of_image in boxes):
            height, width = image_shapes[0]
            boxes = [boxes[0].new_tensor([[0, 0, width, height]]), *boxes[1:]]
        cut: Tensor = super().forward(x, boxes, image_shapes)
        return cut
