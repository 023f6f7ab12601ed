"""Values that come from outside, checked before anything is built from them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Integral

from attneck.errors import brief, suggestion

MOST = 1 << 14
"""Of channels, sides, heads and the like: what is more is a slip, and its memory is not asked for."""


def whole(name: str, value: object, *, least: int = 1, most: int = MOST) -> int:
    """`value`, if it is a whole number from `least` to `most`; True and False are none.

    Raises ValueError for anything else, with the name of what was given.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise ValueError(f"{name}={brief(value)}: wanted a whole number from {least} to {most:,}")
    return int(value)


def divides(batch: int, processes: int, accumulate: int) -> None:
    """ValueError unless a batch divides over so many processes and their micro-batches."""
    if batch % (processes * accumulate):
        raise ValueError(
            f"a batch of {batch} does not divide over {processes} processes with {accumulate} micro-batches "
            f"(accumulate) each: choose a multiple of {processes * accumulate}"
        )


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """ValueError unless `value` is one of `known`."""
    names = [*known]
    if not isinstance(value, str) or value not in names:
        raise ValueError(
            f"unknown {name} {brief(value)}{suggestion(value, names)}; choose one of {', '.join(names)}"
        )


def flag(name: str, value: object) -> bool:
    """`value`, if it is True or False; ValueError for anything else: "no" would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={brief(value)}: wanted True or False")
    return value


def memory() -> int:
    """The machine's memory in bytes; a TiB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 40


def sides(name: str, value: object) -> tuple[int, int]:
    """(height, width) of one whole number, for a square, or of two; ValueError for anything else."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    try:
        height, width = (whole(name, side) for side in pair)
    except ValueError:  # no pair, or no numbers
        raise ValueError(
            f"{name}={brief(value)}: wanted (height, width), or one number for a square, "
            f"of whole numbers from 1 to {MOST:,}"
        ) from None
    return height, width
