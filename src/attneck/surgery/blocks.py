"""A network's residual blocks, found by their additions, and its stages, found by their blocks.

Nothing here goes by the names or classes of blocks: what counts is which maps are added, and what made them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from attneck.errors import brief, suggestion
from attneck.surgery.step import Step
from attneck.surgery.trace import Trace

ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}

SCALES = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "dropout", "to"}
"""What an adapter does to a map beside its convolutions."""


@dataclass(frozen=True)
class Block:
    """A residual branch and its addition: of two maps, the one that more than the other was done to."""

    owner: Step
    """The module call that adds."""
    addition: Step
    branch: int
    """The number of the branch's result."""
    own: int
    """As a set of bits: the numbers that went into the branch's result and not into the shortcut."""
    convs: tuple[Step, ...]
    """The branch's convolutions in order, linear layers among them: their functions."""

    @property
    def name(self) -> str:
        return self.owner.name

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]


def residual_blocks(trace: Trace) -> list[Block]:
    """In order: every addition of two maps of which one is a shortcut.

    A shortcut has at most two convolutions of its own (GhostNet's has two), and fewer than the branch, which
    has two or more. So neither parallel branches nor maps of several resolutions count when they are added.
    Nor does an addition inside the branch of another one of the same module (Res2Net's), nor one
    that joins stages, as those of pyramids (FPN) and decoders do. A convolution with an adapter beside it
    (LoRA's two, or several such) counts as one.

    Raises:
        ValueError: where there is none.
    """
    sources = _sources(trace)
    additions = [
        step
        for step in trace.steps
        if step.module is None and step.name in ADDITIONS and len(step.inputs) == 2
        if trace.shapes[step.inputs[0]] == trace.shapes[step.inputs[1]]
    ]
    adapters = sums = 0
    for step in additions:
        for a, b in (step.inputs, step.inputs[::-1]):
            base, own = sources[a] & ~sources[b] & ~adapters & ~sums, sources[b] & ~sources[a]
            maker = trace.makers.get(base.bit_length() - 1)
            if base.bit_count() == 1 and maker and maker.is_convolution() and _is_adapter(trace, own):
                adapters |= own
                sums |= 1 << step.outputs[0]
    convs = [step for step in trace.steps if step.is_convolution() and not adapters >> step.outputs[0] & 1]
    found = []
    for step in additions:
        a, b = step.inputs
        if trace.level(a) is None or step.owner is None:
            continue
        sides = []
        for number, other in ((a, b), (b, a)):
            own = sources[number] & ~sources[other]
            sides.append((tuple(c for c in convs if own >> c.outputs[0] & 1), number, own))
        shortcut, branch = sorted(sides, key=lambda side: len(side[0]))
        residual = len(branch[0]) >= 2 and len(shortcut[0]) <= 2 and len(shortcut[0]) < len(branch[0])
        if residual and not _joins(trace, step, branch[2], branch[0]):
            found.append(Block(step.owner, step, branch[1], branch[2], branch[0]))
    if not found:
        raise ValueError(
            f"no residual block in this {type(trace.skeleton).__name__}: looked for additions of a shortcut "
            "and a branch of two convolutions or more, on maps [B, C, H, W], and found none"
        )
    return [
        block
        for block in found
        if not any(
            other.owner is block.owner and other.own >> block.addition.outputs[0] & 1 for other in found
        )
    ]


def _joins(trace: Trace, addition: Step, own: int, convs: tuple[Step, ...]) -> bool:
    """Whether what is added is more than a branch: work of other modules, too, or of a coarser map.

    A pyramid's and a decoder's additions join stages of the network. A block may well go down and up inside
    its branch, as GhostNetV2's and SCNet's do, and may leave the addition to a module that does only that.
    """
    owner, here = addition.owner, trace.level(addition.inputs[0])
    assert owner is not None
    assert here is not None
    if len({conv.within(owner) for conv in convs}) > 1:
        return True
    return any(
        (owner.name == "" or not maker.within(owner)) and (trace.level(number) or here) > here
        for number, maker in trace.makers.items()
        if own >> number & 1
    )


def _is_adapter(trace: Trace, own: int) -> bool:
    """Whether two convolutions made these, the first into fewer channels, and products with numbers."""
    makers = [maker for number, maker in trace.makers.items() if own >> number & 1]
    if not all(one.is_convolution() or (one.name in SCALES and len(one.inputs) == 1) for one in makers):
        return False
    sizes = [math.prod(trace.shapes[one.outputs[0]]) for one in makers if one.is_convolution()]
    return len(sizes) == 2 and sizes[0] < sizes[1]


def goes_past(trace: Trace, block: Block, conv: Step) -> bool:
    """Whether some of the branch's result comes from its input by another way than this convolution."""
    seen, left = set(conv.outputs), [block.branch]
    while left:
        number = left.pop()
        if number in seen:
            continue
        seen.add(number)
        if not block.own >> number & 1:
            return True
        left += trace.makers[number].inputs
    return False


def stages(trace: Trace, blocks: list[Block]) -> list[list[Block]]:
    """Blocks that are children of one module and make maps of one size, in the order in which they run."""
    found: dict[tuple[str, int | None], list[Block]] = {}
    for block in blocks:
        found.setdefault((block.parent, trace.level(block.branch)), []).append(block)
    return list(found.values())


def is_index(value: object, length: int) -> bool:
    """Whether it is the number of one of so many, from the front or, negative, from the back."""
    return isinstance(value, int) and not isinstance(value, bool) and -length <= value < length


def stage_of(trace: Trace, stage: int | str) -> list[Block]:
    """The residual blocks of a stage, by its number among the stages that have any, or by a module's name.

    Raises:
        ValueError: a network without such blocks, or a stage that it does not have.
    """
    blocks = residual_blocks(trace)
    known = stages(trace, blocks)
    network = type(trace.skeleton).__name__
    listed = ", ".join(" to ".join(dict.fromkeys((those[0].name, those[-1].name))) for those in known)
    if isinstance(stage, str):
        chosen = [block for block in blocks if block.name == stage or block.name.startswith(f"{stage}.")]
        if not chosen:
            near = suggestion(stage, [block.parent for block in blocks])
            raise ValueError(f"stage={stage!r} has no residual block{near}; this {network} has {listed}")
        return chosen
    if not is_index(stage, len(known)):
        raise ValueError(
            f"stage={brief(stage)}: this {network} has {len(known)} stages of residual blocks, {listed}; "
            "choose one by its number among them, or a module's name"
        )
    return known[stage]


def _sources(trace: Trace) -> list[int]:
    """For each number the numbers that went into it, itself among them, as a set of bits."""
    found: list[int] = []
    for number in range(len(trace.shapes)):
        bits = 1 << number
        if number in trace.makers:
            for source in trace.makers[number].inputs:
                bits |= found[source]
        found.append(bits)
    return found
