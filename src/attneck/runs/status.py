"""Where a run is, told from its folder alone: nothing of the run is waited for, stopped or loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from attneck.files import read_json
from attneck.runs.lock import owner
from attneck.runs.provenance import environment_of
from attneck.runs.report.words import images_of
from attneck.runs.run import Run
from attneck.training.checkpoint_files import checkpoints, step_of
from attneck.training.records import RECORDS, read_records


@dataclass(frozen=True)
class Status:
    """A run as its folder shows it at the moment."""

    folder: Path
    state: str
    """"training", "ended" or "stopped"."""
    owner: str | None
    """Who trains it: process, machine, since when."""
    step: int
    """The optimiser step of the last record or of the newest checkpoint, whichever is later."""
    steps: int | None
    """Of the whole run; None where its data is not known yet."""
    saved: int | None
    """The step of the newest checkpoint, which a resume goes on from."""
    saved_ago: float | None
    """Seconds since it was written."""
    record: dict[str, Any] | None
    """The last record: the scores of the held-out images, and more."""
    images_per_second: float | None
    """Between the last two records, their evaluation included."""
    left: float | None
    """Seconds to the end, at the last records' pace; None where nobody trains, or before the first record."""


def status(folder: Path, now: float | None = None) -> Status:
    """What the run's folder says.

    Args:
        now: seconds since the epoch, the clock's unless given.

    Raises:
        UserError: no run there.
    """
    now = time.time() if now is None else now
    run = Run(folder)
    recipe = run.recipe
    trains = owner(folder)
    records = read_records(folder)
    there = checkpoints(folder / "checkpoints")
    saved = step_of(there[0]) if there else None
    # None before the data was opened, and in runs of older versions.
    images = images_of(read_json(folder / "data.json") or {}, "training")
    steps = None if images is None else recipe.total_steps(images // recipe.batch)
    done = int(records[-1]["step"]) if records else 0
    ended = _ended(folder, max(done, saved or 0), steps)
    starts = environment_of(folder).get("starts", [])
    timed = timed_steps(records, starts)
    pace = records[-1]["seconds"] / timed[-1] if timed and timed[-1] else None  # seconds a step
    left = None
    if trains and pace and steps and not ended:
        # The last moment when its step is known: that of the last record, or of the start after it.
        known = [((folder / RECORDS).stat().st_mtime, done)]
        if starts and "at" in starts[-1]:
            known.append((datetime.fromisoformat(starts[-1]["at"]).timestamp(), starts[-1]["step"]))
        then, step = max(known)
        left = max(0.0, (steps - step) * pace - (now - then))
    return Status(
        folder=folder,
        state="training" if trains else "ended" if ended else "stopped",
        owner=trains,
        step=max(done, saved or 0),
        steps=steps,
        saved=saved,
        saved_ago=max(0.0, now - there[0].stat().st_mtime) if there else None,
        record=records[-1] if records else None,
        images_per_second=recipe.batch / pace if pace else None,
        left=left,
    )


def _ended(folder: Path, step: int, steps: int | None) -> bool:
    """Whether the summary there is of a run that came to its last step, or that its patience ended at `step`.

    A run that goes on with more patience has the summary of its first end until its second one.
    """
    summary = read_json(folder / "summary.json")
    if summary is None:
        return False
    last = summary.get("steps")
    early = bool(summary.get("ended_early")) and isinstance(last, int) and last >= step
    return steps is None or step >= steps or early


def timed_steps(records: Sequence[Mapping[str, Any]], starts: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many steps each record's `seconds` are of: those since the record before, or since a start between.

    0 for a record without seconds, of an older version.
    """
    found, before = [], 0
    for record in records:
        last = int(record["step"])
        began = max((start.get("step", 0) for start in starts if start.get("step", 0) < last), default=0)
        found.append(last - max(before, began) if record.get("seconds") else 0)
        before = last
    return found
