"""The pictures in a run's folder: curves, held-out images, and a confusion matrix or precision by recall.

They are drawn of what the last evaluation said, so no model runs for them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attneck.errors import one_line

if TYPE_CHECKING:
    from PIL import Image

    from attneck.tasks.task import Evaluation, Facts, Found, Task

PICTURES = "pictures"
TILES = 24
"""Held-out images of a classifier on its page."""
SIDE, MOST = 480, 1 << 20
"""Of a detector's pictures: pixels of the longer side on the page, and of an image whose masks are drawn."""
LEAST = 0.5
"""The score from which on an object is drawn."""


def draw_pictures(folder: Path, task: Task, facts: Facts) -> None:
    """Draw a run's pictures into its folder, in place of those of an earlier end of it.

    facts: the run's, with the fingerprints of its data.

    Nothing that goes wrong here ends the run, which is whole by then: it is a line on stderr.
    """
    try:
        _draw(folder, task, facts)
    except Exception as error:
        print(
            f"attneck: {folder / PICTURES}: not all pictures were drawn ({type(error).__name__}: "
            f"{one_line(error, 150)}); the run itself is whole",
            file=sys.stderr,
        )


def evaluation_picture(folder: Path, evaluation: Evaluation, title: str) -> list[Path]:
    """confusion.png or pr-curves.png; none of a classifier of too many classes for a matrix.

    Raises NotWritten where it cannot be written.
    """
    from attneck.files import write_atomic

    if evaluation.curves is not None:
        from attneck.explain.pr_curves import pr_picture

        file = folder / "pr-curves.png"
        write_atomic(file, pr_picture(evaluation.curves, title))
        return [file]
    confusion = evaluation.confusion
    if confusion is None or (counts := confusion.counts()) is None:
        return []
    from attneck.explain.confusion import confusion_picture

    file = folder / "confusion.png"
    write_atomic(file, confusion_picture(counts, confusion.classes, title))
    return [file]


def _draw(folder: Path, task: Task, facts: Facts) -> None:
    from attneck.explain.figures import curves
    from attneck.files import write_atomic
    from attneck.runs.scored_on import scored_on

    place = folder / PICTURES
    place.mkdir(exist_ok=True)
    curves([folder], place / "curves.png")
    if task.last is None:  # of a run that had ended before: the others are there
        return
    images, name = scored_on(task.recipe, facts), task.recipe.model.name
    evaluation_picture(place, task.last, f"{name}, {task.last.images:,} {images}")
    draw = _detected if task.last.confusion is None else _classified
    write_atomic(place / "predictions.png", draw(task, task.last, f"{name}, {images}"))


def _classified(task: Task, evaluation: Evaluation, title: str) -> bytes:
    """A page of the surest mistakes, then of others, which are right where all mistakes are known."""
    from attneck.data.sampling import spread
    from attneck.explain.contact_sheet import Tile, pages, small
    from attneck.tasks.confusion import KEPT

    assert evaluation.confusion is not None
    classes, mistakes = evaluation.confusion.classes, evaluation.confusion.mistakes
    tiles = [
        Tile(
            small(task.sample(one.image).image),
            (f"{classes[one.predicted]} {one.score:.2f}", f"is {classes[one.label]}"),
            False,
        )
        for one in mistakes[:TILES]
    ]
    known = {one.image for one in mistakes}
    others = spread(evaluation.images, min(TILES, evaluation.images), title).tolist()
    for index in others if len(mistakes) < KEPT else []:
        if index not in known and len(tiles) < TILES:
            sample = task.sample(index)
            assert sample.truth is not None
            tiles.append(Tile(small(sample.image), (str(sample.truth[0]["category"]),), True))
    return next(pages(tiles, f"{title}: the surest mistakes first"))


def _detected(task: Task, evaluation: Evaluation, title: str) -> bytes:
    """A page of images, each twice: with what is there, and with what was found."""
    from attneck.data.sampling import spread
    from attneck.explain.contact_sheet import Tile, pages, small
    from attneck.explain.detections import draw
    from attneck.tasks.detection import PICTURED

    tiles = []
    names = dict(zip(task.held_out.category_ids, task.held_out.classes, strict=True))
    for index in spread(evaluation.images, min(PICTURED, evaluation.images), title).tolist():
        sample, record = task.sample(index), task.held_out.record(index)
        found = [
            row | {"category": names[row["category_id"]]}
            for row in evaluation.detections or []
            if row["image_id"] == record.id and row["score"] >= LEAST
        ]
        for rows, what in ((sample.truth or [], "there"), (found, f"found, {LEAST:g} or surer")):
            picture = draw(*_bounded(sample.image, rows))
            tiles.append(Tile(small(picture, SIDE), (f"{Path(sample.file).name}: {what}",)))
    return next(pages(tiles, title, SIDE, 4))


def _bounded(image: Image.Image, rows: Found) -> tuple[Image.Image, Found]:
    """An image of at most MOST pixels and what is in it: of a larger one the boxes alone."""
    scale = (MOST / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image, rows
    small = image.resize((max(1, int(scale * image.width)), max(1, int(scale * image.height))))
    return small, [
        {name: value for name, value in row.items() if name != "segmentation"}
        | {"bbox": [scale * side for side in row["bbox"]]}
        for row in rows
    ]
