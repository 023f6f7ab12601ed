"""What a run needs of torchrun: who am I, a flag that all see, and BatchNorm over all processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and the device that it works on."""

    rank: int
    size: int
    device: torch.device

    def maximum(self, values: list[float]) -> list[float]:
        """The element-wise maximum over all processes."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def total(self, values: list[float]) -> list[float]:
        """The element-wise sum over all processes."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def joined(self, rows: list[Any]) -> list[Any]:
        """The rows of all processes, those of the first one first."""
        if self.size == 1:
            return rows
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    def _reduce(self, values: list[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        return list(tensor.tolist())


@contextmanager
def world() -> Iterator[World]:
    """Join the process group that torchrun's environment describes, for the duration; alone without one."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
        if size > 1:
            dist.barrier()  # nobody takes the group down while another still talks to it
    finally:
        if size > 1:
            gc.collect()  # DistributedDataParallel lives in cycles, and holds on to the group's threads
            dist.destroy_process_group()


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


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose statistics are those of all processes' batches, on any device.

    torch's own refuses CPU tensors. Same parameters, buffers and names as BatchNorm; x [B, C, …].
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm got {list(input.shape)}, wants [B, C, …]")

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
        if found > 0 and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), share)
        y = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with each BatchNorm replaced by one over all processes; every tensor and name kept."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for module in list(model.modules()):
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = SyncBatchNorm  # same attributes throughout; hooks and references stay
    return model
