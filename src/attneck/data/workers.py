"""The DataLoader, whose workers no signal to the trainer reaches."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from attneck.data.arrays import ArrayDataset
from attneck.data.sampling import Key, SizedKey

# Windows has neither process groups nor signal masks.
_POSIX = hasattr(os, "setpgid")
_SIGNALS = {signal.SIGTERM, signal.SIGINT} | ({signal.SIGHUP} if _POSIX else set())


@contextmanager
def _held() -> Iterator[None]:
    """Holds the signals that end a program back from this thread, and from processes that it starts."""
    if not _POSIX:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SteadyLoader(DataLoader[Any]):
    """A DataLoader whose workers start with signals held back, until `worker_init` has moved them away.

    Otherwise a SIGTERM that comes while they start would kill them, and the trainer with them.
    """

    def __iter__(self) -> Any:
        if self.num_workers and multiprocessing.get_start_method() != "fork":
            resource_tracker.ensure_running()  # else it starts with a worker, and lets the signals through
        with _held():
            return super().__iter__()


def worker_init(worker_id: int) -> None:
    """Sets up a DataLoader worker: its own process group, one thread, no reaction to Ctrl-C.

    torchrun passes SIGTERM on to the trainer's whole process group, and Ctrl-C goes to the terminal's: in
    the trainer's group the workers would die before the trainer had saved. In a group of their own they end
    when the loader ends them. They do not outlive a trainer that is killed: each waits for its end in a
    thread, since torch's own look at the parent's id does not see it where a server forks the workers. And
    torch gives every worker a SIGTERM handler of its own that replaces the one inherited from the trainer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _POSIX:
        os.setpgid(0, 0)
        # What was meant for the group while this worker was still in it is taken and dropped.
        while signal.sigtimedwait([signal.SIGTERM, signal.SIGHUP], 0):
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()


def _end_with_the_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


def usual_workers(dataset: Dataset[Any]) -> int:
    """How many where nobody says: a GPU waits for images that are read; those in memory come soon enough.

    A network on the CPU wants the cores itself. Where Python does not fork (3.14, macOS), a worker starts the
    program anew, which not every program survives: there the caller has to ask for workers.
    """
    waits = torch.cuda.is_available() and not isinstance(dataset, ArrayDataset)
    if not waits or multiprocessing.get_start_method() != "fork":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


def collate(batch: Any) -> Any:
    """Hands on what a data set's `__getitems__` made, its images uint8."""
    return batch


_as_it_is = collate


def loader(
    dataset: Dataset[Any],
    batches: Sampler[list[Key]] | Sampler[list[Key] | list[SizedKey]],
    workers: int | None = 0,
    collate: Callable[[Any], Any] | None = None,
) -> DataLoader[Any]:
    """The DataLoader over `batches` (`TrainBatches` or `EvalBatches`).

    `collate` is `dataset.collate` unless given, which makes floats of a set's images; `attneck.data.collate`
    leaves them uint8. `workers` None: `usual_workers`. They run in process groups of their own (see
    `worker_init`) and end with each iteration; memory is pinned where CUDA is there. Iterating draws nothing
    from torch's global generator.
    """
    workers = usual_workers(dataset) if workers is None else workers
    return SteadyLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate or getattr(dataset, "collate", _as_it_is),
        worker_init_fn=worker_init,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        persistent_workers=False,
        generator=torch.Generator(),
    )
