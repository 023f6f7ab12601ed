"""COCO's instances: annotations/instances_<split>.json, and the images beside it in <split>/."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from attneck.data.readers.annotations import (
    Annotations,
    Object,
    Record,
    Records,
    apart_problem,
    cut,
    masks_problem,
    name_problem,
    object_problem,
    share_problems,
    shown,
)
from attneck.data.table import SETS

SOURCE = SETS["coco"].source
NO_MASK = "it has no mask: give it one, or take a detector of boxes alone, fasterrcnn_botnet50 say"


def _named(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


def _inside(name: str) -> str:
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise ValueError(f"{shown(name)} leads out of the images' folder: give a file in it")
    return name


_STRICT = ConfigDict(strict=True)
Name = Annotated[str, AfterValidator(_named)]
Id = Annotated[int, Field(ge=0, lt=1 << 63)]
Side = Annotated[int, Field(gt=0, lt=1 << 16)]


class Category(BaseModel):
    model_config = _STRICT
    id: Id
    name: Name


class Image(BaseModel):
    model_config = _STRICT
    id: Id
    file_name: Annotated[Name, AfterValidator(_inside)]
    width: Side
    height: Side


class Annotation(BaseModel):
    model_config = _STRICT
    id: Id
    image_id: Id
    category_id: Id
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
    area: Annotated[FiniteFloat, Field(ge=0)] | None = None
    iscrowd: Annotated[int, Field(ge=0, le=1, strict=False)] = 0
    segmentation: Any = None


def find(root: Path, split: str) -> tuple[Path, Path]:
    """The annotation file and the folder of the images of a split, under `root` or `root`/coco.

    A split has COCO's name (train2017) or the plain one (train).

    Raises FileNotFoundError when neither is there.
    """
    base = root / "coco" if (root / "coco").is_dir() else root
    for name in (f"{split}2017", split):
        file = base / "annotations" / f"instances_{name}.json"
        if file.is_file():
            return file, base / name
    raise FileNotFoundError(
        f"coco: {base / 'annotations' / f'instances_{split}2017.json'} is missing: {root} must hold {SOURCE} "
        f"or a set of your own annotations/instances_{split}.json, and its images in {split}"
    )


def read_annotations(name: str, split: str, root: Path, masks: bool) -> Annotations:
    """Reads the JSON of a split. Labels are the categories in the order of their ids, from 1.

    `masks`: whether every object must have one; else none is looked at. One without an area has its box's.

    Raises FileNotFoundError for a missing file; ValueError for one that is not COCO's JSON.
    """
    file, folder = find(root, split)
    content = _load(file)
    categories = sorted(_rows(file, content, "categories", Category), key=lambda category: category.id)
    _distinct(file, "categories", [category.name for category in categories])
    images = {image.id: image for image in _rows(file, content, "images", Image)}
    _distinct(file, "images", [image.file_name for image in images.values()])
    labels = {category.id: label for label, category in enumerate(categories, 1)}
    objects, problems = _objects(file, content["annotations"], images, labels, masks)
    shares = share_problems(list(chain.from_iterable(objects.values())))
    problems[:0] = [cut(f"{file}: {problem}") for problem in shares]

    def records() -> Iterator[Record]:
        for image in images.values():
            path = os.path.join(folder, image.file_name)
            where = f"{file}: image {image.id} ({image.file_name})"
            if not os.path.isfile(path):
                problems.append(cut(f"{where}: {path} is missing"))
            elif masks and (problem := masks_problem(objects[image.id], image.width, image.height)):
                problems.append(cut(f"{where}: {problem}"))
            for object in [] if shares else objects[image.id]:
                if problem := apart_problem(object):
                    problems.append(cut(f"{where}: annotation {object.id}: {problem}"))
            yield Record(image.id, path, image.width, image.height, objects.pop(image.id))

    names = tuple(category.name for category in categories)
    return Annotations(Records(records()), names, tuple(labels), problems)


def _objects(
    file: Path, rows: list[Any], images: dict[int, Image], labels: dict[int, int], masks: bool
) -> tuple[dict[int, list[Object]], list[str]]:
    """The annotations that are whole, by their image's id, and what is wrong with each of the others."""
    objects: dict[int, list[Object]] = {image: [] for image in images}
    problems: list[str] = []
    seen: set[int] = set()
    for row in rows:
        try:
            found = Annotation.model_validate(row)
        except ValidationError as error:
            about = row if isinstance(row, dict) else {}
            where = f"image {shown(about.get('image_id'))}: annotation {shown(about.get('id'))}"
            problems.append(cut(f"{file}: {where}: {_reason(error)}"))
            continue
        image = images.get(found.image_id)
        object = Object(
            found.id,
            labels.get(found.category_id, 0),
            found.bbox,
            found.bbox[2] * found.bbox[3] if found.area is None else found.area,
            bool(found.iscrowd),
            segmentation=None if found.segmentation == [] or not masks else found.segmentation,
        )
        if found.id in seen:
            problem: str | None = "another annotation has its id"
        elif image is None:
            problem = "the file lists no image of this id"
        elif not object.label:
            problem = f"its category_id {found.category_id} is none of the file's {len(labels)} categories"
        elif masks and object.segmentation is None:
            problem = NO_MASK
        else:
            problem = object_problem(object, image.width, image.height)
        seen.add(found.id)
        if problem is None and image:
            if isinstance(object.segmentation, dict):  # without whatever else is in it
                runs = {"size": [image.height, image.width], "counts": object.segmentation["counts"]}
                object = object._replace(segmentation=runs)
            objects[found.image_id].append(object)
        else:
            name = f" ({image.file_name})" if image else ""
            problems.append(cut(f"{file}: image {found.image_id}{name}: annotation {found.id}: {problem}"))
    return objects, problems


def _load(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_once)
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"coco: {file}: not JSON, or cut short ({error}): get it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"coco: {file}: no list of {key} in it: give COCO's instances JSON")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the JSON; ValueError for a key given twice, of which Python would take the last."""
    row = dict(pairs)
    if len(row) < len(pairs):
        key, times = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(key)} is given {times} times in one object")
    return row


def _rows(file: Path, content: dict[str, list[Any]], key: str, form: type[Any]) -> list[Any]:
    rows = []
    for position, row in enumerate(content[key]):
        try:
            rows.append(form.model_validate(row))
        except ValidationError as error:
            raise ValueError(f"coco: {file}: {key}[{position}]: {_reason(error)}") from None
    if not rows:
        raise ValueError(f"coco: {file}: it lists no {key}: give COCO's instances JSON")
    _distinct(file, key, [row.id for row in rows])
    return rows


def _distinct(file: Path, key: str, values: list[Any]) -> None:
    value, times = Counter(values).most_common(1)[0]
    if times > 1:
        raise ValueError(f"coco: {file}: {times} {key} are called {shown(value)}: rename all but one")


_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "list_type": "a list",
    "model_type": "its fields in braces",
}
"""In place of pydantic's words for a type."""


def _reason(error: ValidationError) -> str:
    details = error.errors()[0]
    field = ".".join(map(str, details["loc"]))
    reason = details["msg"].removeprefix("Value error, ")
    wanted = reason.removeprefix("Input should be ")
    if wanted != reason:
        wanted = _WANTED.get(details["type"], wanted if wanted.startswith("a ") else f"a number {wanted}")
        return f"{field or 'it'} is {shown(details['input'])}: give {wanted}"
    return f"{field}: {reason}" if field else reason
