"""Images in one folder a class: root/{train,val}/<class>/<image>."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attneck.data.augment.inception import inception
from attneck.data.classification import ClassificationDataset
from attneck.data.fingerprint import Fingerprint, of_files
from attneck.data.readers.decode import decode
from attneck.data.root import resolve
from attneck.data.sampling import Key, item_seed, seeded, spread
from attneck.data.table import SETS
from attneck.imagenet import MEAN, STD

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
LAYOUT = SETS["folder"].source


class FolderDataset(ClassificationDataset):
    """Images decoded by Pillow as they are asked for; normalised with ImageNet's mean and std.

    augment "none": the shorter side resized to image_size / 0.875, then the centre, as ImageNet is evaluated.
    "inception", "randaugment": see `inception`.
    """

    crop_pct = 0.875

    def __init__(
        self,
        paths: list[str],
        labels: NDArray[np.int64],
        *,
        classes: tuple[str, ...],
        image_size: int,
        augment: str,
        seed: int,
        randaugment_layers: int,
        randaugment_magnitude: int,
    ) -> None:
        super().__init__(classes=classes, mean=MEAN, std=STD, image_size=image_size, labels=labels)
        self.paths, self.augment, self.seed = paths, augment, seed
        # Built here, so that forked workers inherit the import of torchvision.
        layers = randaugment_layers if augment == "randaugment" else 0
        self._transform = None if augment == "none" else inception(image_size, layers, randaugment_magnitude)

    def pixels(self, keys: Sequence[Key]) -> NDArray[np.uint8]:
        return np.stack([self._one(epoch, index) for epoch, index in keys])

    def _one(self, epoch: int, index: int) -> NDArray[np.uint8]:
        image = decode(self.paths[index], "folder")
        if self._transform is None:
            return np.array(resize_and_centre(image, self.image_size, self.crop_pct))
        with seeded(item_seed(self.seed, epoch, index)):
            return np.array(self._transform(image))

    def fingerprint(self) -> Fingerprint:
        return of_files(self.paths, self.labels, self.classes)


def open_folder(
    name: str,
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: int = 224,
    augment: str = "none",
    seed: int = 0,
    size: int | None = None,
    randaugment_layers: int = 2,
    randaugment_magnitude: int = 10,
    classes: Sequence[str] | None = None,
) -> FolderDataset:
    """Opens root/{train,val}/<class>/<image>.

    augment: see `FolderDataset`; RandAugment's layers and magnitude are BoTNet section 4.8's unless given.
    classes: the class names expected, in the order of the labels; else these follow the sorted names.
    """
    paths, labels, names = scan(resolve(root, name, LAYOUT), split, classes)
    if size is not None:
        chosen = spread(len(labels), size, name)
        paths, labels = [paths[i] for i in chosen], labels[chosen]
    return FolderDataset(
        paths,
        labels,
        classes=names,
        image_size=image_size,
        augment=augment,
        seed=seed,
        randaugment_layers=randaugment_layers,
        randaugment_magnitude=randaugment_magnitude,
    )


def scan(
    root: Path, split: str, classes: Sequence[str] | None = None
) -> tuple[list[str], NDArray[np.int64], tuple[str, ...]]:
    """Paths, labels int64 [N] and class names of root/<split>, sorted by class, then by file name.

    A label is the position of its class among the sorted names, or in `classes` where given.

    Raises FileNotFoundError for a missing folder; ValueError for no images, for a class without any, and for
    classes that are not those of the other split or of `classes`.
    """
    found = _class_names(root, split)
    if classes is None:
        other = "val" if split == "train" else "train"
        if (root / other).is_dir():
            _same_classes(root / split, found, _class_names(root, other), str(root / other))
    else:
        _same_classes(root / split, found, classes, "the classes asked for")
    names = tuple(found if classes is None else classes)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in sorted(enumerate(names), key=lambda pair: pair[1]):
        folder = root / split / name
        files = sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
        if not files:
            raise ValueError(f"folder: {folder} has no images ({' '.join(SUFFIXES)}): add some or remove it")
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels, dtype=np.int64), names


def _class_names(root: Path, split: str) -> list[str]:
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: {folder} is missing: {root} must hold {LAYOUT}")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise ValueError(f"folder: {folder} has no class folders: {root} must hold {LAYOUT}")
    return names


def _same_classes(folder: Path, given: Sequence[str], wanted: Sequence[str], whose: str) -> None:
    extra, missing = sorted(set(given) - set(wanted)), sorted(set(wanted) - set(given))
    if extra or missing:
        differences = [
            f"{len(names)} {how} ({names[0]})"
            for names, how in ((extra, "more"), (missing, "missing"))
            if names
        ]
        raise ValueError(
            f"folder: the classes of {folder} are not those of {whose}: {', '.join(differences)}: "
            f"make them the same"
        )


def resize_and_centre(image: Image.Image, size: int, crop_pct: float) -> Image.Image:
    scale = round(size / crop_pct) / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
