"""The bar of whatever a command goes over."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from attneck.errors import say

T = TypeVar("T")


def tell(line: str) -> None:
    """What takes its time, on stderr where that is a terminal; a bar would be timed with it."""
    if sys.stderr.isatty():
        say(f"{line} …")


def shown(items: Iterable[T], what: str, quiet: bool = False) -> Iterable[T]:
    """The items, with a bar on stderr that goes when they have, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if quiet or not console.is_terminal:  # a bar that rich is told to leave out still ends in an empty line
        return items
    return track(items, what, transient=True, console=console)
