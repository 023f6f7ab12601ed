"""Where something can be put after a module of a network, and where its bottlenecks are.

Nothing here goes by the names or classes of networks: what counts is which maps become smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd

from attneck.surgery.step import Step
from attneck.surgery.trace import Trace

STEM_LEVELS = 2
"""Strides 1 and 2 are the stem's, in every network but those for small images."""


@dataclass(frozen=True)
class Place:
    """Right after a module, on the map that it returns."""

    call: Step
    """The module's call."""
    part: int | None
    """Which of its results the map is, the first one, where it returns a list or tuple."""
    number: int
    """The map's, in the trace."""
    channels: int
    map_size: tuple[int, int]


ACTIVATIONS = (
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid "
    "tanh softplus softsign logsigmoid threshold hardshrink softshrink tanhshrink clamp clip"
)
DROPOUT = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout"
ARITHMETIC = "add radd iadd sub rsub isub mul rmul imul multiply div truediv itruediv neg abs pow square"
CASTS = "to type type_as float half bfloat16 double contiguous clone detach"
ELEMENTWISE = {*f"{ACTIVATIONS} {DROPOUT} {ARITHMETIC} {CASTS}".split()}
"""Functions that work on each value by itself, without underscores: `relu_` and `__mul__` are among them.

Arithmetic is so where the map is the only thing that comes from the image: with a scalar or a parameter.
"""


def after(trace: Trace, number: int, before: Step, among: list[Step]) -> Place | None:
    """After the outermost module that made and returned this map, or after one that passed it on.

    Args:
        before: what takes the map; the module must have returned it by then.
        among: the module is one of these calls, or was called in one.

    Where an element-wise function made the map of another one, it is that one's place. None: there is none.
    """
    maker = trace.makers.get(number)
    if maker is None:
        return None
    calls = [
        call
        for call in trace.calls()
        if call.end < before.start
        and number in (call.outputs if isinstance(call.result, Tensor) else call.parts)
        and trace.times_called(call.module) == 1
        and any(call.within(other) for other in among)
    ]
    if calls:
        call = max(calls, key=lambda call: (maker.within(call), call.end))
        part = None if isinstance(call.result, Tensor) else call.parts.index(number)
        _, C, H, W = trace.shapes[number]
        return Place(call, part, number, C, (H, W))
    if maker.module is None and maker.name.strip("_") in ELEMENTWISE and len(maker.inputs) == 1:
        (source,) = maker.inputs
        if trace.shapes[source] == trace.shapes[number]:
            return after(trace, source, before, among)
    return None


def bottlenecks(trace: Trace) -> list[Place]:
    """After each stage that a down-sampling follows, on the map that is made smaller (BAM §3, Fig. 1).

    The stem is left out: the maps at strides 1 and 2 in all networks but those for small images, which do not
    stride in their first convolution and shrink the image by 8 at most. So is a map that no layer made
    or worked on, such as a pooled one, and what a pyramid of several maps makes smaller.

    Raises:
        ValueError: where there is none.
    """
    pieces = list(_pieces(trace, trace.steps[0]))
    convs = [
        step for step in trace.steps if step.is_convolution() and trace.coarsest(step.outputs) is not None
    ]
    shrinking: list[tuple[int, Step]] = []
    deepest = 0
    for piece in pieces:
        level = trace.coarsest(piece.outputs)
        if level is not None and level > deepest and not _pools_to_a_size(piece):
            if not _takes_several(trace, piece):
                shrinking.append((deepest, piece))
            deepest = level
    for_small_images = bool(convs) and trace.coarsest(convs[0].outputs) == 0 and deepest <= 3
    stem_levels = 0 if for_small_images else STEM_LEVELS
    found = []
    for level, piece in shrinking:
        number = _shrunk(trace, piece, level)
        if number is None or level < stem_levels:
            continue
        worked_on = any(c.end < piece.start and trace.coarsest(c.outputs) == level for c in convs)
        if worked_on or any(_works_on_tokens(trace, one) for one in pieces if number in one.outputs):
            place = after(trace, number, piece, pieces)
            if place is None:
                raise ValueError(
                    f"the map that {trace.called(piece)} makes smaller comes from no module that something "
                    "could be put after: looked for one that is called once and returns that map; give the "
                    "network one there (an nn.Identity will do)"
                )
            found.append(place)
    if not found:
        H, W = trace.image_size
        seen = ", ".join(f"{trace.called(piece)} from stride {2**level}" for level, piece in shrinking)
        raise ValueError(
            f"no bottleneck in this {type(trace.skeleton).__name__}: looked for maps [B, C, H, W], at stride "
            f"{2**stem_levels} or more, that convolutions or linear layers worked on and that are made "
            f"smaller, on an image of {H}×{W}; smaller maps are made by {seen or 'nothing'}; give image_size "
            "if it takes others, or put a stage's pool beside the stage, or last in it"
        )
    return found


