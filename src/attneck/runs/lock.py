"""One program at a time trains in a run's folder.

The kernel keeps the lock and frees it when the process ends, in whatever way: what a dead process left is
never in the way, and a process number that is used again is not taken for its old owner. File systems that
machines share, NFS among them, keep it between machines too. What is in the file is there to be read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from attneck.errors import UserError, say

LOCK = "train.lock"
"""The file in a run's folder. It stays there: whoever removed it could remove another's."""
TRIES = 10
"""Attempts, a tenth of a second apart: a start that is refused had the lock for a moment."""

_mutex = threading.Lock()
_held: dict[tuple[int, int], str] = {}
"""What this process holds, by device and inode: the kernel's lock is the process's, not a thread's."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the run's folder for the length of the block.

    Raises:
        UserError: another program has it, or another thread of this one.
        OSError: the file cannot be made or written.
    """
    with _mutex:
        file = _taken(folder)
        found = os.fstat(file)
        key = (found.st_dev, found.st_ino)
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        _held[key] = said = f"process {os.getpid()} on {socket.gethostname()} since {now}"
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, said.encode(), 0)
        yield
    finally:
        with _mutex:
            with suppress(OSError):  # a full disk, or one that is gone
                os.ftruncate(file, 0)
            os.close(file)
            del _held[key]


def owner(folder: Path) -> str | None:
    """Who trains in the folder, as "process 12 on host since 2026-01-02 03:04:05 UTC"; None if nobody does.

    Raises:
        OSError: the lock's file is there and cannot be read.
    """
    path = folder / LOCK
    try:
        there = path.stat()
        with _mutex:
            if known := _held.get((there.st_dev, there.st_ino)):
                return known  # opening and closing the file would give the lock up
            with path.open("rb") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        return None  # a file system without locks: nobody can tell
                    return file.read(200).decode(errors="replace") or "another process"
    except FileNotFoundError:
        pass
    return None


def _taken(folder: Path) -> int:
    """The lock's file, locked.

    A record lock, not flock's: worker processes inherit the latter, and would keep it when this process is
    killed. But closing any descriptor of the file gives a record lock up, so what this process holds is known
    without opening it.
    """
    path = folder / LOCK
    with suppress(FileNotFoundError):
        there = path.stat()
        if owner := _held.get((there.st_dev, there.st_ino)):
            raise _refusal(folder, owner)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        locked = _locked(file, folder)
        said = os.pread(file, 200, 0).decode(errors="replace")
        owner = said if re.fullmatch(r"process \d+ on \S+ since [\w:-]+ [\w:-]+ UTC", said) else ""
        if not locked:
            raise _refusal(folder, owner or "another process")
    except BaseException:
        os.close(file)
        raise
    if owner:
        say(f"{folder}: {owner} has ended without giving it up; going on")
    return file


def _locked(file: int, folder: Path) -> bool:
    for attempt in range(TRIES):
        if attempt:
            time.sleep(0.1)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                say(f"{folder}: no locks there ({error.strerror}); keep a second program out of it")
                return True
    return False


def _refusal(folder: Path, owner: str) -> UserError:
    return UserError(
        f"{folder} is being trained by {owner}: wait until it ends or stop it, or choose another --out"
    )
