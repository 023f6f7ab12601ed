"""Opens a classification set by its name; with `loader`, all that training and evaluation need."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from attneck.data.arrays import ArrayDataset
from attneck.data.choices import choose, positive, spread
from attneck.data.dataset import Batch, ClassificationDataset, collate, loader
from attneck.data.root import resolve

__all__ = [
    "AUGMENTS",
    "NAMES",
    "SPLITS",
    "Batch",
    "ClassificationDataset",
    "collate",
    "loader",
    "open_dataset",
]

NAMES = ("cifar100", "folder", "shapes")
SPLITS = ("train", "val")
AUGMENTS = {
    "cifar100": ("none", "crop_flip"),
    "folder": ("none", "inception", "randaugment"),
    "shapes": ("none", "crop_flip"),
}
"""The augmentations that make sense for each set."""


def open_dataset(
    name: str,
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    augment: str = "none",
    seed: int = 0,
    md5: Mapping[str, str | Sequence[str]] | None = None,
    size: int | None = None,
    randaugment_layers: int = 2,
    randaugment_magnitude: int = 10,
    classes: Sequence[str] | None = None,
) -> ClassificationDataset:
    """Opens "cifar100", "folder" or "shapes", split "train" or "val".

    root: the folder that holds cifar-100-python, or the folder with train/ and val/; $ATTNECK_DATA when None,
        and a relative one is looked for there too. Not used by shapes.
    image_size: side in pixels; 224 for folders and 32 for shapes unless given; CIFAR's is 32.
    augment: see AUGMENTS, `ArrayDataset` and `FolderDataset`. `seed` is of the augmentation alone: the images
        of shapes are the same for every seed.
    md5: sums accepted for CIFAR's files beside the official ones.
    size: this many images only, evenly spread over the set; of shapes, how many are drawn (10,000 for
        training and 2,000 for validation unless given).
    randaugment_layers, randaugment_magnitude: BoTNet section 4.8's unless given.
    classes: the class names expected, in the order of the labels; a folder's labels follow this order.

    Raises ValueError or FileNotFoundError, with one line that says what to do.
    """
    choose("data set", name, NAMES)
    choose("split", split, SPLITS)
    choose(f"augment for {name}", augment, AUGMENTS[name])
    if md5 and name != "cifar100":
        raise ValueError(f"{name}: md5 is given, but only cifar100's files are checked: leave it out")
    positive(name, image_size=image_size, size=size)
    if name == "folder":
        return _open_folder(
            split,
            root,
            image_size or 224,
            augment,
            seed,
            size,
            randaugment_layers,
            randaugment_magnitude,
            classes,
        )
    dataset = (
        _open_cifar(split, root, image_size, augment, seed, md5, size)
        if name == "cifar100"
        else _open_shapes(split, image_size or 32, augment, seed, size)
    )
    if classes is not None and tuple(classes) != dataset.classes:
        raise ValueError(
            f"{name}: asked for {len(classes)} classes that are not its {len(dataset.classes)}: "
            f"use the data set that they are of, or leave classes out"
        )
    return dataset


def _open_cifar(
    split: str,
    root: str | os.PathLike[str] | None,
    image_size: int | None,
    augment: str,
    seed: int,
    md5: Mapping[str, str | Sequence[str]] | None,
    size: int | None,
) -> ClassificationDataset:
    from attneck.data.readers import cifar

    if image_size not in (None, 32):
        raise ValueError(f"cifar100: image_size is {image_size}, but its images are 32 x 32: leave it out")
    images, labels, classes = cifar.read(resolve(root, "cifar100", cifar.SOURCE), split, md5)
    if size is not None:
        chosen = spread(len(labels), size, "cifar100")
        images, labels = images[chosen], labels[chosen]
    return ArrayDataset(
        images, labels, classes=classes, mean=cifar.MEAN, std=cifar.STD, augment=augment, seed=seed
    )


def _open_folder(
    split: str,
    root: str | os.PathLike[str] | None,
    image_size: int,
    augment: str,
    seed: int,
    size: int | None,
    layers: int,
    magnitude: int,
    classes: Sequence[str] | None,
) -> ClassificationDataset:
    from attneck.data.readers import folder

    paths, labels, names = folder.scan(resolve(root, "folder", folder.LAYOUT), split, classes)
    if size is not None:
        chosen = spread(len(labels), size, "folder")
        paths, labels = [paths[i] for i in chosen], labels[chosen]
    return folder.FolderDataset(
        paths,
        labels,
        classes=names,
        image_size=image_size,
        augment=augment,
        seed=seed,
        randaugment_layers=layers,
        randaugment_magnitude=magnitude,
    )


def _open_shapes(
    split: str, image_size: int, augment: str, seed: int, size: int | None
) -> ClassificationDataset:
    from attneck.data.drawn import shapes

    count = size or (10_000 if split == "train" else 2_000)
    first = 0 if split == "train" else shapes.FIRST_VALIDATION_INDEX
    images, labels = shapes.images(0, np.arange(first, first + count), image_size)
    return ArrayDataset(
        images, labels, classes=shapes.CLASSES, mean=shapes.MEAN, std=shapes.STD, augment=augment, seed=seed
    )
