"""Registers the catalog with timm: at once if timm is loaded, otherwise when it is imported.

timm has no entry points, and to import it (or torch) with `attneck` would cost every command seconds. So an
import hook waits for `timm.models`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

REGISTRY = "timm.models"


def register() -> None:
    """Register the models now, or when timm is imported."""
    if REGISTRY in sys.modules:
        _enter()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _enter() -> None:
    from attneck.models.timm_registry import enter

    enter()


class _Finder(MetaPathFinder):
    """Finds `timm.models` where other finders do, and calls `_enter` after its loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != REGISTRY:
            return None
        sys.meta_path.remove(self)  # so that the other finders are asked
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)  # timm's import may fail and be tried again
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    """Loads as `loader` does, then removes `finder` from `sys.meta_path` and registers the models."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader  # as without this hook
        self.loader.exec_module(module)
        sys.meta_path.remove(self.finder)
        _enter()
