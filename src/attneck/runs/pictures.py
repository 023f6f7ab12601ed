"""The pictures in a run's folder: curves, held-out images, and a confusion matrix or precision by recall.

They are drawn of what the last evaluation said, so no model runs for them. What a report needs of it beside
them is kept by `attneck.runs.scored`. The report comes last, of all that is in the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attneck.errors import UserError, one_line, say
from attneck.runs.folder import PICTURES
from attneck.runs.scored import Scored, Shown, read_scored, write_scored
from attneck.training.records import read_records

if TYPE_CHECKING:
    from PIL import Image

    from attneck.explain.contact_sheet import Tile
    from attneck.tasks.task import Evaluation, Facts, Found, Task

TILES = 24
"""Held-out images of a classifier on its page."""
SIDE, MOST = 480, 1 << 20
"""Of a detector's pictures: pixels of the longer side on the page, and of an image whose masks are drawn."""
LEAST = 0.5
"""The score from which on an object is drawn."""


def draw_pictures(folder: Path, task: Task, facts: Facts) -> None:
    """Draw a run's pictures into its folder, in place of those of an earlier end of it, and its report.

    facts: the run's, with the fingerprints of its data.

    Nothing that goes wrong here ends the run, which is whole by then: it is a line on stderr.
    """
    from attneck.runs.report import REPORT, write_report

    faults = []
    for what, draw in (
        (f"not all of {PICTURES}/ was drawn", lambda: _draw(folder, task, facts)),
        (f"{REPORT} was not written", lambda: write_report([folder], folder / REPORT)),
    ):
        try:
            draw()
        except Exception as error:
            faults.append(f"{what} ({type(error).__name__}: {one_line(error, 120)})")
    if faults:
        said = ", and ".join(faults)
        say(f"{folder}: {said}; the run itself is whole")


def lacking(folder: Path) -> bool:
    """Whether a run that goes on was ended before the pictures of its last record were drawn."""
    try:
        records = read_records(folder)
    except UserError:  # the run writes them anew
        return True
    try:
        scored = read_scored(folder)
    except ValueError:
        return True
    return not records or scored is None or scored.step != records[-1]["step"]


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
    from attneck.explain.contact_sheet import pages
    from attneck.explain.figures import curves
    from attneck.files import write_atomic
    from attneck.runs.run import Run
    from attneck.runs.scored_on import HELD_OUT, scored_on

    images, name = scored_on(task.recipe, facts), task.recipe.model.name
    place = folder / PICTURES
    place.mkdir(exist_ok=True)
    curves([folder], place / "curves.png", held_out=images == HELD_OUT)
    if task.last is None:  # of a run that had ended with them
        return
    evaluation_picture(place, task.last, f"{name}, {task.last.images:,} {images}")
    title = f"{name}, {images}"
    if task.last.confusion is None:
        tiles = _detected(task, task.last, title)
        page = pages(tiles, title, SIDE, 4)
    else:
        tiles = _classified(task, task.last, title)
        page = pages(tiles, f"{title}: the surest mistakes first")
    write_atomic(place / "predictions.png", next(page))
    write_scored(folder, _scored(Run(folder).history[-1]["step"], task.last, tiles, images))


def _scored(step: int, evaluation: Evaluation, tiles: list[Tile], images: str) -> Scored:
    """What a report says of an evaluation of `images` at that step."""
    from attneck.explain.inline import data_uri
    from attneck.runs.class_table import ALL, BEST, PAIRS, WORST, class_table

    heads, rows = class_table(evaluation)
    there = sorted((row for row in rows if row[2] is not None), key=lambda row: row[2])
    confusion = evaluation.confusion
    pairs = confusion.pairs() if confusion is not None else []
    return Scored(
        step=step,
        images=evaluation.images,
        scored_on=images,
        heads=heads,
        classes=len(rows),
        worst=there if len(there) <= ALL else there[:WORST],
        best=[] if len(there) <= ALL else there[-BEST:],
        pairs=[
            (rows[label][0], rows[other][0], times, rows[label][1]) for label, other, times in pairs[:PAIRS]
        ],
        kinds_of_mistakes=len(pairs),
        mistakes=sum(times for _, _, times in pairs),
        tiles=[
            Shown(picture=data_uri(tile.image), lines=list(tile.lines), right=tile.right) for tile in tiles
        ],
    )


def _classified(task: Task, evaluation: Evaluation, title: str) -> list[Tile]:
    """The surest mistakes, then others, which are right where all mistakes are known."""
    from attneck.data.sampling import spread
    from attneck.explain.contact_sheet import Tile, small
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
    return tiles


def _detected(task: Task, evaluation: Evaluation, title: str) -> list[Tile]:
    """Images, each twice: with what is there, and with what was found."""
    from attneck.data.sampling import spread
    from attneck.explain.contact_sheet import Tile, small
    from attneck.explain.detections import draw, numbered
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
        both = [sample.truth or [], found]
        for rows, numbers, what in zip(
            both, numbered(both), ("there", f"found, {LEAST:g} or surer"), strict=True
        ):
            picture = draw(*_bounded(sample.image, rows), numbers)
            tiles.append(Tile(small(picture, SIDE), (f"{Path(sample.file).name}: {what}",)))
    return tiles


def _bounded(image: Image.Image, rows: Found) -> tuple[Image.Image, Found]:
    """An image of at most MOST pixels and what is in it: of a larger one the boxes alone."""
    from attneck.data.readers.decode import within

    size = within(image.size, MOST)
    if size == image.size:
        return image, rows
    across, down = size[0] / image.width, size[1] / image.height
    return image.resize(size), [
        {name: value for name, value in row.items() if name != "segmentation"}
        | {"bbox": [side * scale for side, scale in zip(row["bbox"], (across, down) * 2, strict=True)]}
        for row in rows
    ]
