"""Which of a fault's cases a test tries: all of them in the long form, some of each kind in the short one.

The short form is part of `make test`. The long form is `make faults`: it tries every case, and writes to
results/faults how many were tried and how many held.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LONG = os.environ.get("ATTNECK_FAULTS") == "long"


def some(cases: Iterable[T], short: int) -> list[T]:
    """All cases in the long form; `short` of them, evenly spread over their order, in the short one."""
    every = list(cases)
    if LONG or len(every) <= short:
        return every
    return [every[number * len(every) // short] for number in range(short)]


def flips(size: int, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """`count` random bits of a file of `size` bytes, as (byte, bit)."""
    draw = random.Random(seed)
    return [(draw.randrange(size), draw.randrange(8)) for _ in range(count)]


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """A folder that every user may write to, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything: what is inside is done as another user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)
