"""ImageNet ResNets on timm's trunk, and what the papers make of them: BoTNet, SENet, Non-Local, BAM."""

from __future__ import annotations

import copy
from typing import Any

from timm.layers import DropPath
from timm.models import resnet as timm_resnet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.layers.mhsa import NO_DECAY
from attneck.models import parts
from attneck.models.pooling import check_head, pool_of
from attneck.models.recomputing import recompute
from attneck.models.resnet import ResNetOptions
from attneck.models.staged import PREVIOUS

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class ResNet(timm_resnet.ResNet):
    """timm's `ResNet`; checkpointing leaves BatchNorm's statistics alone, and groups have all blocks."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the maps inside a block again in backward instead of keeping them.

        Not by timm's flag: with that, BatchNorms learn from each batch twice. As the stages do it themselves,
        it works in whatever is made of the network. `torch.compile` leaves the blocks as they are.
        """
        for name in ("layer1", "layer2", "layer3", "layer4"):
            recompute(self.get_submodule(name), enable)

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Draw them anew, as timm's: the last norm of each branch at 0 or at 1; our layers as when built."""
        super().init_weights(zero_init_last)
        for layer in self.modules():
            if isinstance(layer, BAM | MHSA2d | NonLocal2d | SqueezeExcite2d):
                for part in reversed([*layer.modules()]):  # what a layer says itself comes last
                    if callable(reset := getattr(part, "reset_parameters", None)):
                        reset()

    def no_weight_decay(self) -> set[str]:
        """Patterns of the position tables' names, which timm's optimisers then do not decay."""
        return {*NO_DECAY}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's; an inserted block (BoTNet Table 8) belongs to the block after it, the last of its stage."""
        if coarse:
            return dict(super().group_matcher(coarse=True))
        inserted = (r"^layer(\d+)\.(?:bot|non_local)\.", PREVIOUS)
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": [(r"^layer(\d+)\.(\d+)", None), inserted]}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As timm's; ValueError if a classifier is asked for together with no pool."""
        check_head(num_classes, global_pool)
        super().reset_classifier(num_classes, global_pool)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """As timm's; ValueError for a classifier that would be given a map."""
        check_head(0 if pre_logits else self.num_classes, pool_of(self))
        logits: Tensor = super().forward_head(x, pre_logits)
        return logits


def build_resnet(
    options: ResNetOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> ResNet:
    """A timm `ResNet`, changed as the papers say. Every tensor of timm's keeps its name.

    Stages c2..c5 are `layer1..layer4`. MHSA replaces `conv2`. Squeeze-excitation and BAM-C take timm's `se`
    slot (on the branch, before the addition). BAM and inserted blocks are children of the stage. Convs are
    initialised as He et al. say, the last BatchNorm of each branch at 0 unless `zero_init_last` is False,
    MHSA as its own layer says.
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
        drop_block_rate=options.drop_block,
        global_pool=options.global_pool,
        output_stride=options.output_stride,
        zero_init_last=options.zero_init_last,
    )
    stages: list[nn.Sequential] = [model.layer1, model.layer2, model.layer3, model.layer4]
    outs: list[int] = [info["num_chs"] for info in model.feature_info[1:]]
    if options.c5_stride == 1 and options.output_stride == 32:
        _take_stride_off(model)
    _attend(stages[3], options, image_size)
    if options.stride_on == "1x1":
        parts.move_stride_to_1x1(block for stage in stages for block in stage)
    for number, (stage, channels) in enumerate(zip(stages, outs, strict=True), start=2):
        for block in stage:
            if number in options.se and (options.se_in_bot or isinstance(block.conv2, nn.Conv2d)):
                block.se = SqueezeExcite2d(channels)
            if options.bam == "blocks":
                block.se = parts.bam(channels, options)
    _insert(stages[2], options.insert_c4, outs[2], parts.map_size(image_size, options.c4_stride), options)
    c5_map = parts.map_size(image_size, options.last_stride)
    _insert(stages[3], options.insert_c5, outs[3], c5_map, options)
    if options.bam == "stages":
        parts.append_bam(stages[:3], outs[:3], options)
    return model


def _take_stride_off(model: Any) -> None:
    """Set the stride of c5's first block to 1, so c5 stays at c4's size, undilated (BoTNet-S1, §4.8)."""
    first = model.layer4[0]
    strided = first.conv1 if isinstance(first, BasicBlock) else first.conv2
    for conv in (strided, first.downsample[0]):
        conv.stride = (1, 1)
    first.stride = 1
    model.feature_info[-1]["reduction"] = 16


def _attend(stage: nn.Sequential, options: ResNetOptions, image_size: tuple[int, int]) -> None:
    """Replace the 3×3 conv of the flagged c5 blocks by MHSA (BoTNet §3, Fig. 12)."""
    reduction = options.c4_stride  # the first block attends before it strides
    stride = options.last_stride // reduction
    block: Any
    for flag, block in zip(options.c5_flags, stage, strict=True):
        if flag:
            map_size = parts.map_size(image_size, reduction)
            block.conv2 = parts.mhsa(block.conv2.in_channels, map_size, stride, options)
            if options.shortcut_act and block.downsample is not None:
                block.downsample.append(ACTIVATIONS[options.activation](inplace=True))
        reduction, stride = options.last_stride, 1


def _insert(
    stage: nn.Sequential, kind: str, channels: int, map_size: tuple[int, int], options: ResNetOptions
) -> None:
    """Insert a block between the last two of a stage of `channels` (BoTNet §4.7, Table 8)."""
    last: Any
    last_name, last = list(stage.named_children())[-1]
    if kind == "non_local":
        parts.insert_before(stage, last_name, kind, NonLocal2d(channels, value=options.nl_value))
    elif kind == "bot":
        attention = parts.mhsa(channels // Bottleneck.expansion, map_size, 1, options)
        # The last block's own rate: timm's rise from block to block.
        drop_path = DropPath(last.drop_path.drop_prob) if options.drop_path else None
        act = ACTIVATIONS[options.activation]
        block = bot_block(channels, attention, act, drop_path, copy.deepcopy(last.drop_block))
        parts.insert_before(stage, last_name, kind, block)


def bot_block(
    channels: int,
    attention: MHSA2d,
    activation: type[nn.Module],
    drop_path: nn.Module | None = None,
    drop_block: nn.Module | None = None,
) -> Bottleneck:
    """timm's bottleneck with attention for its 3×3: C → C/4 → C, its last BatchNorm starting at 0.

    Args:
        channels: C.
        attention: of C/4 channels.
        drop_path: on the branch, before the addition.
        drop_block: after the attention's BatchNorm.
    """
    block: Any = Bottleneck(
        channels, channels // Bottleneck.expansion, act_layer=activation, drop_path=drop_path
    )
    block.conv2 = attention
    block.drop_block = nn.Identity() if drop_block is None else drop_block
    for conv in (block.conv1, block.conv3):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    block.zero_init_last()
    return block
