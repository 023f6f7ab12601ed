"""A stage that keeps the size of the map before it, as the last one of BoTNet-S1 does (BoTNet §4.8).

What makes the stage's map of a larger one no longer does: a convolution gets a stride of 1 and no dilation,
and a pool or blur, which only samples the map down, is gone.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from attneck.surgery.blocks import Block, residual_blocks, stages
from attneck.surgery.step import Step
from attneck.surgery.trace import Trace, is_hooked, names_of, trace

SAMPLES = {"avg_pool2d", "max_pool2d", "_max_pool2d", "pad", "conv2d", "__getitem__"}
"""The functions of a module that only samples a map down; a convolution is that of a blur."""


def keep_size(model: nn.Module, seen: Trace, stage: list[Block]) -> tuple[list[str], Trace, list[Block]]:
    """What is to change so that the stage keeps the size; the network itself stays as it is.

    Args:
        model: the network.
        seen: its trace; the skeleton is changed.
        stage: residual blocks.

    Returns:
        The modules that have to stride no more, by their dotted names, the trace of the network without their
        strides, and the blocks in it.

    Raises:
        ValueError: blocks that are not a whole stage, one whose map nothing makes smaller, something that
            does more to the map, or a network that does not run without it.
    """
    blocks = residual_blocks(seen)
    if stage not in stages(seen, blocks):
        raise ValueError(
            f"stride=1: {stage[0].name!r} to {stage[-1].name!r} are not the blocks of one stage, all of "
            "them; a stage that keeps the size attends in all of its blocks"
        )
    steps = _strides_into(seen, stage, blocks)
    for step in steps:
        _check(model, seen, step)
    names, network = sorted({step.name for step in steps}), type(seen.skeleton).__name__
    wanted = {tuple(seen.shapes[step.inputs[0]][2:]) for step in steps}
    take_strides_off(seen.skeleton, names)
    try:
        after = trace(seen.skeleton, seen.image_size)
        again = residual_blocks(after)
    except ValueError:
        again = []
    those = [block for block, before in zip(again, blocks, strict=False) if before in stage]
    if (
        len(again) != len(blocks)
        or [block.name for block in those] != [block.name for block in stage]
        or {tuple(after.shapes[number][2:]) for block in those for number in block.addition.inputs} != wanted
    ):
        raise ValueError(
            f"stride=1: where {names[0]!r} does not stride, this {network} does not run, or does not keep "
            "its map; leave stride out, or choose another stage"
        )
    return names, after, those


def take_strides_off(network: nn.Module, names: list[str]) -> None:
    """Let none of these modules make a map smaller."""
    for name in names:
        module = network.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        else:
            for each in names_of(network, module):
                network.set_submodule(each, nn.Identity())


def _strides_into(seen: Trace, stage: list[Block], blocks: list[Block]) -> list[Step]:
    """The calls that make the stage's map of a larger one, modules where these do nothing else.

    They are looked for backwards from the blocks' additions.

    Raises:
        ValueError: where a map that goes in is as large already, or smaller.
    """
    inputs = [number for block in stage for number in block.addition.inputs]
    size = seen.shapes[inputs[0]][2:]
    others = {block.addition.outputs[0] for block in blocks if block not in stage}
    found: dict[int, Step] = {}
    left, known = inputs, {*inputs}
    while left:
        number = left.pop()
        maker = seen.makers.get(number)
        if number in others or maker is None or _is_coarse(seen, number, size, stage):
            raise ValueError(
                f"stride=1: the map of {stage[0].name!r} is made of one that is no larger, on an image of "
                f"{seen.image_size[0]}×{seen.image_size[1]}; leave stride out, or choose another stage"
            )
        if len(seen.shapes[number]) != 4 or math.prod(seen.shapes[number][2:]) < math.prod(size):
            continue  # a gate, or a branch that goes down and up
        step = _unit(maker)
        if _strides(seen, step):
            found[step.start] = step
            continue
        left += {*step.inputs} - known
        known |= {*step.inputs}
    return list(found.values())


def _is_coarse(seen: Trace, number: int, size: Any, stage: list[Block]) -> bool:
    """Whether it is a smaller map, and no gate, that was made outside of the blocks."""
    shape, maker = seen.shapes[number], seen.makers[number]
    smaller = len(shape) == 4 and 1 < math.prod(shape[2:]) < math.prod(size)
    return smaller and not any(maker.within(block.owner) for block in stage)


def _unit(maker: Step) -> Step:
    """The call of the module that consists of this function and its like, or the function."""
    owner = maker.owner
    if maker.module is not None or owner is None:
        return maker
    whole = isinstance(owner.module, nn.Conv2d) or all(step.module is None for step in owner.steps)
    return owner if whole else maker


def _strides(seen: Trace, step: Step) -> bool:
    """Whether its result is smaller than what goes in, by more than borders."""
    if isinstance(step.module, nn.Conv2d):
        return max(step.module.stride) > 1
    into, out = seen.shapes[step.inputs[0]], seen.shapes[step.outputs[0]]
    sides = zip(into[2:], out[2:], strict=False)
    return len(into) == len(out) == 4 and any(a > b and a >= 2 * b - 1 for a, b in sides)


def _check(model: nn.Module, seen: Trace, step: Step) -> None:
    """ValueError for what cannot do without its stride."""
    module = step.module
    called = seen.called(step)
    if module is None:
        raise ValueError(f"stride=1: the map is made smaller by {called}, which is no module of its own")
    if not isinstance(module, nn.Conv2d):
        does = {each.name for each in step.steps}
        if any(True for _ in module.parameters()) or does - SAMPLES:
            raise ValueError(f"stride=1: {called} makes the map smaller, and is no mere convolution or pool")
        if is_hooked(model.get_submodule(step.name)):
            raise ValueError(f"stride=1: {called} has hooks, which would be lost: remove them first")
    if seen.times_called(module) > 1:
        raise ValueError(f"stride=1: {called} makes maps smaller elsewhere too")
