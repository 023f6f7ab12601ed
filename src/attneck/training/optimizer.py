"""SGD as both papers use it, and the moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attneck.training.recipe import Optimizer


def make_optimizer(model: nn.Module, options: Optimizer, *, fused: bool = False) -> torch.optim.SGD:
    """SGD with weight decay on weights of two and more dimensions except position tables, or on all.

    Args:
        fused: torch's fused kernel. It rounds otherwise, and it leaves weights and momentum as they are where
            the optimiser's attribute `found_inf`, float32 [] on the device, is 1.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        table = name.rpartition(".")[2].startswith(("rel_", "abs_"))
        (decayed if options.decay_all or (parameter.dim() > 1 and not table) else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov and options.momentum > 0,
        fused=fused or None,
    )


def restore_optimizer(optimizer: torch.optim.SGD, state: dict[str, Any]) -> None:
    """Load a checkpoint's momentum; rates, decay and kernel stay this optimiser's, not the checkpoint's."""
    optimizer.load_state_dict(
        {"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]}
    )


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """The moving average of the weights and of BatchNorm's statistics."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
