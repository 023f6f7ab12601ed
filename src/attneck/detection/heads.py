"""The heads after the pyramid: region proposals, boxes and masks.

Variants "botnet" and "cloud_tpu" have BatchNorm in all of them (BoTNet A.2), also after the fully connected
layer and the masks' deconvolution, as in the code base that the paper names. `variant="torchvision"` has
torchvision's default heads, without norms. Logits and offsets are float32 at least, in all.

Letters: B batch, C channels of the pyramid, H×W of one of its maps, A anchors a position, R regions of a
batch, K classes with the background.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from attneck.detection.interface import at_least_float32, precise
from attneck.models.detector_options import RCNNOptions

BOX_BINS, MASK_BINS = 7, 14
"""RoIAlign's bins along each side of a region; a predicted mask has twice as many pixels, 28."""
ANCHORS = 3
"""A."""


def make_heads(options: RCNNOptions, levels: int, num_classes: int) -> dict[str, nn.Module]:
    """The heads that `options` describe, by the names of torchvision's arguments.

    Args:
        options: their variant and sizes, and whether there are masks.
        levels: the number of maps.
        num_classes: K.
    """
    C, features = options.channels, options.box_features
    heads: dict[str, nn.Module]
    if options.variant != "torchvision":
        heads = {
            "rpn_head": RPNHead(C, ANCHORS, options.rpn_convs, levels),
            "box_head": box_head(C, options.box_convs, features),
        }
        norm_layer, predictor = nn.BatchNorm2d, MaskPredictor(C, num_classes) if options.masks else None
    else:
        heads = {"rpn_head": PlainRPNHead(C, ANCHORS), "box_head": TwoMLPHead(C * BOX_BINS**2, features)}
        norm_layer, predictor = None, PlainMaskPredictor(C, C, num_classes) if options.masks else None
    heads["box_predictor"] = BoxPredictor(features, num_classes)
    if predictor is not None:
        heads["mask_head"] = MaskRCNNHeads(C, [C] * options.mask_convs, dilation=1, norm_layer=norm_layer)
        heads["mask_predictor"] = predictor
    return heads


class Anchors(AnchorGenerator):
    """Three boxes of each side at each position: twice as wide as high, square, twice as high as wide (A.2).

    Args:
        sides: of each map, in pixels; a pyramid's maps have one each.
        centred: each in the middle of its position's pixels, half a stride right of and below its first one,
            where torchvision's are.
    """

    def __init__(self, sides: list[list[int]], centred: bool = False) -> None:
        super().__init__(tuple(map(tuple, sides)), ((0.5, 1.0, 2.0),) * len(sides))
        self.centred = centred

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """Of each map, (height, width) in positions and its stride down and across in pixels → [N, 4]."""
        anchors: list[Tensor] = super().grid_anchors(grid_sizes, strides)
        if not self.centred:
            return anchors
        halves = (torch.stack([across, down] * 2) / 2 for down, across in strides)
        return [boxes + half for boxes, half in zip(anchors, halves, strict=True)]

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Boxes are float32 also where the maps are bfloat16."""
        super().set_cell_anchors(at_least_float32(dtype), device)


class RPNHead(nn.Module):
    """3×3 convolutions, then for each anchor the logit of an object and the offsets of its box.

    The levels share the convolutions. Each level has its own BatchNorms, as in that code base: the statistics
    of the levels differ, and running averages over all of them would fit none.

    Args:
        channels: C.
        anchors: A.
        convs: the number of convolutions (2; A.2).
        levels: the number of maps.
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
        """A map [B, C, H, W] of each level → logits [B, A, H, W] and offsets [B, 4A, H, W] of each level."""
        logits, offsets = [], []
        for x, norms in zip(maps, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            for conv, norm in zip(self.convs, norms, strict=True):
                x = norm(conv(x)).relu()
            logits.append(precise(self.cls_logits(x)))
            offsets.append(precise(self.bbox_pred(x)))
        return logits, offsets


class PlainRPNHead(rpn.RPNHead):
    """torchvision's: one 3×3 convolution with bias in place of BatchNorm.

    Args:
        channels: of the maps.
        anchors: A.
        hidden: channels of the convolution's result, if not those of the maps.
    """

    def __init__(self, channels: int, anchors: int, hidden: int | None = None) -> None:
        super().__init__(hidden or channels, anchors)
        if hidden is not None:
            self.conv[0][0] = first = nn.Conv2d(channels, hidden, 3, padding=1)
            nn.init.normal_(first.weight, std=0.01)
            assert first.bias is not None
            nn.init.zeros_(first.bias)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As `RPNHead`."""
        logits, offsets = super().forward(maps)
        return [precise(x) for x in logits], [precise(x) for x in offsets]


def box_head(channels: int, convs: int, features: int) -> nn.Sequential:
    """3×3 convolutions and a fully connected layer, each with BatchNorm: [R, C, 7, 7] → [R, features]."""
    head: nn.Sequential = FastRCNNConvFCHead(
        (channels, BOX_BINS, BOX_BINS), [channels] * convs, [], norm_layer=nn.BatchNorm2d
    )
    head.append(nn.Linear(channels * BOX_BINS**2, features, bias=False))
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


class PlainMaskPredictor(MaskRCNNPredictor):
    """torchvision's, as `MaskPredictor` with a bias in place of BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return precise(super().forward(x))


class RoIAlign(MultiScaleRoIAlign):
    """torchvision's, with the stride of each map given.

    torchvision infers the strides from the first images, before they are padded, and keeps them: after a wide
    image on a square canvas it would cut every region out at a wrong position. Of two maps of one stride, as
    c4's and c5's of BoTNet-S1, it takes the first alone; here the second has the regions of the next level.

    Args:
        names: of the maps, finest first.
        bins: along each side of a region.
        reductions: the stride of each map in pixels.
        samples: points in a bin, along each of its sides.
    """

    def __init__(self, names: list[str], bins: int, reductions: list[int], samples: int = 2) -> None:
        super().__init__(names, bins, sampling_ratio=samples)
        self.scales = [1 / reduction for reduction in reductions]
        finest = round(math.log2(reductions[0]))
        coarsest = finest + len(reductions) - 1
        self.map_levels = LevelMapper(finest, coarsest, self.canonical_scale, self.canonical_level)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Maps [B, C, H, W] by name, boxes [r, 4] of each image, their (height, width) → [R, C, bins, bins].

        Regions of maps in half precision are cut out in the boxes' float32, as autocast does it, and rounded.
        """
        maps = {name: precise(x[name]) for name in self.featmap_names}
        cut: Tensor = super().forward(maps, boxes, image_shapes)
        return cut.to(x[self.featmap_names[0]].dtype)


class MaskRoIAlign(RoIAlign):
    """`RoIAlign` that in training returns one region at least: the whole first image, if there is no other.

    Images without objects have no masks to learn. But BatchNorm refuses an empty batch, and with several
    processes the others wait for this one's statistics and gradients. torchvision's loss of a mask without
    an object is zero, and so is its gradient.
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
