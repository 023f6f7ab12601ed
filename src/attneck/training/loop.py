"""The loop. One for every task, every number of processes, and every way of being interrupted.

All randomness is a function of (seed, step, rank) or (seed, epoch, index), so that a run that was stopped
and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import errno
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attneck.data.sampling import step_seed
from attneck.errors import RunFailed
from attneck.training import checkpoint
from attneck.training.allocator import keep_freed_memory
from attneck.training.distributed import World, synchronise_batchnorm
from attneck.training.environment import peak_memory
from attneck.training.recipe import Optimizer, Recipe
from attneck.training.report import Record, Report, Watch
from attneck.training.schedule import lr_factor

T = TypeVar("T")


class Task(Protocol):
    """What a run trains for: classification, detection."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise (a mean over the batch) and the scores to show beside it, all scalars."""

    def evaluate(self, model: nn.Module, watch: Watch) -> dict[str, float]:
        """The scores on the held-out data, the same on every process; `watch` sees its batches."""


@dataclass
class Progress:
    """Where a run is: optimiser steps done, the sums since the last record, and the records so far."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)


def fit(
    model: nn.Module,
    task: Task,
    batches: Callable[[int], Iterator[Any]],
    recipe: Recipe,
    folder: Path,
    world: World,
    *,
    steps_per_epoch: int,
    resume: bool,
    facts: dict[str, Any],
) -> tuple[Progress, AveragedModel | None]:
    """Train `model` in place, from the beginning or from the newest whole checkpoint in `folder`.

    Args:
        batches: a function of the step to start from; gives `recipe.accumulate` batches a step.
        facts: what the model knows of its data, as JSON has it, to be kept with the weights.

    Raises:
        RunFailed: stopped by SIGTERM (143) or SIGINT (130) with the step saved; a loss that is not finite,
            or a disk that takes no more (1), with the last checkpoint whole.
    """
    if world.device.type == "cpu":
        keep_freed_memory()
    model.to(world.device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    if world.size > 1 and recipe.sync_bn:
        model = synchronise_batchnorm(model, world.device)
    optimizer = make_optimizer(model, recipe.optimizer)
    average = average_of(model, recipe.ema) if recipe.ema else None
    progress = Progress()
    if resume:
        progress = _restore(folder / "checkpoints", model, optimizer, average)
    parallel = DistributedDataParallel(model) if world.size > 1 else model
    peak = recipe.optimizer.lr * recipe.batch / (recipe.optimizer.lr_batch or recipe.batch)
    steps, unit = recipe.total_steps(steps_per_epoch), recipe.unit(steps_per_epoch)
    period = recipe.eval_epochs * steps_per_epoch  # from one record to the next

    def save() -> None:
        if world.rank == 0:
            _save(folder / "checkpoints", progress, model, optimizer, average, recipe, facts)

    report = Report(
        folder if world.rank == 0 else None,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        batch=recipe.batch,
        start=progress.step,
    )
    with _stop_signals() as stop, _disk_errors(folder), report:
        loader = batches(progress.step)
        saved = began = time.monotonic()
        parallel.train()
        while progress.step < steps:
            lr = peak * lr_factor(recipe.schedule, progress.step, steps, unit)
            for group in optimizer.param_groups:
                group["lr"] = lr
            scores = _gradients(parallel, task, loader, recipe, world, progress.step)
            stopped, broken = world.maximum([float(stop[0]), float(not math.isfinite(scores["loss"]))])
            if broken:
                raise RunFailed(
                    f"step {progress.step + 1} (epoch {progress.step // steps_per_epoch + 1}): the loss is "
                    f"{scores['loss']}; nothing of this step was kept. Try a lower optimizer.lr, a longer "
                    "warm-up in schedule, or an optimizer.clip_norm"
                )
            if recipe.optimizer.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update_parameters(model)

            progress.step += 1
            done = progress.step % period or period  # steps since the last record
            recorded = done == period or progress.step == steps
            for name, score in scores.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + score
            report.step(progress.step, {name: total / done for name, total in progress.sums.items()})
            if recorded:
                means = _means(progress.sums, done, world)
                held_out = evaluate(task, model, average, recipe, world.device, report.watch)
                epoch, part = divmod(progress.step, steps_per_epoch)
                place: Record = {
                    "epoch": epoch + round(part / steps_per_epoch, 3) if part else epoch,
                    "step": progress.step,
                    "lr": lr,
                }
                took = {"seconds": time.monotonic() - began, "peak_gib": peak_memory(world.device)}
                progress.history.append(place | means | held_out | took)
                progress.sums = {}
                report.epoch(progress.history)
                parallel.train()
                began = time.monotonic()

            due = time.monotonic() - saved > 60 * recipe.checkpoint_minutes
            due |= recipe.checkpoint_steps is not None and progress.step % recipe.checkpoint_steps == 0
            if recorded or due or stopped:
                save()
                saved = time.monotonic()
            if stopped and progress.step < steps:
                world.maximum([0.0])  # nobody leaves before the first process has saved
                raise RunFailed(
                    f"stopped by {signal.Signals(int(stopped)).name} at step {progress.step} of {steps}, "
                    f"saved; go on with: attneck train {folder} --resume",
                    128 + int(stopped),
                )
    return progress, average


def _gradients(
    parallel: nn.Module, task: Task, loader: Iterator[Any], recipe: Recipe, world: World, step: int
) -> dict[str, float]:
    """The gradients of one optimiser step, over its accumulated parts; the step's loss and scores."""
    scores: dict[str, float] = {}
    for part in range(recipe.accumulate):
        torch.manual_seed(step_seed(recipe.seed, step * recipe.accumulate + part, world.rank))
        share_later = isinstance(parallel, DistributedDataParallel) and part < recipe.accumulate - 1
        with parallel.no_sync() if share_later else nullcontext():  # type: ignore[operator]
            with precision(recipe, world.device):
                loss, shown = task.loss(parallel, next(loader))
            (loss / recipe.accumulate).backward()
        for name, value in {"loss": loss.detach(), **shown}.items():
            scores[name] = scores.get(name, 0.0) + float(value) / recipe.accumulate
    return scores


