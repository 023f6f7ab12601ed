"""The training loop: one for every task, every number of processes, and every way of being interrupted.

All randomness is a function of (seed, step, rank) or (seed, epoch, index). So a run that was stopped and
resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from attneck.errors import EXPECTED, RunFailed, UserError, say, user_mistakes
from attneck.files import NotWritten
from attneck.signals import Stop, noted
from attneck.training import checkpoint, layers, state
from attneck.training.allocator import keep_memory
from attneck.training.averages import too_slow
from attneck.training.background import Background
from attneck.training.best import Keeper, gives_up
from attneck.training.checkpoint_files import checkpoints
from attneck.training.compiled import as_written, compiling, to_call
from attneck.training.distributed import World
from attneck.training.environment import peak_memory
from attneck.training.finite import Guard, explain
from attneck.training.memory import OutOfMemory, memory_errors
from attneck.training.norms import synchronise_batchnorm
from attneck.training.optimizer import HOLD_BACK, MovingAverage, make_optimizer, set_rate
from attneck.training.precision import precision
from attneck.training.recipe import Recipe
from attneck.training.records import Record
from attneck.training.report import Report, Watch
from attneck.training.schedule import lr_factor, never_reached
from attneck.training.state import Progress
from attneck.training.step import Objective, clipped, gradients
from attneck.training.stop import until_stopped
from attneck.training.trackers import Trackers

T = TypeVar("T")


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
    decides: str | None = None,
    look: Callable[[int, nn.Module], None] | None = None,
) -> tuple[Progress, AveragedModel | None]:
    """Train `model` in place, from the beginning or from the newest whole checkpoint in `folder`.

    Args:
        batches: a function of the step to start from; gives `recipe.accumulate` batches a step.
        facts: what the model knows of its data, as JSON has it, to be kept with the weights.
        decides: the score in a record, such as "val_top1", that the best checkpoint is kept by, and that the
            recipe's patience waits for; None keeps none, and waits for nothing.
        look: called on the first process before the first step and after each scoring, with the step and the
            network that is scored last, in evaluation mode. It must change nothing and draw nothing random.

    Raises:
        RunFailed: stopped by SIGTERM (143) or SIGINT (130) with the step saved; a loss, a gradient or a
            weight that is not finite, or a disk that takes no more (1), with the last checkpoint whole.
        UserError: a BatchNorm that cannot be synchronised; a tracker that cannot be started, where the run
            begins.
        ValueError: layer_decay or freeze, and a model without an order of layers.
    """
    keep_memory(world.device.type)
    model.to(world.device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    if world.size > 1 and recipe.sync_bn:
        with user_mistakes():
            norms = synchronise_batchnorm(model, world.device)
        if world.rank == 0:
            say(f"{norms} BatchNorm layers over {world.size} processes")
    if recipe.optimizer.freeze is not None:
        frozen = layers.freeze(model, recipe.optimizer.freeze)
        if world.rank == 0:
            say(frozen)
    # Where no kernel can hold a step back on the device, its flag is read before the step.
    at_once = reads_at_once(world.device) or recipe.optimizer.name not in HOLD_BACK
    optimizer = make_optimizer(model, recipe.optimizer, fused=not at_once)
    average = MovingAverage(model, recipe.ema) if recipe.ema else None
    progress = Progress()
    if resume:
        progress = _restored(folder / "checkpoints", model, optimizer, average, recipe, world)
        if progress.step:
            # A checkpoint before the next step has the last one's rate, as in a run left alone.
            set_rate(optimizer, _rate(recipe, progress.step - 1, steps_per_epoch))
    parallel = to_call(model, recipe)
    if world.size > 1:
        # Strides of 1×1 kernels differ in sides of length one, which mean nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        # Else gradients are packed anew after the first step, a resume's too, and of three processes or more
        # a sum's order follows from its place there: a resumed run would end with other bits.
        parallel = DistributedDataParallel(parallel, find_unused_parameters=True)
    steps = recipe.total_steps(steps_per_epoch)
    if world.rank == 0 and not progress.step:
        for said in [*never_reached(recipe, steps_per_epoch), *too_slow(model, recipe, steps)]:
            say(said)
    period = recipe.eval_epochs * steps_per_epoch  # from one record to the next
    guard = Guard(world.device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]  # a walk that no step repeats
    keeper = Keeper(folder / "checkpoints", decides) if decides is not None and world.rank == 0 else None
    writer = Background()

    def settle() -> None:
        """The last checkpoint is whole, or the run ends with what kept it from being so, on all processes."""
        error = writer.end()
        if world.maximum([float(error is not None)])[0]:
            raise error or RunFailed(f"step {progress.step + 1}: the first process cannot go on")

    def save() -> None:
        """Held up by the copy: the file is written while the next steps are taken, after the file before."""
        settle()
        content = state.taken(progress, model, optimizer, average, recipe, facts, world)
        fault = checkpoint.not_finite(content)
        if world.maximum([float(fault is not None)])[0]:  # all processes end together
            fault = fault or "a value on the first process"
            raise RunFailed(
                f"step {progress.step} (epoch {(progress.step - 1) // steps_per_epoch + 1}): {fault} is not "
                f"finite, and was not saved. Try a lower optimizer.lr; {_left(folder)}"
            )
        if world.rank == 0:
            writer.start(partial(write, state.copied(content)))

    def write(content: dict[str, Any]) -> None:
        checkpoint.save(folder / "checkpoints", content["step"], content)
        if keeper is not None:
            keeper.saved(content["history"], content["step"])

    def stopped_by(number: int) -> RunFailed:
        return RunFailed(
            f"stopped by {signal.Signals(number).name} at step {progress.step} of {steps}, "
            f"saved; go on with: attneck train {folder} --resume",
            128 + number,
        )

    def doing() -> str:
        who = f"process {world.rank}, " if world.size > 1 else ""
        at = f"evaluation after step {progress.step}" if stop.saved else f"step {progress.step + 1}"
        shares = f"batch {recipe.batch} (accumulate {recipe.accumulate})"
        return f"{who}{at}, {shares}, images of {facts.get('image_size')} pixels"

    def look_on() -> None:
        if look is not None and world.rank == 0:
            network = model if average is None else average.module
            scored(partial(look, progress.step), network, recipe, world.device)

    with (
        compiling(recipe),
        noted() as stop,
        _lacks(folder, doing, recipe, world, stop),
        writer,
        Report(
            folder if world.rank == 0 else None,
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            period=period,
            batch=recipe.batch,
            start=progress.step,
            history=progress.history,
        ) as report,
        Trackers(folder if world.rank == 0 else None, recipe, resumed=progress.step > 0) as trackers,
    ):
        if keeper is not None and progress.step:
            keeper.saved(progress.history, progress.step)
        trackers.send(progress.history)  # what was saved and not sent
        loader = batches(progress.step)
        watch = until_stopped(report.watch, stop, world, stopped_by)
        if not progress.step:
            look_on()
        saved = began = time.monotonic()
        trains = False  # else each step would visit every module
        while True:
            done = progress.step - _last_record(progress)
            if done and (progress.step % period == 0 or progress.step == steps):
                settle()
                # The step itself is saved: whatever happens in the evaluation, it is done again on resume.
                means = _means(progress.sums, done, world)
                stop.saved = lambda number: str(stopped_by(number))
                if world.size > 1 and not recipe.sync_bn:  # else each would score with statistics of its own
                    world.as_the_first(model if average is None else nn.ModuleList([model, average]))
                held_out = evaluate(objective, model, average, recipe, world.device, watch)
                stop.saved = None
                epoch, part = divmod(progress.step, steps_per_epoch)
                position: Record = {
                    "epoch": epoch + round(part / steps_per_epoch, 3) if part else epoch,
                    "step": progress.step,
                    "lr": _rate(recipe, progress.step - 1, steps_per_epoch),
                }
                took = {"seconds": time.monotonic() - began, "peak_gib": peak_memory(world.device)}
                progress.history.append(position | means | held_out | took)
                progress.sums = {}
                look_on()  # before the checkpoint: a run that goes on from it has what was seen
                report.epoch(progress.history)
                save()
                trackers.send(progress.history)
                saved = began = time.monotonic()
                trains = False
            if progress.step == steps or ended_early(progress, recipe, decides, world):
                settle()
                return progress, average

            if not trains:
                layers.to_training(parallel)
                trains = True
            set_rate(optimizer, _rate(recipe, progress.step, steps_per_epoch))
            scores = gradients(parallel, objective, loader, recipe, world, progress.step)
            guard.see(clipped(weights, recipe.optimizer.clip_norm), progress.step + 1)
            due = (progress.step + 1) % period == 0 or progress.step + 1 == steps
            due |= recipe.checkpoint_steps is not None and (progress.step + 1) % recipe.checkpoint_steps == 0
            late = time.monotonic() - saved > 60 * recipe.checkpoint_minutes
            stopped, late_somewhere, failed = world.maximum([float(stop.signal), late, writer.failed])
            due |= bool(stopped or late_somewhere)
            if failed:
                settle()
            if (at_once or due) and (first := guard.first()) is not None:
                settle()
                with as_written():
                    said = explain(
                        first,
                        model,
                        parallel,
                        objective,
                        batches,
                        recipe,
                        world,
                        steps_per_epoch=steps_per_epoch,
                    )
                raise RunFailed(f"{said}; {_left(folder)}")
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
                settle()  # nobody leaves before the first process has saved
                raise stopped_by(int(stopped))


def ended_early(progress: Progress, recipe: Recipe, decides: str | None, world: World) -> bool:
    """True where the run's patience has come to its end with the last record, on all processes alike."""
    if decides is None or recipe.patience is None or progress.step != _last_record(progress):
        return False
    return bool(world.maximum([float(gives_up(progress.history, decides, recipe.patience))])[0])


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
    found = {
        prefix: scored(score, to_call(network, recipe), recipe, device)
        for prefix, network in networks.items()
    }
    return {f"{prefix}_{key}": value for prefix, scores in found.items() for key, value in scores.items()}


