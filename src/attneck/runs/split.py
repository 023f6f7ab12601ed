"""Which images a run trains on and which it holds out, listed where the run has split them itself."""

from __future__ import annotations

from pathlib import Path

from attneck.files import write_csv
from attneck.tasks.task import Task

SPLIT = "split.csv"


def write_split(folder: Path, task: Task) -> None:
    """Write split.csv into a run's folder, where its recipe has `data.val_share`: name and split, by name.

    The names are paths in the data's root: CLASS/…/FILE.

    Raises:
        NotWritten: as `attneck.files.write_atomic`.
    """
    if task.recipe.data.val_share is None:
        return
    rows = [(name, "train") for name in task.training.names] + [(name, "val") for name in task.held_out.names]
    write_csv(folder / SPLIT, [("name", "split"), *sorted(rows)])
