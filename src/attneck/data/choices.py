"""What may be asked of a data set."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def choose(what: str, given: str, choices: Sequence[str]) -> None:
    """ValueError unless `given` is one of `choices`."""
    if given not in choices:
        raise ValueError(f"{what} is {given!r}: choose {', '.join(choices)}")


def positive(name: str, **values: int | None) -> None:
    """ValueError for a value under 1; None is none."""
    for what, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: {what} is {value}: it must be 1 or more")


def spread(count: int, size: int, name: str) -> NDArray[np.int64]:
    """`size` places evenly spread over 0 … count-1, int64; ValueError when there are not so many."""
    if size > count:
        raise ValueError(f"{name}: size is {size} of {count} images: choose {count} or fewer")
    return np.arange(size) * count // size
