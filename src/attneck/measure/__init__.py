"""What a network costs: parameters and multiply-adds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attneck.measure.counts import count, count_parameters
    from attneck.measure.kept import Counts

# Found on first use: what is kept is read without torch.
_HOMES = {"Counts": "kept", "count": "counts", "count_parameters": "counts"}

__all__ = ["Counts", "count", "count_parameters"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attneck.measure' has no attribute {name!r}")
    return getattr(import_module(f"attneck.measure.{_HOMES[name]}"), name)
