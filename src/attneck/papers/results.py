"""What this project measured: the finished runs under results/."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attneck.errors import UserError
from attneck.papers.tables import Row, Table

DATA = {"CIFAR-100": "cifar100", "ImageNet": "imagenet"}
"""A table's task, and the data set of a recipe that it is; a folder of images goes by the folder's name."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's recipe, as far as a table tells its rows apart, and its top-1 accuracy in per cent."""

    folder: str
    model: str
    options: dict[str, Any]
    data: str
    image_size: int | None
    epochs: int
    top1: float


def read_runs(folder: Path) -> list[FinishedRun]:
    """Every run in `folder`, however deep: a summary.json with a recipe.yaml beside it.

    Runs of detectors, which have no top-1, and of networks that surgery changed are passed over. The accuracy
    is that of the averaged weights where the run kept them. Paths are given from `folder` on, its own name
    first.

    Raises:
        UserError: a summary or recipe that is not what `attneck train` writes.
    """
    runs = []
    for summary in sorted(folder.rglob("summary.json")):
        recipe = summary.with_name("recipe.yaml")
        if not recipe.is_file():
            continue
        try:
            scores = json.loads(summary.read_text())
            if "val_top1" not in scores and any("AP" in key for key in scores):
                continue
            made_from = yaml.safe_load(recipe.read_text())
            if made_from["model"].get("surgery", "none") != "none":  # no table's network
                continue
            runs.append(
                FinishedRun(
                    folder=(Path(folder.name) / summary.parent.relative_to(folder)).as_posix(),
                    model=made_from["model"]["name"],
                    options=dict(made_from["model"].get("options") or {}),
                    data=_data(made_from["data"]),
                    image_size=made_from["data"].get("image_size"),
                    epochs=made_from["epochs"] or 1,
                    top1=float(scores.get("ema_top1", scores.get("val_top1"))),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise UserError(
                f"{summary.parent} is no run that attneck wrote ({type(error).__name__}: {error}); "
                "mend it or move it"
            ) from None
    return runs


def measured(key: str, runs: list[FinishedRun]) -> float:
    """The mean of the runs' top-1, as the column `key` has it: accuracy (top1) or error (top1_error)."""
    top1 = sum(run.top1 for run in runs) / len(runs)
    return 100 - top1 if key == "top1_error" else top1


def column_of(table: Table) -> str | None:
    """The key of the table's top-1 column, if it has one."""
    return next((column.key for column in table.columns if column.key in {"top1", "top1_error"}), None)


def fits(run: FinishedRun, table: Table, row: Row) -> bool:
    """Whether `run` trained on the images of `row`; whether its network is the row's, the caller says."""
    if not row.model or row.alternative or run.data != DATA.get(table.task):
        return False
    return run.image_size in (None, row.image_size)


def _data(data: dict[str, Any]) -> str:
    """The name of a recipe's data set."""
    return Path(data.get("root") or "").name if data["name"] == "folder" else str(data["name"])