def _means(sums: dict[str, float], steps: int, world: World) -> dict[str, float]:
    """The means over so many steps and over all processes."""
    totals = world.total(list(sums.values()))
    return {f"train_{name}": total / world.size / steps for name, total in zip(sums, totals, strict=True)}


def evaluate(
    task: Task,
    model: nn.Module,
    average: AveragedModel | None,
    recipe: Recipe,
    device: torch.device,
    watch: Watch,
) -> dict[str, float]:
    """The task's scores on held-out data: `val_…` for the weights, `ema_…` for their average."""
    networks = {"val": model} | ({"ema": average.module} if average is not None else {})
    score = partial(task.evaluate, watch=watch)
    found = {prefix: scored(score, network, recipe, device) for prefix, network in networks.items()}
    return {f"{prefix}_{key}": value for prefix, scores in found.items() for key, value in scores.items()}


def scored(score: Callable[[nn.Module], T], network: nn.Module, recipe: Recipe, device: torch.device) -> T:
    """What `score` says of a network in evaluation mode, at the recipe's precision."""
    network.eval()
    with torch.inference_mode(), precision(recipe, device):
        return score(network)


def precision(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the recipe asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def make_optimizer(model: nn.Module, options: Optimizer) -> torch.optim.SGD:
    """SGD with weight decay on weights of two and more dimensions that are no position tables, or on all."""
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
    )


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """The moving average of the weights and of BatchNorm's statistics."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _save(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    recipe: Recipe,
    facts: dict[str, Any],
) -> None:
    state = {
        "step": progress.step,
        "sums": progress.sums,
        "history": progress.history,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "recipe": recipe.model_dump(mode="json"),
        "facts": facts,
    }
    checkpoint.save(folder, progress.step, state)


def _restore(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None
) -> Progress:
    state, _, _ = checkpoint.load_latest(folder)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    return Progress(state["step"], state["sums"], state["history"])


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A cell that holds the number of the first SIGTERM or SIGINT; a second SIGINT interrupts at once."""
    cell = [0]

    def handle(number: int, frame: FrameType | None) -> None:
        if cell[0] and number == signal.SIGINT:
            raise KeyboardInterrupt
        cell[0] = number

    if (
        threading.current_thread() is not threading.main_thread()
    ):  # a notebook's or a server's: no signals there
        yield cell
        return
    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield cell
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise RunFailed(
            f"{folder}: {error.strerror}; the last checkpoint is whole: make room, then go on with: "
            f"attneck train {folder} --resume"
        ) from error
