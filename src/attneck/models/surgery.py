"""The papers' operations on a residual network: what stands in a block, and what is put after a stage."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from attneck.layers import BAM, MHSA2d
from attneck.models.options import AttentionOptions, BAMOptions


def mhsa(channels: int, map_size: tuple[int, int], stride: int, options: AttentionOptions) -> MHSA2d:
    """The MHSA layer that `options` describe, for `channels` on a map of `map_size` (height, width)."""
    return MHSA2d(
        channels,
        map_size,
        heads=options.heads,
        position=options.position,
        content=options.content,
        stride=stride,
    )


def bam(channels: int, options: BAMOptions) -> BAM:
    """The BAM that `options` describe, for `channels`."""
    return BAM(
        channels,
        reduction=options.bam_reduction,
        dilation=options.bam_dilation,
        combine=options.bam_combine if options.bam_variant == "paper" else None,
        branches=options.bam_branches,
        variant=options.bam_variant,
    )


def append_bam(stages: Iterable[nn.Sequential], channels: Iterable[int], options: BAMOptions) -> None:
    """Append a BAM to each stage (BAM §3): the names of all other tensors stay as they are."""
    for stage, width in zip(stages, channels, strict=True):
        stage.append(bam(width, options))


def move_stride_to_1x1(blocks: Iterable[nn.Module]) -> None:
    """Let a bottleneck block's first 1×1 conv take the stride of its 3×3 (BoTNet Table 10, BAM throughout)."""
    for block in blocks:
        if isinstance(block.conv2, nn.Conv2d):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
