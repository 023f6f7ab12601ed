"""No memory left, in the words of whatever asked for it: one line with what to lower."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attneck.errors import RunFailed, is_out_of_memory

_KILLED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (is killed by signal: \w+|exited unexpectedly)"
)
_SHARED = re.compile(r"out of shared memory|unable to mmap|unable to allocate shared memory", re.IGNORECASE)


class OutOfMemory(RunFailed):
    """No memory was left: one line with what it was for and what to lower. Exit code 1."""

    of_one = True


@contextmanager
def memory_errors(doing: Callable[[], str], advice: str) -> Iterator[None]:
    """What runs out of memory inside, or loses a data worker, as OutOfMemory: `doing()`, why, `advice`."""
    try:
        yield
    except Exception as error:
        killed = _KILLED.search(str(error)) if isinstance(error, RuntimeError) else None
        if isinstance(error, RuntimeError) and _SHARED.search(str(error)):
            why = "out of memory that workers share (/dev/shm)"
            advice = "lower data.workers, which a resume may, or give it room (docker's --shm-size)"
        elif is_out_of_memory(error):
            why = "out of memory"
        elif killed:
            how = killed[1].replace("is killed by signal:", "was killed by signal")
            why = f"a data worker {how}, often for want of memory: lower data.workers"
        else:
            raise
        raise OutOfMemory(f"{doing()}: {why}; {advice}") from error
