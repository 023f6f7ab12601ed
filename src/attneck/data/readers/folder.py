"""Images in one folder a class: root/{train,val}/<class>/<image>."""

import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attneck.data.augment.inception import inception
from attneck.data.classification import ClassificationDataset
from attneck.data.fingerprint import Fingerprint, of_files
from attneck.data.readers.decode import decode, said
from attneck.data.root import resolve
from attneck.data.sampling import Key, item_seed, seeded, spread
from attneck.data.skipping import Skipped, skips
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
        max_pixels: int | None,
        skip_bad: bool,
    ) -> None:
        super().__init__(classes=classes, mean=MEAN, std=STD, image_size=image_size, labels=labels)
        self.paths, self.augment, self.seed, self.max_pixels = paths, augment, seed, max_pixels
        self.skipped = Skipped(len(paths), paths.__getitem__) if skip_bad else None
        # Built here, so that forked workers inherit the import of torchvision.
        layers = randaugment_layers if augment == "randaugment" else 0
        self._transform = None if augment == "none" else inception(image_size, layers, randaugment_magnitude)

    def pixels(self, keys: Sequence[Key]) -> NDArray[np.uint8]:
        return np.stack([self._one(epoch, index) for epoch, index in keys])

    def _one(self, epoch: int, index: int) -> NDArray[np.uint8]:
        image = self._image(index)
        if self._transform is None:
            return np.array(resize_and_centre(image, self.image_size, self.crop_pct))
        with seeded(item_seed(self.seed, epoch, index)):
            return np.array(self._transform(image))

    def fingerprint(self) -> Fingerprint:
        return of_files(self.paths, self.labels, self.classes)

    def _image(self, index: int) -> Image.Image:
        if self.skipped is None:
            return self._decoded(index)
        return self.skipped.first(self._from(index), self._decoded)

    def _decoded(self, index: int) -> Image.Image:
        return decode(self.paths[index], "folder", self.max_pixels)

    def _from(self, index: int) -> Iterator[int]:
        """An image and those that may take its place: the rest of its class, the following ones first."""
        yield index
        alike = np.flatnonzero(self.labels == self.labels[index])
        yield from np.roll(alike, -1 - int(np.searchsorted(alike, index)))[:-1].tolist()


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
    max_pixels: int | None = None,
    on_bad_image: str = "stop",
) -> FolderDataset:
    """Opens root/{train,val}/<class>/<image>.

    augment: see `FolderDataset`; RandAugment's layers and magnitude are BoTNet section 4.8's unless given.
    classes: the class names expected, in the order of the labels; else these follow the sorted names.
    max_pixels: see `decode`.
    on_bad_image: "stop" with UnreadableImage, or "skip": another one of its class takes its place, see
        `Skipped`.

    Says on stderr which files it leaves out because they are no images, or not in a class's folder.
    """
    skip_bad = skips(on_bad_image)
    paths, labels, names, others = scan(resolve(root, name, LAYOUT), split, classes, skip_bad)
    if others and os.environ.get("RANK", "0") == "0":
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        print(
            f"attneck: folder: not read in {split}: {said(others[0])}{more} (images lie in a class's folder "
            f"and end in {' '.join(SUFFIXES)})",
            file=sys.stderr,
        )
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
        max_pixels=max_pixels,
        skip_bad=skip_bad,
    )


def scan(
    root: Path, split: str, classes: Sequence[str] | None = None, skip_bad: bool = False
) -> tuple[list[str], NDArray[np.int64], tuple[str, ...], list[str]]:
    """Paths, labels int64 [N] and class names of root/<split>, sorted by class, then by file name.

    A label is the position of its class among the sorted names, or in `classes` where given. The last list
    has what is there beside, as paths in root/<split>. What begins with a dot is passed over: `._1.jpg` is
    macOS's, and no image.

    Raises FileNotFoundError for a missing folder; ValueError for no images, for a class without any, for one
    whose name cannot be printed, for classes that are not those of the other split or of `classes`, for a
    folder that may not be read, and, without `skip_bad`, for what has an image's name and is no regular file.
    """
    try:
        return _scan(root, split, classes, skip_bad)
    except FileNotFoundError:
        raise
    except OSError as error:
        where = said(error.filename or root / split)
        raise ValueError(f"folder: {where}: {error.strerror}: make it readable") from error


def _scan(
    root: Path, split: str, classes: Sequence[str] | None, skip_bad: bool
) -> tuple[list[str], NDArray[np.int64], tuple[str, ...], list[str]]:
    found, others = _class_names(root, split)
    if classes is None:
        other = "val" if split == "train" else "train"
        if (root / other).is_dir():
            _same_classes(root / split, found, _class_names(root, other)[0], str(root / other))
    else:
        _same_classes(root / split, found, classes, "the classes asked for")
    names = tuple(found if classes is None else classes)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in sorted(enumerate(names), key=lambda pair: pair[1]):
        folder = root / split / name
        files = []
        for entry in _entries(folder):
            if not entry.name.lower().endswith(SUFFIXES):
                others.append(f"{name}/{entry.name}")
                continue
            if not (skip_bad or _is(entry.is_file)):
                raise ValueError(
                    f"folder: {said(entry.path)} has an image's name and is no regular file: remove it"
                )
            files.append(entry.path)
        if not files:
            raise ValueError(
                f"folder: {said(folder)} has no images ({' '.join(SUFFIXES)}): add some or remove it"
            )
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels, dtype=np.int64), names, others


def _class_names(root: Path, split: str) -> tuple[list[str], list[str]]:
    """The names of the class folders of a split, sorted, and of what is beside them."""
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: {said(folder)} is missing: {said(root)} must hold {LAYOUT}")
    names: list[str] = []
    others: list[str] = []
    for entry in _entries(folder):
        (names if _is(entry.is_dir) else others).append(entry.name)
    if not names:
        raise ValueError(f"folder: {said(folder)} has no class folders: {said(root)} must hold {LAYOUT}")
    for name in names:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise ValueError(
                f"folder: {said(folder / name)}: a class's name must be text that can be printed: rename it"
            )
    return names, others


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder and is not hidden, by name."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


def _is(kind: Callable[[], bool]) -> bool:
    """False for a link that leads to itself, too."""
    try:
        return kind()
    except OSError:
        return False


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
