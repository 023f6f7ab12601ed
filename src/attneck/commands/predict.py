"""attneck predict: what a model finds in images, as JSON, and tables and pictures of it."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from attneck.commands.arguments import Checkpoint, call
from attneck.commands.class_predictions import ClassPredictions, label_of
from attneck.commands.finder import Finder, check_trained, of_run, of_saved
from attneck.commands.given_images import Given, given_images
from attneck.commands.given_model import only_of_runs
from attneck.commands.progress import shown
from attneck.commands.results_folder import folder_for, free_name
from attneck.errors import NotFinite, RunFailed, UserError, say, shown_path

if TYPE_CHECKING:
    from PIL import Image

    from attneck.tasks.task import Found, Sample

TOP_K = 5
"""Classes of an image where no other number is given."""


def predict(
    model: Annotated[Path, tyro.conf.Positional],
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    held_out: int = 0,
    out: Path | None = None,
    min_score: float | None = None,
    top_k: int | None = None,
    beside: Path | None = None,
    max_pixels: int | None = None,
    checkpoint: Checkpoint = "newest",
) -> None:
    """Find what is in images: their class, or objects, with masks where the model has them.

    Writes predictions.json: a classifier's likeliest classes, or COCO's results; the images that they are of,
    and their classes' names. Of a classifier also predictions.csv and a contact sheet, with the surest
    mistakes first where the images' classes are known: of held-out images, and of those in folders that are
    called as the run's classes. Of a detector a picture for each image, called as it is, or with a number
    where two have one name. Nothing that is there already is written to.

    Photos are turned upright as their EXIF says. One far larger than the model's images is made smaller
    before the model sees it (seen_as in the JSON); what is found is in the photo's own pixels.

    Args:
        model: a run's folder, what attneck.hub.save wrote, or timm/NAME: that network with timm's weights.
        images: image files (JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF), folders, which are searched at any
            depth, and patterns in quotes, such as 'photos/**/*.jpg'.
        held_out: of a run, so many of its own held-out images as well, evenly spread; a picture then has what
            is in the image, beside what was found.
        out: the folder to write into, new or empty; if not given predictions in the run's, of a saved model
            in this one, or predictions-2 and so on where that is taken.
        min_score: what is less sure is left out, 0 to 1; if not given 0.5 of objects, 0 of classes.
        top_k: classifiers: so many classes of each image; 5 if not given.
        beside: another model of the same kind: both are shown, side by side.
        max_pixels: a larger image is refused; 178,956,970 if not given.
        checkpoint: the newest of each run, or the best by its recipe's metric.
    """
    _check_options(model, images, held_out, min_score, top_k, max_pixels)
    words = [model] if beside is None else [model, beside]
    kinds = [check_trained(word) for word in words]
    only_of_runs(model, kinds[0], {"--checkpoint": checkpoint != "newest"})
    if held_out and kinds[0] != "run":
        raise UserError(f"--held-out {held_out}: {model} is a saved model, without images: give some")

    from attneck.runs.run import Run

    runs = [Run(word, checkpoint) if kind == "run" else None for word, kind in zip(words, kinds, strict=True)]
    given = given_images(images, max_pixels)
    own: Iterable[Sample] = runs[0].samples(held_out) if runs[0] is not None and held_out else ()
    finders = [of_saved(word) if run is None else of_run(run) for word, run in zip(words, runs, strict=True)]
    objects = finders[0].finds_objects
    if len({one.finds_objects for one in finders}) > 1:
        raise UserError(
            f"--beside {beside}: one of the two models finds boxes, one classes: give two of a kind"
        )
    if top_k is not None and objects:
        raise UserError(f"--top-k {top_k}: {model} finds objects, which have one class each: leave it out")
    classes = set() if objects else {*finders[0].facts["classes"]}
    shots = chain(
        photos(given, classes, most_pixels(finders), max_pixels), (Shot(one, one.image.size) for one in own)
    )
    least = min_score if min_score is not None else 0.5 if objects else 0.0
    folder = folder_for(model if kinds[0] == "run" else Path(), "predictions", out)
    try:
        write(folder, finders, shots, least, top_k or TOP_K)
    except OSError as error:
        raise RunFailed(
            f"{folder}: {error.strerror or error}; make room there, or give another folder in --out"
        ) from error


def _check_options(
    model: Path,
    images: tuple[Path, ...],
    held_out: int,
    min_score: float | None,
    top_k: int | None,
    max_pixels: int | None,
) -> None:
    """UserError for no image, and for numbers that cannot be."""
    if not images and held_out == 0:
        raise UserError(
            f"no image given: attneck predict {shlex.quote(str(model))} IMAGE…, or, of a run, --held-out 4 "
            "for some of its own"
        )
    if held_out < 0:
        raise UserError(f"--held-out {held_out}: give how many, 0 or more")
    if min_score is not None and not 0 <= min_score <= 1:
        raise UserError(f"--min-score {min_score}: give 0 to 1")
    if top_k is not None and top_k < 1:
        raise UserError(f"--top-k {top_k}: give how many classes, 1 or more")
    if max_pixels is not None and not images:
        raise UserError(
            "--max-pixels is of the photos that are given: held-out images have the recipe's own limit"
        )
    if max_pixels is not None and max_pixels < 1:
        raise UserError(f"--max-pixels {max_pixels}: give how many an image may have, 1 or more")


class Shot(NamedTuple):
    """A sample, and the (width, height) that its file has where the sample is a smaller copy."""

    sample: Sample
    size: tuple[int, int]


def most_pixels(finders: list[Finder]) -> int:
    """Of a photo that is given to the models: four times as many as theirs, and so many that none is small.

    A detector holds a mask of an image's size for each object, so its images are bounded closer.
    """
    side = max(one.facts["image_size"] for one in finders)
    return max(4 * side * side, 1 << (20 if finders[0].finds_objects else 24))


def photos(given: Iterable[Given], classes: set[str], most: int, max_pixels: int | None) -> Iterator[Shot]:
    """Each image in turn, and none before the last one was asked for; its class where its folder has it."""
    from attneck.data.readers.decode import decode_small
    from attneck.tasks.task import Sample

    for one in given:
        image, size = decode_small(one.path, "predict", most, max_pixels)
        label = one.label(classes)
        yield Shot(Sample(one.path, image, None if label is None else [{"category": label}]), size)


def write(folder: Path, finders: list[Finder], shots: Iterator[Shot], least: float, top_k: int) -> None:
    """Find and draw, one image in memory at a time, then predictions.json; that also of what an error leaves.

    Raises UserError for an image that cannot be read; RunFailed where a disk or the memory gives out; OSError
    where nothing can be written. A signal ends it where it is.
    """
    results = Results(folder, finders, top_k)
    now: list[Image.Image] = []  # itertools.tee would keep up to 57 images
    most = None if finders[0].finds_objects else results.top_k
    found = [one.find_each(iter(lambda: now[0], None), min_score=least, top_k=most) for one in finders]
    fault: UserError | RunFailed | KeyboardInterrupt | None = None
    try:
        for sample, size in shown(shots, finders[0].model):
            now[:] = [sample.image]
            try:
                here = [next(rows) for rows in found]
            except NotFinite as error:
                raise UserError(f"{shown_path(sample.file)}: {error}") from error
            results.add(sample, size, here)
    except (UserError, RunFailed, KeyboardInterrupt) as error:
        fault = error
    results.save()
    if isinstance(fault, KeyboardInterrupt):
        raise fault
    if fault is not None:
        count = len(results.images)
        kept = f"; of {count} before it what was found is in {shown_path(folder)}" if count else ""
        what = f"{fault}{kept}"
        raise UserError(what) if isinstance(fault, UserError) else RunFailed(what, fault.code)
    if smaller := sum("seen_as" in image for image in results.images):
        say(f"photos made smaller for the model: {smaller} (seen_as in {shown_path(results.file)})")


class Results:
    """What was found in images so far, a picture of each that has objects, and a line for the terminal."""

    def __init__(self, folder: Path, finders: list[Finder], top_k: int) -> None:
        from attneck.files import told_apart

        self.folder, self.file, self.finders = folder, folder / "predictions.json", finders
        self.titles = [one.model for one in finders]
        if len(finders) > 1:
            names = told_apart([one.path for one in finders])
            self.titles = [f"{name}: {title}" for name, title in zip(names, self.titles, strict=True)]
        self.top_k = top_k
        self.table: ClassPredictions | None = None
        if not finders[0].finds_objects:
            self.top_k = min(top_k, max(len(one.facts["classes"]) for one in finders))
            self.table = ClassPredictions(self.titles, self.top_k)
        self.images: list[dict[str, Any]] = []
        self.detections: list[Found] = [[] for _ in finders]
        self._taken: dict[str, int] = {}

    def add(self, sample: Sample, size: tuple[int, int], found: list[Found]) -> None:
        """What each model found in an image whose file has this (width, height)."""
        from attneck.explain.detections import enlarged
        from attneck.files import write_atomic

        entry = {"id": len(self.images), "file_name": sample.file, "width": size[0], "height": size[1]}
        if sample.image.size != size:
            entry["seen_as"] = list(sample.image.size)
        if self.table is None:
            file = self.folder / f"{free_name(Path(sample.file).stem, self._taken)}.png"
            write_atomic(file, drawn(sample, found, self.titles))
            entry["picture"] = file.name
            print(f"{shown_path(file)}  {' and '.join(str(len(rows)) for rows in found)} objects")
            found = [enlarged(rows, sample.image.size, size) for rows in found]
        else:
            print(f"{shown_path(sample.file)}  {self.table.add(sample, found)}")
            if (label := label_of(sample)) is not None:
                entry["label"] = label
        for every, rows in zip(self.detections, found, strict=True):
            every += [row | {"image_id": entry["id"]} for row in rows]
        self.images.append(entry)

    def save(self) -> None:
        """Write what there is, and say where; of no image, remove the folder."""
        from attneck.files import write_json

        if not self.images:
            self.folder.rmdir()
            return
        runs = [
            {"run": str(one.path), "model": one.model, "step": one.step, "detections": rows}
            for one, rows in zip(self.finders, self.detections, strict=True)
        ]
        write_json(self.file, {"images": self.images, "runs": runs})
        files = [self.file, *(self.table.write(self.folder) if self.table else [])]
        print(*map(shown_path, files), sep="\n")
        if self.table and (summary := self.table.summary()):
            print(summary)


def drawn(sample: Sample, found: list[Found], titles: list[str]) -> bytes:
    """A PNG of an image: what is in it, where that is known, and what each model found, side by side."""
    from attneck.explain.detections import beside, draw, numbered
    from attneck.explain.fonts import savefig

    if sample.truth is not None:
        found, titles = [sample.truth, *found], ["what is there", *titles]
    pictures = [
        draw(sample.image, rows, numbers) for rows, numbers in zip(found, numbered(found), strict=True)
    ]
    file = io.BytesIO()
    if len(pictures) > 1:
        savefig(beside(pictures, titles), file, format="png", bbox_inches="tight")
    else:
        pictures[0].save(file, "PNG")
    return file.getvalue()


def main(words: list[str]) -> None:
    """Parse and run."""
    call(predict, "attneck predict", words)
