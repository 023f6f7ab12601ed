"""What this project measured: finished runs, as far as a table has columns for their scores."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attneck.errors import UserError
from attneck.files import number
from attneck.papers.tables import Row, Table

DATA = {
    "CIFAR-100": 50_000,
    "ImageNet": 1_281_167,
    "ImageNet test set": 1_281_167,
    "COCO instance segmentation": 118_287,
    "COCO object detection": 118_287,
    "VOC": 16_551,
}
"""The training images of a table's task."""

LACKING = 0.02
"""So much of them may be missing: COCO has images without objects, and a part of a batch is left out."""

SCORES = {
    "top1": "top1",
    "top1_error": "top1",
    "top5": "top5",
    "top5_error": "top5",
    "ap_bbox": "box_AP",
    "ap_bbox_50": "box_AP50",
    "ap_bbox_75": "box_AP75",
    "ap_bbox_s": "box_APs",
    "ap_bbox_l": "box_APl",
    "ap_mask": "mask_AP",
    "ap_mask_50": "mask_AP50",
    "ap_mask_75": "mask_AP75",
    "ap_mask_s": "mask_APs",
    "ap_mask_l": "mask_APl",
    "map_50": "mAP",
}
"""The columns that a run has a score for, and its name there; both in per cent."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end: its recipe, the scores of its weights (their average where it kept one)."""

    folder: str
    recipe: dict[str, Any]
    steps: int
    epoch: float
    scores: dict[str, float]
    weights: str
    """Their digest."""
    note: str = ""
    """How it ran, where that is not as its row's recipe says."""

    @property
    def images(self) -> float:
        """Training images in one of its epochs; no end of them where it took too few steps to tell."""
        seen = self.steps * float(self.recipe.get("batch", 128))
        return seen / self.epoch if self.epoch else math.inf


@dataclass(frozen=True)
class Measured:
    """A score over runs; `std` is that of a sample, None of one run."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f} (n = {self.n})" if self.std is not None else "")


def read_runs(folder: Path, name: str | None = None) -> list[FinishedRun]:
    """Every finished run in `folder`, however deep: a summary.json with a recipe.yaml beside it.

    Paths are given from `folder` on, first `name`, or its own where None.

    Raises:
        UserError: a summary or recipe that is not what `attneck train` writes.
    """
    runs = []
    for summary in sorted(folder.rglob("summary.json")):
        recipe = summary.with_name("recipe.yaml")
        if not recipe.is_file():
            continue
        try:
            record = json.loads(summary.read_text())
            found = {prefix: _scores(record, prefix) for prefix in ("val_", "ema_")}
            made_from = yaml.safe_load(recipe.read_text())
            runs.append(
                FinishedRun(
                    folder=(Path(name or folder.name) / summary.parent.relative_to(folder)).as_posix(),
                    recipe=dict(made_from),
                    steps=int(record["steps"]),
                    epoch=float(record["epoch"]),
                    scores=found["val_"] | found["ema_"],
                    weights=str(record["weights"]),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise UserError(
                f"{summary.parent} is no run that attneck wrote ({type(error).__name__}: {error}); "
                "mend it or move it"
            ) from None
    return runs


def each_once(runs: list[FinishedRun]) -> list[FinishedRun]:
    """The runs without copies of one: the same weights count once, where they are found first."""
    return list({run.weights: run for run in reversed(runs)}.values())[::-1]


def same_data(run: FinishedRun, table: Table) -> bool:
    """Whether an epoch of the run has as many images as the data of the table, and the scores are its own.

    The labels of ImageNet's test set are not public: no run has its score.
    """
    size = DATA.get(table.task)
    return (
        size is not None
        and (1 - LACKING) * size <= run.images <= size
        and not table.task.endswith("test set")
    )


def measured(key: str, runs: list[FinishedRun]) -> Measured | None:
    """What the column `key` has of the runs; None where it is no score of theirs."""
    score = SCORES.get(key)
    values = [run.scores[score] for run in runs if score in run.scores]
    if not values:
        return None
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    return Measured(100 - mean if key.endswith("_error") else mean, std, len(values))


def columns_measured(table: Table, runs_by_row: list[tuple[Row, list[FinishedRun]]]) -> list[str]:
    """The keys of the columns that have a measured figure in some row."""
    every = [run for _, runs in runs_by_row for run in runs]
    return [column.key for column in table.columns if measured(column.key, every) is not None]


def _scores(record: dict[str, Any], prefix: str) -> dict[str, float]:
    own = {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}
    return {name: float(number(value)) for name, value in own.items()}
