"""Figures for paper or screen; matplotlib draws them without a display."""

from __future__ import annotations

import io
import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from attneck.errors import UserError, one_line
from attneck.explain.fonts import savefig
from attneck.explain.palette import LINES
from attneck.explain.plain import plain, significant
from attneck.explain.vector import save
from attneck.files import told_apart
from attneck.training.records import RECORDS, Record, read_records

SCORES = {
    "top1": ("Top-1 error", "error (%)"),
    "box_AP": ("Box AP", "AP (%)"),
    "mAP": ("mAP at IoU 0.5", "mAP (%)"),
}
"""What runs are told apart by, and the title and unit of its panel."""
BESIDE = {"box_AP": ("mask_AP", ("Mask AP", "AP (%)"))}
"""A score that has a panel beside another where a run has it."""
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("training", {"linestyle": "--", "marker": "o", "markerfacecolor": "white"}),
    "val": ("held out", {"linestyle": "-", "marker": "o"}),
    "ema": ("averaged weights", {"linestyle": ":", "marker": "s"}),
}
FEW = 10
"""So many records or fewer are marked on the line, one alone being no line."""

MARKS = ("^", "D", "v", "P", "X", "*", "s")
"""Of runs past the colours."""
INSIDE = 4
"""So many runs or fewer are named inside of a panel; the names of more would hide the lines."""
UNDER: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2}
"""Where they stand else."""

INK = "#010203"
"""Stands for the page's own colour where a drawing is made for one."""
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))

GAP = (
    "Training is the mean since the last record, of images as the recipe augments them, while the weights "
    "change; held-out images are scored after it. Held out above training: the network knows its training "
    "images better, it over-fits. Below: training was the harder, by augmentation or dropout where there is "
    "any, and as the weights were not yet those that are scored."
)
OF_TRAINING = (
    "Training is the mean since the last record, of images as the recipe augments them, while the weights "
    "change. What is scored after it are images that were trained on, some or all: they show whether a "
    "network can learn them, and not what it makes of others."
)
LOSS_ALONE = (
    "The loss is of training images, the mean since the last record; AP is of held-out images at each record."
)


def curves(runs: list[Path], path: Path, *, held_out: bool = True) -> None:
    """Draw the loss and the top-1 error of each run by epoch into the file `path`.

    Training is dashed, held-out images are solid, and averaged weights (EMA) are dotted. For detectors AP
    takes the place of the error: of boxes and of masks, or VOC's mean. The last value of each run stands in
    the legend, and under the picture what the gap between training and held-out images means.

    held_out: False where a run is scored on images that it was trained on, or may have been.

    Raises:
        UserError: a folder without metrics.jsonl, runs with different scores, or a kind of file that
            matplotlib does not write.
        NotWritten: what was there stays as it was.
    """
    histories, panels = _panels(runs)
    below = _below(len(runs))
    figure = Figure(figsize=(5 * len(panels), 4.4 + below), layout="constrained")
    names = told_apart(runs)
    every = figure.subplots(1, len(panels))
    for axes, (key, labels) in zip(every, panels.items(), strict=True):
        _fill(axes, key, labels, names, histories, **UNDER if below else {})
    _legend(figure, histories, panels, held_out)
    figure.supxlabel(
        textwrap.fill(_gap(histories, held_out), 75 * len(panels)), fontsize="small", color="#444444"
    )
    try:
        save(figure, path, dpi=120, as_text=True)
    except ValueError as error:
        raise UserError(f"{path}: {one_line(error)}") from None


def drawings(runs: list[Path], *, held_out: bool = True) -> tuple[list[tuple[str, str]], str]:
    """The panels of `curves`, each as (title, SVG) to stand in a page, and the words under them.

    Ink is the page's own colour, `currentColor`, so that it can be read on dark and on light.

    Raises:
        UserError: as `curves`.
    """
    histories, panels = _panels(runs)
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    found = []
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "attneck", "font.size": 11}
    style |= dict.fromkeys(inks, INK)
    with mpl.rc_context(style):
        for key, labels in panels.items():
            below = _below(len(runs))
            height = 4 + below  # a layout that finds its own room takes three times as long
            figure = Figure(figsize=(5.6, height))
            axes = figure.add_axes((0.13, (0.52 + below) / height, 0.85, 2.8 / height))
            place = UNDER if below else {}
            _fill(axes, key, labels, told_apart(runs), histories, facecolor="none", **place)
            _legend(figure, histories, {key: labels}, held_out, "upper center")
            file = io.StringIO()
            savefig(figure, file, format="svg", transparent=True, metadata=NO_METADATA)
            # Its size is the page's to say, and of several drawings in a page each has names of its own.
            svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", file.getvalue())
            svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{key}-", svg[svg.index("<svg") :])
            found.append((labels[0], svg.replace(INK, "currentColor")))
    return found, _gap(histories, held_out)


