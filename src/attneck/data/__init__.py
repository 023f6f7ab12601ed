"""Data sets whose order and augmentation are functions of (seed, epoch, index).

`table` is light; torch comes in with the first name of `__all__` that is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attneck.data.classification import ClassificationDataset, open_dataset
    from attneck.data.detection import DetectionDataset, open_detection
    from attneck.data.normalise import Normalise
    from attneck.data.sampling import EvalBatches, TrainBatches, step_seed
    from attneck.data.workers import collate, loader

_HOMES = {
    "ClassificationDataset": "classification",
    "DetectionDataset": "detection",
    "EvalBatches": "sampling",
    "Normalise": "normalise",
    "TrainBatches": "sampling",
    "collate": "workers",
    "loader": "workers",
    "open_dataset": "classification",
    "open_detection": "detection",
    "step_seed": "sampling",
}

__all__ = [
    "ClassificationDataset",
    "DetectionDataset",
    "EvalBatches",
    "Normalise",
    "TrainBatches",
    "collate",
    "loader",
    "open_dataset",
    "open_detection",
    "step_seed",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attneck.data' has no attribute {name!r}")
    value = getattr(import_module(f"attneck.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
