"""The objects of an image in one form for every source, and checks that they fit the image."""

import json
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as rle
from numpy.typing import NDArray

LINE = 300
"""Characters of a line that says what is wrong, at most."""

MASK_BYTES = 4 << 30
"""Bytes that the masks of one image may take together, at most: each is as large as the image."""

SLACK = 1.0
"""Pixels by which rounding may take a box or a polygon past the image's edge, where it is then cut."""

SMALL = 4.0
"""Pixels of a mask's area from which on polygons are taken to have a pixel in them."""

SHARE = 1.01
"""Where coordinates that are shares of the image end, with room for rounding."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
"""One in JSON."""


class Object(NamedTuple):
    """One object.

    id is the annotation's own; label is 1 … K; bbox is x, y, width and height in pixels, the first pixel's
    corner at (0, 0), and area is in pixels; segmentation is COCO's: polygons, or run lengths, or None.
    """

    id: int
    label: int
    bbox: Sequence[float]
    area: float
    crowd: bool = False
    difficult: bool = False
    segmentation: Any = None


class Record(NamedTuple):
    """One image: its id, its file, its size in pixels, and its objects."""

    id: int
    file: str
    width: int
    height: int
    objects: list[Object]

    def boxes(self) -> NDArray[np.float32]:
        """x0, y0, x1, y1 of all objects in pixels, inside the image, float32 [n, 4]."""
        boxes = np.array([object.bbox for object in self.objects], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes.clip(0, [self.width, self.height] * 2).astype(np.float32)

    def masks(self, chosen: Sequence[int]) -> NDArray[np.uint8]:
        """0 and 1, uint8 [n, H, W], of the objects at these positions."""
        masks = np.zeros((len(chosen), self.height, self.width), dtype=np.uint8)
        for mask, i in zip(masks, chosen, strict=True):
            runs = rle.segmToRle(self.objects[i].segmentation, self.width, self.height)
            mask[:] = rle.decode(runs)
        return masks

    def with_pixels(self, chosen: Sequence[int]) -> list[int]:
        """Those of these positions whose mask has a pixel, by its run lengths alone."""
        masks = [rle.segmToRle(self.objects[i].segmentation, self.width, self.height) for i in chosen]
        return [i for i, mask in zip(chosen, masks, strict=True) if rle.area(mask)]

    def trained_on(self) -> list[int]:
        """Positions of the objects to train on: no crowds, no difficult ones, no boxes of no size."""
        boxes = self.boxes()
        sized = np.all(boxes[:, :2] < boxes[:, 2:], axis=1)
        return [i for i, object in enumerate(self.objects) if sized[i] and not _left(object)]


def _left(object: Object) -> bool:
    return object.crowd or object.difficult


def _may_be_blank(object: Object) -> bool:
    """Of polygons the small ones alone: to draw all of COCO's would take a minute at each start."""
    return isinstance(object.segmentation, dict) or (object.segmentation is not None and object.area < SMALL)


class Records(Sequence[Record]):
    """Many records in one array of bytes, and `counts` of what is in them.

    `blank` is how many of the objects to train on have a mask without a pixel.

    Reading a Python object changes its reference count, so that worker processes would come to copy all of
    COCO's 860,000 annotations, gigabytes each; this array they share.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        rows = []
        self.counts = dict.fromkeys(("images", "empty", "objects", "crowd", "difficult", "degenerate"), 0)
        self.blank = 0
        for record in records:
            rows.append(json.dumps(record).encode())
            chosen = record.trained_on()
            doubtful = [i for i in chosen if _may_be_blank(record.objects[i])]
            self.blank += len(doubtful) - len(record.with_pixels(doubtful))
            left = sum(map(_left, record.objects))
            self.counts["images"] += 1
            self.counts["empty"] += not record.objects
            self.counts["objects"] += len(record.objects)
            self.counts["crowd"] += sum(object.crowd for object in record.objects)
            self.counts["difficult"] += sum(object.difficult for object in record.objects)
            self.counts["degenerate"] += len(record.objects) - left - len(chosen)
        self._ends = np.cumsum([0, *map(len, rows)])
        self._bytes = b"".join(rows)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        record = Record(*json.loads(self._bytes[self._ends[index] : self._ends[index + 1]]))
        return record._replace(objects=[Object(*row) for row in record.objects])

    def files(self) -> tuple[list[str], list[bytes]]:
        """The file of each record, and the rest of it: its size and its objects, as JSON."""
        paths, rests = [], []
        for first, last in pairwise(self._ends):
            row = self._bytes[first:last].decode()
            path = _STRING.search(row)  # the first; to parse the rest of COCO would take seconds
            assert path
            paths.append(json.loads(path[0]))
            rests.append(row[path.end() :].encode())
        return paths, rests


@dataclass(frozen=True)
class Annotations:
    """The annotations of a split, and their problems.

    Args:
        records: the images, in their order.
        classes: names of labels 1 … K.
        category_ids: the source's own numbers of labels 1 … K.
        problems: one line each, with the file and the image.
    """

    records: Records
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    problems: list[str]


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(value: Any) -> str:
    """A value from a file as a part of one line: quoted, and shortened where it is long or nested."""
    return _SHORT.repr(value)


def cut(line: str, most: int = LINE) -> str:
    """The line, without its middle where it is over `most` characters: its end says what is wrong."""
    return line if len(line) <= most else f"{line[:60]}…{line[61 - most :]}"


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a class or of a file, or None."""
    if not name.strip() or len(name) > 1000 or _CONTROLS.search(name):
        return f"{shown(name)} is no name: give 1 to 1,000 characters, none of them a control character"
    return None


