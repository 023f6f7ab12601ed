"""A signal in an evaluation: all processes end it together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from attneck.errors import RunFailed
from attneck.signals import Stop
from attneck.training.distributed import World
from attneck.training.report import Watch

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


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
