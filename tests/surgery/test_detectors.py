"""Backbones with a pyramid, and decoders: their additions are no residual blocks, their maps no stages."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
)
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from attneck.surgery import attend, insert_attention_block, insert_bam, insert_se
from attneck.surgery.blocks import residual_blocks
from attneck.surgery.trace import trace

RANDOM: dict[str, Any] = {"weights": None, "weights_backbone": None}


def built(make: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return make(**RANDOM, **options)


def test_attention_in_a_backbone_with_a_pyramid() -> None:
    model = built(fasterrcnn_resnet50_fpn).backbone
    names = [change.name for change in attend(model).report.changes]
    assert names == [f"body.layer4.{index}.conv2" for index in range(3)]
    report = insert_attention_block(model).report
    assert [(change.name, change.channels) for change in report.changes] == [("body.layer3.bot.conv2", 256)]


def test_the_class_logits_of_a_decoder_get_nothing() -> None:
    report = insert_se(built(lraspp_mobilenet_v3_large)).report
    assert len(report.changes) == 10
    assert all(change.name.startswith("backbone.") for change in report.changes)


def test_a_pyramid_of_maps_of_one_size_is_none_of_blocks() -> None:
    """This one's two maps are both at stride 32."""
    report = insert_se(built(fasterrcnn_mobilenet_v3_large_fpn).backbone).report
    assert all(change.name.startswith("body.") for change in report.changes)


@pytest.mark.parametrize(
    ("make", "stages"),
    [
        (fasterrcnn_resnet50_fpn, ["layer1", "layer2", "layer3"]),
        (retinanet_resnet50_fpn, ["layer1", "layer2", "layer3"]),
        (fasterrcnn_mobilenet_v3_large_fpn, ["3", "6", "12"]),
    ],
)
def test_what_a_pyramid_makes_smaller_is_no_stage(make: Any, stages: list[str]) -> None:
    report = insert_bam(built(make).backbone).report
    assert [change.name for change in report.changes] == [f"body.{stage}.bam" for stage in stages]


class Plus(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Down(nn.Module):
    """A residual block whose branch goes down and up again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.interpolate(self.down(x), x.shape[2:]))


class Decoder(nn.Module):
    """All of it in one forward, the sum an addition of the network's own or of a module."""

    def __init__(self, plus: nn.Module | None) -> None:
        super().__init__()
        self.fine, self.side = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1)
        self.coarse = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1))
        self.plus = plus

    def forward(self, x: Tensor) -> Tensor:
        x = self.fine(x)
        up = F.interpolate(self.coarse(x), x.shape[2:])
        return self.side(x) + up if self.plus is None else self.plus(self.side(x), up)


@pytest.mark.parametrize("plus", [None, Plus()])
def test_a_decoder_s_addition_is_no_block(plus: nn.Module | None) -> None:
    with pytest.raises(ValueError, match="no residual block in this Decoder"):
        residual_blocks(trace(Decoder(plus), 32))


def test_a_branch_may_go_down_and_up() -> None:
    (block,) = residual_blocks(trace(nn.Sequential(nn.Conv2d(3, 8, 1), Down(8)), 32))
    assert block.name == "1"
