"""The training loop: one for every task, every number of processes, and every way of being interrupted.

All randomness is a function of (seed, step, rank) or (seed, epoch, index). So a run that was stopped and
resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import shlex
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from attneck.errors import EXPECTED, NotFinite, RunFailed, say, user_mistakes
from attneck.files import NotWritten
from attneck.signals import Stop, noted
from attneck.training import checkpoint, layers, state
from attneck.training.allocator import keep_memory
from attneck.training.averages import of_another_size, of_one_size, too_slow
from attneck.training.best import gives_up
from attneck.training.compiled import as_written, compiling, to_call
from attneck.training.distributed import World
from attneck.training.environment import peak_memory
from attneck.training.finite import Guard, explain
from attneck.training.memory import OutOfMemory, memory_errors
from attneck.training.norms import synchronise_batchnorm
from attneck.training.optimizer import HOLD_BACK, MovingAverage, make_optimizer, set_rate
from attneck.training.recipe import Recipe
from attneck.training.records import Record, write_records
from attneck.training.report import Report
from attneck.training.saver import Saver, left
from attneck.training.schedule import lr_factor, never_reached, no_warmup
from attneck.training.scoring import evaluate, scored
from attneck.training.state import Progress
from attneck.training.step import Objective, clipped, gradients
from attneck.training.stop import until_stopped
from attneck.training.trackers import Trackers


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
    score_again: bool = False,
) -> tuple[Progress, AveragedModel | None]:
    """Train `model` in place, from the beginning or from the newest whole checkpoint in `folder`.

    Args:
        batches: a function of the step to start from; gives `recipe.accumulate` batches a step.
        facts: what the model knows of its data, as JSON has it, to be kept with the weights.
        decides: the score in a record, such as "val_top1", that the best checkpoint is kept by, and that the
            recipe's patience waits for; None keeps none, and waits for nothing.
        look: called on the first process before the first step and after each scoring, with the step and the
            network that is scored last, in evaluation mode. It must change nothing and draw nothing random.
        score_again: whether a run that has come to its end before is scored once more, for what `objective`
            keeps of it; no record is made of that. The same on every process.

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
    run = Loop(
        model,
        parallel,
        objective,
        batches,
        recipe,
        folder,
        world,
        optimizer=optimizer,
        average=average,
        progress=progress,
        at_once=at_once,
        steps_per_epoch=steps_per_epoch,
        facts=facts,
        decides=decides,
        look=look,
        score_again=score_again,
    )
    run.to_the_end()
    return progress, average


