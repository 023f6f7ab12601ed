"""Data sets whose order and augmentation are functions of (seed, epoch, index)."""

from attneck.data.classification import ClassificationDataset, collate, loader, open_dataset
from attneck.data.sampling import EvalBatches, TrainBatches, step_seed

__all__ = [
    "ClassificationDataset",
    "EvalBatches",
    "TrainBatches",
    "collate",
    "loader",
    "open_dataset",
    "step_seed",
]
