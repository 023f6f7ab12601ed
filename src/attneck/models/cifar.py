"""Residual networks for 32×32 images: ResNet, pre-activation ResNet, Wide ResNet and ResNeXt (BAM §4.1).

One network class and one block class: the families differ in order, widths and groups alone.
Letters: B batch, C channels, H×W map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attneck.layers import SqueezeExcite2d
from attneck.models import surgery
from attneck.models.options import CifarResNetOptions


class Block(nn.Module):
    """A residual block of two convs (basic) or three (bottleneck), in post- or pre-activation order.

    post: conv BN act … conv BN, + shortcut, act (He et al. 2015).  pre: BN act conv …, + shortcut (He et al.
    2016). `se` is a slot on the branch, before the addition.
    """

    def __init__(self, in_channels: int, mid: int, out: int, stride: int, options: CifarResNetOptions) -> None:
        super().__init__()
        self.pre = options.order == "pre"
        self.raw_shortcut = options.shortcut == "raw"
        on_1x1 = options.stride_on == "1x1"
        if options.block == "basic":
            shapes = [(in_channels, mid, 3, stride, 1), (mid, out, 3, 1, 1)]
        else:
            shapes = [
                (in_channels, mid, 1, stride if on_1x1 else 1, 1),
                (mid, mid, 3, 1 if on_1x1 else stride, options.groups),
                (mid, out, 1, 1, 1),
            ]
        self.depth = len(shapes)
        for number, (fan_in, fan_out, kernel, step, groups) in enumerate(shapes, start=1):
            conv = nn.Conv2d(fan_in, fan_out, kernel, step, kernel // 2, groups=groups, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(fan_in if self.pre else fan_out))
        self.se: nn.Module | None = None
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out:
            projection = nn.Conv2d(in_channels, out, 1, stride, bias=False)
            self.downsample = projection if self.pre else nn.Sequential(projection, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] → [B, out, H', W'], H' = ceil(H / stride)."""
        y, shortcut = x, x
        for number in range(1, self.depth + 1):
            conv, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            if self.pre:
                y = F.relu(norm(y), inplace=True)
                if number == 1 and not self.raw_shortcut and self.downsample is not None:
                    shortcut = y
                y = conv(y)
            else:
                y = norm(conv(y))
                y = F.relu(y, inplace=True) if number < self.depth else y
        if self.se is not None:
            y = self.se(y)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        y = y + shortcut
        return y if self.pre else F.relu(y, inplace=True)


class CifarResNet(nn.Module):
    """3×3 stem, stages `layer1`…, global average pool, `fc`; timm's names and methods for all of it."""

    def __init__(self, options: CifarResNetOptions, num_classes: int) -> None:
        super().__init__()
        pre = options.order == "pre"
        self.conv1 = nn.Conv2d(3, options.stem, 3, 1, 1, bias=False)
        self.bn1 = nn.Identity() if pre else nn.BatchNorm2d(options.stem)
        self.act1 = nn.Identity() if pre else nn.ReLU(inplace=True)
        self.feature_info: list[dict[str, int | str]] = []
        channels = options.stem
        self.stages: list[str] = []
        for index, (depth, mid, out) in enumerate(zip(options.depths, options.mids, options.outs, strict=True)):
            blocks = []
            for number in range(depth):
                stride = 2 if index > 0 and number == 0 else 1
                blocks.append(Block(channels, mid, out, stride, options))
                channels = out
            name = f"layer{index + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.stages.append(name)
            self.feature_info.append({"num_chs": out, "reduction": 2**index, "module": name})
        self.norm = nn.BatchNorm2d(channels) if pre else nn.Identity()
        self.act = nn.ReLU(inplace=True) if pre else nn.Identity()
        self.num_features = channels
        self.drop = nn.Dropout(options.dropout)
        self.reset_classifier(num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The last layer: [B, num_features] → [B, num_classes]."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier of `num_classes` (0: none)."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] → the last stage's map [B, num_features, H', W']."""
        x = self.act1(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        out: Tensor = self.act(self.norm(x))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, num_features, H', W'] → logits [B, num_classes], or the pooled features before them."""
        x = self.drop(torch.mean(x, dim=(2, 3)))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] → logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def build(options: CifarResNetOptions, *, num_classes: int, image_size: tuple[int, int]) -> CifarResNet:
    """A `CifarResNet` with the papers' changes made: MHSA, BAM, squeeze-excitation or extra blocks.

    Raises:
        ValueError: options that do not fit each other.
    """
    if options.bam == "blocks" and options.se:
        raise ValueError("bam='blocks' and se want the same place in the block: choose one")
    model = CifarResNet(options, num_classes)
    stages = [getattr(model, name) for name in model.stages]
    if options.attend:
        reduction = 2 ** (len(stages) - 1)
        map_size = -(-image_size[0] // reduction), -(-image_size[1] // reduction)
        for block in stages[-1]:
            # In a basic block the second 3×3 (stride 1), in a bottleneck the one between the 1×1 convs.
            conv = block.conv2
            block.conv2 = surgery.mhsa(conv.in_channels, map_size, conv.stride[0], options)
    for stage, out in zip(stages, options.outs, strict=True):
        for block in stage:
            if options.se:
                block.se = SqueezeExcite2d(out, bias=True)
            if options.bam == "blocks":
                block.se = surgery.bam(out, options)
    bottlenecks = list(zip(stages, options.mids, options.outs, strict=True))[:-1]
    for stage, mid, out in bottlenecks:
        if options.extra_block:
            stage.append(Block(out, mid, out, 1, options))
        if options.bam == "stages":
            stage.append(surgery.bam(out, options))
    return model