def _shrunk(trace: Trace, piece: Step, level: int) -> int | None:
    """The latest map of this level that the piece works on; others it only hands on."""
    taken = {n for step in trace.steps if step.module is None and step.within(piece) for n in step.inputs}
    return max((n for n in piece.inputs if n in taken and trace.level(n) == level), default=None)


def _works_on_tokens(trace: Trace, piece: Step) -> bool:
    """Whether a linear layer in it is applied place by place, as in a Transformer's stage."""
    return any(
        step.module is None and step.name == "linear" and math.prod(trace.shapes[number][1:-1]) > 1
        for step in trace.steps
        if step.within(piece)
        for number in step.outputs
    )


def _takes_several(trace: Trace, piece: Step) -> bool:
    """Whether it takes maps of several sizes or by their names, as a detector's pyramid: it is no stage."""
    positional, named = piece.arguments
    by_name = any(isinstance(given, Mapping) for given in (*positional, *named.values()))
    levels = [level for number in piece.inputs if (level := trace.level(number)) is not None]
    return len(levels if by_name else {*levels}) > 1


def _pools_to_a_size(piece: Step) -> bool:
    """Whether it makes a map of one size whatever it is given, as a head does."""
    pools = _AdaptiveAvgPoolNd | _AdaptiveMaxPoolNd
    return piece.name.startswith("adaptive_") or isinstance(piece.module, pools)


def _pieces(trace: Trace, step: Step) -> Iterator[Step]:
    """What runs one after the other from the image to the head, each shrinking its map at most once."""
    for child in step.steps:
        if (
            child.module is not None
            and child.steps
            and not _takes_several(trace, child)
            and _opens(trace, child)
        ):
            yield from _pieces(trace, child)
        else:
            yield child


def _is_parallel(trace: Trace, step: Step) -> bool:
    """Whether several of its modules take the map that it takes itself, as an Inception block's branches do.

    The image does not count, which a network in a wrapper may read again.
    """
    own = {n for n in step.inputs if n and trace.level(n) is not None}
    return sum(child.module is not None and not own.isdisjoint(child.inputs) for child in step.steps) > 1


def _opens(trace: Trace, step: Step) -> bool:
    """Whether bottlenecks are to be looked for inside a module, rather than before it."""
    if _is_parallel(trace, step):
        return False
    into, out = trace.coarsest(step.inputs), trace.coarsest(step.outputs)
    if into is None or out is None or out - into > 1:
        return True
    last = step.steps[-1]
    ends_smaller = trace.coarsest(last.inputs) == into and trace.coarsest(last.outputs) == out
    if out - into == 1 and (isinstance(step.module, nn.Sequential) or ends_smaller):
        # A stage that ends in its down-sampling; a Sequential may have more behind it. One that begins with
        # it is no reason, nor is what a block does to its channels, by 1×1 convolutions, before it strides.
        for child in step.steps:
            level = trace.coarsest(child.outputs)
            if level is not None and level > into:
                return False
            if any(c.within(child) and c.is_convolution() and c.kernel() > (1, 1) for c in trace.steps):
                return True
    return False
