"""Images in one folder a class: root/{train,val}/<class>/<image>."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attneck.data.dataset import ClassificationDataset
from attneck.data.readers.decode import decode
from attneck.data.sampling import Key, item_seed, seeded

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, by channel, in [0, 1]."""
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
LAYOUT = "train/<class>/ and val/<class>/ with images"

Transform = Callable[[Any], Any]


class FolderDataset(ClassificationDataset):
    """Images decoded by Pillow as they are asked for; normalised with ImageNet's mean and std.

    augment "none": the shorter side resized to image_size / 0.875, then the centre, as ImageNet is evaluated.
    "inception": a crop of 8 to 100 % of the area at an aspect of 3/4 to 4/3, resized to image_size, and a
    flip. "randaugment": the same, then RandAugment (BoTNet section 4.8) by timm, whose magnitudes are on the
    scale that the paper's 10, 15 and 24 are meant on: 10 is 30 degrees of rotation (torchvision's 10 is 10).
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
        self._transform = (
            None
            if augment == "none"
            else _training_transform(augment, image_size, randaugment_layers, randaugment_magnitude)
        )

    def pixels(self, keys: Sequence[Key]) -> NDArray[np.uint8]:
        return np.stack([self._one(epoch, index) for epoch, index in keys])

    def _one(self, epoch: int, index: int) -> NDArray[np.uint8]:
        image = decode(self.paths[index], "folder")
        if self._transform is None:
            return np.array(resize_and_centre(image, self.image_size, self.crop_pct))
        with seeded(item_seed(self.seed, epoch, index)):
            return np.array(self._transform(image))


def scan(
    root: Path, split: str, classes: Sequence[str] | None = None
) -> tuple[list[str], NDArray[np.int64], tuple[str, ...]]:
    """Paths, labels int64 [N] and class names of root/<split>, sorted by class, then by file name.

    A label is the place of its class among the sorted names, or in `classes` where given.

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


def _training_transform(augment: str, size: int, layers: int, magnitude: int) -> Transform:
    from torchvision.transforms import v2

    steps: list[Transform] = [v2.RandomResizedCrop(size, scale=(0.08, 1.0)), v2.RandomHorizontalFlip()]
    if augment == "randaugment":
        if layers < 0 or not 0 <= magnitude <= 30:
            raise ValueError(
                f"randaugment with {layers} layers of magnitude {magnitude}: "
                f"layers must be 0 or more, the magnitude 0 ... 30"
            )
        from timm.data.auto_augment import rand_augment_transform  # seconds of imports: only where used

        # mmax: timm's cap at 10 lifted, as the paper's 15 and 24 want it.
        form = f"rand-m{magnitude}-mmax{magnitude}-n{layers}"
        steps.append(rand_augment_transform(form, {"img_mean": (128, 128, 128)}))
    compose: Transform = v2.Compose(steps)
    return compose
