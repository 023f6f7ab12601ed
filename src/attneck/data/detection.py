"""Opens a detection set by its name; with `collate`, all that training and evaluation need."""

import os
from typing import Any

from attneck.data.choices import choose, positive, spread
from attneck.data.detection_dataset import DetectionDataset, FileDataset, Item, collate
from attneck.data.drawn import shapes
from attneck.data.drawn.scenes import MOST, ShapeScenes
from attneck.data.readers import coco, voc
from attneck.data.readers.annotations import Annotations, Records
from attneck.data.root import resolve

__all__ = [
    "AUGMENTS",
    "NAMES",
    "SPLITS",
    "DetectionDataset",
    "Item",
    "collate",
    "open_detection",
    "read_annotations",
]

YEARS = {"voc2007": ("2007",), "voc2012": ("2012",), "voc0712": ("2007", "2012")}
SPLITS = {
    "coco": coco.SPLITS,
    "shapes": ("train", "val"),
    "voc2007": voc.SPLITS,
    "voc2012": voc.SPLITS[:3],  # the objects of its test images are not public
    "voc0712": voc.SPLITS[:3],
}
NAMES = tuple(SPLITS)
AUGMENTS = ("none", "flip", "scale_jitter", "ssd")


def open_detection(
    name: str,
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    augment: str = "none",
    jitter: tuple[float, float] = (0.8, 1.25),
    seed: int = 0,
    size: int | None = None,
    masks: bool | None = None,
) -> DetectionDataset:
    """Opens "coco", "voc2007", "voc2012", "voc0712" (both) or "shapes"; see SPLITS.

    root: the folder that holds coco or VOCdevkit, or is it; $ATTNECK_DATA when None, and a relative one is
        looked for there too. Not used by shapes.
    image_size: side in pixels of the squares that images come in. "none" and "flip" leave each image as it is
        where it is None; scale_jitter's is 1024 and ssd's 300 unless given. Scenes of shapes are drawn at it:
        256 unless given.
    augment: see `DetectionDataset`. `seed` is of the augmentation alone.
    jitter: scale_jitter's least and greatest factor; (0.8, 1.25), (0.5, 2.0) and (0.1, 2.0) are the paper's.
    size: this many images only, evenly spread over the set; of shapes, how many are drawn (10,000 for
        training and 500 for validation unless given).
    masks: whether targets have masks; None where the set has some: VOC's has not.

    Raises ValueError or FileNotFoundError, with one line that says what to do; among these, the first
    annotation that does not fit its image (`read_annotations` has all).
    """
    choose("data set", name, NAMES)
    choose(f"split of {name}", split, SPLITS[name])
    choose("augment", augment, AUGMENTS)
    positive(name, image_size=image_size, size=size)
    if not 0 < jitter[0] <= jitter[1]:
        raise ValueError(f"{name}: jitter is {jitter}: its factors must be over 0, the lesser one first")
    if masks and name in YEARS:
        raise ValueError(f"{name}: masks are asked for, but its objects have none: leave them out")
    options: dict[str, Any] = {
        "masks": name not in YEARS if masks is None else masks,
        "augment": augment,
        "image_size": image_size,
        "jitter": jitter,
        "seed": seed,
    }
    if name == "shapes":
        return _open_shapes(split, image_size or 256, size, options)
    annotations = read_annotations(name, split, root, options["masks"])
    if annotations.problems:
        first, count = annotations.problems[0], len(annotations.problems)
        more = f" ({count} problems; attneck data check {name} lists them)" if count > 1 else ""
        raise ValueError(f"{name}: {first}: mend it or remove it{more}")
    if size is not None:
        records = annotations.records
        records = Records(records[i] for i in spread(len(records), size, name))
        annotations = Annotations(records, annotations.classes, annotations.category_ids, [])
    return FileDataset(name, annotations, **options)


def read_annotations(
    name: str, split: str, root: str | os.PathLike[str] | None = None, masks: bool = False
) -> Annotations:
    """What the files of "coco" or a VOC say, with everything that does not fit; no image is opened.

    `masks`: whether every object must have one.
    """
    if name == "coco":
        return coco.read(resolve(root, name, coco.SOURCE), split, masks)
    return voc.read(resolve(root, name, voc.SOURCE), YEARS[name], split)


def _open_shapes(split: str, side: int, size: int | None, options: dict[str, Any]) -> ShapeScenes:
    smallest = shapes.SMALLEST_CELL * 3  # six objects take nine cells
    if side < smallest:
        raise ValueError(f"shapes: image_size is {side}: {MOST} objects want {smallest} pixels or more")
    train = split == "train"
    return ShapeScenes(
        first=0 if train else shapes.FIRST_VALIDATION_INDEX,
        count=size or (10_000 if train else 500),
        **options | {"image_size": side},
    )
