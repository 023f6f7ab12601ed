"""A table as it is shown: what the paper prints, and beside it what is computed and measured."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from attneck.papers.results import FinishedRun, columns_measured, measured
from attneck.papers.tables import UNITS, Comparison, Paper, Row, Table, Verdict

LABELS = {"params_m": "params (M)", "madds_g": "M.Adds (G)"}
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Checked:
    """A row with what is known about it."""

    row: Row
    counts: dict[str, Comparison]
    runs: list[FinishedRun]
    train: str | None

    @property
    def differs(self) -> bool:
        """Whether a printed count is not what is computed."""
        return any(found.verdict is Verdict.DIFFERS for found in self.counts.values())

    @property
    def pending(self) -> bool:
        """Whether a count is printed of a network that the catalog does not have."""
        return bool(self.row.expect) and not self.counts


@dataclass(frozen=True)
class Section:
    """A table with its rows."""

    paper: Paper
    table: Table
    rows: list[Checked]


@dataclass(frozen=True)
class Sheet:
    """A section laid out: cells row by row under the header, footnotes by number, and commands."""

    title: str
    setup: str
    header: list[str]
    rows: list[list[str]]
    footnotes: list[str]
    commands: list[tuple[str, str]]


def sheet(section: Section) -> Sheet:
    """Lay a table out: the printed columns as the paper has them, each count's own beside it."""
    table, rows = section.table, section.rows
    keys = [column.key for column in table.columns if column.key in UNITS]
    extra = [] if keys else [key for key in UNITS if any(key in checked.counts for checked in rows)]
    has_setup = any(checked.row.setup for checked in rows)
    scored = columns_measured(table, [(checked.row, checked.runs) for checked in rows])

    header = [""] + ["setup"] * has_setup
    for column in table.columns:
        header += [column.label, "computed", "verdict"] if column.key in UNITS else [column.label]
        header += [f"{column.label} measured"] if column.key in scored else []
    header += [f"{LABELS[key]} computed" for key in extra]

    footnotes: list[str] = []
    cells = []
    for checked in rows:
        row = checked.row
        marks = []
        for text in _remarks(checked):
            if text not in footnotes:
                footnotes.append(text)
            marks.append(str(footnotes.index(text) + 1).translate(SUPERSCRIPT))
        line = [row.label + (" " + " ".join(marks) if marks else "")] + [row.setup] * has_setup
        for column in table.columns:
            line.append(_printed(row, column.key, column.delta))
            if column.key in UNITS:
                found = checked.counts.get(column.key)
                words = (
                    found.verdict.words if found and found.verdict else "not built" if checked.pending else ""
                )
                line += [_count(found, column.key), words]
            if column.key in scored:
                line.append(str(measured(column.key, checked.runs) or ""))
        line += [_count(checked.counts.get(key), key) for key in extra]
        cells.append(line)
    commands = _trunks_once([(checked.row.label, checked.train) for checked in rows if checked.train])
    setup = "; ".join(filter(None, (table.task, table.setup)))
    return Sheet(f"{_number(table)}: {table.title}", setup, header, cells, footnotes, commands)


