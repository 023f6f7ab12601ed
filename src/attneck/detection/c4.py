"""Faster R-CNN without a pyramid, on a ResNet (Ren et al. 2017; He et al. 2016, appendix A): BAM's Table 4a.

The network up to c4 sees the image once; its last stage sees each region of c4, as a head.
Letters: B batch, C channels of c4, H×W the image, R regions of a batch.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchvision.ops import roi_pool

from attneck.detection.heads import Anchors, BoxPredictor, PlainRPNHead
from attneck.detection.interface import precise
from attneck.models.detector_options import RCNNOptions
from attneck.models.features import Pyramid

BINS = 14
"""Of a region, along each side; the last stage strides, and makes 7 of them."""
ANCHORS = [64, 128, 256, 512]
"""Their sides in pixels, Ren et al.'s four for COCO."""
CANDIDATES = 6000
"""Best boxes that non-maximum suppression is given in evaluation, as in Ren et al.'s code."""


def without_pyramid(backbone: nn.Module, num_classes: int, options: RCNNOptions) -> tuple[C4, dict[str, Any]]:
    """What sees the image, and by the names of torchvision's arguments what sees its map.

    Args:
        backbone: a whole ResNet, of the catalog or of timm, changed by surgery or not. It is cut in two, and
            its classifier is gone.
        num_classes: with the background.
        options: of its RPN.

    Raises:
        ValueError: another network.
    """
    last = getattr(backbone, "layer4", None)
    if not isinstance(backbone, ResNet) or not isinstance(last, nn.Sequential) or not len(last):
        raise ValueError(
            f"variant='c4' got a {type(backbone).__name__}: wanted a whole ResNet of the catalog or of timm, "
            "whose last stage becomes the head of regions; other networks take a pyramid, as in "
            "variant='torchvision'"
        )
    features = cast(Any, backbone).feature_info[-1]["num_chs"]  # which its pruning forgets
    image = C4(backbone)
    (stride,) = image.reductions
    anchors = Anchors([ANCHORS])
    (per_position,) = anchors.num_anchors_per_location()
    return image, {
        "rpn_anchor_generator": anchors,
        "rpn_head": PlainRPNHead(image.out_channels, per_position, options.channels),
        "rpn_pre_nms_top_n_test": CANDIDATES,
        "box_roi_pool": RoIPool(stride),
        "box_head": LastStage(last),
        "box_predictor": BoxPredictor(features, num_classes),
    }


class C4(nn.Module):
    """x [B, 3, H, W] → {"0": c4 [B, C, ~H/16, ~W/16]}, after c4's BAM if it has one.

    Attributes:
        body: the network without its last stage.
        out_channels: C.
        names: of the map.
        reductions: its stride in pixels.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.body = Pyramid(backbone, [-2])
        self.out_channels = self.body.channels[0]
        self.names, self.reductions = ["0"], self.body.reductions

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """As the class describes it."""
        return dict(zip(self.names, self.body(x), strict=True))


class RoIPool(nn.Module):
    """The largest value in each bin of a region, cut at whole positions (Ren et al.'s; not RoIAlign).

    Args:
        reduction: the map's stride in pixels.
    """

    def __init__(self, reduction: int) -> None:
        super().__init__()
        self.output_size, self.scale = (BINS, BINS), 1 / reduction

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """{"0": map [B, C, h, w]}, boxes [r, 4] in pixels of each image → [R, C, 14, 14]."""
        (c4,) = x.values()
        cut: Tensor = roi_pool(precise(c4), boxes, self.output_size, self.scale)
        return cut.to(c4.dtype)


class LastStage(nn.Module):
    """[R, C, 14, 14] → [R, features]: the stage, and the mean over what it makes of a region.

    Args:
        stage: of a ResNet.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.layer4 = stage

    def forward(self, x: Tensor) -> Tensor:
        """As the class describes it."""
        seen: Tensor = self.layer4(x)
        return seen.mean(dim=(2, 3))
