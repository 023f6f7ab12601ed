"""ImageNet ResNets on timm's trunk, and what the papers make of them: BoTNet, SENet, Non-Local, BAM."""

from __future__ import annotations

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from attneck.layers import NonLocal2d, SqueezeExcite2d
from attneck.models import surgery
from attneck.models.options import ResNetOptions

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


def build(options: ResNetOptions, *, num_classes: int, image_size: tuple[int, int]) -> ResNet:
    """A timm `ResNet` with the papers' changes made in place: timm's names for every tensor it has.

    Stages c2..c5 are `layer1..layer4`. MHSA stands where `conv2` was, squeeze-excitation and BAM-C in timm's
    `se` slot (on the branch, before the addition), BAM and inserted blocks in the stage's own Sequential.

    Raises:
        ValueError: options that do not fit each other.
    """
    if options.attend and options.block != "bottleneck":
        raise ValueError("attend needs block='bottleneck': a basic block has no 3×3 between two 1×1 convs")
    if options.bam == "blocks" and options.se:
        raise ValueError("bam='blocks' and se want the same place in the block: choose one")
    model = ResNet(
        BasicBlock if options.block == "basic" else Bottleneck,
        options.depths,
        num_classes=num_classes,
        channels=options.widths,
        cardinality=options.groups,
        base_width=options.base_width,
        output_stride=16 if options.c5_stride == 1 else 32,
        act_layer=ACTIVATIONS[options.activation],
        drop_rate=options.dropout,
        drop_path_rate=options.drop_path,
        zero_init_last=True,
    )
    stages: list[nn.Sequential] = [model.layer1, model.layer2, model.layer3, model.layer4]
    outs = [info["num_chs"] for info in model.feature_info[1:]]
    _attend(stages[3], options, image_size)
    if options.stride_on == "1x1" and options.block == "bottleneck":
        surgery.move_stride_to_1x1(block for stage in stages for block in stage)
    for number, (stage, channels) in enumerate(zip(stages, outs, strict=True), start=2):
        for block in stage:
            if number in options.se and (options.se_in_bot or isinstance(block.conv2, nn.Conv2d)):
                block.se = SqueezeExcite2d(channels)
            if options.bam == "blocks":
                block.se = surgery.bam(channels, options)
    _insert(stages[2], options.insert_c4, outs[2], ceil_divide(image_size, 16), options)
    _insert(stages[3], options.insert_c5, outs[3], ceil_divide(image_size, 16 * options.c5_stride), options)
    if options.bam == "stages":
        surgery.append_bam(stages[:3], outs[:3], options)
    return model


def ceil_divide(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The map that `stride` leaves of an image: every strided layer here rounds up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def _attend(stage: nn.Sequential, options: ResNetOptions, image_size: tuple[int, int]) -> None:
    """Put MHSA where the flagged c5 blocks have their 3×3 conv (BoTNet §3, Fig. 12)."""
    flags = options.attend * len(stage) if len(options.attend) == 1 else options.attend
    if len(flags) not in (0, len(stage)):
        raise ValueError(f"attend={options.attend}: wanted one flag, or one a c5 block ({len(stage)})")
    if options.c5_stride == 1 and not all(flags or (0,)):
        raise ValueError("c5_stride=1 wants attention in every c5 block: attend=(1,)")
    for index, (flag, block) in enumerate(zip(flags, stage, strict=False)):
        if flag:
            first = index == 0
            map_size = ceil_divide(image_size, 16 if first else 16 * options.c5_stride)
            stride = options.c5_stride if first else 1
            block.conv2 = surgery.mhsa(block.conv2.in_channels, map_size, stride, options)


def _insert(
    stage: nn.Sequential, kind: str, channels: int, map_size: tuple[int, int], options: ResNetOptions
) -> None:
    """Insert a block between the last two of a stage (BoTNet §4.7, Table 8)."""
    if kind == "none":
        return
    if kind == "non_local":
        block: nn.Module = NonLocal2d(channels)
    else:
        block = Bottleneck(channels, channels // 4, act_layer=ACTIVATIONS[options.activation])
        block.conv2 = surgery.mhsa(channels // 4, map_size, 1, options)
        block.zero_init_last()
    stage.insert(len(stage) - 1, block)
