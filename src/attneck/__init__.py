"""Attention at the neck of vision networks: BoTNet's 2-D relative self-attention and BAM.

Nothing heavy is imported here: torch comes in with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attneck import timm_hook

__version__ = "0.1.0"

if TYPE_CHECKING:
    from attneck import (
        attention,
        data,
        detection,
        explain,
        export,
        hub,
        layers,
        measure,
        models,
        papers,
        serve,
        studies,
        surgery,
        tasks,
        training,
    )
    from attneck.hub import load
    from attneck.models import create_model, list_detectors, list_models
    from attneck.models.weights import load_matching
    from attneck.runs.run import Run
    from attneck.runs.train import train
    from attneck.tasks.evaluate import evaluate
    from attneck.training.recipe import Recipe

# Where each public name lives. Resolved on first use, so that `attneck --help` needs no torch.
_HOMES = {
    "Recipe": "attneck.training.recipe:Recipe",
    "Run": "attneck.runs.run:Run",
    "attention": "attneck.attention",
    "data": "attneck.data",
    "detection": "attneck.detection",
    "explain": "attneck.explain",
    "export": "attneck.export",
    "hub": "attneck.hub",
    "layers": "attneck.layers",
    "measure": "attneck.measure",
    "models": "attneck.models",
    "papers": "attneck.papers",
    "serve": "attneck.serve",
    "studies": "attneck.studies",
    "surgery": "attneck.surgery",
    "tasks": "attneck.tasks",
    "training": "attneck.training",
    "create_model": "attneck.models.catalog:create_model",
    "list_detectors": "attneck.models.catalog:list_detectors",
    "list_models": "attneck.models.catalog:list_models",
    "evaluate": "attneck.tasks.evaluate:evaluate",
    "load": "attneck.hub:load",
    "load_matching": "attneck.models.weights:load_matching",
    "train": "attneck.runs.train:train",
}

__all__ = [
    "Recipe",
    "Run",
    "__version__",
    "attention",
    "create_model",
    "data",
    "detection",
    "evaluate",
    "explain",
    "export",
    "hub",
    "layers",
    "list_detectors",
    "list_models",
    "load",
    "load_matching",
    "measure",
    "models",
    "papers",
    "serve",
    "studies",
    "surgery",
    "tasks",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attneck' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found = import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


timm_hook.register()
