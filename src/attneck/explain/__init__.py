"""Pictures of what a run did and of what attention looks at.

`maps` gives what each BAM and each MHSA looks at in an image, as arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attneck.explain.seeing import BAMMaps, Maps, MHSAMaps, maps

__all__ = ["BAMMaps", "MHSAMaps", "Maps", "maps"]


def __getattr__(name: str) -> Any:
    """torch comes in with the first name that needs it."""
    if name not in __all__:
        raise AttributeError(f"module 'attneck.explain' has no attribute {name!r}")
    from attneck.explain import seeing

    return getattr(seeing, name)
