"""BAM and squeeze-excitation in a network that is there already, where BAM's paper puts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from attneck.checks import one_of
from attneck.errors import one_line
from attneck.layers import BAM, SqueezeExcite2d
from attneck.models.weights import THEIR_SE
from attneck.surgery.attach import OnPart, attached, device_to_make_on, match_to
from attneck.surgery.blocks import residual_blocks
from attneck.surgery.places import Place, after, bottlenecks
from attneck.surgery.recorded import recorded
from attneck.surgery.report import Change, Ledger, Result
from attneck.surgery.trace import Trace, trace

At = Literal["bottlenecks", "blocks"]
Start = Literal["identity", "paper"]


@recorded
def insert_bam(
    model: nn.Module,
    at: At = "bottlenecks",
    *,
    start: Start = "identity",
    reduction: int = 16,
    dilation: int = 4,
    combine: Literal["sum", "prod", "max"] | None = None,
    branches: Literal["both", "channel", "spatial"] = "both",
    variant: Literal["paper", "official"] = "paper",
    image_size: int | tuple[int, int] | None = None,
) -> Result:
    """Put `BAM`s into `model`, in place. All tensors that it has keep their values and names.

    The new module comes after another one, as its child `bam`, so that whatever takes that one's result,
    timm's feature extractors among them, gets BAM's. After a norm it is a child of the norm's parent,
    `bn2_bam`, and stays when a library replaces the norm, by a SyncBatchNorm or a frozen one.

    Args:
        model: a feed-forward network, of torchvision, timm or your own, on any device.
        at: "bottlenecks": after each stage that a down-sampling follows, from stride 4 on (BAM §3; strides
            1 and 2 are the stem's, except in networks for small images). A stage that dilates instead of
            striding is no down-sampling, so a backbone with timm's `output_stride=8` gets one alone; make it
            without, for three. "blocks": in every residual block, on the branch's result, before the
            addition (BAM-C, Table 2).
        start: "identity" leaves what the network computes as it is, to the last bit, by gains that start at
            zero and learn; for a network that is trained. "paper" is BAM as published, which changes all
            maps from the first step on; for training from scratch.
        reduction, dilation, combine, branches, variant: of each `BAM`.
        image_size: a side or (height, width) in pixels, to look at the network with; any other works, too.
            None takes that of timm's `pretrained_cfg`, else 224.

    Raises:
        ValueError: a network without such a place, with what was looked for and found; one that has BAM there
            already; options that `BAM` refuses. The model is as it was then.
    """

    def new(channels: int) -> BAM:
        return BAM(
            channels,
            reduction=reduction,
            dilation=dilation,
            combine=combine,
            branches=branches,
            variant=variant,
            start=start,
        )

    return _insert(model, at, new, "bam", image_size)


@recorded
def insert_se(
    model: nn.Module,
    at: At = "blocks",
    *,
    start: Start = "identity",
    reduction: int = 16,
    bias: bool = True,
    image_size: int | tuple[int, int] | None = None,
) -> Result:
    """Put `SqueezeExcite2d`s into `model`, in place, by default as BAM's Table 5 does: in every block.

    Arguments and errors are those of `insert_bam`, and `bias` is `SqueezeExcite2d`'s: the table's have one. A
    place that timm's or torchvision's squeeze-and-excitation is at has one already.
    """

    def new(channels: int) -> SqueezeExcite2d:
        return SqueezeExcite2d(channels, reduction=reduction, bias=bias, start=start)

    return _insert(model, at, new, "se", image_size)


def _insert(
    model: nn.Module,
    at: str,
    new: Callable[[int], BAM | SqueezeExcite2d],
    name: str,
    image_size: int | tuple[int, int] | None,
) -> Result:
    """Find the places, make a module for each, put them there, report."""
    finders = {"bottlenecks": bottlenecks, "blocks": branch_ends}
    one_of("at", at, finders)
    seen = trace(model, image_size)
    modules: dict[str, tuple[Place, nn.Module]] = {}
    for place in finders[at](seen):
        where = place.call.name
        try:
            with device_to_make_on(model):
                module = new(place.channels)
        except ValueError as error:
            raise ValueError(f"after {where!r}: {error}") from error
        if _has(place.call.module, type(module)):
            raise ValueError(f"{where!r} ends in a {type(module).__name__} already; there is one to a place")
        own = type(place.call.module).__name__
        if isinstance(module, SqueezeExcite2d) and own in THEIR_SE:
            raise ValueError(
                f"{where!r} is a squeeze-and-excitation already, the network's own {own}; there is one to a "
                "place: choose another `at`, or a network without"
            )
        match_to(module, model, seen, place.call, place.number)
        modules[where] = place, module
    ledger = Ledger(model, seen)
    there = attached(model, seen, modules, name)
    try:
        with there:
            names = {module: path for path, module in model.named_modules()}
            changes = [
                Change(names[module], type(module).__name__, place.channels, place.map_size)
                for place, module in modules.values()
            ]
            return ledger.close(changes)
    except Exception as error:  # somebody's forward, which asks the new module for what it does not have
        raise ValueError(
            f"this {type(seen.skeleton).__name__} does not run with a new module after {', '.join(modules)} "
            f"({type(error).__name__}: {one_line(error, 150)}): let its forward ask for nothing but their "
            "results there, or choose another `at`"
        ) from error


def _has(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether it is one, or has one as its child."""
    assert module is not None
    inside = (child.module if isinstance(child, OnPart) else child for child in module.children())
    return isinstance(module, kind) or any(isinstance(child, kind) for child in inside)


def branch_ends(seen: Trace) -> list[Place]:
    """After the last module of each residual block's branch.

    Raises:
        ValueError: no residual block, or a branch that ends in no module of its own.
    """
    found = []
    for block in residual_blocks(seen):
        inside = [step for step in block.owner.steps if step.module is not None]
        place = after(seen, block.branch, block.addition, inside)
        if place is None:
            raise ValueError(
                f"the residual block {block.name!r} adds a map that comes from no module of its own but from "
                f"{seen.called(seen.makers[block.branch])}: looked for a module that is called once and "
                "returns the branch's result; choose at='bottlenecks', or give the block an nn.Identity there"
            )
        found.append(place)
    return found
