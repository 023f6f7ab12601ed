"""Detection sets of image files with annotations: COCO, VOC."""

import os
from itertools import chain
from pkgutil import resolve_name
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attneck.data.detection import DetectionDataset
from attneck.data.fingerprint import Fingerprint, of_annotated
from attneck.data.readers.annotations import LINE, Annotations, Record, Records, cut
from attneck.data.readers.decode import UnreadableImage, decode
from attneck.data.root import resolve
from attneck.data.sampling import spread
from attneck.data.skipping import Skipped, skips
from attneck.data.table import SETS


class AnnotatedImages(DetectionDataset):
    """Image files with annotations. In training one that cannot be read may be left out: see `Skipped`."""

    def __init__(
        self,
        name: str,
        annotations: Annotations,
        max_pixels: int | None = None,
        skip_bad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(classes=annotations.classes, category_ids=annotations.category_ids, **options)
        self.name, self.records, self.max_pixels = name, annotations.records, max_pixels
        self.skipped = Skipped(len(self), self._file) if skip_bad else None
        counts = annotations.records.counts
        self.dropped, self.crowds = counts["degenerate"], (counts["crowd"], counts["objects"])
        self.blank = annotations.records.blank

    def __len__(self) -> int:
        return len(self.records)

    def fingerprint(self) -> Fingerprint:
        return of_annotated(*self.records.files())

    def record(self, index: int) -> Record:
        found: Record = self.records[index]
        return found

    def _file(self, index: int) -> str:
        return self.record(index).file

    def read(self, index: int) -> tuple[NDArray[np.uint8], Record]:
        if self.skipped is None:
            return self._read(index)
        in_turn = chain(range(index, len(self)), range(index))
        return self.skipped.first(in_turn, self._read)

    def _read(self, index: int) -> tuple[NDArray[np.uint8], Record]:
        record = self.record(index)
        return read_pixels(record, self.name, self.max_pixels), record


def read_pixels(record: Record, name: str, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """The image of a record, uint8 [H, W, 3]; UnreadableImage when it is none or has another size."""
    # Tools that draw boxes show a photo upright; COCO's own readers take it as it lies in the file.
    image = decode(record.file, name, max_pixels, (record.width, record.height))
    if image.size != (record.width, record.height):
        raise UnreadableImage(
            f"{name}: image {record.id} ({record.file}) is of {image.width} x {image.height} pixels, its "
            f"annotation says {record.width} x {record.height}: give the annotation of this image"
        )
    return np.array(image)


def open_annotated(
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
    max_pixels: int | None = None,
    on_bad_image: str = "stop",
) -> DetectionDataset:
    """Opens a set that has annotations in files.

    image_size: side in pixels of the squares that images come in. "none" and "flip" leave each image as it is
        where it is None; scale_jitter's is 1024 and ssd's 300 unless given.
    augment: see `DetectionDataset`.
    jitter: scale_jitter's least and greatest factor; (0.8, 1.25), (0.5, 2.0) and (0.1, 2.0) are BoTNet's.
    masks: whether targets have masks; None where the set has some.
    max_pixels: see `decode`.
    on_bad_image: "stop" with UnreadableImage, or "skip": the next one takes its place, see `Skipped`.

    Raises ValueError for the first annotation that does not fit its image (`read_annotations` has all).
    """
    has_masks = SETS[name].kinds["detection"].masks
    if masks and not has_masks:
        raise ValueError(f"{name}: masks are asked for, but its objects have none: leave them out")
    masks = has_masks if masks is None else masks
    annotations = read_annotations(name, split, root, masks)
    if annotations.problems:
        first, count = annotations.problems[0], len(annotations.problems)
        more = f" ({count} problems; attneck data check {name} lists them)" if count > 1 else ""
        what = f": mend it or remove it{more}"
        room = LINE - len(f"attneck: {name}: {what}")
        raise ValueError(f"{name}: {cut(first, room)}{what}")
    if size is not None:
        records = annotations.records
        records = Records(records[i] for i in spread(len(records), size, name))
        annotations = Annotations(records, annotations.classes, annotations.category_ids, [])
    return AnnotatedImages(
        name,
        annotations,
        max_pixels,
        skips(on_bad_image),
        image_size=image_size,
        augment=augment,
        jitter=jitter,
        seed=seed,
        masks=masks,
    )


def read_annotations(
    name: str, split: str, root: str | os.PathLike[str] | None = None, masks: bool = False
) -> Annotations:
    """Reads the files of a set, with every problem in them; opens no image.

    `masks`: whether every object must have one.
    """
    folder = resolve(root, name, SETS[name].source)
    found: Annotations = resolve_name(SETS[name].kinds["detection"].annotations)(name, split, folder, masks)
    return found
