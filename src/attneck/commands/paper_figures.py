"""The papers' figures and tables as pictures, each number beside its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attneck.commands.output_file import PICTURES, check_output
from attneck.papers.figures import FAMILIES, FIGURES, TRANSFORMERS, Point, points
from attneck.papers.layout import Checked, Section, sheet
from attneck.papers.results import measured
from attneck.papers.step_times import StepTimes
from attneck.papers.tables import Network

if TYPE_CHECKING:
    from attneck.explain.bars import Bar, Group
    from attneck.explain.pareto import Dot

PAPER_OF = {**dict.fromkeys(FIGURES, "botnet"), "ablation": "bam"}
"""The figures that can be drawn, and whose they are; "ablation" is BAM's Table 1."""
ABLATION = ("1a", "1b", "1c")


def file_of(name: str, save: Path | None) -> Path:
    """The file that a picture goes to, `name`.svg in this folder if none is given.

    Raises:
        UserError: an ending that is none of `PICTURES`, or no such folder.
    """
    path = save or Path(f"{name}.svg")
    check_output("--save", path, PICTURES)
    return path


def draw_pareto(
    figure: str, madds: Callable[[Network], int | None], times: Sequence[StepTimes], path: Path
) -> list[Point]:
    """Draw Figure 7, 8 or 9 into `path`; its points."""
    from attneck.explain.pareto import Dot, Panel, draw

    found = points(figure, madds, times)

    def dots(cost: Callable[[Point], float | None], hollow: Callable[[Point], bool]) -> list[Dot]:
        costs = [(point, cost(point)) for point in found]
        return [
            Dot(point.name, point.family, value, point.top1, hollow(point))
            for point, value in costs
            if value is not None
        ]

    panels = [
        Panel(
            "Step time as printed (Table 14)",
            "ms a step of 32 images, forward and backward, one TPU-v3 core",
            dots(lambda point: point.step_ms, lambda point: point.copied),
        ),
        Panel(
            "Multiply-adds, computed",
            "G for one image",
            dots(lambda point: None if point.madds is None else point.madds / 1e9, lambda point: False),
        ),
    ]
    for number, one in enumerate(times):
        shown = dots(lambda point, number=number: point.measured_ms[number], lambda point: False)  # type: ignore[misc]
        if shown:
            panels.append(
                Panel(
                    f"Step time, measured: {one.device}",
                    f"ms an image, {one.dtype}, {one.rounds} round{'s' * (one.rounds != 1)}",
                    shown,
                )
            )
    title, _ = FIGURES[figure]
    families = [*FAMILIES.values(), TRANSFORMERS]
    score = "top-1 (%), as printed"
    draw(f"BoTNet, Figure {figure}: {title}", score, panels, families, _told(found, times), path)
    return found


def _told(found: Sequence[Point], times: Sequence[StepTimes]) -> list[str]:
    """What stands under a Pareto figure: where its numbers are from."""
    lines = ["Top-1 and step times: BoTNet (arXiv 2101.11605), Table 14, as printed."]
    others: dict[str, list[str]] = {}
    for point in found:
        if point.family == TRANSFORMERS:
            others.setdefault(point.source, []).append(point.name)
    if others:
        said = ", ".join(f"{' and '.join(names)}: {source}" for source, names in others.items())
        lines[0] += f" Top-1 of {said}; no step time of them is printed, so none is drawn."
    lines.append("Multiply-adds: counted by this program (attneck count), one forward pass.")
    lines += [f"Hollow, {point.name}: {point.row.reason}" for point in found if point.copied]
    lines += [f"Measured: forward and backward by attneck bench step, {one.path}." for one in times]
    return lines


