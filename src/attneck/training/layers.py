"""A network's layers in order, as timm's `group_matcher` has them: for rates by layer, and for freezing."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

FREEZE = "optimizer.freeze"
KEPT = "kept_in_evaluation"
"""The attribute of a norm that `to_training` leaves in evaluation mode."""


def layer_of(model: nn.Module, field: str) -> dict[str, int]:
    """The layer of each parameter, from 0: a block each; the last is the classifier and what is in no block.

    So is what surgery put after a stage; what it put into a block is in the block's layer.

    Raises:
        ValueError: the model has no order of layers; `field` is what asked for it.
    """
    return _grouped(model, field, coarse=False)


def frozen_by(model: nn.Module, stages: int) -> set[str]:
    """The parameters of the stem and of so many stages, by name, but for what surgery put in.

    Raises:
        ValueError: the model has no stages, or fewer.
    """
    stage = _grouped(model, FREEZE, coarse=True)
    there = max(stage.values()) - 1  # 0 is the stem, and the last is the classifier
    if stages > there:
        raise ValueError(f"{FREEZE} {stages}: {type(model).__name__} has {there} stages, give 0 to {there}")
    new = _put_in(model)
    return {name for name, place in stage.items() if place <= stages and name not in new}


def freeze(model: nn.Module, stages: int) -> str:
    """Freeze `frozen_by`, in place; returns what is frozen, in numbers.

    Its parameters want no gradient, and norms with running statistics stay as in evaluation wherever
    `to_training` is used.
    """
    names = frozen_by(model, stages)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in names)
    norms = 0
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            # One without weights of its own goes with what is around it.
            around = module if [*module.parameters()] else model.get_submodule(name.rpartition(".")[0])
            if not any(parameter.requires_grad for parameter in around.parameters()):
                setattr(module, KEPT, True)
                norms += 1
    frozen, total = sum(sizes[name] for name in names), sum(sizes.values())
    return (
        f"frozen: the stem and {stages} stages, {frozen:,} of {total:,} parameters "
        f"({100 * frozen / total:.1f} %), {norms} norms in evaluation mode"
    )


def to_training(model: nn.Module) -> None:
    """Training mode, but for the norms that `freeze` keeps out of it."""
    model.train()
    for module in model.modules():
        if getattr(module, KEPT, False):
            module.eval()


def _grouped(model: nn.Module, field: str, *, coarse: bool) -> dict[str, int]:
    """The place of each parameter, from 0, by name."""
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ValueError(
            f"{field} wants a network whose layers have an order (timm's group_matcher), and "
            f"{type(model).__name__} has none: leave it out"
        )
    found: dict[str, int] = group_parameters(model, matcher(coarse=coarse), reverse=True)
    new = _put_in(model)
    # In a flat list of layers, VGG's say, what surgery put in is a layer of its own to timm.
    places = sorted({place for name, place in found.items() if name not in new})
    return {
        name: places.index(place) if place in places else len(places) - 1 for name, place in found.items()
    }


def _put_in(model: nn.Module) -> set[str]:
    """The parameters that surgery put in, drawn at random, by name."""
    reports: Any = getattr(model, "surgery_reports", ())
    # An Adoption's, which has forms, is made of theirs.
    return {name for report in reports if not hasattr(report, "forms") for name in report.new}
