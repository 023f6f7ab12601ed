"""Attention instead of the 3×3 convolutions of a network that is there already (BoTNet §3).

Which networks it takes is a matter of their blocks, not of their names. Each chosen block must be residual,
and the whole of its branch must go through a 3×3 convolution of as many channels in as out. So do those of
ResNet, ResNeXt, Wide ResNet, SE-ResNet, ResNet-D and anti-aliased ones, RegNet, ResNetV2 and BiT, NF-ResNet
and NFNet, CSPResNet, CSPDarkNet, TResNet, DPN, HRNet and DLA. Refused, with the reason:

- VGG, DenseNet, Inception, GoogLeNet, SqueezeNet, ShuffleNet, VoVNet: no residual blocks.
- MobileNet, EfficientNet, GhostNet and their kin: the 3×3 is depthwise; it has one weight for each channel
  and kernel position, and attention mixes all channels.
- ConvNeXt, EdgeNeXt, Inception-ResNet: no 3×3.
- DarkNet, ResNeSt, SKNet's bottlenecks: the 3×3 makes more channels than it is given.
- Res2Net, RepVGG: part of the map goes past the 3×3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from attneck.errors import brief, one_line
from attneck.layers import MHSA2d
from attneck.layers.meta import meta_copy
from attneck.surgery.attach import device_to_make_on, match_to
from attneck.surgery.blocks import Block, goes_past, is_index, stage_of
from attneck.surgery.keep_size import keep_size, take_strides_off
from attneck.surgery.recorded import recorded
from attneck.surgery.reductions import correct_reductions
from attneck.surgery.report import Change, Ledger, Result
from attneck.surgery.step import Step
from attneck.surgery.trace import Trace, is_hooked, is_pefts, names_of, trace

Position = Literal["relative", "absolute", "none"]
Resample = Literal["stretch", "keep"]


@recorded
def attend(
    model: nn.Module,
    stage: int | str = -1,
    blocks: Literal["all"] | int | Sequence[int] = "all",
    *,
    heads: int = 4,
    position: Position = "relative",
    content: bool = True,
    resample: Resample = "stretch",
    stride: Literal[1] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Result:
    """Replace the 3×3 convolutions of a stage by `MHSA2d`, in place; the norms after them stay.

    Only the convolutions' own weights go; all other tensors keep their values and names. A new layer attends
    to the whole of its block's input, and its 2×2 average pool takes the block's stride (BoTNet A.4), be that
    of the 3×3 or of the 1×1 before it. In a basic block it replaces the last 3×3, which does not
    stride; the first one, which widens the map, keeps its stride. A block that pools by a layer of its own,
    as anti-aliased ones do, goes on to do so. An optimiser that was made before knows none of the new layers.
    In networks without norms (NF-ResNet, NFNet) nothing scales up the small results of a new layer: there its
    block's branch begins near zero, and grows as it learns.

    Args:
        model: a network with residual blocks, of torchvision, timm or your own, on any device.
        stage: which of the stages that have residual blocks, -1 the last; or the name of a module, for those
            inside.
        blocks: "all", or which of the stage's, one number or several; those that BoTNet's Table 5 writes
            [0, 1, 1] are (1, 2).
        heads, position, content, resample: of each `MHSA2d`.
        stride: 1 lets the whole stage keep the size of the map before it, as BoTNet-S1's last does (§4.8);
            its convolutions are not dilated, and pools and blurs that made it smaller are left out. None
            leaves the size as it is.
        image_size: a side or (height, width) in pixels that the position tables are made for; any other
            works, too. None takes that of timm's `pretrained_cfg`, else 224.

    Raises:
        ValueError: a network without residual blocks, a stage or block that it does not have, a block whose
            3×3 cannot be replaced, with the reason, or has hooks, which would be lost, options that
            `MHSA2d` refuses, or a stage that cannot keep the size. The model is as it was then.
    """
    before = seen = trace(model, image_size)
    those = stage_of(seen, stage)
    chosen = range(len(those)) if isinstance(blocks, str) and blocks == "all" else blocks
    if type(chosen) is int:  # a command line cannot tell one number from a list of it
        chosen = (chosen,)
    if not isinstance(chosen, Sequence) or not chosen or not all(is_index(i, len(those)) for i in chosen):
        raise ValueError(
            f"blocks={brief(blocks)}: wanted 'all', or numbers of the {len(those)} blocks, "
            f"{', '.join(block.name for block in those)}"
        )
    targets = [_target(seen, those[index]) for index in sorted({index % len(those) for index in chosen})]
    strides: list[str] = []
    if stride is not None:
        if type(stride) is not int or stride != 1:
            raise ValueError(
                f"stride={brief(stride)}: wanted 1, for a stage that keeps the size of the map before it, or "
                "None, for one that strides as it did"
            )
        if blocks != "all":
            raise ValueError(
                f"stride=1 and blocks={brief(blocks)}: a stage that keeps the size attends in all of its "
                "blocks; leave one of the two out"
            )
        strides, seen, those = keep_size(model, seen, those)
        targets = [_target(seen, block) for block in those]
    layers = []
    for target in targets:
        if is_hooked(model.get_submodule(target.call.name)):
            raise ValueError(
                f"{target.call.name!r} has hooks, and they would be lost with it: remove them first, and "
                "register them on the new layer"
            )
        try:
            with device_to_make_on(model):
                layer = MHSA2d(
                    target.conv.in_channels,
                    target.map_size,
                    heads=heads,
                    position=position,
                    content=content,
                    resample=resample,
                    stride=target.stride,
                )
        except ValueError as error:
            raise ValueError(f"instead of {target.call.name!r}: {error}") from error
        match_to(layer, model, seen, target.call)
        layers.append(layer)
    _check_in_use(seen, targets, layers)
    ledger, changes = Ledger(model, seen), []
    take_strides_off(model, strides)
    correct_reductions(model, before, seen)
    for target, layer in zip(targets, layers, strict=True):
        _replace(model, target, layer)
        was = f"a 3×3 convolution{f' in {target.conv.groups} groups' if target.conv.groups > 1 else ''}"
        changes.append(Change(target.call.name, "MHSA2d", layer.channels, layer.map_size, layer.stride, was))
    return ledger.close(changes, strides)


@dataclass(frozen=True)
class _Target:
    """A 3×3 convolution that attention can stand for."""

    call: Step
    conv: nn.Conv2d
    stride: int
    """The layer's: that of the convolution, or of the 1×1 before it."""
    map_size: tuple[int, int]
    """The map that the layer sees."""
    strided: str | None
    """The 1×1 convolution that has to give up its stride."""


