"""The best of a run's records, and the checkpoint that is kept for it.

Which one is best, and how long ago it was, follows from the records alone, and these are in every checkpoint:
a run that goes on from one has the best one that a run has that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attneck.errors import suggestion
from attneck.training.recipe import Recipe
from attneck.training.records import Record

LOWER = {"loss"}
"""Scores of which less is better."""
NOTHING = -1.0
"""COCO's score where there was nothing to find: it says nothing of the weights."""


@dataclass(frozen=True)
class Best:
    """The record with the best score, the first of several; and what the score is called there."""

    step: int
    score: float
    key: str


def key_of(recipe: Recipe, scores: Sequence[str]) -> str:
    """What the score that decides is called in a record: of the averaged weights where the run keeps them.

    Args:
        scores: the task's own, of which the first one decides where the recipe names none.

    Raises:
        ValueError: the recipe names another one.
    """
    metric = recipe.metric or scores[0]
    if metric not in scores:
        raise ValueError(
            f"metric {metric!r} is no score of this task{suggestion(metric, list(scores))} "
            f"(there are {', '.join(scores)})"
        )
    return f"{'ema' if recipe.ema else 'val'}_{metric}"


def best_of(history: Sequence[Record], key: str) -> Best | None:
    """The best record; None where none has a finite score of that name, or there was nothing to find."""
    sign = -1.0 if key.partition("_")[2] in LOWER else 1.0
    found: Best | None = None
    for record in history:
        score = record.get(key, math.nan)
        if math.isfinite(score) and score != NOTHING and (found is None or sign * score > sign * found.score):
            found = Best(record["step"], score, key)
    return found


def gives_up(history: Sequence[Record], key: str, patience: int | None) -> bool:
    """True after `patience` records in a row without a better score; never where there is nothing to find."""
    best = best_of(history, key)
    told = [record for record in history if record.get(key) != NOTHING]
    since = [record for record in told if best is None or record["step"] > best.step]
    return patience is not None and len(since) >= patience


class Keeper:
    """Keeps the best checkpoint in `folder`, for the score `key`; called on the first process alone."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.before: set[int] | None = None
        """The best step of the checkpoint before; None until it is known."""

    def saved(self, history: Sequence[Record], step: int) -> None:
        """After a checkpoint of `step`, or where one is gone on from.

        The one that was best for the checkpoint before stays as long as that checkpoint does: whoever has to
        fall back to it finds its best one too.

        Raises:
            NotWritten: the checkpoint of `step` is whole all the same, and this is made good on resume.
        """
        from attneck.training import checkpoint  # with torch, which the records alone do without

        best = best_of(history, self.key)
        now = {best.step} if best is not None else set()
        if step in now:
            checkpoint.keep_best(self.folder, step)
        if self.before is not None:
            checkpoint.keep_no_other(self.folder, step, now | self.before)
        self.before = now
