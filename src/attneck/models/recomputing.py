"""Gradient checkpointing: a block's inner maps are not kept for backward, but computed again.

`torch.utils.checkpoint` runs a block twice, so that its BatchNorms would learn from each batch twice. Here
the second run leaves their statistics as they are, and training is the same with and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Sequential):
    """A Sequential whose blocks are checkpointed one by one; it has no other tensors or names.

    A child without children is no block: there is nothing inside to be computed again, and an activation in
    place would change what its checkpoint keeps.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Sequential.forward`."""
        for child in self:
            x = recomputed(child, x) if next(child.children(), None) is not None else child(x)
        return x


def recompute(stage: nn.Module, enable: bool) -> bool:
    """Switch a Sequential's checkpointing on or off, in place; False for what is none, and has no blocks.

    Raises ValueError for one whose class was changed, by sharding say.
    """
    stage = getattr(stage, "_orig_mod", stage)  # what torch.compile wraps
    if type(stage) in (nn.Sequential, Recomputed):
        stage.__class__ = Recomputed if enable else nn.Sequential
        return True
    if isinstance(stage, nn.Sequential):
        raise ValueError(
            f"a stage is a {type(stage).__name__} by now, whose checkpointing cannot be switched: call "
            "set_grad_checkpointing before the network is sharded or changed"
        )
    return False


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
    """Norms use the batch's statistics and do not learn from them; all else is as in the first run.

    So they run as they did, but with a momentum of 0. Without `track_running_stats` autograd would be given
    other tensors than in the first run, which the checkpoint refuses.
    """
    kept = [
        (module, module.momentum, module.num_batches_tracked)
        for module in block.modules()
        if isinstance(module, _NormBase) and module.training and module.num_batches_tracked is not None
    ]
    for module, _, count in kept:
        module.momentum, module.num_batches_tracked = 0.0, count.clone()
    try:
        yield
    finally:
        for module, momentum, count in kept:
            module.momentum, module.num_batches_tracked = momentum, count
