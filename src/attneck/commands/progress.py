"""The bar of whatever a command goes over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def shown(items: Iterable[T], what: str, quiet: bool = False) -> Iterable[T]:
    """The items, with a bar on stderr that goes when they have, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, what, disable=quiet or not console.is_terminal, transient=True, console=console)
