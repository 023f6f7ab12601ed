"""Part 6: CIFAR-100 by BAM's recipe, ResNet-50 with and without BAM, for as long as there is time."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attneck.errors import RunFailed

from .kept import Job, Kept, NotHere

MODELS = ("cifar_resnet50_bam", "cifar_resnet50")
RECIPE = ["cifar100-bam", "--precision", "bfloat16", "--data.workers", "8", "--checkpoint-minutes", "1"]
TINY = ["demo", "--epochs", "1", "--data.train-size", "64", "--data.val-size", "64"]
SAVING = 15.0
"""Seconds that a training has to save itself in."""


def work(kept: Kept, job: Job) -> bool:
    """Each in its share of the time; what was begun goes on from its checkpoint."""
    from attneck import Run

    if not job.tiny and not _data():
        raise NotHere("no CIFAR-100: set ATTNECK_DATA to a folder that holds cifar-100-python")
    over = True
    for number, model in enumerate(MODELS):
        if kept.rows.get(model, {}).get("over"):
            continue
        share = (job.left - SAVING) / (len(MODELS) - number)
        if share <= 0:
            return False
        folder = job.runs / model
        begun = (folder / "checkpoints").is_dir()
        name = [] if job.tiny else ["--model.name", model]
        recipe, *fields = TINY if job.tiny else RECIPE
        words = ["train", recipe, *name, *fields, "--out", str(folder), *["--resume"] * begun]
        kept.doing(model)
        code = train(words, share)
        if code not in (0, 128 + signal.SIGTERM):
            raise RunFailed(f"attneck {' '.join(words)} ended with code {code}: see what it printed")
        run = Run(folder)
        history = run.history if (folder / "metrics.jsonl").is_file() else []
        epochs = run.recipe.epochs
        kept.row(model, {"over": code == 0, "epochs": epochs, "history": history})
        over = over and code == 0
        print(f"{model}: {said(kept.rows[model])}", flush=True)
    return over


def train(words: list[str], seconds: float) -> int:
    """The exit code of `attneck WORDS`, asked to save itself and end after so many seconds."""

    def die_together() -> None:
        if sys.platform == "linux":
            parent_death_signal = 1
            ctypes.CDLL(None).prctl(parent_death_signal, int(signal.SIGTERM))

    process = subprocess.Popen([sys.executable, "-m", "attneck", *words], preexec_fn=die_together)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            return process.wait(SAVING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return 128 + signal.SIGTERM  # what its last checkpoint has is kept


def _data() -> bool:
    root = os.environ.get("ATTNECK_DATA")
    return bool(root) and Path(str(root), "cifar-100-python").is_dir()


def said(row: dict[str, Any]) -> str:
    """A run in a line."""
    history = row["history"]
    if not history:
        return "no epoch yet"
    seconds = sorted(record["seconds"] for record in history)[len(history) // 2]
    best = max(record["val_top1"] for record in history)
    return (
        f"epoch {history[-1]['epoch']} of {row['epochs']}, {seconds:.1f} s an epoch; "
        f"best top-1 {best:.2f} %, last {history[-1]['val_top1']:.2f} %"
    )


def lines(document: dict[str, Any]) -> Iterator[str]:
    """A line a run."""
    for model, row in document["rows"].items():
        yield f"{model}: {said(row)}"
