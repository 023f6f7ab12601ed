"""A run's folder, read for its report: as much of it as there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attneck.errors import one_line
from attneck.files import read_json
from attneck.runs.cost import Cost, cost_of
from attneck.runs.lock import owner
from attneck.runs.provenance import environment_of
from attneck.runs.run import Run
from attneck.runs.scored import Scored, read_scored
from attneck.runs.scored_on import scored_on
from attneck.runs.snapshots import Snapshot, read
from attneck.runs.status import timed_steps
from attneck.training.checkpoint_files import checkpoints, step_of
from attneck.training.recipe import Recipe
from attneck.training.records import Record, read_records

HEADLINES = ("top1", "box_AP", "mAP")
"""The score that a run is named by: the first one that it has."""


@dataclass
class Story:
    """What a folder says of its run.

    Attributes:
        summary: None of a run that has not ended.
        scored: what the last scoring said; None where no run's end has written it.
        lacks: what there should be and isn't, in words.
    """

    folder: Path
    recipe: Recipe
    history: list[Record]
    summary: Record | None
    environment: dict[str, Any]
    facts: dict[str, Any]
    scored: Scored | None
    snapshots: list[Snapshot]
    cost: Cost | None
    lacks: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name

    @property
    def scored_on(self) -> str:
        """The images that it is scored on, in words."""
        return scored_on(self.recipe, self.facts)

    @property
    def last(self) -> Record:
        """The last record; empty before the first."""
        return self.history[-1] if self.history else {}

    @property
    def headline(self) -> str | None:
        """What the score that the run is named by is called in a record."""
        metric = [self.recipe.metric] if self.recipe.metric else []
        keys = [f"{prefix}_{score}" for score in [*metric, *HEADLINES] for prefix in ("ema", "val")]
        return next((key for key in keys if key in self.last), None)

    @property
    def best(self) -> Record | None:
        """The record of the best checkpoint."""
        from attneck.training.best import best_of

        found = best_of(self.history, self.headline) if self.headline else None
        return None if found is None else next(row for row in self.history if row["step"] == found.step)

    @property
    def pace(self) -> float:
        """Seconds a step, training and scoring; 0 where no record tells."""
        steps = sum(timed_steps(self.history, self.environment.get("starts") or []))
        return sum(float(record.get("seconds", 0)) for record in self.history) / steps if steps else 0.0

    @property
    def state(self) -> str:
        """How it ended, or how far it is."""
        if self.summary is not None:
            early = ", early: its scores were no longer better" if self.summary.get("ended_early") else ""
            return f"ended after {self.summary['steps']:,} steps{early}"
        there = checkpoints(self.folder / "checkpoints")
        trains = owner(self.folder)
        how = f"has not ended, and is trained by {trains}" if trains else "has not ended"
        newest = (
            f"; its newest checkpoint is of step {step_of(there[0]):,}" if there else "; it has no checkpoint"
        )
        if not self.history:
            return f"{how}; no images were scored yet{newest}"
        return f"{how}: its last record is of step {self.last['step']:,}{newest}"


def read_story(folder: Path) -> Story:
    """What the folder says.

    Raises:
        UserError: no run there; or a recipe, or records, that no run writes.
    """
    recipe = Run(folder).recipe
    lacks: list[str] = []
    history = read_records(folder)
    summary = _json(folder / "summary.json", lacks)
    if summary is not None and not isinstance(summary.get("steps"), int):
        lacks.append("summary.json has no steps")
        summary = None
    facts = _json(folder / "data.json", lacks) or {}
    last = int(history[-1]["step"]) if history else 0
    scored = None
    try:
        scored = read_scored(folder)
    except ValueError as error:
        lacks.append(f"{error}: what was confused is not here")
    if scored is not None and scored.step != last:
        lacks.append(
            f"what was predicted at step {last:,}: what is shown is of step {scored.step:,}, an end before"
        )
    saved = [step_of(one) for one in checkpoints(folder / "checkpoints")[:1]]
    if summary is not None and summary["steps"] < max([last, *saved]):
        summary = None  # of the end before: it goes on with more patience
    story = Story(
        folder,
        recipe,
        history,
        summary,
        environment_of(folder),
        facts,
        scored,
        read(folder, {0, *(int(record["step"]) for record in history)}),
        None,
        lacks,
    )
    try:
        story.cost = cost_of(folder, recipe, facts)
    except ValueError as error:
        lacks.append(f"parameters and multiply-adds: {one_line(error, 150)}")
    except Exception as error:  # a model of another version, or of a library that is not there
        lacks.append(f"parameters and multiply-adds ({type(error).__name__}: {one_line(error, 150)})")
    if summary is None:
        lacks.insert(0, story.state)
    return story


def _json(file: Path, lacks: list[str]) -> dict[str, Any] | None:
    """A JSON object; None where there is none, which is said where there is something else."""
    found = read_json(file)
    if found is None and file.exists():
        lacks.append(f"{file.name} is damaged")
    return found
