"""Runs of a study as processes, some at a time, each with one thread; killed at any moment, it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from attneck import signals
from attneck.errors import RunFailed, UserError
from attneck.runs.lock import owner
from attneck.studies.study import Cell
from attneck.training.records import read_records

PAUSE = 0.5
"""Seconds from one look at the processes to the next."""
WAIT = 30.0
"""Seconds from one look at a run that another program trains to the next."""
GPUS = "CUDA_VISIBLE_DEVICES"
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_")
"""How the variables begin by which torchrun tells a process which of several it is."""
Command = Callable[[Cell], list[str]]


@dataclass
class Job:
    """A run that is being trained."""

    cell: Cell
    process: subprocess.Popen[bytes]
    task: TaskID
    gpu: str | None


def run_all(cells: Sequence[Cell], jobs: int, command: Command | None = None) -> None:
    """Train what isn't done, `jobs` at a time, with a line of progress for each.

    Runs that are trained at one time have a GPU each, as far as there are GPUs. What a run prints goes to
    FOLDER.log, beside its folder. A run that fails does not stop the others.

    Args:
        command: of a cell; this Python's `attneck` where None.

    Raises:
        UserError: a folder has a run of another recipe in it.
        RunFailed: runs that failed, with their logs; or stopped by a signal, when every run has saved.
    """
    for cell in cells:
        if different := cell.differs():
            raise UserError(
                f"{cell.folder} holds a run of another recipe ({'; '.join(different[:3])}): "
                "remove it, or give another --out"
            )
    begin = command or (lambda cell: [sys.executable, "-m", "attneck", *cell.words()])
    with signals.noted() as stop, Pool(cells, jobs, begin) as pool:
        while pool.undone:
            if not stop.signal:
                pool.start()
            pool.take_ended(quiet=bool(stop.signal))
            pool.show()
            if stop.signal:
                pool.stop()
                raise RunFailed(
                    f"stopped by signal {stop.signal}; {pool.undone} of {len(cells)} runs are not "
                    "done: the same command goes on",
                    128 + stop.signal,
                )
            time.sleep(PAUSE)
    if failed := pool.failed:
        raise RunFailed(
            f"{len(failed)} of {len(cells)} runs failed ({', '.join(cell.name for cell in failed[:3])}): see "
            f"{log_of(failed[0])}; the same command tries them again"
        )


class Pool:
    """The runs of `run_all`: those that wait, those that are trained, and those that failed."""

    def __init__(self, cells: Sequence[Cell], most: int, command: Command) -> None:
        self.most, self.command = most, command
        self.waiting = [cell for cell in cells if not cell.done]
        self.running: list[Job] = []
        self.failed: list[Cell] = []
        self._gpus = gpus() if most > 1 else []
        self._later = 0.0
        """Before that no run is begun: all that wait are trained by others."""
        self._count = len(cells)
        self._console = Console()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._whole = self._bars.add_task(f"{len(cells)} runs", total=float(len(cells)))

    def __enter__(self) -> Pool:
        self._bars.start()
        return self

    def __exit__(self, *of_error: object) -> None:
        self._bars.stop()

    @property
    def undone(self) -> int:
        return len(self.waiting) + len(self.running)

    def start(self) -> None:
        """Begin as many runs as may be trained now."""
        while len(self.running) < self.most and self.waiting and time.monotonic() >= self._later:
            cell = self.waiting.pop(0)
            if owner(cell.folder):  # a run that outlived a study before, say, or another study's
                self.waiting.append(cell)
                others = all(owner(one.folder) for one in self.waiting)
                self._later = time.monotonic() + (WAIT if others else 0)
                continue
            taken = [job.gpu for job in self.running]
            gpu = min(self._gpus, key=taken.count, default=None)
            process = _started(self.command(cell), cell, gpu, self.most)
            self.running.append(Job(cell, process, self._bars.add_task(cell.name, total=1.0), gpu))

    def take_ended(self, *, quiet: bool) -> None:
        """Say, unless `quiet`, how each run that has ended since did."""
        for job in [job for job in self.running if job.process.poll() is not None]:
            self.running.remove(job)
            self._bars.remove_task(job.task)
            cell = job.cell
            if not cell.done and owner(cell.folder):  # another came first, while this one started
                self.waiting.append(cell)
                continue
            if not cell.done:
                self.failed.append(cell)
            if not quiet:
                code = job.process.returncode
                said = "done" if cell.done else f"failed with code {code}, see {log_of(cell)}"
                line = f"{cell.name}: {said}; {self.undone} to go"
                self._console.print(line, highlight=False, soft_wrap=True)

    def show(self) -> None:
        """How far each run is, and how far all are."""
        for job in self.running:
            self._bars.update(job.task, completed=progress(job.cell))
        begun = sum(progress(job.cell) for job in self.running)
        self._bars.update(self._whole, completed=self._count - self.undone + begun)

    def stop(self) -> None:
        """Ask every run to save and end, and wait for it."""
        for job in self.running:
            with suppress(ProcessLookupError):
                job.process.terminate()
        for job in self.running:
            job.process.wait()


def progress(cell: Cell) -> float:
    """The share of its steps that it has recorded, 0 to 1."""
    with suppress(IndexError, UserError):  # nothing there, or half a line
        last = read_records(cell.folder)[-1]
        done, of = cell.recipe.reached(last["epoch"], last["step"])
        return min(1.0, done / of)
    return 0.0


def log_of(cell: Cell) -> Path:
    """What its process prints."""
    return cell.folder.with_name(f"{cell.folder.name}.log")


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get(GPUS)
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


def _started(command: list[str], cell: Cell, gpu: str | None, jobs: int) -> subprocess.Popen[bytes]:
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    # The data's workers share the cores with those of the other runs.
    # And each run is alone, whatever this process was started among.
    own = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    around = {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(jobs)} | ({} if gpu is None else {GPUS: gpu})
    with log_of(cell).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=own | around,
        )
