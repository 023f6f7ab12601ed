"""Progress of a run: a bar, a line an epoch, the records and TensorBoard events."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from attneck.training.events import Events
from attneck.training.pace import Pace, clock
from attneck.training.records import Record, write_records

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

Watch = Callable[["DataLoader[Any]"], Iterable[Any]]
"""Passes on the batches of an evaluation, and shows how far it is."""

QUIET = 60
"""Seconds from one line to the next within an epoch, where there is no terminal and so no bar."""
DRAWN = 0.5
"""Seconds from one change of the bar to the next: to know the loss, the loop waits for the device."""
BAR = 10
"""Characters that the bar itself has at least: what would leave it less is not shown."""


class Report:
    """Shows and writes the progress of a run; on every process but the first (`folder` None) does neither.

    What can't be written is raised as NotWritten.

    The records are written whole from the run's history each epoch, so that they always agree with the
    checkpoint that the history came from.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        steps: int,
        steps_per_epoch: int,
        period: int,
        batch: int,
        start: int,
        history: list[Record],
    ) -> None:
        """`period`: steps from one record to the next; `start`: the step that the loop goes on from."""
        self.folder, self.batch = folder, batch
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.epochs = -(-steps // steps_per_epoch)
        self.console = Console()
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.events: Events | None = None
        self.pace = Pace(steps, period, start, history)
        self.spoke = time.monotonic()
        if folder is None:
            return
        self.events = Events(folder / "tensorboard", int(history[-1]["step"]) + 1 if history else 1)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"),
                console=self.console,
                expand=True,
            )
            self.task = self.bar.add_task("", total=steps, completed=start, said="")

    def __enter__(self) -> Report:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *of_error: object) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int, means: Callable[[], dict[str, float]]) -> None:
        """After step number `step` (1-based): the bar or, without a terminal, a line now and then.

        `means` gives the scores' means since the last record; it is called only where they are shown.
        """
        if self.folder is None:
            return
        self.pace.step(step)
        if time.monotonic() - self.spoke < (QUIET if self.bar is None else DRAWN):
            return
        epoch = f"epoch {-(-step // self.steps_per_epoch)}/{self.epochs}"
        left, loss, *others = self._left(), *in_words(means())
        speed = self._speed(self.pace.speed)
        if self.bar is not None and self.task is not None:
            taken = len(epoch) + BAR + 2 * len(str(self.steps)) + 4  # with the slash, and three spaces
            said = _fitting([left, loss, *speed, *others], self.console.width - taken)
            self.bar.update(self.task, completed=step, description=epoch, said=said)
            self.spoke = time.monotonic()
        else:
            self._print([epoch, f"step {step}/{self.steps}", loss, *others, *speed, left])

    def watch(self, batches: DataLoader[Any]) -> Iterator[Any]:
        """The held-out batches, with a bar of their own beside the run's."""
        if self.bar is None:
            yield from batches
            return
        began = time.monotonic()
        task = self.bar.add_task("held out", total=len(batches), said="")
        for number, batch in enumerate(batches):
            yield batch
            each = (time.monotonic() - began) / (number + 1)
            self.bar.update(task, advance=1, said=f"{clock(each * (len(batches) - number - 1))} left")
        self.bar.remove_task(task)

    def epoch(self, history: list[Record]) -> None:
        """After an epoch: its line, its events, and the whole history on disk."""
        if self.folder is None or self.events is None:
            return
        record = history[-1]
        scores = {key: value for key, value in record.items() if key not in {"epoch", "step"}}
        speed = self._speed(self.pace.record(record["step"]))
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=record["step"], said=self._left())
        left = [] if record["step"] == self.steps else [self._left()]
        self._print([f"epoch {record['epoch']}/{self.epochs}", *in_words(scores), *speed, *left])
        self.events.add(record["step"], {key.replace("_", "/", 1): value for key, value in scores.items()})
        write_records(self.folder, history)

    def _speed(self, steps: float | None) -> list[str]:
        """So many steps a second, in images."""
        images = (steps or 0) * self.batch
        return [f"{images:,.{0 if images >= 10 else 1}f} images/s"] if images else []

    def _left(self) -> str:
        return f"{clock(self.pace.left())} left"

    def _print(self, items: list[str]) -> None:
        """The items in a line; on a terminal that is narrower, in lines that break between items."""
        line = "  ".join(items)
        if self.console.is_terminal:
            whole = "  ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in items)
            lines = textwrap.wrap(
                whole,
                self.console.width,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            line = "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self.spoke = time.monotonic()


def unseen(batches: DataLoader[Any]) -> Iterable[Any]:
    """A `Watch` that shows nothing."""
    return batches


def in_words(scores: dict[str, float]) -> list[str]:
    """`{"train_loss": 1.5, "val_top1": 60.0}` as 'train loss 1.500', 'val top1 60.00'."""
    return [f"{key.replace('_', ' ')} {value:{_format(key)}}" for key, value in scores.items()]


def _format(key: str) -> str:
    if "loss" in key:
        return ".3f"
    return ".3g" if key == "lr" else (".0f" if key == "seconds" else ".2f")


def _fitting(items: list[str], room: int) -> str:
    """As many of the items as there is room for, the first ones first."""
    said = items[0]
    for item in items[1:]:
        if len(said) + 2 + len(item) <= room:
            said += f"  {item}"
    return said