def _trunks_once(commands: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of rows that start from one trunk the first alone trains it, and the others say so: a run's folder is
    made once."""
    before: dict[str, str] = {}
    found = []
    for label, command in commands:
        *trunk, own = command.split(" && ")
        after = dict.fromkeys(before[each] for each in trunk if each in before)
        told = f"{label} (after {' and '.join(after)})" if after else label
        found.append((told, " && ".join([*(each for each in trunk if each not in before), own])))
        before |= {each: label for each in trunk if each not in before}
    return found


def stacked(laid: Sheet, width: int) -> str:
    """A table for a narrow terminal: under each row's label its cells by name, a few a line."""
    lines = [laid.title, *textwrap.wrap(laid.setup, width), ""]
    for label, *cells in laid.rows:
        named = [f"{name} {cell}" for name, cell in zip(laid.header[1:], cells, strict=True) if cell]
        whole = "  ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in named)
        told = textwrap.wrap(whole, width - 6, break_long_words=False, break_on_hyphens=False)
        lines += [f"  {label}", *(f"      {line}".replace("\N{NO-BREAK SPACE}", " ") for line in told)]
    return "\n".join(lines)


def tally(sections: Iterable[Section]) -> dict[str, int]:
    """How many rows print counts, how many of them come out, and how many wait for their network."""
    counted = [checked for section in sections for checked in section.rows if checked.row.counted]
    return {
        "rows": len(counted),
        "same": sum(not checked.differs and not checked.pending for checked in counted),
        "differ": sum(checked.differs for checked in counted),
        "not_built": sum(checked.pending for checked in counted),
    }


def tally_sentence(sections: Iterable[Section]) -> str:
    """`tally` in a sentence."""
    found = tally(sections)
    pending = f", {found['not_built']} wait for a network that is not here yet" if found["not_built"] else ""
    return (
        f"{found['rows']} rows print parameters or multiply-adds, each counted once: "
        f"{found['same']} come out, {found['differ']} differ{pending}."
    )


def source_sentence(folders: list[str], finished: int, sections: Iterable[Section]) -> str:
    """Where the measured figures are from, and how many runs have one."""
    if not folders:
        return "Measured: nothing, there is no folder results or runs here; --results FOLDER names another."
    taken = {run.weights for section in sections for checked in section.rows for run in checked.runs}
    where = " and ".join(f"{folder}/" for folder in folders)
    return (
        f"Measured: {len(taken)} of {finished} finished runs in {where}, those that have the recipe, the "
        "data and the schedule of a row; mean ± standard deviation over n runs."
    )


def document(sections: list[Section], source: str) -> dict[str, Any]:
    """Everything as JSON has it: counts as whole numbers, verdicts as words; `source`: `source_sentence`."""
    papers: dict[str, dict[str, Any]] = {}
    for section in sections:
        about = section.paper
        entry = papers.setdefault(
            about.name,
            {
                "name": about.name,
                "title": about.title,
                "venue": about.venue,
                "arxiv": about.arxiv,
                "tables": [],
            },
        )
        table = section.table
        entry["tables"].append(
            {
                "table": table.id,
                "title": table.title,
                "task": table.task,
                "setup": table.setup,
                "columns": {column.key: column.label for column in table.columns},
                "rows": [_row(table, checked) for checked in section.rows],
            }
        )
    return {"papers": list(papers.values()), "tally": tally(sections), "measured": source}


def markdown(sections: list[Section], command: str, source: str) -> str:
    """The page `docs/papers.md`: how to read it, what differs, and every table."""
    differing = [
        f"- {section.paper.name} {_number(section.table)}, {checked.row.label}: "
        f"{_differences(checked)} {checked.row.reason}"
        for section in sections
        for checked in section.rows
        if checked.row.counted and checked.differs
    ]
    lines = [
        "# The papers' figures",
        "",
        f"Made by `{command}`; do not edit. " + (tally_sentence(sections) if tally(sections)["rows"] else ""),
        "",
        "*same*: the count rounds to the printed figure. *same, truncated*: it cuts to it. *same as "
        "round(base) + round(added)*: the rounded base and the rounded difference add to it. *differs*: none "
        "of these; the row is shown as it is, with the reason where it is known.",
        "",
        "BoTNet's parameters leave out BatchNorm and position tables; those of EfficientNet and all of BAM's "
        "are every parameter, unless a row says otherwise. M.Adds (BAM's GFLOPs) are multiply-adds of "
        "convolutions and matrix products for one image, G = 10⁹. Where a table prints no counts, those of "
        "its networks (a detector's backbone with a classifier of its own) stand at its right.",
        "",
        source,
        "",
    ]
    if differing:
        lines += ["## What differs", "", *differing, ""]
    paper = None
    for section in sections:
        if section.paper is not paper:
            paper = section.paper
            lines += [f"## {paper.title} ({paper.venue}, arXiv {paper.arxiv})", ""]
        lines += [*_markdown_table(sheet(section)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(laid: Sheet) -> list[str]:
    lines = [f"### {laid.title}", "", laid.setup, ""]
    lines += ["| " + " | ".join(laid.header) + " |", "|" + "---|" * len(laid.header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in laid.rows]
    if laid.footnotes:
        lines += ["", *(f"{mark}. {text}" for mark, text in enumerate(laid.footnotes, start=1))]
    if laid.commands:
        lines += ["", "To train:", "", *(f"- {label}: `{command}`" for label, command in laid.commands)]
    return lines


def _number(table: Table) -> str:
    return f"Table {table.id}" if table.id[0].isdigit() else table.id


def _remarks(checked: Checked) -> list[str]:
    row = checked.row
    found = [row.reason] if row.reason and checked.counts else []
    if row.note:
        found.append(row.note)
    if row.repeats:
        found.append(f"Its counts are tallied with Table {row.repeats}.")
    if row.alternative:
        found.append("Not tallied.")
    if checked.runs:
        runs = ", ".join(run.folder + (f" ({run.note})" if run.note else "") for run in checked.runs)
        found.append(f"Measured: {runs}.")
    return found


def _printed(row: Row, key: str, delta: str | None) -> str:
    difference = row.printed.get(delta) if delta else None
    return row.printed.get(key, "") + (f" ({difference})" if difference else "")


def _count(found: Comparison | None, key: str) -> str:
    """In the column's unit, to a thousandth or to one digit more than is printed."""
    if found is None:
        return ""
    digits = max(3, 1 - int(Decimal(found.printed).as_tuple().exponent)) if found.printed else 3
    number = (Decimal(found.count) / UNITS[key]).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{number:f}"


def _differences(checked: Checked) -> str:
    parts = [
        f"{LABELS[key]} {found.printed} printed, {_count(found, key)} computed."
        for key, found in checked.counts.items()
        if found.verdict is Verdict.DIFFERS
    ]
    return " ".join(parts)


def _row(table: Table, checked: Checked) -> dict[str, Any]:
    row = checked.row
    found = {column.key: measured(column.key, checked.runs) for column in table.columns}
    computed = {
        key: {"count": found.count, "verdict": found.verdict.words if found.verdict else None}
        for key, found in checked.counts.items()
    }
    return {
        "label": row.label,
        "model": row.model or None,
        "options": row.options,
        "image_size": row.image_size,
        "detector": row.detector,
        "setup": row.setup,
        "printed": row.printed,
        "params_convention": row.params_convention,
        "computed": computed,
        "tallied": row.counted,
        "reason": row.reason,
        "note": row.note,
        "measured": {
            **{key: dataclasses.asdict(one) for key, one in found.items() if one is not None},
            "runs": [{"folder": run.folder, "note": run.note} for run in checked.runs],
        }
        if checked.runs
        else None,
        "train": checked.train,
    }
