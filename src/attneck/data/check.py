"""Reads every annotation and every image of a detection set, and says which do not fit each other."""

import os
from collections.abc import Callable, Iterable

import numpy as np

from attneck.data.annotated import read_annotations, read_pixels
from attneck.data.detection import check_same_classes
from attneck.data.readers.annotations import Record, cut
from attneck.data.readers.decode import turned_by
from attneck.data.table import SETS

Progress = Callable[[Iterable[Record], str], Iterable[Record]]


def check_annotations(
    name: str,
    root: str | os.PathLike[str] | None,
    progress: Progress,
    max_pixels: int | None = None,
    *,
    masks: bool,
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Counts by split, and a line for each problem; every image is read.

    Goes over the splits of "coco" or a VOC that are there; `progress(records, split)` hands on the records.
    `masks`: whether every object must have one. A file that cannot be read is a problem of its split; so are
    photos that EXIF turns without a change of their size, where others are annotated as they lie in the file.

    Raises FileNotFoundError when no split is there, ValueError when the folder is not known.
    """
    found: dict[str, dict[str, int]] = {}
    problems: list[str] = []
    missing: FileNotFoundError | None = None
    classes: dict[str, tuple[str, ...]] = {}
    for split in SETS[name].kinds["detection"].splits:
        if split == "trainval":  # train and val
            continue
        try:
            annotations = read_annotations(name, split, root, masks)
        except FileNotFoundError as error:
            missing = missing or error
            continue
        except ValueError as error:
            problems.append(cut(str(error)))
            continue
        found[split] = {**annotations.records.counts, "classes": len(annotations.classes)}
        problems += annotations.problems
        classes[split] = annotations.classes
        counts, more = _check_images(name, split, progress(annotations.records, split), max_pixels, masks)
        found[split] |= counts
        problems += more
    if missing and not found and not problems:
        raise missing
    try:
        check_same_classes(classes)
    except ValueError as error:
        problems.append(cut(f"{name}: {error}"))
    return found, problems


def _check_images(
    name: str, split: str, records: Iterable[Record], max_pixels: int | None, masks: bool
) -> tuple[dict[str, int], list[str]]:
    """The counts of one split that its images and boxes give, and its problems."""
    problems: list[str] = []
    unsure: list[str] = []
    lying = tiny = blank = 0
    for record in records:
        chosen = record.trained_on()
        x0, y0, x1, y1 = record.boxes()[chosen].T
        tiny += int(np.sum(np.minimum(x1 - x0, y1 - y0) < 1))
        blank += len(chosen) - len(record.with_pixels(chosen)) if masks else 0
        try:
            if os.path.isfile(record.file):  # else the annotations have said it
                read_pixels(record, name, max_pixels)
                orientation, size = turned_by(record.file, name, max_pixels)
                if orientation >= 5 and size[0] != size[1]:
                    lying += size == (record.width, record.height)
                elif orientation > 1 and record.objects:
                    unsure.append(record.file)
        except ValueError as error:
            problems.append(cut(str(error)))
    if unsure and lying:
        problems.append(
            f"{name}: {lying:,} photos of {split} are annotated as they lie in the file, and EXIF turns "
            f"{len(unsure):,} more whose size does not say so ({cut(unsure[0])}), and these are read "
            "upright: take the EXIF orientation out of all of them"
        )
    return {"tiny": tiny, "blank": blank, "turned": len(unsure), "lying": lying}, problems