def scored(score: Callable[[nn.Module], T], network: nn.Module, recipe: Recipe, device: torch.device) -> T:
    """What `score` says of a network in evaluation mode, at the recipe's precision."""
    network.eval()
    with torch.inference_mode(), precision(recipe, device):
        return score(network)


def _restored(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    recipe: Recipe,
    world: World,
) -> Progress:
    """Go on from the newest checkpoint that is whole and fits; say which ones were passed over."""
    found, _, passed = checkpoint.load_latest(folder, partial(state.check_fits, model=model, recipe=recipe))
    if world.rank == 0:
        for said in passed:
            say(f"{said}; going on from step {found['step']}")
    return state.put_back(found, model, optimizer, average, world)


def _left(folder: Path) -> str:
    """What a run that fails leaves behind."""
    there: list[Path] = []
    with suppress(UserError):  # the folder itself can't be read
        there = checkpoints(folder / "checkpoints")
    return f"{there[0].name} is whole" if there else "there is no checkpoint yet"


@contextmanager
def _lacks(
    folder: Path, doing: Callable[[], str], recipe: Recipe, world: World, stop: Stop
) -> Iterator[None]:
    """Room on the disk, or memory, that is missing ends the run in a line, with what is left of it.

    So does what fails after a signal: a Ctrl-C ends what this one has started too, a compiler say.
    """
    advice = f"free some, or start anew with accumulate {2 * recipe.accumulate} or smaller images"
    try:
        with memory_errors(doing, advice):
            yield
    except (NotWritten, OutOfMemory) as error:
        said = f"{error}; {_goes_on(folder)}"
        if world.rank > 0:  # of what all say alike the first one speaks, and this the first doesn't know
            say(said)
        raise RunFailed(said) from error
    except EXPECTED:
        raise
    except Exception as error:
        if not stop.signal:
            raise
        name = signal.Signals(stop.signal).name
        raise RunFailed(f"stopped by {name} in {doing()}; {_goes_on(folder)}", 128 + stop.signal) from error


def _goes_on(folder: Path) -> str:
    """`_left`, and how to go on from it."""
    left = _left(folder)
    return left + f": go on with: attneck train {folder} --resume" * ("whole" in left)
