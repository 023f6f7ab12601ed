"""attneck eval: a run's scores on its held-out data, or a saved model's on any, whole and class by class."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from attneck.checks import one_of
from attneck.commands.arguments import Checkpoint, Json, call
from attneck.commands.evaluation_files import PAIRS, class_table, told, write_details
from attneck.commands.finder import check_trained
from attneck.commands.given_model import Kind, only_of_runs
from attneck.commands.progress import shown
from attneck.commands.results_folder import folder_for
from attneck.commands.scorer import Scorer, of_run, of_saved
from attneck.data.table import SETS
from attneck.errors import UserError, is_first, say, user_mistakes
from attneck.files import NotWritten, strict, write_atomic
from attneck.runs.run import NAMES, Run

if TYPE_CHECKING:
    from attneck.tasks.task import Evaluation


def score(
    model: Annotated[Path, tyro.conf.Positional],
    /,
    data: Annotated[str | None, tyro.conf.arg(name="data.name", aliases=["--data"])] = None,
    split: Annotated[str | None, tyro.conf.arg(name="data.val-split", aliases=["--split"])] = None,
    root: Annotated[str | None, tyro.conf.arg(name="data.root", aliases=["--root"])] = None,
    val_share: Annotated[float | None, tyro.conf.arg(name="data.val-share", aliases=["--val-share"])] = None,
    checkpoint: Checkpoint = "newest",
    image_size: int | None = None,
    recalibrate: int | None = None,
    out: Path | None = None,
    json_: Json = False,
) -> None:
    """Scores of a run's newest or best checkpoint, for its weights (val) and their average (ema).

    Or of a saved model, or timm's, on the images that --data.name and --data.root say.

    Of a classifier top-1, top-5 and error, the accuracy of each class, and what is confused most; of a
    detector the papers' tables of AP, each class's, and what it found, as COCO's results in detections.json,
    in --out or else in the run's folder; of other data beside the tables. per-class.csv, and a confusion
    matrix as CSV and picture, or precision by recall as a picture, go into a new folder. An image_id is
    COCO's; of VOC it is the image's place in the split's list, from 1.

    Args:
        model: a run's folder, what attneck.hub.save wrote, or timm/NAME: that network with timm's weights.
        data: of a saved model, the data set (attneck data where NAME says where each lies); a classifier's is
            folder if not given, a directory of images in a folder each class.
        split: of a saved model, the part of that data; val if not given.
        root: where the data lies now; as in the run's recipe, or ATTNECK_DATA, if not given.
        val_share: the share of --data.root's class folders that is scored, by the hash of the images' names,
            where there is no folder val; 1 scores all. The run's own if not given.
        checkpoint: the newest of a run, or the best by the recipe's metric.
        image_size: the side of the images in pixels; the run's or the model's own if not given.
        recalibrate: of a run's classifier, score it with BatchNorm statistics of so many of its training
            images, of --image-size: 2000 say; of other data at --data.root, of its training images there.
            attneck export --recalibrate keeps them.
        out: the folder for tables and pictures, new or empty; if not given evaluation in the run's, of a
            saved model in this one, or evaluation-2 and so on where that is taken.
        json_: print one JSON document and nothing else.
    """
    if val_share is not None and root is None:
        raise UserError(
            "--data.val-share goes with --data.root: of its own images a run scores those it did not train on"
        )
    kind = check_trained(model)
    only_of_runs(
        model, kind, {"--checkpoint": checkpoint != "newest", "--recalibrate": recalibrate is not None}
    )
    _check_data(model, kind, data, split)
    if kind == "run":
        scorer, place = of_run(Run(model, checkpoint), root, val_share, image_size, recalibrate), model
    else:
        scorer, place = of_saved(model, kind, data, split, root, val_share, image_size), Path()
    first = is_first()
    folder = folder_for(place, "evaluation", out) if out is not None and first else None
    found = scorer.evaluate(partial(shown, what=scorer.images, quiet=json_))
    if folder is None and first:
        folder = _new_folder(place)
    best = [*found.values()][-1]
    detections = None
    if best.detections is not None and first:
        beside = model if out is None and scorer.own else folder
        detections = None if beside is None else _detections(beside, best.detections)
    title = _title(scorer, best.images, image_size, recalibrate)
    files = write_details(folder, best, title) if folder is not None else []
    if not first:
        return
    if json_:
        document = _document(scorer, checkpoint, found, detections, files)
        more = {} if recalibrate is None else {"recalibrated": recalibrate}
        print(json.dumps(strict(document | more)))
        return
    print(title)
    print(scorer.tables(found))
    if words := told(best):
        print(f"\nclass by class, {NAMES[[*found][-1]]}\n{words}\n")
    if detections is not None:
        print(f"detections  {detections}")
    if files:
        print(f"details     {files[0].parent}  ({', '.join(file.name for file in files)})")


def _check_data(model: Path, kind: Kind, data: str | None, split: str | None) -> None:
    """UserError for a run, whose recipe names its data, and for a data set that there is not."""
    if kind == "run" and (data or split):
        flag = "--data.name" if data else "--data.val-split"
        raise UserError(f"{flag} is of saved models, and {model} has a recipe, which says it: leave it out")
    if data is not None:
        with user_mistakes():
            one_of("--data.name", data, SETS)


def _title(scorer: Scorer, images: int, image_size: int | None, recalibrate: int | None) -> str:
    """What was scored, and on what."""
    step = "" if scorer.step is None else f", step {scorer.step}"
    size = "" if image_size is None else f" of {image_size} pixels"
    whose = "" if scorer.own else " of that data"
    norms = "" if recalibrate is None else f", BatchNorm by {recalibrate:,} training images{whose}"
    return f"{scorer.model}{step}, {images:,} {scorer.images}{size}{norms}"


def _document(
    scorer: Scorer,
    checkpoint: Checkpoint,
    found: dict[str, Evaluation],
    detections: Path | None,
    files: list[Path],
) -> dict[str, Any]:
    """What --json prints."""
    best = [*found.values()][-1]
    document: dict[str, Any] = {
        "run": str(scorer.path),
        "model": scorer.model,
        "step": scorer.step,
        "checkpoint": checkpoint if scorer.step is not None else None,
        "images": best.images,
        "scored_on": scorer.images,
        "image_size": scorer.image_size,
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
    return document | {"files": [str(file) for file in files]}


def _detections(folder: Path, found: list[dict[str, Any]]) -> Path | None:
    """The file of COCO's results in a folder; None, with a line, where that takes none."""
    file = folder / "detections.json"
    try:
        write_atomic(file, json.dumps(found).encode())
    except NotWritten as error:
        say(f"the detections are not kept: {error}")
        return None
    return file


def _new_folder(where: Path) -> Path | None:
    """A folder for details there; None, with a line, where that takes none."""
    try:
        return folder_for(where, "evaluation", None)
    except UserError as error:
        say(f"no tables and pictures are written: {error}")
        return None


def main(words: list[str]) -> None:
    """Parse and run."""
    call(score, "attneck eval", words)
