"""What a study says, written into a Markdown page: between two comments, so that no number is typed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

from attneck.errors import UserError, one_line
from attneck.files import write_atomic
from attneck.studies.report import (
    AUC,
    CHANCE,
    Results,
    bold,
    ended,
    markdown,
    not_scored,
    overview,
    table,
    timed_on,
)
from attneck.studies.sizes import table as size_table

END = "<!-- end -->"


def read(page: Path, name: str) -> str:
    """A page of Markdown with the lines <!-- study NAME --> and <!-- end -->, its line ends as they are.

    Raises:
        UserError: no such file, one that cannot be read or written, none with these lines, or a first one
            without a last one of its own: what stands up to another's would be lost.
    """
    begin = f"<!-- study {name} -->"
    try:
        text = page.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(
            f"--page {page}: there is no such file; it needs the lines {begin} and {END}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--page {page}: {one_line(error, 100)}: give a file of Markdown in UTF-8") from None
    blocks = [*_lines(name).finditer(text)]
    if not blocks:
        raise UserError(f"--page {page} has no lines {begin} and {END}: put them where the tables go")
    if any("<!--" in found["old"] for found in blocks):
        raise UserError(
            f"--page {page}: after {begin} another comment comes before {END}, and what is between them "
            f"would be lost: put {END} where the tables end"
        )
    for place in (page, page.resolve().parent):  # a page is written beside itself, and then renamed
        if not os.access(place, os.W_OK):
            raise UserError(f"--page {page}: {place} may not be written: allow it, or give another page")
    return text


def fill(page: Path, results: Results, report: Path) -> None:
    """Put a report's short table and its picture between <!-- study NAME --> and <!-- end -->.

    Where the first line is <!-- study NAME: table --> there is no picture.

    Args:
        page: what `read` takes.
        report: the folder that the report was written into.

    Raises:
        UserError: see `read`.
    """
    page = page.resolve()
    text, place = read(page, results.name), Path(os.path.relpath(report, page.parent))

    def filled(match: re.Match[str]) -> str:
        end = match["end"]
        laid = block(results, place, picture=match["table"] is None).replace("\n", end)
        return f"{match['begin']}{laid}{end}{END}"

    write_atomic(page, _lines(results.name).sub(filled, text).encode())


def _lines(name: str) -> re.Pattern[str]:
    begin = rf"(?P<begin><!-- study {re.escape(name)}(?P<table>: table)? -->(?P<end>\r?\n))"
    return re.compile(f"{begin}(?P<old>.*?){END}", re.DOTALL)


def block(results: Results, report: Path, *, picture: bool) -> str:
    """The table that fits a page, a picture, and the report's place; `report` as the page sees it."""
    study = results.study
    several = len(study.problems) > 1

    def link(file: str) -> str:
        return quote((report / file).as_posix())

    if results.sizes:
        laid, drawn, said = size_table(study, results.sizes), "sizes", []
        if any(row.metric != study.metric for row in results.sizes):
            said = [f"auc: {AUC}."]
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
        *not_scored(results),
        *ended(results.undone),
        f"The whole report: [{results.name}]({link('report.md')}).",
    ]
    return "\n\n".join(parts)
