"""Signals that end the program: at once and in one line, unless training is there to save its step first.

Python runs a signal's handler between two steps of the main thread: not while a library loads, a process
group forms or a product is computed, and an exception raised there may end in somebody's traceback or be
swallowed. So a thread waits for signals, and ends the process itself.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from attneck.errors import is_first
from attneck.files import remove_unfinished

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 5.0
"""Seconds from a signal to the end where the work is saved, but the main thread is busy."""


class Stop:
    """What is known of signals while somebody notes them, see `noted`.

    Attributes:
        signal: the number of the first one; 0 before it.
        saved: gives the last words, of a signal, while all work is saved and the process may end; else None.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.saved: Callable[[int], str] | None = None


_stop: Stop | None = None
_watched = False
_when = ""
_ending = False


def watch(when: str = "") -> None:
    """From here on a signal ends this process, with a line that says so; `when` belongs to that line.

    A SIGHUP that was ignored at the start, as under nohup, stays ignored. Where torchrun started this process
    it gets SIGTERM when torchrun dies, so that it doesn't outlive it.
    """
    global _watched, _when
    if _watched or not hasattr(signal, "SIGHUP"):  # Windows
        return
    _watched, _when = True, when
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in heard():
        signal.signal(number, lambda number, frame: None)  # else no byte comes through the pipe
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_wait, args=(reader,), daemon=True).start()
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        import ctypes

        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, int(signal.SIGTERM))


def heard() -> list[signal.Signals]:
    """The signals that end a program, without a SIGHUP that is ignored."""
    return [n for n in SIGNALS if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def noted(react: Callable[[int, FrameType | None], None] | None = None) -> Iterator[Stop]:
    """Inside it a first signal is noted, and no more; a Ctrl-C after it ends the process at once.

    Without `watch`, as in a notebook, that raises KeyboardInterrupt.

    Args:
        react: called with the first signal, in the main thread.
    """
    global _stop, _when
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # a notebook's or a server's thread: Python allows no signal handlers there
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal:
            if number == signal.SIGINT and not _watched:
                raise KeyboardInterrupt
            return
        stop.signal = number
        if react is not None:
            react(number, frame)

    _stop, _when = stop, ""
    old = {number: signal.signal(number, handle) for number in heard()}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        _stop = None


def _wait(reader: int) -> None:
    """Ends the process when it is time to; the only thing that a thread of its own does."""
    first = 0
    while True:
        number = (
            os.read(reader, 1)[0] if select.select([reader], [], [], PATIENCE if first else None)[0] else 0
        )
        if number == signal.SIGINT and first:
            _end(number, "stopped by a second SIGINT")
        elif number in SIGNALS and not first:
            if _stop is None:
                _end(number, f"stopped by {signal.Signals(number).name}{_when}")
            first = number
        elif number == 0 and _stop is not None and _stop.saved is not None:
            _end(first, _stop.saved(first))


def let_end() -> None:
    """Does not return once a signal ends the process: what fails then, a killed worker say, is no news."""
    while _ending:
        time.sleep(1)


def _end(number: int, line: str) -> None:
    """Ends the process, whatever its main thread is doing; leaves no child and no half file."""
    global _ending
    _ending = True
    with suppress(Exception):
        children = sys.modules["multiprocessing"].active_children()
        for child in children:
            child.kill()
        for child in children:
            child.join(1)
    for stat in Path("/proc").glob("[0-9]*/stat"):  # on Linux; those that torchrun started
        with suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGINT)
    remove_unfinished()
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(1)  # the main thread may hold the buffer
    for file in (1, 2):
        with suppress(OSError):
            if os.isatty(file):
                os.write(file, b"\x1b[?25h\n")  # a bar hides the cursor
    if is_first():
        with suppress(OSError):
            os.write(2, f"attneck: {line}\n".encode())
    os._exit(128 + number)


def _flush() -> None:
    with suppress(Exception):
        sys.stdout.flush()


def _forget() -> None:
    """A process that was forked hears for itself, and in torch's way."""
    global _stop, _watched, _ending
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in heard():
            signal.signal(number, signal.SIG_DFL)
    _stop, _watched, _ending = None, False, False
