"""Work in a thread beside the main one: a checkpoint goes to the disk while the next steps are taken."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """One piece of work at a time. What goes wrong in it is kept, for the main thread to raise.

    Leaving the context waits for the work that is there.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin `work`, once `end` has been called after the piece before."""
        assert self._thread is None, "two never overlap"
        self._thread = threading.Thread(target=self._do, args=(work,), name="attneck checkpoint")
        self._thread.start()

    @property
    def failed(self) -> bool:
        """True once the work has gone wrong, until `end`; waits for nothing."""
        return self._error is not None

    def end(self) -> BaseException | None:
        """Wait for the work, if there is any; what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        return error

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # whatever it is, it ends the run and not a thread alone
            self._error = error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *of_error: object) -> None:
        self.end()
