"""Small COCO and VOC folders for the tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [
    {"id": 1, "name": "person"},
    {"id": 18, "name": "dog"},
    {"id": 90, "name": "toothbrush"},
]


def polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coco_content() -> dict[str, Any]:
    """Three images: two objects and a crowd; none; one object and one of no width."""
    crowd = {"size": [60, 80], "counts": [600, 60 * 20, 60 * 60 - 600]}
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 80, "height": 60},
            {"id": 3, "file_name": "b.jpg", "width": 50, "height": 70},
            {"id": 12, "file_name": "c.png", "width": 64, "height": 64},
        ],
        "annotations": [
            _object(1, 7, 18, [10.5, 20, 30, 25.25], polygon(10.5, 20, 30, 25.25)),
            _object(2, 7, 1, [10, 0, 20, 60], crowd, iscrowd=1),
            _object(5, 7, 90, [60, 5, 20, 20], polygon(60, 5, 20, 20)),
            _object(6, 12, 1, [30, 30, 0, 12], polygon(30, 30, 0, 12)),
            _object(9, 12, 1, [4, 4, 50, 40], polygon(4, 4, 20, 40) + polygon(40, 4, 14, 40)),
        ],
        "categories": CATEGORIES,
    }


def _object(number: int, image: int, category: int, box: list[float], mask: Any, iscrowd: int = 0) -> Any:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": iscrowd,
        "segmentation": mask,
    }


def write_coco(root: Path, content: Any, split: str = "train2017") -> Path:
    """The folder `root`/coco with the images that `content` lists; its annotation file."""
    folder = root / "coco" / split
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for image in content["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])
    file = root / "coco" / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def voc_xml(width: int, height: int, objects: list[tuple[str, int, list[float]]]) -> str:
    rows = [
        f"<object><name>{name}</name><pose>Left</pose><difficult>{difficult}</difficult>"
        f"<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        f"<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>"
        f"</object>"
        for name, difficult, box in objects
    ]
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(rows)}</annotation>"


def write_voc(root: Path, images: dict[str, str], split: str = "train", year: str = "2007") -> Path:
    """The folder `root`/VOCdevkit/VOC<year> with 40 × 30 images of these names and XML; its Annotations."""
    base = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
    for name, xml in images.items():
        (base / "Annotations" / f"{name}.xml").write_text(xml)
        pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / "JPEGImages" / f"{name}.jpg")
    return base / "Annotations"
