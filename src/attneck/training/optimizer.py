"""SGD as both papers use it, the optimisers of timm's factory, and the moving average of the weights."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from itertools import chain, compress
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from attneck.training.layers import layer_of
from attneck.training.optimizer_names import fields_of
from attneck.training.recipe import Optimizer

HOLD_BACK = {"sgd", "adam", "adamw"}
"""Those of which torch has a fused kernel that holds a step back on the device."""
TABLES = re.compile(r"(rel|abs)_.+|(height|width)_rel|pos_emb(ed)?")
"""Names of position tables: ours, and those of timm's networks with attention in their blocks."""


def make_optimizer(model: nn.Module, options: Optimizer, *, fused: bool = False) -> torch.optim.Optimizer:
    """The optimiser of `parameter_groups`.

    Args:
        fused: torch's fused kernel, of `HOLD_BACK` alone. It rounds otherwise, and it leaves weights and
            momentum as they are where the optimiser's attribute `found_inf`, float32 [] on the device, is 1.

    Raises:
        ValueError: layer_decay, and the model has no order of layers.
    """
    return _of_groups(parameter_groups(model, options), options, fused=fused)


def parameter_groups(model: nn.Module, options: Optimizer) -> list[dict[str, Any]]:
    """The parameters by their weight decay and, with layer_decay, by their layer from the first one on.

    Decay is on weights of two and more dimensions except position tables and what the model says of itself
    (timm's `no_weight_decay`), or on all. A layer's group has `lr_scale`, layer_decay to the power of the
    layers after it, as timm's `param_groups_layer_decay` has it.

    Raises:
        ValueError: layer_decay, and the model has no order of layers.
    """
    layers, last = {}, 0
    if options.layer_decay is not None:
        layers = layer_of(model, "optimizer.layer_decay")
        last = max(layers.values())
    says: Any = getattr(model, "no_weight_decay", set)
    spared = says()
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        table = TABLES.fullmatch(name.rpartition(".")[2]) is not None
        excluded = any(fnmatchcase(name, pattern) for pattern in spared)
        decayed = options.decay_all or (parameter.dim() > 1 and not table and not excluded)
        groups.setdefault((layers.get(name, last), not decayed), []).append(parameter)
    found = []
    for layer, free in sorted(groups):
        group = {"params": groups[layer, free], "weight_decay": 0.0 if free else options.weight_decay}
        if options.layer_decay is not None:
            group["lr_scale"] = options.layer_decay ** (last - layer)
        found.append(group)
    return found


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step; of a layer's group times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a checkpoint's momentum and counts; rates, decay and kernel stay this optimiser's own."""
    own = optimizer.state_dict()["param_groups"]
    groups = [theirs | mine for theirs, mine in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def example_state(options: Optimizer) -> tuple[dict[str, Any], dict[str, Any], torch.Size]:
    """What the optimiser keeps for a weight, and in a group beside its options, after a step.

    Returns: both by name, and the shape of the weight that the tensors are for.
    """
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = _of_groups([{"params": [weight]}], options)
    before = set(optimizer.param_groups[0])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = {name: value for name, value in optimizer.state[weight].items() if value is not None}
    in_group = {name: value for name, value in optimizer.param_groups[0].items() if name not in before}
    return kept, in_group, weight.shape


def _of_groups(
    groups: list[dict[str, Any]], options: Optimizer, *, fused: bool = False
) -> torch.optim.Optimizer:
    if options.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov and options.momentum > 0,
            fused=fused or None,
        )
    from timm.optim import create_optimizer_v2

    given: dict[str, Any] = {}
    if fused and options.name in HOLD_BACK:
        given["fused"] = True
    if options.betas is not None:
        given["betas"] = tuple(options.betas)
    if options.eps is not None:
        given["eps"] = options.eps
    if options.name == "lamb":
        given["max_grad_norm"] = None  # timm's clips at 1 unless told not to; clip_norm is the loop's
    if fields_of(options.name).momentum:
        given["momentum"] = options.momentum
    made: torch.optim.Optimizer = create_optimizer_v2(groups, options.name, lr=options.lr, **given)
    return made


class MovingAverage(AveragedModel):
    """The moving average of the weights and of BatchNorm's statistics; counts and indices are the model's.

    `AveragedModel` takes its count to the device at each step, and waits for it; this does not.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move each tensor a little towards the model's; the first time, all the way."""
        own, theirs = ([*chain(one.parameters(), one.buffers())] for one in (self.module, model))
        # An average in float32, cut off, would take one from an index now and then.
        moved = [bool(self.n_averaged > 0) and tensor.is_floating_point() for tensor in own]
        if any(moved):
            torch._foreach_lerp_([*compress(own, moved)], [*compress(theirs, moved)], 1 - self.decay)
        copied = [not move for move in moved]
        if any(copied):
            torch._foreach_copy_([*compress(own, copied)], [*compress(theirs, copied)])
        self.n_averaged += 1
