"""The embedded set for detection and segmentation: scenes of one to six shapes."""

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from numpy.typing import NDArray

from attneck.data.detection import DetectionDataset
from attneck.data.drawn import shapes
from attneck.data.fingerprint import Fingerprint, of_options
from attneck.data.readers.annotations import Object, Record
from attneck.data.sampling import hash64

MOST = 6
"""Objects in a scene."""

_COUNT = 102  # Sets this draw apart from those of `shapes`.


class ShapeScenes(DetectionDataset):
    """`count` square scenes of `image_size` pixels a side, drawn when asked for; the same for every seed."""

    def __init__(self, *, first: int, count: int, image_size: int, **options: Any) -> None:
        ids = tuple(range(1, len(shapes.CLASSES) + 1))
        super().__init__(classes=shapes.CLASSES, category_ids=ids, image_size=image_size, **options)
        self.first, self.count, self.side = first, count, image_size
        self.dropped = 0

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> Fingerprint:
        return of_options(self.count, first=self.first, side=self.side)

    def record(self, index: int) -> Record:
        return self.read(index)[1]

    def read(self, index: int) -> tuple[NDArray[np.uint8], Record]:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        drawn = self.first + index
        number = 1 + int(hash64(_COUNT, drawn)[0] % np.uint64(MOST))
        scene = shapes.scene(0, drawn, self.side, number)
        runs = rle.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0).astype(np.uint8)))
        objects = []
        for i in range(number):
            x0, y0, x1, y1 = scene.boxes[i].tolist()
            segmentation = {"size": [self.side, self.side], "counts": runs[i]["counts"].decode()}
            objects.append(
                Object(
                    index * MOST + i + 1,
                    int(scene.labels[i]) + 1,
                    [x0, y0, x1 - x0, y1 - y0],
                    float(scene.masks[i].sum()),
                    segmentation=segmentation,
                )
            )
        return scene.image, Record(index + 1, f"scene-{drawn}", self.side, self.side, objects)


def open_scenes(
    name: str,
    split: str,
    *,
    image_size: int = 256,
    augment: str = "none",
    jitter: tuple[float, float] = (0.8, 1.25),
    seed: int = 0,
    size: int | None = None,
    masks: bool = True,
) -> ShapeScenes:
    """Opens "shapes" for detection.

    image_size: side in pixels that the scenes are drawn at.
    size: how many are drawn; 10,000 for training and 500 for validation unless given.
    The other options are those of `open_annotated`.

    Raises ValueError for an image too small for MOST objects.
    """
    smallest = shapes.SMALLEST_CELL * 3  # six objects take nine cells
    if image_size < smallest:
        raise ValueError(f"{name}: image_size is {image_size}: {MOST} objects want {smallest} pixels or more")
    first, count = shapes.part(split, size, held_out=500)
    return ShapeScenes(
        first=first,
        count=count,
        image_size=image_size,
        augment=augment,
        jitter=jitter,
        seed=seed,
        masks=masks,
    )
