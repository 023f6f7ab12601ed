"""PASCAL VOC: ImageSets/Main/<split>.txt, Annotations/<name>.xml and JPEGImages/<name>.jpg of VOC<year>."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from attneck.data.readers.annotations import Annotations, Object, Record, Records, object_problem
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

    Raises FileNotFoundError for a missing list, ValueError for an empty one.
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
                problems.append(f"{where}: {path} is missing")
                continue
            try:
                width, height, objects = _parse(xml)
            except (ValueError, OSError) as error:
                problems.append(f"{where}: {error}")
                continue
            for object in objects:
                if problem := object_problem(object, width, height):
                    problems.append(f"{where}: {CLASSES[object.label - 1]}: {problem}")
            numbered = [object._replace(id=object_id + i) for i, object in enumerate(objects, 1)]
            object_id += len(objects)
            yield Record(image_id, str(path), width, height, numbered)

    return Annotations(Records(records()), CLASSES, tuple(_LABELS.values()), problems)


def _names(file: Path) -> list[tuple[Path, str]]:
    """The year's folder, and the name of each image of a list."""
    names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file} lists no images: get it anew")
    return [(file.parents[2], name) for name in names]


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE: VOC has none, and the entities that it may define can grow without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which VOC's files have not")


def _parse(file: Path) -> tuple[int, int, list[Object]]:
    """Width, height and objects; ValueError for what cannot be read."""
    if not file.is_file():
        raise ValueError("it is missing")
    try:
        root = ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML ({error})") from error
    width, height = int(_number(root, "size/width")), int(_number(root, "size/height"))
    if width < 1 or height < 1:
        raise ValueError(f"its size is {width} x {height}")
    objects = []
    for node in root.findall("object"):
        name = (node.findtext("name") or "").strip()
        if name not in _LABELS:
            raise ValueError(f"its class {name!r} is none of VOC's {len(CLASSES)}")
        x0, y0, x1, y1 = (_number(node, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        w, h = x1 - x0 + 1, y1 - y0 + 1
        difficult = node.find("difficult") is not None and _number(node, "difficult") != 0
        objects.append(Object(0, _LABELS[name], [x0 - 1, y0 - 1, w, h], w * h, difficult=difficult))
    return width, height, objects


def _number(node: ElementTree.Element, path: str) -> float:
    text = node.findtext(path) or ""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"its {path} is {text!r}, not a number")
    return number
