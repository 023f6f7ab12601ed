"""What all tables of docs/ are made with."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from attneck.commands import papers
from attneck.commands.measured import Results
from attneck.papers.layout import Section

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
Lines = list[list[str]]
NONE_YET = "None is in results/ yet."


def markdown(lines: Lines) -> str:
    """A table, its header first."""
    header, *rows = lines
    told = [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (header, *rows)
    ]
    return "\n".join([told[0], "|" + "---|" * len(header), *told[1:]])


@cache
def sections() -> list[Section]:
    """Every printed row, with its counts and the runs in results/ that are its own."""
    return papers.compare_all(papers.choose(None, None), Results([RESULTS]))