def point_of(point: Point, times: Sequence[StepTimes]) -> dict[str, Any]:
    """A point as JSON has it: each number beside its source."""
    return {
        "name": point.name,
        "family": point.family,
        "row": point.row.label,
        "top1": {"value": point.top1, "source": point.source},
        "step_ms": None
        if point.step_ms is None
        else {"value": point.step_ms, "source": "Table 14", "copied": point.copied},
        "madds": None if point.madds is None else {"value": point.madds, "source": "computed"},
        "measured_ms_an_image": [
            {"value": value, "source": one.path}
            for value, one in zip(point.measured_ms, times, strict=True)
            if value is not None
        ],
    }


def point_lines(found: Sequence[Point], times: Sequence[StepTimes]) -> list[list[str]]:
    """Header and rows of the points as a table, each number beside its source."""
    header = ["", "top-1 (%)", "from", "step (ms)", "from", "M.Adds (G) computed"]
    lines = [[*header, *(f"ms an image, {one.path}" for one in times)]]
    for point in found:
        step = "" if point.step_ms is None else f"{point.step_ms:g}"
        origin = "" if point.step_ms is None else "Table 14" + (", a copy" if point.copied else "")
        madds = "" if point.madds is None else f"{point.madds / 1e9:.3f}"
        mine = ["" if value is None else f"{value:.1f}" for value in point.measured_ms]
        lines.append([point.name, f"{point.top1:g}", point.source, step, origin, madds, *mine])
    return lines


def draw_ablation(sections: Sequence[Section], path: Path) -> None:
    """Draw BAM's Table 1 into `path`: what each variant takes off the error of the network without it."""
    from attneck.explain.bars import draw

    groups: list[Group] = []
    for section in sections:
        groups += _groups(section)
    told = [
        "Printed: BAM (arXiv 1807.06514), Table 1; at a bar's end the error itself.",
        "Hatched: runs of this program by the row's recipe, the mean over n."
        if any(bar.measured for group in groups for bar in group.bars)
        else "No run of this program has trained these rows yet.",
    ]
    unit = "points of top-1 error less than the base (CIFAR-100)"
    draw("BAM, Table 1: dilation, reduction, branches, and blocks instead", unit, groups, told, path)


def _groups(section: Section) -> list[Group]:
    """The bars of a table: in 1a by what is varied, in 1c by network, each under its base."""
    from attneck.explain.bars import Group

    rows = section.rows
    number = f"Table {section.table.id}"
    if section.table.id == "1c":
        starts = [i for i, checked in enumerate(rows) if "+" not in checked.row.label] + [len(rows)]
        parts = [
            (rows[start], rows[start + 1 : end], rows[start].row.label) for start, end in pairwise(starts)
        ]
    elif section.table.id == "1a":
        base = next(checked for checked in rows if checked.row.printed["value"] == "-")
        names = dict.fromkeys(c.row.printed["variable"] for c in rows if c is not base)
        parts = [
            (base, [checked for checked in rows if checked.row.printed["variable"] == name], name)
            for name in names
        ]
    else:
        parts = [(rows[0], rows[1:], "branches and how they are combined")]
    return [
        Group(
            f"{number}, {title}; base {base.row.printed['top1_error']} %",
            [_bar(base, checked) for checked in others],
        )
        for base, others, title in parts
    ]


def _bar(base: Checked, checked: Checked) -> Bar:
    from attneck.explain.bars import Bar

    error = checked.row.printed["top1_error"]
    own, other = (measured("top1_error", one.runs) for one in (checked, base))
    mine = (other.mean - own.mean, f"{own} % measured") if own and other else None
    gain = float(base.row.printed["top1_error"]) - float(error)
    return Bar(checked.row.label, gain, f"{error} %" + (" printed" if mine else ""), mine)


def draw_table(section: Section, source: str, path: Path) -> None:
    """Draw a table into `path`, as `attneck papers` prints it."""
    from attneck.explain.table_picture import draw

    laid, about = sheet(section), section.paper
    title = f"{about.title}, {laid.title}"
    setup = f"{laid.setup} ({about.venue}, arXiv {about.arxiv})"
    notes = [*laid.footnotes, source] if any("measured" in word for word in laid.header) else laid.footnotes
    draw(title, setup, laid.header, laid.rows, notes, path)
