"""ImageNet ResNets on timm's trunk, and what the papers make of them: BoTNet, SENet, Non-Local, BAM."""

from __future__ import annotations

from typing import Any

from timm.layers import DropPath
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from attneck.layers import MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.models import parts
from attneck.models.resnet import ResNetOptions

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


def build_resnet(
    options: ResNetOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> ResNet:
    """A timm `ResNet`, changed as the papers say. Every tensor of timm's keeps its name.

    Stages c2..c5 are `layer1..layer4`. MHSA replaces `conv2`. Squeeze-excitation and BAM-C take timm's `se`
    slot (on the branch, before the addition). BAM and inserted blocks are children of the stage. Convs are
    initialised as He et al. say, the last BatchNorm of each branch at 0, MHSA as its own layer says.
    """
    blocks: dict[str, Any] = {"basic": BasicBlock, "bottleneck": Bottleneck}
    model: Any = ResNet(
        blocks[options.block],
        options.depths,
        num_classes=num_classes,
        in_chans=in_chans,
        channels=options.widths,
        cardinality=options.groups,
        base_width=options.base_width,
        act_layer=ACTIVATIONS[options.activation],
        drop_rate=options.dropout,
        drop_path_rate=options.drop_path,
        zero_init_last=True,
    )
    stages: list[nn.Sequential] = [model.layer1, model.layer2, model.layer3, model.layer4]
    outs: list[int] = [info["num_chs"] for info in model.feature_info[1:]]
    if options.c5_stride == 1:
        _take_stride_off(model, options.c5_dilation)
    _attend(stages[3], options, image_size)
    if options.stride_on == "1x1":
        parts.move_stride_to_1x1(block for stage in stages for block in stage)
    for number, (stage, channels) in enumerate(zip(stages, outs, strict=True), start=2):
        for block in stage:
            if number in options.se and (options.se_in_bot or isinstance(block.conv2, nn.Conv2d)):
                block.se = SqueezeExcite2d(channels)
            if options.bam == "blocks":
                block.se = parts.bam(channels, options)
    _insert(stages[2], options.insert_c4, outs[2], parts.map_size(image_size, 16), options)
    c5_map = parts.map_size(image_size, 16 * options.c5_stride)
    _insert(stages[3], options.insert_c5, outs[3], c5_map, options)
    if options.bam == "stages":
        parts.append_bam(stages[:3], outs[:3], options)
    return model


def _take_stride_off(model: Any, dilation: int) -> None:
    """Set the stride of c5's first block to 1, so c5 stays at c4's size (BoTNet-S1, §4.8).

    With a dilation of 2 the 3×3 convs after it keep their receptive field, as segmentation wants it.
    """
    first = model.layer4[0]
    strided = first.conv1 if isinstance(first, BasicBlock) else first.conv2
    for conv in (strided, first.downsample[0]):
        conv.stride = (1, 1)
    first.stride = 1
    for block in model.layer4:
        for conv in (block.conv1, block.conv2):
            if conv.kernel_size == (3, 3) and conv is not strided:
                conv.dilation = conv.padding = (dilation, dilation)
    model.feature_info[-1]["reduction"] = 16


def _attend(stage: nn.Sequential, options: ResNetOptions, image_size: tuple[int, int]) -> None:
    """Replace the 3×3 conv of the flagged c5 blocks by MHSA (BoTNet §3, Fig. 12)."""
    reduction, stride = 16, options.c5_stride  # the first block attends before it strides
    block: Any
    for flag, block in zip(options.c5_flags, stage, strict=True):
        if flag:
            map_size = parts.map_size(image_size, reduction)
            block.conv2 = parts.mhsa(block.conv2.in_channels, map_size, stride, options)
        reduction, stride = 16 * options.c5_stride, 1


def _insert(
    stage: nn.Sequential, kind: str, channels: int, map_size: tuple[int, int], options: ResNetOptions
) -> None:
    """Insert a block between the last two of a stage of `channels` (BoTNet §4.7, Table 8)."""
    last: Any
    last_name, last = list(stage.named_children())[-1]
    if kind == "non_local":
        parts.insert_before(stage, last_name, kind, NonLocal2d(channels))
    elif kind == "bot":
        attention = parts.mhsa(channels // Bottleneck.expansion, map_size, 1, options)
        # The last block's own rate: timm's rise from block to block.
        drop_path = DropPath(last.drop_path.drop_prob) if options.drop_path else None
        act = ACTIVATIONS[options.activation]
        parts.insert_before(stage, last_name, kind, bot_block(channels, attention, act, drop_path))


def bot_block(
    channels: int, attention: MHSA2d, activation: type[nn.Module], drop_path: nn.Module | None = None
) -> Bottleneck:
    """timm's bottleneck with attention for its 3×3: C → C/4 → C, its last BatchNorm starting at 0.

    Args:
        channels: C.
        attention: of C/4 channels.
        drop_path: on the branch, before the addition.
    """
    block: Any = Bottleneck(
        channels, channels // Bottleneck.expansion, act_layer=activation, drop_path=drop_path
    )
    block.conv2 = attention
    for conv in (block.conv1, block.conv3):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    block.zero_init_last()
    return block
