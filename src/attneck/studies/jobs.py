"""Runs of a study as processes, some at a time, each with one thread; killed at any moment, it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
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
    waiting = [cell for cell in cells if not cell.done]
    begin = command or (lambda cell: [sys.executable, "-m", "attneck", *cell.words()])
    there = gpus() if jobs > 1 else []
    running: list[Job] = []
    failed: list[Cell] = []
    console = Console()
    with ExitStack() as open_, signals.noted() as stop:
        bars = open_.enter_context(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(20),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console,
                disable=not console.is_terminal,
            )
        )
        whole = bars.add_task(f"{len(cells)} runs", total=float(len(cells)))
        later = 0.0
        while waiting or running:
            while len(running) < jobs and waiting and time.monotonic() >= later and not stop.signal:
                cell = waiting.pop(0)
                if owner(cell.folder):  # a run that outlived a study before, say, or another study's
                    waiting.append(cell)
                    later = time.monotonic() + (WAIT if all(owner(one.folder) for one in waiting) else 0)
                    continue
                taken = [job.gpu for job in running]
                gpu = min(there, key=taken.count, default=None)
                process = _started(begin(cell), cell, gpu, jobs)
                running.append(Job(cell, process, bars.add_task(cell.name, total=1.0), gpu))
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                bars.remove_task(job.task)
                code = job.process.returncode
                if not job.cell.done and owner(job.cell.folder):  # it came first, while this one started
                    waiting.append(job.cell)
                    continue
                if not job.cell.done:
                    failed.append(job.cell)
                if not stop.signal:
                    left = len(waiting) + len(running)
                    said = "done" if job.cell.done else f"failed with code {code}, see {log_of(job.cell)}"
                    console.print(f"{job.cell.name}: {said}; {left} to go", highlight=False, soft_wrap=True)
            for job in running:
                bars.update(job.task, completed=progress(job.cell))
            undone = len(waiting) + len(running)
            bars.update(whole, completed=len(cells) - undone + sum(progress(job.cell) for job in running))
            if stop.signal:
                for job in running:
                    with suppress(ProcessLookupError):
                        job.process.terminate()
                for job in running:
                    job.process.wait()
                raise RunFailed(
                    f"stopped by signal {stop.signal}; {undone} of {len(cells)} runs are not done: the same "
                    "command goes on",
                    128 + stop.signal,
                )
            time.sleep(PAUSE)
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(cells)} runs failed ({', '.join(cell.name for cell in failed[:3])}): see "
            f"{log_of(failed[0])}; the same command tries them again"
        )


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
    around = {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(jobs)} | ({} if gpu is None else {GPUS: gpu})
    with log_of(cell).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | around,
        )
