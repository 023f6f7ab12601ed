"""attneck eval: a run's scores on its held-out data."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from attneck.commands.progress import shown
from attneck.errors import UserError

NAMES = {"val": "weights", "ema": "their average"}


def score(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    root: Annotated[str | None, tyro.conf.arg(name="data.root")] = None,
    json_: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Scores of a run's newest checkpoint, for its weights (val) and their average (ema).

    Of a classifier top-1, top-5 and error; of a detector the papers' tables of AP, and what it found, in the
    run's detections.json as COCO's results.

    Args:
        run: the run's folder.
        root: where the data lies now; as in the run's recipe if not given.
        json_: print one JSON document and nothing else.
    """
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} is no run: there is no recipe.yaml in it (attneck train says where a run is)")

    from attneck.runs.run import evaluate
    from attneck.training.recipe import load_recipe

    data = load_recipe(str(run)).data.model_copy(update={"root": root}) if root else None
    scores = evaluate(run, data, partial(shown, what="held out", quiet=json_))
    if json_:
        print(json.dumps(scores))
        return
    print(f"{scores['model']}, step {scores['step']}, {scores['images']:,} held-out images")
    print(tables(scores["scores"]) if "scores" in scores else accuracies(scores))
    if "detections" in scores:
        print(f"detections  {scores['detections']}")


def accuracies(scores: dict[str, Any]) -> str:
    """A classifier's scores, a line for the weights and one for their average."""
    lines = []
    for prefix, name in NAMES.items():
        if f"{prefix}_top1" in scores:
            top1, top5, error, loss = (scores[f"{prefix}_{key}"] for key in ("top1", "top5", "error", "loss"))
            lines.append(
                f"{name:14} top-1 {top1:.2f} %  top-5 {top5:.2f} %  error {error:.2f} %  loss {loss:.4f}"
            )
    return "\n".join(lines)


def tables(scores: dict[str, Any]) -> str:
    """A detector's scores as BAM's Table 4b prints them, or BoTNet's Table 2 and BAM's Table 4a."""
    from attneck.detection.score_tables import bam_coco_table, botnet_table, voc_table

    rows = {NAMES[prefix]: row for prefix, row in scores.items()}
    if any("mAP" in row for row in rows.values()):
        return voc_table({name: (row["mAP"], row["classes"]) for name, row in rows.items()}, classes=True)
    found = botnet_table(rows, sizes=True)
    with_masks = any("segm" in row for row in rows.values())
    return found if with_masks else f"{found}\n\n{bam_coco_table(rows)}"


def main(words: list[str]) -> None:
    """Parse and run."""
    tyro.cli(score, prog="attneck eval", args=words)
