"""Where a tensor has its channels: followed from the image through what moves and merges its axes.

Some networks work on [B, H, W, C] for a while, with linear layers. Such a map looks like one of H channels.
"""

from __future__ import annotations

import math

import torch

from attneck.surgery.step import Step

MOVES = {"permute", "transpose", "transpose_", "swapaxes", "swapdims", "movedim", "moveaxis"}
PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "einsum", "scaled_dot_product_attention"}
"""Whose result has axes of both factors."""


def channel_axes(shapes: list[torch.Size], makers: dict[int, Step]) -> list[int | None]:
    """The axis of each number's channels; None where that was not to be followed."""
    found: list[int | None] = []
    for number, shape in enumerate(shapes):
        maker = makers.get(number)
        found.append(
            (1 if len(shape) == 4 else None) if maker is None else _axis(shape, maker, shapes, found)
        )
    return found


def _axis(shape: torch.Size, maker: Step, shapes: list[torch.Size], found: list[int | None]) -> int | None:
    """Of what `maker` made, from the axes of those before."""
    function = maker.name if maker.module is None else ""
    positional, named = maker.arguments
    if function in ("conv2d", "conv_transpose2d"):
        return 1
    if function == "linear":
        return len(shape) - 1
    if function == "layer_norm" and len([*(named.get("normalized_shape") or positional[1])]) == 1:
        return len(shape) - 1
    source = next((number for number in maker.inputs if found[number] is not None), None)
    if source is None or function in PRODUCTS:
        return None
    axis, was = found[source], shapes[source]
    assert axis is not None
    if function in MOVES:
        sides = torch.empty(*range(len(was)), device="meta")  # each axis of another length
        how = {name: given for name, given in named.items() if name != "input"}
        return list(getattr(sides, function)(*positional[1:], **how).shape).index(axis)
    if was != shape and was.numel() == shape.numel():
        # A view: the axis that has all the channels side by side, alone or with what was merged with them.
        step = math.prod(was[axis + 1 :])
        steps = [math.prod(shape[each + 1 :]) for each in range(len(shape))]
        ends = [each * side for each, side in zip(steps, shape, strict=True)]
        inside = [
            each
            for each in range(len(shape))
            if steps[each] <= step and step * was[axis] <= ends[each] and shape[each] > 1
        ]
        return inside[0] if len(inside) == 1 else None
    return axis if len(was) == len(shape) else None
