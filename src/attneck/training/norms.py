"""BatchNorm whose statistics are those of all processes' batches.

A norm is synchronised by another class, in place: its tensors, children, hooks and whoever holds it stay.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose statistics are those of all processes' batches, on any device.

    torch's own refuses CPU tensors. Same parameters, buffers and names as BatchNorm; x [B, C, …].
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm got {list(input.shape)}, wants [B, C, …]")

    @torch.compiler.disable  # what processes exchange is no part of a compiled graph
    def forward(self, input: Tensor) -> Tensor:
        """x [B, C, …] → the same shape, normalised over every dimension but C and over all processes.

        B may be 0 in some processes, which have their part in all sums; where it is 0 in every one, the
        running statistics stay as they are.
        """
        if not (self.training and dist.is_initialized()):
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = _Sum.apply(torch.cat((x.sum(dims), count)))  # [C + 1]
        found = sums[-1]
        count = found.clamp(min=1)  # a head may have nothing to do, in this process or in all of them
        mean = sums[:-1] / count
        # Two passes: the variance around the common mean, not E[x²] − E[x]², which cancels.
        variance = _Sum.apply((x - mean.view(shape)).square().sum(dims)) / count
        learns = self.track_running_stats and bool(found > 0)
        if learns and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), share)
        y = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(input.dtype)


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> int:
    """Give each BatchNorm in `model`, in place, the statistics of all processes; returns how many there are.

    On CUDA torch's own SyncBatchNorm computes them, elsewhere this module's. Subclasses stay subclasses:
    timm's BatchNormAct2d keeps its activation, and whatever calls `super().forward` goes on doing so.

    Raises:
        ValueError: a BatchNorm that cannot be synchronised, for it computes its forward by itself.
    """
    sync: Any = nn.SyncBatchNorm if device.type == "cuda" else SyncBatchNorm
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for name, norm in norms.items():
        if not isinstance(norm, sync) and ("forward" in vars(norm) or not _hands_on(type(norm))):
            raise ValueError(
                f"{name or 'the model'}, a {type(norm).__name__}, has a forward of its own and cannot be "
                "synchronised over processes: freeze it, make it a BatchNorm2d, or give sync_bn: false"
            )
    for norm in norms.values():
        if not isinstance(norm, sync):
            kind: Any = type(norm)
            norm.__class__ = _synchronised(kind, sync)
            if sync is nn.SyncBatchNorm:
                vars(norm)["process_group"] = None  # all processes
    return len(norms)


def _hands_on(kind: type[nn.Module]) -> bool:
    """True where each forward between `kind` and the norm that it is a kind of calls the next one."""
    for parent in kind.__mro__:
        if parent in (BatchNormAct2d, _BatchNorm):
            return True
        if "forward" in vars(parent):
            code = getattr(inspect.unwrap(vars(parent)["forward"]), "__code__", None)
            if code is None or "__class__" not in code.co_freevars or "forward" not in code.co_names:
                return False  # there is no super().forward in it
    return False


class _NormThenAct(BatchNormAct2d):
    """timm's norm with an activation, of which the norm is what the next class computes."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] → the same shape."""
        x = super(BatchNormAct2d, self).forward(x)
        return self.act(self.drop(x))


@functools.cache
def _synchronised(kind: Any, sync: Any) -> Any:
    """The subclass of `kind`, a BatchNorm, that normalises as `sync` does.

    In the order in which methods are looked up `sync` comes after `kind`, and before the norm in torch, which
    `kind` calls by `super().forward`.
    """
    parents: tuple[type, ...]
    if not issubclass(kind, BatchNormAct2d):
        parents = (kind, sync)
    elif kind is BatchNormAct2d:
        parents = (_NormThenAct, sync)
    else:
        parents = (kind, _NormThenAct, sync)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        # For copies: no name leads to this class, and `kind` may have a way of its own.
        return _blank, (kind, sync), self.__getstate__()

    name = f"Sync{kind.__name__}"
    return type(name, parents, {"__reduce_ex__": reduce, "__module__": __name__})


def _blank(kind: Any, sync: Any) -> Any:
    """An instance for a copy to fill."""
    whole = _synchronised(kind, sync)
    return whole.__new__(whole)