def _replace(model: nn.Module, target: _Target, layer: nn.Module) -> None:
    """Put the layer in the place of the convolution, under all names that it has."""
    if target.strided is not None:
        conv = model.get_submodule(target.strided)
        assert isinstance(conv, nn.Conv2d)
        conv.stride = (1, 1)
    replaced = model.get_submodule(target.call.name)
    for each in names_of(model, replaced):
        model.set_submodule(each, layer)


def _check_in_use(seen: Trace, targets: list[_Target], layers: list[MHSA2d]) -> None:
    """Replace the convolutions of the traced copy and run it; ValueError unless the layers are what runs."""
    ran: list[nn.Module] = []
    copies = [meta_copy(layer).eval() for layer in layers]
    for target, layer in zip(targets, copies, strict=True):
        _replace(seen.skeleton, target, layer)
        layer.register_forward_hook(lambda layer, _args, _result: ran.append(layer))
    (args, kwargs), failure = seen.steps[0].arguments, ""
    try:
        with seen.running():
            seen.skeleton(*args, **kwargs)
    except Exception as error:  # somebody's forward, which asks the layer for what it does not have
        failure = f" ({type(error).__name__}: {one_line(error, 150)})"
    for target, layer in zip(targets, copies, strict=True):
        if failure or ran.count(layer) != 1:
            raise ValueError(
                f"{target.call.name!r} cannot be replaced: a layer under this name is not what the network "
                f"then calls, once{failure}; does it keep the convolution elsewhere, as in a plain list? Let "
                "its forward call it by this name and ask it for nothing more, or choose other blocks"
            )


def _target(seen: Trace, block: Block) -> _Target:
    """The last 3×3 convolution of a block's branch; ValueError, with the reason, if none can be replaced."""

    def refuse(reason: str) -> ValueError:
        return ValueError(f"the block {block.name!r} cannot attend: {reason}; choose other blocks or stages")

    if any(isinstance(call.module, MHSA2d) and call.within(block.owner) for call in seen.calls()):
        raise refuse("it has an MHSA2d already")
    layers = [_layer(step) for step in block.convs]
    three = [conv for conv in layers if conv is not None and conv[1].kernel_size == (3, 3)]
    if not three:
        kernels = sorted({"×".join(map(str, step.kernel())) for step in block.convs})
        raise refuse(f"it has no 3×3 convolution to replace, only {', '.join(kernels)}")
    mixing = [(call, conv) for call, conv in three if conv.groups == 1 or conv.groups < conv.in_channels]
    if not mixing:
        raise refuse("its 3×3 convolution is depthwise, which no layer that mixes all channels stands for")
    call, conv = mixing[-1]
    if conv.in_channels != conv.out_channels:
        raise refuse(f"its 3×3 convolution makes {conv.out_channels} channels of {conv.in_channels}")
    index = layers.index((call, conv))
    if is_pefts(seen.skeleton.get_submodule(call.name.rpartition(".")[0])):
        raise refuse("its 3×3 convolution has an adapter (attend first, or merge it)")
    if goes_past(seen, block, block.convs[index]):
        raise refuse("part of its map goes past the 3×3 convolution")
    if seen.times_called(conv) > 1:
        raise refuse("its 3×3 convolution is called more than once")
    if call.outputs != block.convs[index].outputs:
        more = "".join(f", by {name}" for name, _ in conv.named_children())
        raise refuse(
            f"the module of its 3×3 convolution does more to the map{more}, and that would be lost (attend "
            "first, and put something after it then)"
        )
    stride, into, out = conv.stride[0], seen.shapes[call.inputs[0]][2:], seen.shapes[call.outputs[0]][2:]
    if stride > 2 or tuple(out) != tuple(-(-side // stride) for side in into):
        raise refuse(f"its 3×3 convolution makes a map of {out[0]}×{out[1]} of one of {into[0]}×{into[1]}")
    before = layers[index - 1] if index else None
    if before and stride == 1 and (before[1].kernel_size, before[1].stride) == ((1, 1), (2, 2)):
        H, W = seen.shapes[before[0].inputs[0]][2:]
        return _Target(call, conv, 2, (H, W), before[0].name)
    return _Target(call, conv, stride, (into[0], into[1]), None)


def _layer(step: Step) -> tuple[Step, nn.Conv2d] | None:
    """The convolution whose forward called this function, and its call."""
    owner = step.owner
    return (owner, owner.module) if owner and isinstance(owner.module, nn.Conv2d) else None