@dataclass
class Loop:
    """A run while it trains: what `train_loop` was given, and what it has made of it.

    Attributes:
        parallel: `model` as it is called: compiled, and in DistributedDataParallel, where the run is so.
        progress: where the run is; the steps move it.
        at_once: whether each step is known to be finite before it changes a weight. Where a kernel can hold
            it back on the device, that is read only where a checkpoint is due.
    """

    model: nn.Module
    parallel: nn.Module
    objective: Objective
    batches: Callable[[int], Iterator[Any]]
    recipe: Recipe
    folder: Path
    world: World
    _: KW_ONLY
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    progress: Progress
    at_once: bool
    steps_per_epoch: int
    facts: dict[str, Any]
    decides: str | None
    look: Callable[[int, nn.Module], None] | None
    score_again: bool

    stop: Stop = field(init=False)
    report: Report = field(init=False)
    trackers: Trackers = field(init=False)

    def __post_init__(self) -> None:
        recipe, world = self.recipe, self.world
        self.steps = recipe.total_steps(self.steps_per_epoch)
        self.period = recipe.eval_epochs * self.steps_per_epoch  # from one record to the next
        self.guard = Guard(world.device)
        self.size = self.facts.get("image_size")  # of the held-out images
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.saver = Saver(self.folder, self.decides, world)
        self.saved = self.began = 0.0  # when the last checkpoint was, and when the epoch began
        self.trains = False  # else each step would visit every module

    def to_the_end(self) -> None:
        """Take the steps that are left."""
        recipe, world, progress = self.recipe, self.world, self.progress
        if world.rank == 0 and not progress.step:
            idle = [words for of in (no_warmup, never_reached) for words in of(recipe, self.steps_per_epoch)]
            sized = of_another_size(self.model, recipe, self.size)
            for said in [*idle, *sized, *too_slow(self.model, recipe, self.steps, self.size)]:
                say(said)
        own = self.folder if world.rank == 0 else None
        with (
            compiling(recipe),
            noted() as self.stop,
            _lacks(self.folder, self._doing, recipe, world, self.stop),
            self.saver,
            Report(
                own,
                steps=self.steps,
                steps_per_epoch=self.steps_per_epoch,
                period=self.period,
                batch=recipe.batch,
                start=progress.step,
                history=progress.history,
            ) as self.report,
            Trackers(own, recipe, resumed=progress.step > 0) as self.trackers,
        ):
            if progress.step:
                self.saver.go_on_from(progress)
                if own is not None and progress.history:
                    write_records(own, progress.history)  # of an ended run too, where they were damaged
            self.trackers.send(progress.history)  # what was saved and not sent
            loader = self.batches(progress.step)  # ends its workers with this frame
            if not progress.step:
                self._look_on()
            self.saved = self.began = time.monotonic()
            while True:
                step = progress.step
                if step > _last_record(progress) and (step % self.period == 0 or step == self.steps):
                    self._score()
                if step == self.steps or ended_early(progress, recipe, self.decides, world):
                    self.saver.settle(step)
                    if self.score_again:
                        self._held_out()
                    return
                self._step(loader)

    def _score(self) -> None:
        """Score the held-out images, and save the record with the step."""
        recipe, world, progress = self.recipe, self.world, self.progress
        self.saver.settle(progress.step)
        means = _means(progress.sums, progress.step - _last_record(progress), world)
        held_out = self._held_out()
        self.score_again = False
        epoch, part = divmod(progress.step, self.steps_per_epoch)
        position: Record = {
            "epoch": epoch + round(part / self.steps_per_epoch, 3) if part else epoch,
            "step": progress.step,
            "lr": _rate(recipe, progress.step - 1, self.steps_per_epoch),
        }
        took = {"seconds": time.monotonic() - self.began, "peak_gib": peak_memory(world.device)}
        progress.history.append(position | means | held_out | took)
        progress.sums = {}
        self._look_on()  # before the checkpoint: a run that goes on from it has what was seen
        self.report.epoch(progress.history)
        self._save()
        self.trackers.send(progress.history)
        self.began = time.monotonic()
        self.trains = False

    def _held_out(self) -> dict[str, float]:
        """The scores of the held-out images."""
        recipe, world = self.recipe, self.world
        # The step itself is saved: whatever happens in the evaluation, it is done again on resume.
        self.stop.saved = lambda number: str(self._stopped_by(number))
        model, average = self.model, self.average
        if world.size > 1 and not recipe.sync_bn:  # else each would score with statistics of its own
            world.as_the_first(model if average is None else nn.ModuleList([model, average]))
        watch = until_stopped(self.report.watch, self.stop, world, self._stopped_by)
        try:
            found = evaluate(self.objective, model, average, recipe, world.device, watch)
        except NotFinite as error:
            raise RunFailed(
                f"evaluation after step {self.progress.step}: {error}; start anew with a lower optimizer.lr; "
                f"{left(self.folder)}"
            ) from error
        self.stop.saved = None
        return found

    def _step(self, loader: Iterator[Any]) -> None:
        """One optimiser step, saved where that is due; RunFailed where a signal came, or it is not finite."""
        recipe, world, progress = self.recipe, self.world, self.progress
        if not self.trains:
            layers.to_training(self.parallel)
            self.trains = True
        set_rate(self.optimizer, _rate(recipe, progress.step, self.steps_per_epoch))
        with of_one_size(self.model, recipe, self.size, progress.step):
            scores = gradients(self.parallel, self.objective, loader, recipe, world, progress.step)
        self.guard.see(clipped(self.weights, recipe.optimizer.clip_norm), progress.step + 1)
        due, stopped = self._asked()
        if (self.at_once or due) and (first := self.guard.first()) is not None:
            self._not_finite(first)
        if not self.at_once:
            self.optimizer.found_inf = self.guard.found_inf  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)

        progress.step += 1
        for name, score in scores.items():
            progress.sums[name] = progress.sums[name] + score if name in progress.sums else score
        self.report.step(progress.step, partial(_read, progress.sums, progress.step - _last_record(progress)))
        if due:
            self._save()
        if stopped:
            self.saver.settle(progress.step)  # nobody leaves before the first process has saved
            raise self._stopped_by(stopped)

    def _asked(self) -> tuple[bool, int]:
        """Whether the step under way is to be saved, and the signal that came, or 0; on all processes alike.

        Raises what the last checkpoint could not be written for.
        """
        step, recipe = self.progress.step + 1, self.recipe
        due = step % self.period == 0 or step == self.steps
        due |= recipe.checkpoint_steps is not None and step % recipe.checkpoint_steps == 0
        late = time.monotonic() - self.saved > 60 * recipe.checkpoint_minutes
        stopped, late_somewhere, failed = self.world.maximum(
            [float(self.stop.signal), late, self.saver.failed]
        )
        if failed:
            self.saver.settle(self.progress.step)
        return due or bool(stopped or late_somewhere), int(stopped)

    def _not_finite(self, step: int) -> NoReturn:
        """End the run, of which `step` (1-based) was the first that is not finite."""
        self.saver.settle(self.progress.step)
        with as_written():
            said = explain(
                step,
                self.model,
                self.parallel,
                self.objective,
                self.batches,
                self.recipe,
                self.world,
                steps_per_epoch=self.steps_per_epoch,
            )
        raise RunFailed(f"{said}; {left(self.folder)}")

    def _save(self) -> None:
        progress = self.progress
        self.saver.settle(progress.step)
        content = state.taken(
            progress, self.model, self.optimizer, self.average, self.recipe, self.facts, self.world
        )
        self.saver.save(content, progress.step, (progress.step - 1) // self.steps_per_epoch + 1)
        self.saved = time.monotonic()

    def _look_on(self) -> None:
        if self.look is not None and self.world.rank == 0:
            network = self.model if self.average is None else self.average.module
            scored(partial(self.look, self.progress.step), network, self.recipe, self.world.device)

    def _stopped_by(self, number: int) -> RunFailed:
        return RunFailed(
            f"stopped by {signal.Signals(number).name} at step {self.progress.step} of {self.steps}, "
            f"saved; {_command(self.folder)}",
            128 + number,
        )

    def _doing(self) -> str:
        recipe, step = self.recipe, self.progress.step
        who = f"process {self.world.rank}, " if self.world.size > 1 else ""
        at = f"evaluation after step {step}" if self.stop.saved else f"step {step + 1}"
        shares = f"batch {recipe.batch} (accumulate {recipe.accumulate})"
        sizes = None if self.stop.saved else recipe.data.image_sizes
        side = f"up to {max(sizes)}" if sizes else self.size
        return f"{who}{at}, {shares}, images of {side} pixels"


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
    """`left`, and how to go on from it."""
    there = left(folder)
    return f"{there}: {_command(folder)}" if "whole" in there else there


def _command(folder: Path) -> str:
    return f"go on with: attneck train {shlex.quote(str(folder))} --resume"
