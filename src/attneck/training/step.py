"""The gradients of one optimiser step. Everything random in it is a function of (seed, step, rank)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attneck.data.sampling import step_seed
from attneck.training.distributed import World
from attneck.training.precision import precision
from attneck.training.recipe import Recipe
from attneck.training.report import Watch


class Objective(Protocol):
    """What the loop needs of a task."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise (a mean over the batch) and the scores to show beside it, all scalars."""

    def evaluate(self, model: nn.Module, watch: Watch) -> dict[str, float]:
        """The scores on the held-out data, the same on every process.

        The held-out batches go through `watch`, to the last one, equally often on every process, and before
        anything that the processes exchange.
        """


def micro_batch_loss(
    parallel: nn.Module,
    objective: Objective,
    loader: Iterator[Any],
    recipe: Recipe,
    world: World,
    number: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and scores of the loader's next batch; `number` counts the run's micro-batches from 0."""
    seed(step_seed(recipe.seed, number, world.rank), world.device)
    with precision(recipe, world.device):
        return objective.loss(parallel, next(loader))


def seed(number: int, device: torch.device) -> None:
    """What torch draws on the CPU and on `device` is a function of `number`.

    `torch.manual_seed` does the same for every kind of device there is, and writes down where it was called
    from for each that is not in use: 0.2 ms of every step.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def backward(loss: Tensor, accumulate: int) -> None:
    """Add the gradients of loss / accumulate.

    A loss that is not finite makes them NaN, also where they don't depend on its value. So the gradients
    alone, which all processes share, say whether a step may be taken.
    """
    loss = loss / accumulate
    loss.backward(loss.detach() * 0 + 1)  # exactly 1 where the loss is finite, else NaN


def unshared(parallel: nn.Module) -> Any:
    """A context in which each process keeps its gradients to itself."""
    return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else nullcontext()


def gradients(
    parallel: nn.Module, objective: Objective, loader: Iterator[Any], recipe: Recipe, world: World, step: int
) -> dict[str, Tensor]:
    """The gradients of step `step` (0-based), over its micro-batches; its loss and scores, float64 [].

    Nothing is read back from the device.
    """
    scores: dict[str, Tensor] = {}
    for part in range(recipe.accumulate):
        last = part == recipe.accumulate - 1
        with nullcontext() if last else unshared(parallel):
            number = step * recipe.accumulate + part
            loss, shown = micro_batch_loss(parallel, objective, loader, recipe, world, number)
            backward(loss, recipe.accumulate)
        for name, value in {"loss": loss, **shown}.items():
            share = value.detach().to(world.device, torch.float64) / recipe.accumulate
            scores[name] = scores[name] + share if name in scores else share
    return scores


def clipped(weights: Sequence[Tensor], greatest: float | None) -> list[Tensor]:
    """What must be finite for a step: the gradients; scaled down to `greatest`, their norm before, [].

    A norm that overflows would scale all of them to 0. Without clipping it is not taken.
    """
    if greatest is not None:
        return [nn.utils.clip_grad_norm_(weights, greatest)]
    return [weight.grad for weight in weights if weight.grad is not None]
