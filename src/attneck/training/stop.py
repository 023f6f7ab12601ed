"""SIGTERM and SIGINT: a flag that the loop and the evaluation look at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from attneck.errors import RunFailed
from attneck.training.distributed import World
from attneck.training.report import Watch

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


@dataclass
class Stop:
    """The number of the first signal that asked for the end; 0 before it."""

    signal: int = 0


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Notes the first SIGTERM or SIGINT; a second SIGINT interrupts at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = stop.signal or number

    if threading.current_thread() is not threading.main_thread():
        yield stop  # a notebook's or a server's thread: Python allows no signal handlers there
        return
    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def until_stopped(watch: Watch, stop: Stop, world: World, ending: Callable[[int], RunFailed]) -> Watch:
    """`watch`, but a signal to any process ends it on every process, with `ending(signal)` raised.

    An evaluation has no collective between its batches, and processes may differ by one batch. So each
    process stops at its own flag, and all compare their flags once, after their last batch. Every process
    must use the result equally often, each time to its end.
    """

    def batches(loader: DataLoader[Any]) -> Iterator[Any]:
        for batch in watch(loader):
            if stop.signal:
                break
            yield batch
        (number,) = world.maximum([float(stop.signal)])
        if number:
            raise ending(int(number))

    return batches
