"""PASCAL VOC: ImageSets/Main/<split>.txt, Annotations/<name>.xml and JPEGImages/<name>.jpg of VOC<year>."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from attneck.data.readers.annotations import (
    Annotations,
    Object,
    Record,
    Records,
    cut,
    name_problem,
    object_problem,
    shown,
)
from attneck.data.table import SETS

YEARS = {"voc2007": ("2007",), "voc2012": ("2012",), "voc0712": ("2007", "2012")}
CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""In the devkit's order."""

_FLAGGED = re.compile(r"(.*\S)\s+(?:-1|0|1)")
"""A line of a class's own list: a name, and whether the class is in its image."""

_LABELS = {name: label for label, name in enumerate(CLASSES, 1)}


def years(name: str, split: str) -> tuple[str, ...]:
    """The years whose images a split has; of test images 2007's alone have their objects published."""
    return ("2007",) if split == "test" else YEARS[name]


def find(root: Path, year: str, split: str) -> Path:
    """The list of a split's images, under `root` or `root`/VOCdevkit.

    Raises FileNotFoundError when it is missing.
    """
    base = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    file = base / f"VOC{year}" / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        source = SETS[f"voc{year}"].source
        raise FileNotFoundError(f"voc{year}: {file} is missing: {root} must hold {source}")
    return file


def read_annotations(name: str, split: str, root: Path, masks: bool = False) -> Annotations:
    """Reads the XML files of a split, one year after the other. An image's id is its position, from 1.

    The devkit counts pixels from 1 and its boxes hold their last pixel: xmin … xmax is here x0 = xmin - 1 to
    x1 = xmax.

    Raises FileNotFoundError for a missing list, ValueError for one that is not names of images, each once.
    """
    problems: list[str] = []

    def records() -> Iterator[Record]:
        image_id, object_id = 0, 0
        files = [find(root, year, split) for year in years(name, split)]
        for folder, image in [pair for file in files for pair in _names(file)]:
            image_id += 1
            xml = folder / "Annotations" / f"{image}.xml"
            path = folder / "JPEGImages" / f"{image}.jpg"
            where = f"{xml}: image {image}"
            if not os.path.isfile(path):
                problems.append(cut(f"{where}: {path} is missing"))
                continue
            try:
                width, height, objects = _parse(xml)
            except (ValueError, OSError) as error:
                problems.append(cut(f"{where}: {error}"))
                continue
            for object in objects:
                if problem := object_problem(object, width, height):
                    problems.append(cut(f"{where}: {CLASSES[object.label - 1]}: {problem}"))
            numbered = [object._replace(id=object_id + i) for i, object in enumerate(objects, 1)]
            object_id += len(objects)
            yield Record(image_id, str(path), width, height, numbered)

    return Annotations(Records(records()), CLASSES, tuple(_LABELS.values()), problems)


def _names(file: Path) -> list[tuple[Path, str]]:
    """The year's folder, and the name of each image of a list.

    A name may have spaces, and end as the lines of a class's own list do: these end in a flag all together,
    which is taken off where no image has such a name.
    """
    folder = file.parents[2]
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file}: not a list of names in UTF-8 ({error}): get it anew") from error
    names = [line.strip() for line in lines if line.strip()]
    flagged = [match[1] for name in names if (match := _FLAGGED.fullmatch(name))]
    if len(flagged) == len(names) and not any(
        os.path.isfile(folder / "Annotations" / f"{name}.xml") for name in names
    ):
        names = flagged
    if not names:
        raise ValueError(f"{file} lists no images: get it anew")
    for name in names:
        if name_problem(name) or len(name) > 250 or not {"/", "\\"}.isdisjoint(name):
            raise ValueError(f"{file} lists {shown(name)}: give names of images, without their folder")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{file} lists {shown(name)} {times} times: take out all but one")
    return [(folder, name) for name in names]


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE: VOC has none, and the entities that it may define can grow without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which VOC's files have not")


def _parse(file: Path) -> tuple[int, int, list[Object]]:
    """Width, height and objects; ValueError for what cannot be read, or read in two ways."""
    if not file.is_file():
        raise ValueError("it is missing")
    try:
        root = ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML ({error})") from error
    except LookupError as error:
        raise ValueError(f"it is in an encoding that XML cannot have ({cut(str(error), 80)})") from error
    width, height = _number(root, "size/width"), _number(root, "size/height")
    if not all(side.is_integer() and 0 < side < 1 << 16 for side in (width, height)):
        raise ValueError(f"its size is {width:g} x {height:g}: give whole pixels, 1 to 65,535")
    nodes = root.findall("object")
    if len(nodes) != sum(1 for _ in root.iter("object")):
        raise ValueError("an object of it lies inside another element: put it into the outermost one")
    objects = []
    for node in nodes:
        name = _text(node, "name").strip()
        if name not in _LABELS:
            raise ValueError(
                f"its class {shown(name)} is none of VOC's {len(CLASSES)}: write a set of your own classes "
                "as COCO's JSON (docs/detection.md)"
            )
        x0, y0, x1, y1 = (_number(node, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        w, h = x1 - x0 + 1, y1 - y0 + 1
        difficult = 0.0 if node.find("difficult") is None else _number(node, "difficult")
        if difficult not in (0, 1):
            raise ValueError(f"its difficult is {difficult:g}: give 0 or 1")
        objects.append(Object(0, _LABELS[name], [x0 - 1, y0 - 1, w, h], w * h, difficult=bool(difficult)))
    return int(width), int(height), objects


def _text(node: ElementTree.Element, path: str) -> str:
    """The text at a path, "" where there is none; ValueError where there are two."""
    found = node.findall(path)
    if len(found) > 1:
        raise ValueError(f"its {path} is given {len(found)} times: leave one")
    return (found[0].text if found else None) or ""


def _number(node: ElementTree.Element, path: str) -> float:
    text = _text(node, path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"its {path} is {shown(text)}, not a number")
    return number
