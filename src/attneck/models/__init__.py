"""Whole networks: `create_model(name)` and `list_models(pattern)`."""

from __future__ import annotations

from attneck.models.catalog import create_model, list_models

__all__ = ["create_model", "list_models"]
