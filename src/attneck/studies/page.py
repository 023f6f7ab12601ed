"""What a study says, written into a Markdown page: between two comments, so that no number is typed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from attneck.errors import UserError
from attneck.files import write_atomic
from attneck.studies.report import Results, markdown, notes, overview, table
from attneck.studies.sizes import table as size_table

END = "<!-- end -->"


def fill(page: Path, results: Results, report: Path) -> None:
    """Put the short tables and the pictures of a report between <!-- study NAME --> and <!-- end -->.

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
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"--page {page} has no lines {begin} and {END}: put them where the tables go")
    said = f"{begin}\n{block(results, Path(os.path.relpath(report, page.parent)))}\n{END}"
    write_atomic(page, pattern.sub(lambda _: said, text).encode())


def block(results: Results, report: Path) -> str:
    """The tables that fit a page, the pictures, and the report's place; `report` as the page sees it."""
    study = results.study
    several = len(study.problems) > 1
    parts = [markdown(*(overview if several else table)(study, results.rows)).strip()]
    parts += [f"![{study.metric} by training images](<{(report / 'curves.svg').as_posix()}>)"]
    if results.sizes:
        parts += [markdown(*size_table(study, results.sizes)).strip()]
        parts += [f"![{study.metric} by the image's side](<{(report / 'sizes.svg').as_posix()}>)"]
    parts += notes(study, results.undone)
    parts += [f"The whole report: [{results.name}](<{(report / 'report.md').as_posix()}>)."]
    return "\n\n".join(parts)
