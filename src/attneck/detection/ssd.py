"""SSD300 (Liu et al. 2016) on VGG16 and MobileNet, as BAM's Table 4b has them.

Loss, hard-negative mining, matching and non-maximum suppression are torchvision's `SSD`. The trunk with its
six maps and the heads are here. Letters: B batch, C channels, H×W map, A boxes a position, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDScoringHead
from torchvision.models.vgg import cfgs, make_layers

from attneck.detection.interface import at_least_float32, check_classes, nothing_found, precise
from attneck.models.detector_options import SSDOptions
from attneck.models.features import Pyramid
from attneck.models.mobilenet import MobileNetOptions
from attneck.models.mobilenet.network import build_mobilenet

SIDE = 300
"""Height and width that every image is resized to; maps and default boxes are made for it."""

# Six boxes at a position of the first map too, where Liu et al. have four: so the parameters of Table 4b.
ASPECT_RATIOS = [[2, 3]] * 4 + [[2]] * 2


class DefaultBoxes(DefaultBoxGenerator):
    """torchvision's, in float32 also where the maps are bfloat16, which rounds to two pixels near 300."""

    def _grid_default_boxes(
        self, grid_sizes: list[Any], image_size: list[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        boxes: Tensor = super()._grid_default_boxes(grid_sizes, image_size, at_least_float32(dtype))
        return boxes


class VGG16Trunk(nn.Module):
    """VGG16 to conv7, then the extra layers: x [B, 3, 300, 300] → six maps {"0": …, "5": …}, finest first.

    `features` has torchvision's names, and images are normalised by torchvision's means and deviations.
    `attneck.detection.load_weights` takes a VGG16's convolutions, and conv6 and conv7 from its fc6 and fc7.
    """

    out_channels = (512, 1024, 512, 256, 256, 256)
    map_sizes = (38, 19, 10, 5, 3, 1)

    def __init__(self) -> None:
        super().__init__()
        self.features = make_layers(cfgs["D"], batch_norm=False)[:-1]
        self.features[16].ceil_mode = True  # the third pool: 75 → 38, not 37
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                _initialise(layer, nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
        self.conv4_3 = 22  # of `features`, with its ReLU
        self.scale = nn.Parameter(torch.full((512,), 20.0))  # Liu et al. §3.1, from ParseNet
        self.pool5 = nn.MaxPool2d(3, stride=1, padding=1)
        self.conv6 = _conv(512, 1024, 3, padding=6, dilation=6)
        self.conv7 = _conv(1024, 1024, 1)
        self.extras = nn.ModuleList(
            [
                _extra(1024, 256, 512, stride=2, padding=1),
                _extra(512, 128, 256, stride=2, padding=1),
                _extra(256, 128, 256),
                _extra(256, 128, 256),
            ]
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x [B, 3, 300, 300] → the six maps by name, finest first."""
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index == self.conv4_3:
                maps.append(self.scale[:, None, None] * F.normalize(x, dim=1))  # of length 1 at each position
        x = F.relu(self.conv6(self.pool5(x)))
        x = F.relu(self.conv7(x))
        return _numbered(maps, x, self.extras)

    @staticmethod
    def default_boxes() -> DefaultBoxGenerator:
        """Those of Liu et al. for VOC, sides of 30 to 264 pixels; cut off at the border, as torchvision's."""
        return DefaultBoxes(
            ASPECT_RATIOS,
            scales=[0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05],
            steps=[8, 16, 32, 64, 100, 300],
        )


class MobileNetTrunk(nn.Module):
    """MobileNet v1, then the extra layers: x [B, 3, 300, 300] → six maps {"0": …, "5": …}, finest first.

    Its first map has stride 16. The paper prints only the number of parameters; these widths give it.
    """

    out_channels = (512, 1024, 512, 256, 256, 128)
    map_sizes = (19, 10, 5, 3, 2, 1)

    def __init__(self) -> None:
        super().__init__()
        mobilenet = build_mobilenet(MobileNetOptions(), num_classes=0, image_size=(SIDE, SIDE))
        self.pyramid = Pyramid(mobilenet, stages=2)
        self.extras = nn.ModuleList(
            [
                _extra(1024, 256, 512, stride=2, padding=1),
                _extra(512, 128, 256, stride=2, padding=1),
                _extra(256, 128, 256, stride=2, padding=1),
                _extra(256, 64, 128, stride=2, padding=1),
            ]
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x [B, 3, 300, 300] → the six maps by name, finest first."""
        first, x = self.pyramid(x)
        return _numbered([first], x, self.extras)

    @staticmethod
    def default_boxes() -> DefaultBoxGenerator:
        """Scales from 0.2 to 0.95 in even steps: those of TensorFlow's SSD on MobileNet."""
        return DefaultBoxes(ASPECT_RATIOS, min_ratio=0.2, max_ratio=0.95)


class Heads(nn.Module):
    """A classifier and a box regressor for each map: [[B, C, H, W], …] → logits and offsets of all boxes.

    Returns `cls_logits` [B, ΣHWA, K] and `bbox_regression` [B, ΣHWA, 4].

    Args:
        channels: C of each map.
        boxes: A of each map.
        num_classes: K, background counted.
        kernel_size: of each head's convolution.
    """

    def __init__(
        self, channels: Sequence[int], boxes: Sequence[int], num_classes: int, kernel_size: int
    ) -> None:
        super().__init__()

        def convs(columns: int) -> nn.ModuleList:
            return nn.ModuleList(
                _conv(C, A * columns, kernel_size, padding=kernel_size // 2)
                for C, A in zip(channels, boxes, strict=True)
            )

        self.classification_head = SSDScoringHead(convs(num_classes), num_classes)
        self.regression_head = SSDScoringHead(convs(4), 4)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Maps [B, C, H, W] → offsets [B, D, 4] and class logits [B, D, K] of D default boxes, in float32."""
        return {
            "bbox_regression": precise(self.regression_head(maps)),
            "cls_logits": precise(self.classification_head(maps)),
        }


class SSD300(SSD):
    """torchvision's detector: `model(images, targets)` → losses in training, `model(images)` → detections.

    Images are [3, H, W] between 0 and 1, of any size; targets have `boxes` [n, 4] in pixels (x1, y1, x2, y2;
    n may be 0) and `labels` [n], from 1: class 0 is the background. Losses are `classification` and
    `bbox_regression`; a detection has `boxes`, `labels` and `scores`.

    Args:
        backbone: image [B, 3, 300, 300] → six maps by name, finest first.
        channels: C of each map.
        default_boxes: the boxes at each position of the maps.
        num_classes: K, background counted, as in all of torchvision's detectors (VOC: 21).
        kernel_size: of each head's convolution.
    """

    compiled_part = "backbone"

    def __init__(
        self,
        backbone: nn.Module,
        channels: Sequence[int],
        default_boxes: DefaultBoxGenerator,
        num_classes: int,
        kernel_size: int,
    ) -> None:
        heads = Heads(channels, default_boxes.num_anchors_per_location(), num_classes, kernel_size)
        super().__init__(backbone, default_boxes, (SIDE, SIDE), num_classes, head=heads)

    def get_classifier(self) -> nn.Module:
        """The classifiers of all maps, under the name that timm has for a network's last layer."""
        return self.head.classification_head

    def postprocess_detections(
        self,
        head_outputs: dict[str, Tensor],
        image_anchors: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Detections of each image; none on the meta device, which has no scores to choose by."""
        if not head_outputs["cls_logits"].is_meta:
            return super().postprocess_detections(head_outputs, image_anchors, image_shapes)
        return nothing_found(head_outputs["bbox_regression"])


TRUNKS: dict[str, type[VGG16Trunk] | type[MobileNetTrunk]] = {
    "vgg16": VGG16Trunk,
    "mobilenet": MobileNetTrunk,
}
KERNEL_SIZES = {"vgg16": 3, "mobilenet": 1}
"""Of the heads' convolutions, by trunk."""


def build_ssd(options: SSDOptions, *, num_classes: int, image_size: tuple[int, int]) -> SSD300:
    """An `SSD300`; `num_classes` counts the background.

    Raises:
        ValueError: no class besides the background, or another image size than 300×300.
    """
    check_ssd(num_classes, image_size)
    trunk = TRUNKS[options.trunk]()
    return SSD300(trunk, trunk.out_channels, trunk.default_boxes(), num_classes, KERNEL_SIZES[options.trunk])


def check_ssd(num_classes: int, image_size: tuple[int, int]) -> None:
    """ValueError for an `image_size` or `num_classes` that SSD300 and StairNet do not take."""
    check_classes(num_classes)
    if image_size != (SIDE, SIDE):
        raise ValueError(
            f"image_size={image_size}: the maps and boxes of this detector are made for {SIDE}×{SIDE}; leave "
            "image_size out, and give images of any size: the model resizes them"
        )


def _conv(channels: int, out: int, kernel_size: int, **options: Any) -> nn.Conv2d:
    """A convolution with bias, initialised as by Liu et al. (§3)."""
    return _initialise(nn.Conv2d(channels, out, kernel_size, **options), nn.init.xavier_uniform_)


def _extra(channels: int, mid: int, out: int, *, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """1×1, then 3×3, each with ReLU: [B, C, H, W] → [B, out, H', W']."""
    return nn.Sequential(
        _conv(channels, mid, 1),
        nn.ReLU(inplace=True),
        _conv(mid, out, 3, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
    )


def _initialise(conv: nn.Conv2d, initialise: Any, **options: str) -> nn.Conv2d:
    initialise(conv.weight, **options)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _numbered(maps: list[Tensor], x: Tensor, extras: nn.ModuleList) -> dict[str, Tensor]:
    """`maps`, x, and the result of each extra layer on the map before it, under "0", "1", …"""
    maps = [*maps, x]
    for extra in extras:
        maps.append(extra(maps[-1]))
    return {str(index): features for index, features in enumerate(maps)}
