"""What is said when something is not as wanted: one line, and the nearest thing that would be."""

from __future__ import annotations

import difflib


class UserError(Exception):
    """The user's mistake: one line that says what was given, what is wanted and what to do. Exit code 2."""


class RunFailed(Exception):  # noqa: N818 - a run's end, with its own exit code
    """A run that could not go on, with its work saved: one line, and the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def suggestion(given: str, known: list[str]) -> str:
    """'; perhaps you meant X' when something known is close to what was given, else ''."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; perhaps you meant {close[0]!r}" if close else ""


def one_line(error: BaseException) -> str:
    """What an error says, as the start of one line."""
    return " ".join(str(error).split())[:200]
