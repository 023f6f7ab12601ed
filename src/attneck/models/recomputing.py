"""Gradient checkpointing: a block's inner maps are not kept for backward, but computed again.

`torch.utils.checkpoint` runs a block twice, so that its BatchNorms would learn from each batch twice. Here
the second run leaves their statistics as they are, and training is the same with and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Sequential):
    """A Sequential whose children are checkpointed one by one; it has no other tensors or names."""

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Sequential.forward`."""
        for child in self:
            x = recomputed(child, x)
        return x


def recompute(stage: nn.Module, enable: bool) -> None:
    """Switch a plain Sequential's checkpointing on or off, in place."""
    plain, checkpointed = (nn.Sequential, Recomputed) if enable else (Recomputed, nn.Sequential)
    if type(stage) is plain:
        stage.__class__ = checkpointed


@torch.compiler.disable  # what is compiled may neither switch statistics off nor be run again by hand
def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, checkpointed where a gradient will be taken."""
    if isinstance(x, fx.Proxy) or not torch.is_grad_enabled() or torch.jit.is_tracing():
        result: Tensor = block(x)
        return result
    again: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
    return again


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Norms use the batch's statistics and do not learn from them."""
    learning: list[Any] = [
        module
        for module in block.modules()
        if module.training and getattr(module, "track_running_stats", False)
    ]
    for module in learning:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in learning:
            module.track_running_stats = True