def _panels(runs: list[Path]) -> tuple[list[list[Record]], dict[str, tuple[str, str]]]:
    """The runs' records, and the title and unit of each panel by its score.

    Raises:
        UserError: as `curves`.
    """
    histories = [_records(run) for run in runs]
    scored = {next((key for key in SCORES if f"val_{key}" in records[0]), "top1") for records in histories}
    if len(scored) > 1:
        raise UserError(f"these runs are scored by {' and '.join(sorted(scored))}: draw each kind alone")
    score = scored.pop()
    panels = {"loss": ("Loss", "loss"), score: SCORES[score]}
    if score in BESIDE:
        other, labels = BESIDE[score]
        panels |= {other: labels} if any(f"val_{other}" in records[0] for records in histories) else {}
    return histories, panels


def _fill(
    axes: Any,
    key: str,
    labels: tuple[str, str],
    names: list[str],
    histories: list[list[Record]],
    **legend: Any,
) -> None:
    """A panel: a run's lines in a colour each, and where colours come again with another mark."""
    for number, (name, records) in enumerate(zip(names, histories, strict=True)):
        again, colour = divmod(number, len(LINES))
        _draw(
            axes,
            key,
            name,
            records,
            LINES[colour],
            {"marker": MARKS[(again - 1) % len(MARKS)]} if again else {},
        )
    axes.set(xlabel="epoch", ylabel=labels[1], title=labels[0])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # a run may have none of these scores
        axes.legend(fontsize="small", title="last value", title_fontsize="small", **legend)


def _legend(
    figure: Figure,
    histories: list[list[Record]],
    panels: dict[str, Any],
    held_out: bool,
    place: Any = "outside upper center",
) -> None:
    """What the kinds of lines stand for."""
    there = {key for records in histories for record in records for key in record}
    splits = [split for split in STYLES if any(f"{split}_{key}" in there for key in panels)]
    figure.legend(
        handles=[Line2D([], [], color="grey", markersize=4, **STYLES[split][1]) for split in splits],
        labels=[STYLES[split][0] if held_out or split != "val" else "scored" for split in splits],
        loc=place,
        ncols=len(splits),
        fontsize="small",
        frameon=False,
    )


def _below(runs: int) -> float:
    """Inches that the names of so many runs take under a panel."""
    return 0.0 if runs <= INSIDE else 0.5 + 0.2 * -(-runs // 2)


def _gap(histories: list[list[Record]], held_out: bool) -> str:
    if not held_out:
        return OF_TRAINING
    return GAP if "val_loss" in histories[0][0] else LOSS_ALONE


def _draw(
    axes: Any, key: str, name: str, records: list[dict[str, float]], colour: str, own: dict[str, Any]
) -> None:
    """A run's lines in a panel; its last held-out value is in the legend, or what there is instead of one.

    Args:
        own: of its style, whatever the split.
    """
    lasts = []
    for split, (what, style) in STYLES.items():
        points = [(row["epoch"], row[f"{split}_{key}"]) for row in records if f"{split}_{key}" in row]
        if not points:
            continue
        epochs, values = zip(*points, strict=True)
        shown = [100 - value for value in values] if key == "top1" else values
        marked: Any = slice(None) if len(points) <= FEW else len(points) // FEW if own else []
        look = {"linewidth": 1.4, "markersize": 4, "markevery": marked, **style, **own}
        axes.plot(epochs, shown, color=colour, **look)
        last = shown[-1]
        small_share = key != "loss" and last < 1  # of a per cent two decimals are enough
        lasts.append((split, what, f"{last:.2f}" if small_share else significant(last)))
    told = [
        f"{value} {what}" if split != "val" else value for split, what, value in lasts if split != "train"
    ]
    if lasts:
        label = plain(f"{name}: {', '.join(told or [lasts[0][2]])}")
        axes.plot([], [], color=colour, markersize=4, label=label, **own)


def _records(run: Path) -> list[Record]:
    if records := read_records(run):
        return records
    raise UserError(f"{run} has no {RECORDS} there: give a run with at least one whole epoch")
