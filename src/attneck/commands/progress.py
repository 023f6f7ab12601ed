"""The bar of whatever a command goes over."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def shown(items: Iterable[T], what: str, quiet: bool = False) -> Iterable[T]:
    """The items, with a bar on stderr, where that is a terminal, that goes when they have."""
    from rich.console import Console
    from rich.progress import track

    quiet = quiet or not sys.stderr.isatty()  # elsewhere it would leave an empty line
    return track(items, what, disable=quiet, transient=True, console=Console(stderr=True))
