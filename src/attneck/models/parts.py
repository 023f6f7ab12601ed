"""Layers made from options, and the ways to put them into a residual network.

The names of all other tensors stay as they are, so weights of the plain network still load.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attneck.layers import BAM, MHSA2d
from attneck.layers.ungated import UngatedBAM
from attneck.models.options import AttentionOptions, BAMOptions


def map_size(image_size: tuple[int, int], reduction: int) -> tuple[int, int]:
    """(height, width) of an image's map at stride `reduction`; each stride rounds up."""
    return -(-image_size[0] // reduction), -(-image_size[1] // reduction)


def mhsa(channels: int, map_size: tuple[int, int], stride: int, options: AttentionOptions) -> MHSA2d:
    """The MHSA layer that `options` describe, for `channels` on a map of `map_size` (height, width)."""
    return MHSA2d(
        channels,
        map_size,
        heads=options.heads,
        position=options.position,
        content=options.content,
        resample=options.resample,
        stride=stride,
    )


def bam(channels: int, options: BAMOptions) -> BAM | UngatedBAM:
    """The BAM that `options` describe, for `channels`."""
    kind = BAM if options.bam_gate else UngatedBAM
    return kind(
        channels,
        reduction=options.bam_reduction,
        dilation=options.bam_dilation,
        combine=None if options.bam_combine == "default" else options.bam_combine,
        branches=options.bam_branches,
        variant=options.bam_variant,
    )


def set_norms(model: nn.Module, momentum: float | None, eps: float | None) -> None:
    """Give every BatchNorm of the network this momentum and this epsilon; None leaves them."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = module.momentum if momentum is None else momentum
            module.eps = module.eps if eps is None else eps


def append_bam(stages: Iterable[nn.Module], channels: Iterable[int], options: BAMOptions) -> None:
    """Append a BAM to each stage, a Sequential (BAM §3)."""
    for stage, width in zip(stages, channels, strict=True):
        assert isinstance(stage, nn.Sequential)
        stage.append(bam(width, options))


def insert_before(stage: nn.Module, child: str, name: str, block: nn.Module) -> None:
    """Insert `block` as `name` before the child of a stage; the other children keep their names."""
    names = list(stage._modules)
    later = {each: stage._modules.pop(each) for each in names[names.index(child) :]}
    stage.add_module(name, block)
    stage._modules.update(later)


def move_stride_to_1x1(blocks: Iterable[Any]) -> None:
    """Let a bottleneck block's first 1×1 conv take the stride of its 3×3 (BoTNet Table 10, BAM throughout).

    A BoT block keeps its stride: it attends to its whole input, and the pool after that strides.
    """
    for block in blocks:
        if isinstance(block.conv2, nn.Conv2d):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
