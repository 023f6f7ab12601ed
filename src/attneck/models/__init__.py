"""Whole networks: `create_model(name)`, `list_models(pattern)` and `list_detectors(pattern)`."""

from __future__ import annotations

from attneck.models.catalog import create_model, list_detectors, list_models

__all__ = ["create_model", "list_detectors", "list_models"]
