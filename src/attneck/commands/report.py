"""attneck report: a run's report.html once more, or one of several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from attneck.commands.arguments import call
from attneck.commands.output_file import check_output
from attneck.errors import UserError


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    out: Path | None = None,
) -> None:
    """What a run was made from, its scores, curves, mistakes, attention and cost, as one HTML file.

    Every run ends with it. Of several runs it has their curves in one picture, a table of scores and costs,
    and the differences of their recipes. It is made of the runs' own files: a run that has not ended has a
    report of what is there.

    Args:
        runs: the runs' folders.
        out: the file, .html; of one run report.html in its folder if not given, of several report.html here.
    """
    if not runs:
        raise UserError("no run given: attneck report RUN…")
    from attneck.runs.report import REPORT, write_report
    from attneck.runs.run import Run

    for run in runs:
        Run(run).recipe  # noqa: B018 - refuses what is no run
    file = out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    check_output("--out", file, (".html",))
    twice = [
        str(run)
        for number, run in enumerate(runs)
        if run.resolve() in {one.resolve() for one in runs[:number]}
    ]
    if twice:
        raise UserError(f"{twice[0]} is given more than once: give each run once")
    for lacking in write_report(runs, file):
        print(lacking)
    print(f"wrote {file}")


def main(words: list[str]) -> None:
    """Parse and run."""
    call(report, "attneck report", words)
