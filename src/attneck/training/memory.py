"""No memory left, in the words of whatever asked for it: one line with what to lower."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from attneck.errors import RunFailed

# The CPU's allocator, oneDNN's and MKL's, CUDA's libraries, threads, and the files that workers share.
_SAID = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|out of memory|bad_alloc|"
    r"unable to allocate|could not create a (memory|primitive)|ALLOC_FAILED|can't start new thread|"
    r"out of shared memory|unable to mmap|unable to allocate shared memory",
    re.IGNORECASE,
)
_KILLED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (is killed by signal: \w+|exited unexpectedly)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for what libraries raise where no memory is left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


class OutOfMemory(RunFailed):
    """No memory was left: one line with what it was for and what to lower. Exit code 1."""


@contextmanager
def memory_errors(doing: Callable[[], str], advice: str) -> Iterator[None]:
    """What runs out of memory inside, or loses a data worker, as OutOfMemory: `doing()`, why, `advice`."""
    try:
        yield
    except Exception as error:
        killed = _KILLED.search(str(error)) if isinstance(error, RuntimeError) else None
        if is_out_of_memory(error):
            why = "out of memory"
        elif killed:
            how = killed[1].replace("is killed by signal:", "was killed by signal")
            why = f"a data worker {how}, often for want of memory: lower data.workers"
        else:
            raise
        raise OutOfMemory(f"{doing()}: {why}; {advice}") from error
