"""attneck eval: a run's scores on its held-out data."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from attneck.commands.arguments import call
from attneck.commands.progress import shown
from attneck.files import write_atomic


def score(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    root: Annotated[str | None, tyro.conf.arg(name="data.root")] = None,
    checkpoint: Literal["newest", "best"] = "newest",
    json_: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Scores of a run's newest or best checkpoint, for its weights (val) and their average (ema).

    Of a classifier top-1, top-5 and error; of a detector the papers' tables of AP, and what it found, in the
    run's detections.json as COCO's results.

    Args:
        run: the run's folder.
        root: where the data lies now; as in the run's recipe if not given.
        checkpoint: the newest, or the best by the recipe's metric.
        json_: print one JSON document and nothing else.
    """
    from attneck.runs.run import Run

    known = Run(run, checkpoint)
    recipe = known.recipe  # refuses what is no run, before torch is imported
    found = known.evaluate(root=root, watch=partial(shown, what="held out", quiet=json_))
    best = [*found.values()][-1]
    detections = run / "detections.json"
    if best.detections is not None and os.environ.get("RANK", "0") == "0":
        write_atomic(detections, json.dumps(best.detections).encode())
    if json_:
        document = {
            "run": str(run),
            "model": recipe.model.name,
            "step": known.step,
            "checkpoint": checkpoint,
            "images": best.images,
        }
        for name, one in found.items():
            document |= {f"{name}_{key}": value for key, value in one.scores.items()}
        if best.detections is not None:
            document |= {
                "detections": str(detections),
                "scores": {name: one.details for name, one in found.items()},
            }
        print(json.dumps(document))
        return
    print(f"{recipe.model.name}, step {known.step}, {best.images:,} held-out images")
    print(known.tables(found))
    if best.detections is not None:
        print(f"detections  {detections}")


def main(words: list[str]) -> None:
    """Parse and run."""
    call(score, "attneck eval", words)
