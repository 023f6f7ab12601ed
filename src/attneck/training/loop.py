"""The training loop: one for every task, every number of processes, and every way of being interrupted.

All randomness is a function of (seed, step, rank) or (seed, epoch, index). So a run that was stopped and
resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from attneck.errors import RunFailed
from attneck.training import checkpoint
from attneck.training.allocator import keep_freed_memory
from attneck.training.distributed import World
from attneck.training.environment import peak_memory
from attneck.training.finite import Guard, explain
from attneck.training.norms import synchronise_batchnorm
from attneck.training.optimizer import average_of, make_optimizer, restore_optimizer
from attneck.training.recipe import Recipe
from attneck.training.report import Record, Report, Watch
from attneck.training.schedule import lr_factor
from attneck.training.step import Objective, clip, gradients, precision
from attneck.training.stop import stop_signals, until_stopped

T = TypeVar("T")


@dataclass
class Progress:
    """Where a run is: optimiser steps done, the sums since the last record, and the records so far."""

    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    """float64 [], on the device."""
    history: list[Record] = field(default_factory=list)


def train_loop(
    model: nn.Module,
    objective: Objective,
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
        RunFailed: stopped by SIGTERM (143) or SIGINT (130) with the step saved; a loss, a gradient or a
            weight that is not finite, or a disk that takes no more (1), with the last checkpoint whole.
        ValueError: a BatchNorm that cannot be synchronised.
    """
    if world.device.type == "cpu":
        keep_freed_memory()
    model.to(world.device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    if world.size > 1 and recipe.sync_bn:
        norms = synchronise_batchnorm(model, world.device)
        if world.rank == 0:
            print(f"attneck: {norms} BatchNorm layers over {world.size} processes", file=sys.stderr)
    at_once = reads_at_once(world.device)
    optimizer = make_optimizer(model, recipe.optimizer, fused=not at_once)
    average = average_of(model, recipe.ema) if recipe.ema else None
    progress = Progress()
    if resume:
        progress = _restore(folder / "checkpoints", model, optimizer, average, world)
    parallel = DistributedDataParallel(model) if world.size > 1 else model
    steps = recipe.total_steps(steps_per_epoch)
    period = recipe.eval_epochs * steps_per_epoch  # from one record to the next
    guard = Guard(world.device)

    def save() -> None:
        if fault := _save(folder, progress, model, optimizer, average, recipe, facts, world):
            raise RunFailed(
                f"step {progress.step} (epoch {(progress.step - 1) // steps_per_epoch + 1}): {fault} is not "
                "finite; it was not saved, the last checkpoint is from before. Try a lower optimizer.lr"
            )

    def stopped_by(number: int) -> RunFailed:
        return RunFailed(
            f"stopped by {signal.Signals(number).name} at step {progress.step} of {steps}, "
            f"saved; go on with: attneck train {folder} --resume",
            128 + number,
        )

    report = Report(
        folder if world.rank == 0 else None,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        batch=recipe.batch,
        start=progress.step,
    )
    with stop_signals() as stop, _disk_errors(folder), report:
        loader = batches(progress.step)
        watch = until_stopped(report.watch, stop, world, stopped_by)
        saved = began = time.monotonic()
        while True:
            done = progress.step - _last_record(progress)
            if done and (progress.step % period == 0 or progress.step == steps):
                # The step itself is saved: whatever happens in the evaluation, it is done again on resume.
                means = _means(progress.sums, done, world)
                held_out = evaluate(objective, model, average, recipe, world.device, watch)
                epoch, part = divmod(progress.step, steps_per_epoch)
                position: Record = {
                    "epoch": epoch + round(part / steps_per_epoch, 3) if part else epoch,
                    "step": progress.step,
                    "lr": _rate(recipe, progress.step - 1, steps_per_epoch),
                }
                took = {"seconds": time.monotonic() - began, "peak_gib": peak_memory(world.device)}
                progress.history.append(position | means | held_out | took)
                progress.sums = {}
                report.epoch(progress.history)
                save()
                saved = began = time.monotonic()
            if progress.step == steps:
                return progress, average

            parallel.train()
            for group in optimizer.param_groups:
                group["lr"] = _rate(recipe, progress.step, steps_per_epoch)
            scores = gradients(parallel, objective, loader, recipe, world, progress.step)
            norm = clip(model, recipe.optimizer.clip_norm)
            guard.see(norm, progress.step + 1)
            due = (progress.step + 1) % period == 0 or progress.step + 1 == steps
            due |= recipe.checkpoint_steps is not None and (progress.step + 1) % recipe.checkpoint_steps == 0
            late = time.monotonic() - saved > 60 * recipe.checkpoint_minutes
            stopped, late_somewhere = world.maximum([float(stop.signal), float(late)])
            due |= bool(stopped or late_somewhere)
            if (at_once or due) and (first := guard.first()) is not None:
                raise RunFailed(
                    explain(
                        first,
                        model,
                        parallel,
                        objective,
                        batches,
                        recipe,
                        world,
                        steps_per_epoch=steps_per_epoch,
                    )
                )
            if not at_once:
                optimizer.found_inf = guard.found_inf  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update_parameters(model)

            progress.step += 1
            for name, score in scores.items():
                progress.sums[name] = progress.sums[name] + score if name in progress.sums else score
            report.step(progress.step, partial(_read, progress.sums, progress.step - _last_record(progress)))
            if due:
                save()
                saved = time.monotonic()
            if stopped:
                world.maximum([0.0])  # nobody leaves before the first process has saved
                raise stopped_by(int(stopped))


def reads_at_once(device: torch.device) -> bool:
    """True where a value of every step can be read without waiting; else only where a checkpoint is due."""
    return device.type == "cpu"


def _rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step `step` (0-based)."""
    peak = recipe.optimizer.lr * recipe.batch / (recipe.optimizer.lr_batch or recipe.batch)
    steps, unit = recipe.total_steps(steps_per_epoch), recipe.unit(steps_per_epoch)
    return peak * lr_factor(recipe.schedule, step, steps, unit)


def _last_record(progress: Progress) -> int:
    """The step of the last record, 0 before the first; another number of images moves the ends of epochs."""
    return int(progress.history[-1]["step"]) if progress.history else 0


def _read(sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    """The means over so many steps; waits for the device."""
    return {name: float(total) / steps for name, total in sums.items()}


def _means(sums: dict[str, Tensor], steps: int, world: World) -> dict[str, float]:
    """The means over so many steps and over all processes; waits for the device."""
    totals = world.total([float(total) for total in sums.values()])
    return {f"train_{name}": total / world.size / steps for name, total in zip(sums, totals, strict=True)}


def evaluate(
    objective: Objective,
    model: nn.Module,
    average: AveragedModel | None,
    recipe: Recipe,
    device: torch.device,
    watch: Watch,
) -> dict[str, float]:
    """The objective's scores on held-out data: `val_…` for the weights, `ema_…` for their average."""
    networks = {"val": model} | ({"ema": average.module} if average is not None else {})
    score = partial(objective.evaluate, watch=watch)
    found = {prefix: scored(score, network, recipe, device) for prefix, network in networks.items()}
    return {f"{prefix}_{key}": value for prefix, scores in found.items() for key, value in scores.items()}


def scored(score: Callable[[nn.Module], T], network: nn.Module, recipe: Recipe, device: torch.device) -> T:
    """What `score` says of a network in evaluation mode, at the recipe's precision."""
    network.eval()
    with torch.inference_mode(), precision(recipe, device):
        return score(network)


def _save(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    recipe: Recipe,
    facts: dict[str, Any],
    world: World,
) -> str | None:
    """Write the checkpoint, or say on the first process which of its tensors is not finite."""
    state: dict[str, Any] = {}
    sums = world.joined([{name: float(total) for name, total in progress.sums.items()}])
    if world.rank == 0:
        state = {
            "step": progress.step,
            "sums": sums,  # a process's own, for the record to come
            "history": progress.history,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average.state_dict() if average is not None else None,
            "recipe": recipe.model_dump(mode="json"),
            "facts": facts,
        }
    fault = checkpoint.not_finite(state)
    if world.maximum([float(fault is not None)])[0]:  # all processes end together
        return fault or "a value on the first process"
    if world.rank == 0:
        checkpoint.save(folder / "checkpoints", progress.step, state)
    return None


def _restore(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.SGD,
    average: AveragedModel | None,
    world: World,
) -> Progress:
    state, _, _ = checkpoint.load_latest(folder)
    model.load_state_dict(state["model"])
    restore_optimizer(optimizer, state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    parts = state["sums"]
    if len(parts) != world.size:  # as many processes as before would have; now each has their mean
        parts = [{name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}] * world.size
    own = parts[world.rank].items()
    sums = {name: torch.tensor(total, dtype=torch.float64, device=world.device) for name, total in own}
    return Progress(state["step"], sums, state["history"])


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
