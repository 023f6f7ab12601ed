"""Figures for paper or screen, drawn by matplotlib without a display."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from attneck.errors import UserError


def curves(runs: list[Path], path: Path) -> None:
    """Draw each run's loss and top-1 error by epoch, training dashed and held-out solid, into `path`.

    Raises:
        UserError: a folder without metrics.jsonl, or a kind of file that matplotlib does not write.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        records = _records(run)
        epochs = [record["epoch"] for record in records]
        colour = f"C{number}"
        for axes, key in ((left, "loss"), (right, "top1")):
            for part, style in (("train", "--"), ("val", "-"), ("ema", ":")):
                if f"{part}_{key}" not in records[0]:
                    continue
                values = [record[f"{part}_{key}"] for record in records]
                shown = values if key == "loss" else [100 - value for value in values]
                label = f"{run.name}: {shown[-1]:.2f}" if part == "val" else None
                axes.plot(epochs, shown, style, color=colour, label=label, linewidth=1.4)
    left.set(xlabel="epoch", ylabel="loss", title="Loss")
    right.set(xlabel="epoch", ylabel="error (%)", title="Top-1 error")
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
        raise UserError(f"{run}: no metrics.jsonl there: it needs a run with at least one whole epoch")
    return [json.loads(line) for line in file.read_text().splitlines()]
