"""attneck eval: a run's scores on its held-out data, whole and class by class."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from attneck.commands.arguments import Checkpoint, Json, call
from attneck.commands.evaluation_files import PAIRS, class_table, told, write_details
from attneck.commands.progress import shown
from attneck.commands.results_folder import folder_for
from attneck.errors import UserError, is_first, say
from attneck.files import NotWritten, write_atomic


def score(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    root: Annotated[str | None, tyro.conf.arg(name="data.root", aliases=["--root"])] = None,
    val_share: Annotated[float | None, tyro.conf.arg(name="data.val-share", aliases=["--val-share"])] = None,
    checkpoint: Checkpoint = "newest",
    image_size: int | None = None,
    out: Path | None = None,
    json_: Json = False,
) -> None:
    """Scores of a run's newest or best checkpoint, for its weights (val) and their average (ema).

    Of a classifier top-1, top-5 and error, the accuracy of each class, and what is confused most; of a
    detector the papers' tables of AP, each class's, and what it found, as COCO's results in detections.json,
    in --out or else in the run's folder; of other data beside the tables. per-class.csv, and a confusion
    matrix as CSV and picture, or precision by recall as a picture, go into a new folder. An image_id is
    COCO's; of VOC it is the image's place in the split's list, from 1.

    Args:
        run: the run's folder.
        root: where the data lies now; as in the run's recipe if not given.
        val_share: the share of --data.root's class folders that is scored, by the hash of the images' names,
            where there is no folder val; 1 scores all. The run's own if not given.
        checkpoint: the newest, or the best by the recipe's metric.
        image_size: the side of the held-out images in pixels; the run's own if not given.
        out: the folder for tables and pictures, new or empty; if not given evaluation in the run's, or
            evaluation-2 and so on where that is taken.
        json_: print one JSON document and nothing else.
    """
    from attneck.runs.run import NAMES, Run

    if val_share is not None and root is None:
        raise UserError(
            "--data.val-share goes with --data.root: of its own images a run scores those it did not train on"
        )
    known = Run(run, checkpoint)
    recipe = known.recipe  # refuses what is no run, before torch is imported
    from attneck.runs.scored_on import OTHER, scored_on

    known.facts  # noqa: B018 - refuses a run without a checkpoint, before a folder is made
    first = is_first()
    folder = folder_for(run, "evaluation", out) if out is not None and first else None
    elsewhere = None if root is None else known.data(root=root, val_share=val_share).fingerprint()
    images = scored_on(recipe, known.facts, elsewhere)
    if images == OTHER and recipe.data.val_share is not None and val_share is None:
        say(
            f"of {root} the share of {recipe.data.val_share:g} is scored that the run's recipe "
            "holds out: --data.val-share 1 scores all",
            once=True,
        )
    watch = partial(shown, what=images, quiet=json_)
    found = known.evaluate(root=root, val_share=val_share, image_size=image_size, watch=watch)
    if folder is None and first:
        folder = _new_folder(run)
    best = [*found.values()][-1]
    detections = None
    if best.detections is not None and first:
        place = run if out is None and images != OTHER else folder
        detections = None if place is None else _detections(place, best.detections)
    size = "" if image_size is None else f" of {image_size} pixels"
    title = f"{recipe.model.name}, step {known.step}, {best.images:,} {images}{size}"
    files = write_details(folder, best, title) if folder is not None else []
    if not first:
        return
    if json_:
        document = {
            "run": str(run),
            "model": recipe.model.name,
            "step": known.step,
            "checkpoint": checkpoint,
            "images": best.images,
            "scored_on": images,
            "image_size": image_size or known.facts["image_size"],
        }
        for name, one in found.items():
            document |= {f"{name}_{key}": value for key, value in one.scores.items()}
        if best.detections is not None:
            document |= {
                "detections": None if detections is None else str(detections),
                "scores": {name: one.details for name, one in found.items()},
            }
        heads, rows = class_table(best)
        document["classes"] = [dict(zip(heads, row, strict=True)) for row in rows]
        if best.confusion is not None:
            names = best.confusion.classes
            pairs = best.confusion.pairs()[:PAIRS]
            document["confused"] = [[names[label], names[other], times] for label, other, times in pairs]
        document["files"] = [str(file) for file in files]
        print(json.dumps(document))
        return
    print(title)
    print(known.tables(found))
    if words := told(best):
        print(f"\nclass by class, {NAMES[[*found][-1]]}\n{words}\n")
    if detections is not None:
        print(f"detections  {detections}")
    if files:
        print(f"details     {files[0].parent}  ({', '.join(file.name for file in files)})")


def _detections(folder: Path, found: list[dict[str, Any]]) -> Path | None:
    """The file of COCO's results in a folder; None, with a line, where that takes none."""
    file = folder / "detections.json"
    try:
        write_atomic(file, json.dumps(found).encode())
    except NotWritten as error:
        say(f"the detections are not kept: {error}")
        return None
    return file


def _new_folder(run: Path) -> Path | None:
    """A folder for details in the run's; None, with a line, where that takes none."""
    try:
        return folder_for(run, "evaluation", None)
    except UserError as error:
        say(f"no tables and pictures are written: {error}")
        return None


def main(words: list[str]) -> None:
    """Parse and run."""
    call(score, "attneck eval", words)
