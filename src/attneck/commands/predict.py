"""attneck predict: what a run's model finds in images, as JSON, and objects drawn on them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from attneck.commands.arguments import call
from attneck.commands.progress import shown
from attneck.errors import UserError, user_mistakes

if TYPE_CHECKING:
    from attneck.tasks.task import Found, Sample


def predict(
    run: Annotated[Path, tyro.conf.Positional],
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    held_out: int = 0,
    out: Path | None = None,
    min_score: float | None = None,
    beside: Path | None = None,
) -> None:
    """Find what is in images with a run's model: their class, or objects, with masks where it has them.

    Writes predictions.json: a classifier's five likeliest classes, or COCO's results; the images that they
    are of, and their classes' names. Of a detector also a picture for each image, called as it is.

    Args:
        run: the run's folder.
        images: image files.
        held_out: so many of the run's own held-out images as well, evenly spread; a picture then has what is
            in the image, beside what was found.
        out: the folder to write into; predictions in the run's if not given.
        min_score: what is less sure is left out, 0 to 1; if not given 0.5 of objects, 0 of classes.
        beside: another run of the same kind: both are shown, side by side.
    """
    if not images and held_out == 0:
        raise UserError(f"no image given: attneck predict {run} IMAGE…, or --held-out 4 for some of its own")
    if held_out < 0:
        raise UserError(f"--held-out {held_out}: give how many, 0 or more")
    if min_score is not None and not 0 <= min_score <= 1:
        raise UserError(f"--min-score {min_score}: give 0 to 1")

    from attneck.runs.run import Run

    runs = [Run(folder) for folder in ([run] if beside is None else [run, beside])]
    for one in runs:
        one.recipe  # noqa: B018 - refuses what is no run, before anything heavy is imported

    if len({one.finds_objects for one in runs}) > 1:
        raise UserError(
            f"--beside {beside}: one of the two runs finds boxes, one classes: give two of a kind"
        )

    from attneck.data.readers.decode import decode
    from attneck.files import write_atomic
    from attneck.tasks.task import Sample

    with user_mistakes():
        samples = [Sample(str(path), decode(str(path), "predict"), None) for path in images]
    if held_out > 0:
        samples += runs[0].samples(held_out)
    pictures = [sample.image for sample in samples]
    least = min_score if min_score is not None else 0.5 if runs[0].finds_objects else 0.0
    found = [one.predict(shown(pictures, one.recipe.model.name), min_score=least) for one in runs]
    folder = out if out is not None else run / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    titles = [one.recipe.model.name for one in runs]
    for number, (sample, name) in enumerate(zip(samples, names(samples), strict=True)):
        here = [rows[number] for rows in found]
        if runs[0].finds_objects:
            file = folder / f"{name}.png"
            draw_objects(sample, here, titles, file)
            print(f"{file}  {' and '.join(str(len(rows)) for rows in here)} objects")
        else:
            print(f"{sample.file}  {' | '.join(map(classes, here))}{truth(sample)}")
    document = {
        "images": [
            {
                "id": number,
                "file_name": sample.file,
                "width": sample.image.width,
                "height": sample.image.height,
            }
            for number, sample in enumerate(samples)
        ],
        "runs": [
            {
                "run": str(one.folder),
                "model": one.recipe.model.name,
                "step": one.step,
                "detections": [
                    row | {"image_id": number} for number, rows in enumerate(each) for row in rows
                ],
            }
            for one, each in zip(runs, found, strict=True)
        ],
    }
    file = folder / "predictions.json"
    write_atomic(file, (json.dumps(document, indent=1) + "\n").encode())
    print(file)


def draw_objects(sample: Sample, found: list[Found], titles: list[str], file: Path) -> None:
    """A picture of an image: what is in it, where that is known, and what each run found, side by side."""
    from attneck.explain.detections import beside, draw

    drawn = [draw(sample.image, rows) for rows in found]
    if sample.truth is not None:
        drawn, titles = [draw(sample.image, sample.truth), *drawn], ["what is there", *titles]
    if len(drawn) > 1:
        beside(drawn, titles).savefig(file, bbox_inches="tight")
    else:
        drawn[0].save(file)


def classes(rows: Found) -> str:
    """A classifier's rows in a line."""
    return ", ".join(f"{row['category']} {row['score']:.2f}" for row in rows)


def truth(sample: Sample) -> str:
    """The class of an image, where it is known."""
    return f"  (it is {sample.truth[0]['category']})" if sample.truth else ""


def names(samples: list[Sample]) -> list[str]:
    """A picture's name for each image: its own without its ending; numbered where two have the same."""
    stems = [Path(scene.file).stem for scene in samples]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else f"{number}-{stem}" for number, stem in enumerate(stems, 1)]


def main(words: list[str]) -> None:
    """Parse and run."""
    call(predict, "attneck predict", words)
