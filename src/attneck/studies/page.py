"""What a study says, written into a Markdown page: between two comments, so that no number is typed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

from attneck.errors import UserError
from attneck.files import write_atomic
from attneck.studies.report import CHANCE, Results, bold, ended, markdown, overview, table, timed_on
from attneck.studies.sizes import table as size_table

END = "<!-- end -->"


def fill(page: Path, results: Results, report: Path) -> None:
    """Put a report's short table and its picture between <!-- study NAME --> and <!-- end -->.

    Where the first line is <!-- study NAME: table --> there is no picture.

    Args:
        page: a file of Markdown that has these two lines.
        report: the folder that the report was written into.

    Raises:
        UserError: no such file, or none with these lines.
    """
    begin = f"<!-- study {results.name} -->"
    try:
        text = page.read_text()
    except FileNotFoundError:
        raise UserError(
            f"--page {page}: there is no such file; it needs the lines {begin} and {END}"
        ) from None
    lines = re.compile(rf"(<!-- study {re.escape(results.name)}(: table)? -->\n).*?{END}", re.DOTALL)
    if lines.search(text) is None:
        raise UserError(f"--page {page} has no lines {begin} and {END}: put them where the tables go")
    place = Path(os.path.relpath(report, page.parent))

    def filled(match: re.Match[str]) -> str:
        return f"{match[1]}{block(results, place, picture=match[2] is None)}\n{END}"

    write_atomic(page, lines.sub(filled, text).encode())


def block(results: Results, report: Path, *, picture: bool) -> str:
    """The table that fits a page, a picture, and the report's place; `report` as the page sees it."""
    study = results.study
    several = len(study.problems) > 1

    def link(file: str) -> str:
        return quote((report / file).as_posix())

    if results.sizes:
        laid, drawn, said = size_table(study, results.sizes), "sizes", []
    elif several:
        laid, drawn, said = overview(study, results.rows), "curves", [bold(study), CHANCE]
    else:
        laid, drawn, said = table(study, results.rows), "curves", [CHANCE, *timed_on(results.rows)]
    parts = [markdown(*laid).strip()]
    if picture:
        parts += [f"![{study.metric} of the held-out images]({link(f'{drawn}.svg')})"]
    parts += [
        " ".join(
            [f"{study.metric} of the held-out images, mean ± standard deviation (number of seeds).", *said]
        ),
        *ended(results.undone),
        f"The whole report: [{results.name}]({link('report.md')}).",
    ]
    return "\n\n".join(parts)
