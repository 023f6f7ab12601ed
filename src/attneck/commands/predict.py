"""attneck predict: what a run's model finds in images, as JSON, and objects drawn on them."""

from __future__ import annotations

import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from attneck.commands.arguments import call
from attneck.commands.progress import shown
from attneck.errors import RunFailed, UserError

if TYPE_CHECKING:
    from PIL import Image

    from attneck.runs.run import Run
    from attneck.tasks.task import Found, Sample

LONGEST_NAME = 200
"""Bytes of a picture's name without its ending; file systems take 255."""


def predict(
    run: Annotated[Path, tyro.conf.Positional],
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    held_out: int = 0,
    out: Path | None = None,
    min_score: float | None = None,
    beside: Path | None = None,
    max_pixels: int | None = None,
    checkpoint: Literal["newest", "best"] = "newest",
) -> None:
    """Find what is in images with a run's model: their class, or objects, with masks where it has them.

    Writes predictions.json: a classifier's five likeliest classes, or COCO's results; the images that they
    are of, and their classes' names. Of a detector also a picture for each image, called as it is, or with a
    number where two have one name. Nothing that is there already is written to.

    A photo far larger than the model's images is made smaller before the model sees it (seen_as in the JSON);
    what is found is in the photo's own pixels.

    Args:
        run: the run's folder.
        images: image files: JPEG, PNG, WebP, BMP, GIF, TIFF or PPM.
        held_out: so many of the run's own held-out images as well, evenly spread; a picture then has what is
            in the image, beside what was found.
        out: the folder to write into, new or empty; if not given predictions in the run's, or predictions-2
            and so on where that is taken.
        min_score: what is less sure is left out, 0 to 1; if not given 0.5 of objects, 0 of classes.
        beside: another run of the same kind: both are shown, side by side.
        max_pixels: a larger image is refused; 178,956,970 if not given.
        checkpoint: the newest of each run, or the best by its recipe's metric.
    """
    if not images and held_out == 0:
        raise UserError(f"no image given: attneck predict {run} IMAGE…, or --held-out 4 for some of its own")
    if held_out < 0:
        raise UserError(f"--held-out {held_out}: give how many, 0 or more")
    if min_score is not None and not 0 <= min_score <= 1:
        raise UserError(f"--min-score {min_score}: give 0 to 1")
    if max_pixels is not None and max_pixels < 1:
        raise UserError(f"--max-pixels {max_pixels}: give how many an image may have, 1 or more")

    from attneck.runs.run import Run

    runs = [Run(folder, checkpoint) for folder in ([run] if beside is None else [run, beside])]
    for one in runs:
        one.recipe  # noqa: B018 - refuses what is no run, before anything heavy is imported
    check_images(images, max_pixels)

    if len({one.finds_objects for one in runs}) > 1:
        raise UserError(
            f"--beside {beside}: one of the two runs finds boxes, one classes: give two of a kind"
        )
    own: Iterable[Sample] = runs[0].samples(held_out) if held_out else ()
    for one in runs:
        one.facts  # noqa: B018 - refuses a run without a checkpoint, before a folder is made
    shots = chain(photos(images, most_pixels(runs), max_pixels), (Shot(one, one.image.size) for one in own))
    least = min_score if min_score is not None else 0.5 if runs[0].finds_objects else 0.0
    folder = folder_for(run, out)
    try:
        write(folder, runs, shots, least)
    except OSError as error:
        raise RunFailed(
            f"{folder}: {error.strerror or error}; make room there, or give another folder in --out"
        ) from error


class Shot(NamedTuple):
    """A sample, and the (width, height) that its file has where the sample is a smaller copy."""

    sample: Sample
    size: tuple[int, int]


def check_images(images: Iterable[Path], max_pixels: int | None) -> None:
    """UserError for what is no image or is given twice; none is decoded."""
    from attneck.data.readers.decode import look_at, said

    seen: set[str] = set()
    for path in images:
        if path.is_dir():
            raise UserError(f"{said(path)} is a folder: give the images in it: {said(path)}/*.jpg")
        look_at(str(path), "predict", max_pixels)
        if os.path.abspath(path) in seen:
            raise UserError(f"{said(path)} is given twice: give each image once")
        seen.add(os.path.abspath(path))


def most_pixels(runs: list[Run]) -> int:
    """Of a photo that is given to the models: four times as many as theirs, and so many that none is small.

    A detector holds a mask of an image's size for each object, so its images are bounded closer.
    """
    side = max(one.facts["image_size"] for one in runs)
    return max(4 * side * side, 1 << (20 if runs[0].finds_objects else 24))


def photos(images: Iterable[Path], most: int, max_pixels: int | None) -> Iterator[Shot]:
    """Each image in turn, and none before the last one was asked for."""
    from attneck.data.readers.decode import decode_small
    from attneck.tasks.task import Sample

    for path in images:
        image, size = decode_small(str(path), "predict", most, max_pixels)
        yield Shot(Sample(str(path), image, None), size)


