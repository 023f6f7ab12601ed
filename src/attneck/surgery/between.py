"""A block of attention between the last two of a stage (BoTNet §4.7, Table 8)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from attneck.checks import one_of
from attneck.errors import one_line
from attneck.layers import MHSA2d, NonLocal2d
from attneck.models.parts import insert_before
from attneck.models.resnet.network import bot_block
from attneck.surgery.attach import Probe, device_to_make_on, match_to
from attneck.surgery.attend import Position, Resample
from attneck.surgery.blocks import Block, stage_of
from attneck.surgery.recorded import recorded
from attneck.surgery.report import Change, Ledger, Result
from attneck.surgery.trace import Trace, trace


@recorded
def insert_attention_block(
    model: nn.Module,
    kind: Literal["bot", "non_local"] = "bot",
    stage: int | str = -2,
    *,
    heads: int = 4,
    position: Position = "relative",
    content: bool = True,
    resample: Resample = "stretch",
    value: bool = False,
    image_size: int | tuple[int, int] | None = None,
) -> Result:
    """Insert a block between the last two of a stage, in place, as a child of the stage called like its kind.

    "bot" is BoTNet's block, C → C/4 → C around an `MHSA2d`; "non_local" a `NonLocal2d`. The last BatchNorm of
    either starts at zero, so that a trained network computes what it did. For that to hold in every network,
    a BoT block ends in a ReLU only where the block before it does, and in its addition elsewhere. All tensors
    keep their values and names, and so do the blocks, though the last one is one further in the row.

    Args:
        model: a network whose stage runs its residual blocks in a row, of torchvision, timm or your own.
        stage: which of the stages that have residual blocks, -2 the last but one (c4); or its module's name.
        heads, position, content, resample: of the `MHSA2d` in "bot".
        value: of the `NonLocal2d`.
        image_size: a side or (height, width) in pixels that the position tables are made for; any other
            works, too. None takes that of timm's `pretrained_cfg`, else 224.

    Raises:
        ValueError: a network without residual blocks; a stage that it does not have, that has one block
            alone, that does not run its children in a row, that has such a block already, or whose channels
            have no quarter for "bot"; options that `MHSA2d` refuses, or that a Non-Local block has no use
            for. The model is as it was then.
    """
    one_of("kind", kind, ("bot", "non_local"))
    if kind == "non_local" and (heads, position, content, resample) != (4, "relative", True, "stretch"):
        raise ValueError(
            "heads, position, content and resample would change nothing in a Non-Local block: leave them out"
        )
    if kind == "bot" and value:
        raise ValueError("value=True would change nothing in a BoT block, which has one: leave it out")
    seen = trace(model, image_size)
    blocks = stage_of(seen, stage)
    last, parent = blocks[-1], blocks[-1].parent
    if hasattr(model.get_submodule(parent), kind):
        raise ValueError(
            f"{parent or 'the network itself'!r} has a {kind!r} already; there is one to a stage"
        )
    number = last.owner.inputs[0]
    _, channels, H, W = seen.shapes[number]
    if len(blocks) < 2 or not _runs_in_a_row(seen, last):
        raise ValueError(
            f"no block can be inserted before {last.name!r}: looked for a module that runs two residual "
            f"blocks or more in a row, as a Sequential does, and {parent or 'the network itself'!r} is none"
        )
    if kind == "bot" and channels % 4:
        raise ValueError(
            f"no BoT block can be inserted before {last.name!r}: it has a quarter of the stage's channels "
            f"inside, and {channels} has none; choose another stage, or kind='non_local'"
        )
    block: nn.Module
    new: NonLocal2d | MHSA2d
    with device_to_make_on(model):
        if kind == "non_local":
            block = new = NonLocal2d(channels, value=value)
        else:
            silu = any(isinstance(call.module, nn.SiLU) for call in seen.calls() if call.within(last.owner))
            new = mhsa = MHSA2d(
                channels // 4, (H, W), heads=heads, position=position, content=content, resample=resample
            )
            block = bot_block(channels, mhsa, nn.SiLU if silu else nn.ReLU)
            if seen.makers[number].name not in ("relu", "relu_"):
                block.act3 = nn.Identity()
    match_to(block, model, seen, last.owner)
    ledger = Ledger(model, seen)
    holder = model.get_submodule(parent)
    insert_before(holder, last.name.rpartition(".")[2], kind, block)
    try:
        name = next(name for name, module in model.named_modules() if module is new)
        return ledger.close([Change(name, type(new).__name__, new.channels, (H, W))])
    except BaseException as error:
        delattr(holder, kind)
        if not isinstance(error, Exception):
            raise
        raise ValueError(  # somebody's forward, which asks a block for what it has at its own place
            f"this {type(seen.skeleton).__name__} does not run with a block before {last.name!r} "
            f"({type(error).__name__}: {one_line(error, 150)}): let its forward ask for nothing but the "
            "stage's results, or choose another stage"
        ) from error


def _runs_in_a_row(seen: Trace, last: Block) -> bool:
    """Whether the module that a stage's last block is a child of runs what is put before it."""
    stage = last.owner.owner
    if stage is None or stage.module is None or stage.name != last.parent:
        return False
    probe, (args, kwargs) = Probe(), stage.arguments
    insert_before(stage.module, last.name.rpartition(".")[2], "probe", probe)
    try:
        with seen.running():
            stage.module(*args, **kwargs)
    except Exception:  # it calls its children in a way of its own
        return False
    finally:
        del stage.module.probe
    shape = seen.shapes[last.owner.inputs[0]]
    return len(probe.given) == 1 and isinstance(probe.given[0], Tensor) and probe.given[0].shape == shape
