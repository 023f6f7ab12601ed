"""Figures for paper or screen; matplotlib draws them without a display."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from attneck.errors import UserError

SCORES = {
    "top1": ("Top-1 error", "error (%)"),
    "box_AP": ("Box AP", "AP (%)"),
    "mAP": ("mAP at IoU 0.5", "mAP (%)"),
}


def curves(runs: list[Path], path: Path) -> None:
    """Draw the loss and the top-1 error of each run by epoch into the file `path`.

    Training is dashed, held-out images are solid, and averaged weights (EMA) are dotted. For detectors AP
    takes the place of the error: of boxes, or VOC's mean.

    Raises:
        UserError: a folder without metrics.jsonl, runs with different scores, or a kind of file that
            matplotlib does not write.
    """
    histories = [_records(run) for run in runs]
    scored = {next((key for key in SCORES if f"val_{key}" in records[0]), "top1") for records in histories}
    if len(scored) > 1:
        raise UserError(f"these runs are scored by {' and '.join(sorted(scored))}: draw each kind alone")
    score = scored.pop()
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (run, records) in enumerate(zip(runs, histories, strict=True)):
        epochs = [record["epoch"] for record in records]
        colour = f"C{number}"
        for axes, key in ((left, "loss"), (right, score)):
            for split, style in (("train", "--"), ("val", "-"), ("ema", ":")):
                if f"{split}_{key}" not in records[0]:
                    continue
                values = [record[f"{split}_{key}"] for record in records]
                shown = [100 - value for value in values] if key == "top1" else values
                named = split == "val" or f"val_{key}" not in records[0]
                label = f"{run.name}: {shown[-1]:.2f}" if named else None
                axes.plot(epochs, shown, style, color=colour, label=label, linewidth=1.4)
    left.set(xlabel="epoch", ylabel="loss", title="Loss")
    name, unit = SCORES[score]
    right.set(xlabel="epoch", ylabel=unit, title=name)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(title="held out (solid), training (dashed)", title_fontsize="small", fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None


def _records(run: Path) -> list[dict[str, float]]:
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"{run} has no metrics.jsonl there: give a run with at least one whole epoch")
    try:
        records = [json.loads(line) for line in file.read_bytes().splitlines()]
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): it is written anew when the run goes on") from None
    if not records or not all(isinstance(record, dict) and "epoch" in record for record in records):
        raise UserError(f"{file} holds no records of epochs: it is written anew when the run goes on")
    return records
