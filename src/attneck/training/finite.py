"""A step with a loss or a gradient that is not finite: seen on the device, then explained.

Nobody waits for the device to see it. Once the loop reads the flag, the step is run again: weights and draws
are those that it had, for nothing has been changed since.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attneck.training.distributed import World
from attneck.training.layers import to_training
from attneck.training.recipe import Recipe
from attneck.training.step import Objective, backward, micro_batch_loss, unshared


class Guard:
    """The first step whose gradient is not finite, kept on the device.

    Attributes:
        found_inf: float32 [], 1 from that step on, else 0: what torch's fused optimisers take.
    """

    def __init__(self, device: torch.device) -> None:
        self._never = torch.full((), math.inf, dtype=torch.float64, device=device)
        self._first = self._never
        self.found_inf = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)

    def see(self, values: list[Tensor], step: int) -> None:
        """Note whether the gradient of step `step`, or its norm, is finite. The values stay as they are.

        It is GradScaler's look, times 1: on CUDA one kernel for them all. PyTorch's norm of many is several
        calls for each.
        """
        found = torch.zeros_like(self._one)
        torch._amp_foreach_non_finite_check_and_unscale_(values, found, self._one)
        self._first = torch.minimum(self._first, torch.where(found == 0, self._never, step))
        self.found_inf = self._first.isfinite().float()

    def first(self) -> int | None:
        """That step, or None; waits for the device."""
        first = float(self._first)
        return int(first) if math.isfinite(first) else None


@dataclass(frozen=True, order=True)
class Fault:
    """Where a value that is not finite came up; the earliest one is the least."""

    part: int  # micro-batch, from 0
    backward: bool
    order: int  # of modules in the forward pass, or of weights in the backward pass
    rank: int
    said: str


def explain(
    step: int,
    model: nn.Module,
    parallel: nn.Module,
    objective: Objective,
    batches: Callable[[int], Iterator[Any]],
    recipe: Recipe,
    world: World,
    *,
    steps_per_epoch: int,
) -> str:
    """One line about step `step` (1-based), the first one that was not finite. Called on all processes."""
    mine = _faults(model, parallel, objective, batches(step - 1), recipe, world, step - 1)
    fault = min(world.joined(mine), default=None)
    epoch, batch = divmod(step - 1, steps_per_epoch)
    where, said = f"epoch {epoch + 1}, batch {batch + 1}", "the loss or a gradient was not finite"
    if fault is None:
        said += ", and both are when the step is run again: something beside the seed changes it"
    else:
        said = fault.said
        where += f", rank {fault.rank}" if world.size > 1 else ""
        where += f", micro-batch {fault.part + 1} of {recipe.accumulate}" if recipe.accumulate > 1 else ""
    full = ", or precision float32" if recipe.precision == "bfloat16" else ""
    return (
        f"step {step} ({where}): {said}. Nothing of this step was kept. "
        f"Try a lower optimizer.lr, a longer warm-up in schedule, or an optimizer.clip_norm{full}"
    )


def _faults(
    model: nn.Module,
    parallel: nn.Module,
    objective: Objective,
    loader: Iterator[Any],
    recipe: Recipe,
    world: World,
    step: int,
) -> list[Fault]:
    """What is not finite when this process runs its share of a step again."""
    to_training(parallel)
    model.zero_grad(set_to_none=True)
    found: list[Fault] = []
    for part in range(recipe.accumulate):  # to the end: BatchNorm over all processes waits for each
        outputs, weights = _Order(), _Order()
        hooks = [
            *(module.register_forward_hook(outputs.hook(name)) for name, module in model.named_modules()),
            *(w.register_hook(weights.hook(name)) for name, w in model.named_parameters() if w.requires_grad),
        ]
        number = step * recipe.accumulate + part
        with unshared(parallel):
            loss, _ = micro_batch_loss(parallel, objective, loader, recipe, world, number)
            backward(loss, recipe.accumulate)
        for hook in hooks:
            hook.remove()
        value = float(loss.detach())
        if not math.isfinite(value):
            order, came = outputs.seen, "and every module's output is finite"
            if outputs.first is not None:
                order, name = outputs.first
                came = f"and first the output of {name or 'the model'} is not finite"
            found.append(Fault(part, False, order, world.rank, f"the loss is {value}, {came}"))
        elif weights.first is not None:
            order, name = weights.first
            said = f"the loss is {value:.4g}, but a gradient is not finite, first that of {name}"
            found.append(Fault(part, True, order, world.rank, said))
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if not found and not norm.isfinite():
        said = "every gradient is finite, but their sum or norm overflows"
        found.append(Fault(recipe.accumulate - 1, True, weights.seen, world.rank, said))
    return found


class _Order:
    """Counts values as they come, and keeps the number and the name of the first that is not finite."""

    def __init__(self) -> None:
        self.seen = 0
        self.first: tuple[int, str] | None = None

    def hook(self, name: str) -> Callable[..., None]:
        """Of a module's output or a weight's gradient: the last argument, either way."""

        def see(*arguments: Any) -> None:
            self.seen += 1
            tensors = (x for x in tree_leaves(arguments[-1]) if isinstance(x, Tensor))
            if self.first is None and not all(bool(x.detach().isfinite().all()) for x in tensors):
                self.first = self.seen, name

        return see
