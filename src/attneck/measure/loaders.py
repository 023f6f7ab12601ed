"""Training images from JPEGs, batch by batch: this project's way, torchvision's and timm's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

from attneck.data import TrainBatches, collate, loader, open_dataset
from attneck.data.pack import pack
from attneck.data.readers.decode import decode
from attneck.imagenet import MEAN, STD

OURS, PACKED, FLOATS = "attneck", "attneck, tar shards", "attneck, normalised where loaded"
TORCHVISION, TENSORS, TIMM = "torchvision, PIL", "torchvision, tensors", "timm"

SOURCES = ("coco/train2017", "coco/val2017", "VOCdevkit/VOC2007/JPEGImages", "VOCdevkit/VOC2012/JPEGImages")
"""Where photographs lie in a data folder."""
LONGER, QUALITY = 500, 98
"""Of a JPEG: its longer side, and the quality that makes about 110 kB of a photograph of that size."""
CLASSES = 4


def photographs(data: Path, folder: Path, count: int) -> dict[str, float]:
    """Write JPEGs of ImageNet's size into folder/train/<class>/, made from COCO's and VOC's; their means.

    Raises ValueError where `data` has fewer.
    """
    each = [sorted((data / source).glob("*.jpg"))[:count] for source in SOURCES]
    found = [path for paths in each for path in paths]
    if len(found) < count:
        raise ValueError(
            f"{data} has {len(found)} of {count} photographs in {', '.join(SOURCES)}: give --root, a folder "
            "that holds COCO or a VOC"
        )
    widths, heights, sizes = [], [], []
    for number in range(count):
        image = decode(str(found[number * len(found) // count]), "bench input")
        image.thumbnail((LONGER, LONGER), Image.Resampling.LANCZOS)
        path = folder / "train" / f"class {number % CLASSES}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=QUALITY)
        widths.append(image.width)
        heights.append(image.height)
        sizes.append(path.stat().st_size)
    means = (sum(values) / count for values in (widths, heights, sizes))
    return {"images": count, **dict(zip(("width", "height", "bytes"), means, strict=True))}


def contestants(folder: Path, size: int, batch: int) -> dict[str, Callable[[], Any]]:
    """By name, what makes the next batch of `photographs`: decoded, augmented and put together.

    All take a random part of 8 to 100 % of the area, resize it (bilinear) and flip half of them, in this
    process and its one thread. This project's batches and timm's are uint8, to be normalised on their device;
    torchvision's are float32 and normalised, as those of FLOATS.
    """
    from timm.data import create_loader
    from timm.data.dataset import ImageDataset
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    pack(folder, folder / "packed", 1 << 29, lambda items, _: items)

    def ours(root: Path, *how: Any) -> Iterator[Any]:
        images = open_dataset("folder", "train", root=root, image_size=size, augment="inception")
        steps = math.ceil(1e9 / batch)
        return iter(loader(images, TrainBatches(len(images), batch, seed=0, steps=steps), 0, *how))

    cut: list[Any] = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    ready: list[Any] = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]

    def torchvisions(*steps: Any) -> Iterator[Any]:
        images = ImageFolder(folder / "train", v2.Compose(steps))
        return _endless(DataLoader(images, batch, shuffle=True, drop_last=True))

    timms = create_loader(
        ImageDataset(str(folder / "train")),
        (3, size, size),
        batch,
        is_training=True,
        color_jitter=None,  # type: ignore[arg-type]
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    batches = {
        OURS: ours(folder, collate),
        PACKED: ours(folder / "packed", collate),
        FLOATS: ours(folder),
        TORCHVISION: torchvisions(*cut, v2.PILToTensor(), *ready),
        TENSORS: torchvisions(v2.PILToTensor(), *cut, *ready),
        TIMM: _endless(timms.loader),  # without the part that normalises
    }
    return {name: iterator.__next__ for name, iterator in batches.items()}


def _endless(batches: Any) -> Iterator[Any]:
    while True:
        yield from batches