def object_problem(object: Object, width: int, height: int) -> str | None:
    """What is wrong with an object's box or mask in an image of this size in pixels, or None."""
    x, y, w, h = object.bbox
    box = f"[{x:g}, {y:g}, {w:g}, {h:g}] (x, y, width, height)"
    if w < 0 or h < 0:
        return f"its box {box} has a negative side"
    if _outside(x, y, width, height) or _outside(x + w, y + h, width, height):
        return f"its box {box} reaches out of the image's {width} x {height}"
    if object.segmentation is None:
        return None
    if isinstance(object.segmentation, dict):
        return _runs_problem(object.segmentation, width, height)
    return _polygons_problem(object.segmentation, width, height)


def apart_problem(object: Object) -> str | None:
    """Whether a box of some size and the polygons of its mask, both inside the image, are apart; or None."""
    if not isinstance(object.segmentation, list) or 0 in object.bbox[2:]:
        return None
    for axis in (0, 1):
        parts = [polygon[axis::2] for polygon in object.segmentation]
        least, most, begin = min(map(min, parts)), max(map(max, parts)), object.bbox[axis]
        end = begin + object.bbox[axis + 2]
        if max(least, begin) > min(most, end) + SLACK:
            return (
                f"its box and its mask are apart: {'xy'[axis]} is {begin:g} to {end:g} in the box, {least:g} "
                f"to {most:g} in the mask's polygons"
            )
    return None


def share_problems(objects: Sequence[Object]) -> list[str]:
    """Whether all boxes of a split, or all polygons, lie within 0 … 1: a line for each that do."""
    masks = [object.segmentation for object in objects if isinstance(object.segmentation, list)]
    ends = {
        "boxes": [max(object.bbox) for object in objects],  # YOLO's too, whose x and y are the middle
        "polygons": [max(map(max, polygons)) for polygons in masks],
    }
    return [
        f"all its {what} lie within 0 … 1: COCO's are in pixels, these look like shares of the image"
        for what, found in ends.items()
        if 0 < max(found, default=0) <= SHARE
    ]


def masks_problem(objects: Sequence[Object], width: int, height: int) -> str | None:
    """Whether the masks of an image of this size in pixels are too many to be held at once."""
    count = sum(not _left(object) for object in objects)
    if count * width * height <= MASK_BYTES:
        return None
    return (
        f"its {count:,} masks of {width} x {height} take {count * width * height / 2**30:.0f} GiB, over the "
        f"{MASK_BYTES >> 30} of an image: cut it into smaller ones"
    )


def _outside(x: float, y: float, width: int, height: int) -> bool:
    return not (-SLACK <= x <= width + SLACK and -SLACK <= y <= height + SLACK)


def _runs_problem(runs: dict[str, Any], width: int, height: int) -> str | None:
    """By arithmetic alone: nothing of the mask's size is made before the image is known to have it."""
    if runs.get("size") != [height, width]:
        return (
            f"its mask is of size {shown(runs.get('size'))}, the image of [{height}, {width}] (height, width)"
        )
    counts = runs.get("counts")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if not isinstance(counts, list) or set(map(type, counts)) != {int} or min(counts) < 0:
        return "the run lengths of its mask are damaged"
    if sum(counts) != width * height:
        return (
            f"the run lengths of its mask add up to {shown(sum(counts))} pixels, not to its {width * height}"
        )
    return None


def _unpacked(text: str) -> list[int] | None:
    """The numbers in COCO's text of run lengths, or None for no such text.

    A character holds five bits, the lowest first, and whether another follows; from the fourth on, a number
    is the difference to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return None if shift else counts


def _polygons_problem(polygons: Any, width: int, height: int) -> str | None:
    if not isinstance(polygons, list) or not polygons:
        return "its segmentation is neither polygons nor run lengths"
    for polygon in polygons:
        try:
            flat = isinstance(polygon, list) and set(map(type, polygon)) <= {int, float}
            points = np.array(polygon if flat else (), dtype=np.float64)
        except OverflowError:  # whole numbers of hundreds of digits
            points = np.empty(0)
        if len(points) < 6 or len(points) % 2:
            return "a polygon of its mask is not x, y of three points or more"
        points = points.reshape(-1, 2)
        for x, y in (points.min(axis=0), points.max(axis=0)):
            if _outside(x, y, width, height):
                return f"a polygon of its mask reaches ({x:g}, {y:g}), out of the image's {width} x {height}"
    return None
