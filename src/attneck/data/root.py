"""Finds the folder of a data set on this machine."""

import os
from pathlib import Path

VARIABLE = "ATTNECK_DATA"
"""The environment variable that names the folder of the data sets."""


def resolve(root: str | os.PathLike[str] | None, name: str, source: str) -> Path:
    """The folder of a data set.

    `root` as it is when it exists; a relative one otherwise under $ATTNECK_DATA; $ATTNECK_DATA itself when
    `root` is None. `name` and `source` (where to get the data) are for the message alone.

    Raises ValueError when `root` is None and ATTNECK_DATA is not set, FileNotFoundError when there is no
    such folder.
    """
    given, base = root, os.path.expanduser(os.environ.get(VARIABLE, ""))  # of a stranger Path raises
    if root is None:
        if not base:
            raise ValueError(
                f"{name}: no root given and {VARIABLE} is not set: set it to the folder that holds {source}"
            )
        path = Path(base)
    else:
        path = Path(os.path.expanduser(root))
        if base and not path.is_absolute() and not path.is_dir():
            path = Path(base) / path
    if not path.is_dir():
        first = path if given is None else given
        nor = "" if path == Path(os.path.expanduser(first)) else f" (nor is {path})"
        raise FileNotFoundError(f"{name}: {first} is not a folder{nor}: give the folder that holds {source}")
    return path
