"""What is said when something is not as wanted: one line, and the nearest thing that would be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The user's mistake: one line that says what was given, what is wanted and what to do. Exit code 2.

    Attributes:
        of_one: True where one process of many may be the only one that finds it: that one says it.
    """

    of_one = False


class RunFailed(Exception):  # noqa: N818 - a run's end, with its own exit code
    """A run that could not go on, with its work saved: one line, and the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def suggestion(given: object, known: list[str]) -> str:
    """'; perhaps you meant X' when something known is close to what was given, else ''."""
    if not isinstance(given, str) or len(given) > 100:  # no name, and slow to compare
        return ""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; perhaps you meant {close[0]!r}" if close else ""


def one_line(error: BaseException) -> str:
    """What an error says, as the start of one line."""
    return " ".join(str(error).split())[:200]


@contextmanager
def user_mistakes() -> Iterator[None]:
    """What layers and data sets refuse as a value becomes a UserError: it is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(str(error)) from error
