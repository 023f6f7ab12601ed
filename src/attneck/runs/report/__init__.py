"""A run's report: one HTML file of all that is in its folder, or in those of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

REPORT = "report.html"
"""The file in a run's folder."""


def write_report(runs: Sequence[Path], out: Path) -> list[str]:
    """Write the report of the runs in these folders to `out`; what it lacks, a line each.

    It is made from the folders' files alone: no data is read, and no model runs.

    Raises:
        UserError: a folder that holds no run, or a recipe or records that no run writes; runs that are scored
            by different scores.
        NotWritten: what was there stays as it was.
    """
    from attneck.files import told_apart, write_atomic
    from attneck.runs.report.page import document
    from attneck.runs.report.story import read_story

    stories = [read_story(run) for run in runs]
    write_atomic(out, document(stories, out).encode(errors="backslashreplace"))
    names = told_apart(runs)
    return [
        f"{name}: {line}" if len(stories) > 1 else line
        for name, story in zip(names, stories, strict=True)
        for line in story.lacks
    ]