def folder_for(run: Path, out: Path | None) -> Path:
    """`out`, which must be new or empty, or a new folder in the run's.

    Raises UserError where there can be none, and for an `out` with something in it.
    """
    from attneck.data.readers.decode import said

    folder = run / "predictions" if out is None else out
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            if any(out.iterdir()):
                raise UserError(
                    f"--out {said(out)} has files in it, and nothing that is there is written to: give a new "
                    f"folder, such as {said(out / 'predictions')}"
                )
            return out
        for number in count(2):
            try:
                folder.mkdir()  # of two that start at once one makes it
                break
            except FileExistsError:
                folder = run / f"predictions-{number}"
        return folder
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{said(folder)}: {reason}: give another folder in --out") from None


def write(folder: Path, runs: list[Run], shots: Iterator[Shot], least: float) -> None:
    """Find and draw, one image in memory at a time, then predictions.json; that also of what an error leaves.

    Raises UserError for an image that cannot be read; OSError where nothing can be written.
    """
    from attneck.data.readers.decode import said
    from attneck.explain.detections import enlarged
    from attneck.files import write_atomic

    titles = [one.recipe.model.name for one in runs]
    images: list[dict[str, Any]] = []
    detections: list[Found] = [[] for _ in runs]
    taken: dict[str, int] = {}
    now: list[Image.Image] = []  # itertools.tee would keep up to 57 images
    found = [one.predict_each(iter(lambda: now[0], None), min_score=least) for one in runs]
    fault: UserError | KeyboardInterrupt | None = None
    try:
        for sample, size in shown(shots, titles[0]):
            now[:] = [sample.image]
            here = [next(rows) for rows in found]
            entry = {"id": len(images), "file_name": sample.file, "width": size[0], "height": size[1]}
            if sample.image.size != size:
                entry["seen_as"] = list(sample.image.size)
            if runs[0].finds_objects:
                file = folder / f"{free_name(Path(sample.file).stem, taken)}.png"
                write_atomic(file, drawn(sample, here, titles))
                entry["picture"] = file.name
                print(f"{said(file)}  {' and '.join(str(len(rows)) for rows in here)} objects")
                here = [enlarged(rows, sample.image.size, size) for rows in here]
            else:
                print(f"{said(sample.file)}  {' | '.join(map(classes, here))}{truth(sample)}")
            for every, rows in zip(detections, here, strict=True):
                every += [row | {"image_id": entry["id"]} for row in rows]
            images.append(entry)
    except (UserError, KeyboardInterrupt) as error:
        fault = error
    if not images:
        folder.rmdir()
    else:
        document = {
            "images": images,
            "runs": [
                {"run": str(one.folder), "model": title, "step": one.step, "detections": rows}
                for one, title, rows in zip(runs, titles, detections, strict=True)
            ],
        }
        file = folder / "predictions.json"
        write_atomic(file, (json.dumps(document, indent=1) + "\n").encode())
        print(said(file))
    if isinstance(fault, KeyboardInterrupt):
        raise fault
    if fault is not None:
        raise UserError(
            f"{fault}; of {len(images)} before it what was found is in {said(folder)}"
            if images
            else str(fault)
        )
    if smaller := sum("seen_as" in image for image in images):
        print(
            f"attneck: photos made smaller for the model: {smaller} (seen_as in {said(file)})",
            file=sys.stderr,
        )


def drawn(sample: Sample, found: list[Found], titles: list[str]) -> bytes:
    """A PNG of an image: what is in it, where that is known, and what each run found, side by side."""
    from attneck.explain.detections import beside, draw

    pictures = [draw(sample.image, rows) for rows in found]
    if sample.truth is not None:
        pictures, titles = [draw(sample.image, sample.truth), *pictures], ["what is there", *titles]
    file = io.BytesIO()
    if len(pictures) > 1:
        beside(pictures, titles).savefig(file, format="png", bbox_inches="tight")
    else:
        pictures[0].save(file, "PNG")
    return file.getvalue()


def classes(rows: Found) -> str:
    """A classifier's rows in a line."""
    return ", ".join(f"{row['category']} {row['score']:.2f}" for row in rows)


def truth(sample: Sample) -> str:
    """The class of an image, where it is known."""
    return f"  (it is {sample.truth[0]['category']})" if sample.truth else ""


def free_name(stem: str, taken: dict[str, int]) -> str:
    """A picture's name: its image's, with a number where one of `taken` has that; notes it there.

    Names that differ in capitals or in how an accent is encoded are one file on some systems.
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    raw = os.fsencode(stem)
    if len(raw) > LONGEST_NAME:
        stem = raw[:LONGEST_NAME].decode(errors="ignore")
    for number in count(taken.get(key(stem), 0) + 1):
        name = stem if number == 1 else f"{stem}-{number}"
        if key(name) not in taken:
            taken[key(stem)] = number
            taken.setdefault(key(name), 1)
            return name
    raise AssertionError


def main(words: list[str]) -> None:
    """Parse and run."""
    call(predict, "attneck predict", words)
