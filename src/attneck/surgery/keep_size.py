"""A stage that keeps the size of the map before it, as the last one of BoTNet-S1 does (BoTNet §4.8).

Wherever the network makes the stage's map of one twice as large, it no longer does: convolutions get a stride
of 1 and are not dilated, and pools and blurs, which only sample the map down, are gone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from attneck.errors import brief
from attneck.surgery.blocks import Block, residual_blocks
from attneck.surgery.trace import Trace, is_hooked, trace


def strides_into(model: nn.Module, seen: Trace, stage: list[Block]) -> list[str]:
    """The modules of `model` that make the stage's map of a larger one, by their dotted names.

    Args:
        model: the network itself.
        seen: its trace.
        stage: residual blocks.

    Raises:
        ValueError: where there are none, or one has to stride.
    """
    level = seen.level(stage[-1].branch)
    assert level is not None  # it is an addition of maps
    names = []
    earlier = [block for block in residual_blocks(seen) if block.owner.end < stage[0].owner.start]
    large = not earlier or seen.level(earlier[-1].branch) != level
    for step in seen.calls() if large else ():
        if any(child.module is not None for child in step.steps):
            continue
        if seen.coarsest(step.outputs) != level or seen.coarsest(step.inputs) != level - 1:
            continue
        module = step.module
        assert module is not None
        if not isinstance(module, nn.Conv2d) and any(True for _ in module.parameters()):
            raise ValueError(f"stride=1: {step.name!r} makes the map smaller, and is no convolution or pool")
        if seen.times_called(module) > 1:
            raise ValueError(f"stride=1: {step.name!r} makes maps smaller elsewhere too")
        if not isinstance(module, nn.Conv2d) and is_hooked(model.get_submodule(step.name)):
            raise ValueError(f"stride=1: {step.name!r} has hooks, which would be lost: remove them first")
        names.append(step.name)
    if not names:
        raise ValueError(
            f"stride=1: the map of {stage[0].name!r} is as large as the one before it, on an image of "
            f"{seen.image_size[0]}×{seen.image_size[1]}; leave stride out, or give the first block too"
        )
    return names


def take_strides_off(network: nn.Module, names: list[str]) -> None:
    """Let none of these modules make a map smaller."""
    for name in names:
        module = network.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        else:
            network.set_submodule(name, nn.Identity())


def without_strides(seen: Trace, stage: list[Block], names: list[str]) -> Trace:
    """The trace of the network as it will be; its skeleton is the old one, changed.

    Raises:
        ValueError: where it does not run, or the stage's map is not as large as the one before it.
    """
    wanted = {
        tuple(seen.shapes[number][2:])
        for step in seen.calls()
        if step.name in names
        for number in step.inputs
        if seen.level(number) is not None
    }
    last, network = stage[-1].name, type(seen.skeleton).__name__
    take_strides_off(seen.skeleton, names)
    try:
        after = trace(seen.skeleton, seen.image_size)
    except ValueError:
        after = None
    if after is None or any(
        tuple(after.shapes[number][2:]) not in wanted
        for step in after.calls()
        if step.name == last
        for number in step.outputs
    ):
        raise ValueError(
            f"stride=1: without the strides of {brief(names)} this {network} does not run, or does not keep "
            f"its map at {last!r}; leave stride out, or choose another stage"
        )
    return after


def correct_feature_info(model: Any, before: Trace, after: Trace) -> None:
    """Halve timm's `reduction` of the maps that are twice as large now."""
    info = getattr(model, "feature_info", None)
    levels = [
        {step.name: trace.coarsest(step.outputs) for step in trace.calls()} for trace in (before, after)
    ]
    for entry in getattr(info, "info", info) or ():
        module = entry["module"]
        names = (module, module.replace(".", "_"), f"body.{module}")  # the last two in timm's extractors
        was, now = (next((level[n] for n in names if level.get(n) is not None), None) for level in levels)
        if was is not None and now is not None and now < was:
            entry["reduction"] //= 2
