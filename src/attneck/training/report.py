"""Progress of a run: a bar, a line an epoch, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from attneck.files import write_atomic
from attneck.training.events import Events

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

Record = dict[str, Any]
Watch = Callable[["DataLoader[Any]"], Iterable[Any]]
"""Passes on the batches of an evaluation, and shows how far it is."""

QUIET = 60
"""Seconds from one line to the next within an epoch, where there is no terminal and so no bar."""
DRAWN = 0.5
"""Seconds from one change of the bar to the next: to know the loss, the loop waits for the device."""


class Report:
    """Shows and writes the progress of a run; on every process but the first (`folder` None) does neither.

    What can't be written is raised as NotWritten.

    `metrics.jsonl` is written whole from the run's history each epoch, so that it always agrees with the
    checkpoint that the history came from.
    """

    def __init__(
        self, folder: Path | None, *, steps: int, steps_per_epoch: int, batch: int, start: int, recorded: int
    ) -> None:
        self.folder, self.batch = folder, batch
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.epochs = -(-steps // steps_per_epoch)
        self.console = Console()
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.events: Events | None = None
        self.began, self.first = time.monotonic(), start  # the speed is measured from here
        self.spoke = self.began
        if folder is None:
            return
        self.events = Events(folder / "tensorboard", recorded + 1)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[said]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("", total=steps, completed=start, said="")

    def __enter__(self) -> Report:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int, means: Callable[[], dict[str, float]]) -> None:
        """After step number `step` (1-based): the bar or, without a terminal, a line now and then.

        `means` gives the scores' means since the last record; it is called only where they are shown.
        """
        now = time.monotonic()
        if self.folder is None or now - self.spoke < (QUIET if self.bar is None else DRAWN):
            return
        speed = (step - self.first) * self.batch / max(1e-9, now - self.began)
        epoch = f"epoch {-(-step // self.steps_per_epoch)}/{self.epochs}"
        said = f"{say(means())}  {speed:,.{0 if speed >= 10 else 1}f} images/s"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step, description=epoch, said=said)
            self.spoke = now
        else:
            self._print(f"{epoch}  step {step}/{self.steps}  {said}")

    def watch(self, batches: DataLoader[Any]) -> Iterator[Any]:
        """The held-out batches, with a bar of their own beside the run's."""
        if self.bar is None:
            yield from batches
            return
        task = self.bar.add_task("held out", total=len(batches), said="")
        for batch in batches:
            yield batch
            self.bar.advance(task)
        self.bar.remove_task(task)

    def epoch(self, history: list[Record]) -> None:
        """After an epoch: its line, its events, and the whole history on disk."""
        if self.folder is None or self.events is None:
            return
        record = history[-1]
        scores = {key: value for key, value in record.items() if key not in {"epoch", "step"}}
        self._print(f"epoch {record['epoch']}/{self.epochs}  {say(scores)}")
        self.began, self.first = time.monotonic(), record["step"]
        self.events.add(record["step"], {key.replace("_", "/", 1): value for key, value in scores.items()})
        write_atomic(
            self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history).encode()
        )

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)
        self.spoke = time.monotonic()


def unseen(batches: DataLoader[Any]) -> Iterable[Any]:
    """A `Watch` that shows nothing."""
    return batches


def say(scores: dict[str, float]) -> str:
    """`{"train_loss": 1.5, "val_top1": 60.0}` as 'train loss 1.500  val top1 60.00'."""
    return "  ".join(f"{key.replace('_', ' ')} {value:.{_digits(key)}f}" for key, value in scores.items())


def _digits(key: str) -> int:
    if "loss" in key:
        return 3
    return 4 if key == "lr" else (0 if key in {"seconds", "images_per_second"} else 2)
