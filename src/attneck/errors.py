"""What is said when something is not as wanted: one line, and the nearest thing that would be."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 500
"""Characters of a line; what is longer is cut in its middle, where what was given stands."""

SHOWN = 120
"""Characters of a path, and of an image's fault, that a line has at most."""

USERS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.EILSEQ,
}
"""Faults of the system that come from the path that it was given; the rest, a full disk say, are its own."""


class UserError(Exception):
    """The user's mistake: one line that says what was given, what is wanted and what to do. Exit code 2.

    Attributes:
        of_one: True where one process of many may be the only one that finds it: that one says it.
    """

    of_one = False


class NotFinite(UserError, ValueError):  # noqa: N818 - as RunFailed
    """What a network gives is not finite, so that no score and no class may rest on it."""


OVERFLOW = "its weights are broken, or too large for the precision that it computes in"
"""Why that is so."""


class RunFailed(Exception):  # noqa: N818 - a run's end, with its own exit code
    """A run that could not go on, with its work saved: one line, and the exit code.

    Attributes:
        of_one: see `UserError`.
    """

    of_one = False

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


EXPECTED = (UserError, RunFailed, OSError)
"""What `ending` has a line for, beside a lack of memory. Any other exception is a fault of the program."""

# The CPU's allocator, oneDNN's and MKL's, CUDA's libraries, threads, and the files that workers share.
_NO_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|out of memory|bad_alloc|"
    r"unable to allocate|could not create a (memory|primitive)|ALLOC_FAILED|can't start new thread|"
    r"out of shared memory|unable to mmap|unable to allocate shared memory",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for what libraries raise where no memory is left, torch's OutOfMemoryError among them."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(str(error)) is not None
    )


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code and the line of what is expected: 2 where it is the user's to mend, else 1."""
    if isinstance(error, RunFailed):
        return error.code, one_line(error, LONGEST)
    if isinstance(error, UserError):
        return 2, one_line(error, LONGEST)
    if is_out_of_memory(error):
        return 1, "out of memory: give smaller sizes, or a machine with more"
    assert isinstance(error, OSError)
    if error.strerror is None:  # a download, say
        return 1, one_line(f"{type(error).__name__}: {error}", LONGEST)
    where = "" if error.filename is None else f"{os.fsdecode(str(error.filename))}: "
    advice = "give another path" if error.errno in USERS else "mend that, and run the command again"
    return 2 if error.errno in USERS else 1, one_line(f"{where}{error.strerror}; {advice}", LONGEST)


def suggestion(given: object, known: list[str]) -> str:
    """'; perhaps you meant X' when something known is close to what was given, else ''."""
    if not isinstance(given, str) or len(given) > 100:  # no name, and slow to compare
        return ""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; perhaps you meant {close[0]!r}" if close else ""


def one_line(said: object, longest: int = 200) -> str:
    """What an error says, in one line that any terminal can show; cut in its middle where it is longer.

    Of an error that says nothing, as an assertion may, it is the kind.
    """
    text = str(said) or (type(said).__name__ if isinstance(said, BaseException) else "")
    line = escaped(" ".join(text.split()))
    half = longest // 2
    return line if len(line) <= longest else f"{line[: half - 1]} … {line[-half + 2 :]}"


def escaped(text: str) -> str:
    """No terminal's control sequences in it, and no lone surrogates, which cannot be printed: as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path for a line: what would break it is escaped, of a long one the end is left."""
    shown = escaped(os.fspath(path))
    return shown if len(shown) <= SHOWN else f"…{shown[1 - SHOWN :]}"


def brief(value: object) -> str:
    """A value as Python writes it, in one short line."""
    try:
        return one_line(repr(value), 80)
    except Exception:  # an integer of too many digits, or somebody's own __repr__
        return f"a value of type {type(value).__name__}"


def is_first() -> bool:
    """Whether this is the first of torchrun's processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_first_here() -> bool:
    """Whether this is the first of torchrun's processes on its machine, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def say(line: object, *, once: bool = False) -> None:
    """A line on stderr.

    Args:
        once: of torchrun's processes, which all say it, the first alone does.
    """
    if is_first() or not once:
        print(f"attneck: {line}", file=sys.stderr, flush=True)


@contextmanager
def user_mistakes() -> Iterator[None]:
    """What layers and data sets refuse as a value becomes a UserError: it is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(str(error)) from error
