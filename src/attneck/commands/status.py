"""attneck status: where runs are, told from outside."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from attneck.commands.arguments import Json, call
from attneck.errors import UserError

if TYPE_CHECKING:
    from attneck.runs.status import Status


def tell(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    as_json: Json = False,
) -> None:
    """Where runs are: who trains each, its step and scores, the speed, the time left, the newest checkpoint.

    Only their folders are read; a run that is trained goes on undisturbed.

    Args:
        runs: the runs' folders.
        as_json: print a JSON object a run and line.
    """
    if not runs:
        raise UserError("no run given: attneck status RUN…")

    from attneck.runs.status import status

    for each in map(status, runs):
        print(json.dumps(asdict(each), default=str) if as_json else _in_words(each))


def _in_words(run: Status) -> str:
    from attneck.training.pace import clock
    from attneck.training.report import in_words

    doing = {
        "training": f"trained by {run.owner}",
        "ended": "ended"
        if run.steps is None or run.step >= run.steps
        else "ended early: its scores were no longer better (patience)",
        "stopped": f"nobody trains it: attneck train {shlex.quote(str(run.folder))} --resume goes on"
        if run.saved
        else "nobody trains it, and it has no checkpoint yet",
    }
    lines = [f"{run.folder}", f"  state       {doing[run.state]}"]
    share = f" of {run.steps:,} ({100 * run.step / run.steps:.0f} %)" if run.steps else ""
    lines.append(f"  step        {run.step:,}{share}")
    if run.record:
        scores = {
            name: value for name, value in run.record.items() if name.startswith(("train_", "val_", "ema_"))
        }
        lines.append(f"  epoch {run.record['epoch']:<6}" + "  ".join(in_words(scores)))
    if run.images_per_second:
        lines.append(f"  speed       {run.images_per_second:.0f} images/s, evaluations included")
    if run.left is not None:
        lines.append(f"  left        {clock(run.left)}")
    if run.saved is not None:
        lines.append(f"  checkpoint  step {run.saved:,}, {clock(run.saved_ago)} ago")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    """Parse and run."""
    call(tell, "attneck status", words)
