"""Residual networks for 32×32 images: ResNet, pre-activation ResNet, Wide ResNet and ResNeXt (BAM §4.1).

One network class and one block class: these networks differ only in order, widths and groups.
Letters: B batch, C channels, H×W map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from attneck.layers import SqueezeExcite2d
from attneck.models import parts
from attneck.models.cifar import CifarResNetOptions
from attneck.models.staged import StagedNet


class Block(nn.Module):
    """A residual block of two convs (basic) or three (bottleneck), in post- or pre-activation order.

    post: conv BN act … conv BN, + shortcut, act (He et al. 2015).  pre: BN act conv …, + shortcut (He et al.
    2016). `se` and `drop_path` are slots on the branch, before the addition.
    """

    def __init__(
        self, in_channels: int, mid: int, out: int, stride: int, options: CifarResNetOptions
    ) -> None:
        super().__init__()
        self.pre = options.order == "pre"
        self.raw_shortcut = options.shortcut != "activated"
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
            self.add_module(f"act{number}", nn.ReLU(inplace=True))  # one each: tools put hooks on them
        self.se: nn.Module | None = None
        self.drop_path: nn.Module | None = None
        self.downsample: nn.Module | None = None
        if (stride != 1 or in_channels != out) and options.shortcut == "A":
            self.downsample = Padded(stride, out - in_channels)
        elif stride != 1 or in_channels != out:
            projection = nn.Conv2d(in_channels, out, 1, stride, bias=False)
            self.downsample = projection if self.pre else nn.Sequential(projection, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] → [B, out, H', W'], H' = ceil(H / stride)."""
        y, shortcut = x, x
        for number in range(1, self.depth + 1):
            conv, norm, act = (getattr(self, f"{part}{number}") for part in ("conv", "bn", "act"))
            if self.pre:
                y = act(norm(y))
                if number == 1 and not self.raw_shortcut and self.downsample is not None:
                    shortcut = y
                y = conv(y)
            else:
                y = norm(conv(y))
                y = act(y) if number < self.depth else y
        if self.se is not None:
            y = self.se(y)
        if self.drop_path is not None:
            y = self.drop_path(y)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        y = y + shortcut
        return y if self.pre else act(y)


class Padded(nn.Module):
    """He et al.'s option A: every stride-th position, and channels of zeros, half before and half after."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, more // 2, more - more // 2

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] → [B, before + C + after, ceil(H / stride), ceil(W / stride)]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class CifarResNet(StagedNet):
    """3×3 stem, stages `layer1`…, global pool, `fc`."""

    def __init__(self, options: CifarResNetOptions, num_classes: int, in_chans: int) -> None:
        super().__init__()
        pre = options.order == "pre"
        self.conv1 = nn.Conv2d(in_chans, options.stem, 3, 1, 1, bias=False)
        self.bn1 = nn.Identity() if pre else nn.BatchNorm2d(options.stem)
        self.act1 = nn.Identity() if pre else nn.ReLU(inplace=True)
        self.feature_info = []
        channels = options.stem
        for index, (depth, mid, out) in enumerate(
            zip(options.depths, options.mids, options.outs, strict=True)
        ):
            blocks = []
            for number in range(depth):
                stride = 2 if index > 0 and number == 0 else 1
                blocks.append(Block(channels, mid, out, stride, options))
                channels = out
            name = f"layer{index + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": out, "reduction": 2**index, "module": name})
        self.norm = nn.BatchNorm2d(channels) if pre else nn.Identity()
        self.act = nn.ReLU(inplace=True) if pre else nn.Identity()
        self.row = ["conv1", "bn1", "act1", *(info["module"] for info in self.feature_info), "norm", "act"]
        self.num_features = channels
        self.make_head(num_classes, options.global_pool, options.dropout)
        self.initialise()


def build_cifar_resnet(
    options: CifarResNetOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> CifarResNet:
    """A `CifarResNet`, changed as the papers say: MHSA, BAM or squeeze-excitation.

    MHSA replaces a block's last 3×3. Squeeze-excitation and BAM-C are on the branch, before the addition. BAM
    is the last child of every stage but the last.
    """
    model = CifarResNet(options, num_classes, in_chans)
    stages: list[Any] = [model.get_submodule(info["module"]) for info in model.feature_info]
    if options.attend:
        _attend(stages[-1], options, image_size)
    for stage, out in zip(stages, options.outs, strict=True):
        for block in stage:
            if options.se:
                block.se = SqueezeExcite2d(out, bias=True)
            if options.bam == "blocks":
                block.se = parts.bam(out, options)
    if options.drop_path:
        _drop_paths([block for stage in stages for block in stage], options.drop_path)
    if options.bam == "stages":
        parts.append_bam(stages[:-1], options.outs[:-1], options)
    return model


def _drop_paths(blocks: Sequence[Any], most: float) -> None:
    """Stochastic depth (Huang et al. 2016): rates rise linearly from 0 to `most`, as timm's do."""
    from timm.layers import DropPath  # here: timm takes seconds

    for number, block in enumerate(blocks[1:], start=1):
        block.drop_path = DropPath(most * number / (len(blocks) - 1))


def _attend(stage: Iterable[Any], options: CifarResNetOptions, image_size: tuple[int, int]) -> None:
    """Replace the last 3×3 conv of the last stage's blocks by MHSA.

    In a basic block that is the second conv, which never strides. In a bottleneck, attention sees the block's
    full-size map, and the pool after it strides, whichever conv would have (BoTNet A.4).
    """
    reduction = 2 ** (len(options.depths) - 1)
    for index, block in enumerate(stage):
        strides = options.block == "bottleneck" and index == 0
        stride = 2 if strides else 1
        if strides:
            block.conv1.stride = (1, 1)
        map_size = parts.map_size(image_size, reduction // stride)
        block.conv2 = parts.mhsa(block.conv2.in_channels, map_size, stride, options)
