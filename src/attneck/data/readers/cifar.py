"""CIFAR-100 as published (https://www.cs.toronto.edu/~kriz/cifar.html): the pickles or the binary files."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attneck.data.arrays import ArrayDataset
from attneck.data.readers import pickles
from attneck.data.root import resolve
from attneck.data.sampling import spread
from attneck.data.table import SETS

SOURCE = SETS["cifar100"].source
MEAN = (0.50707516, 0.48654887, 0.44091784)
STD = (0.26733429, 0.25643846, 0.27615047)
"""Of the 50,000 training images, by channel, in [0, 1]."""

SIDE = 32
"""Of the images, in pixels."""

# The official pickles', as torchvision.datasets.CIFAR100 lists them. Nobody publishes the binary files' sums.
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
IMAGES = {"train": 50_000, "test": 10_000}

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]
"""Images uint8 [N, 32, 32, 3], fine labels int64 [N] and the 100 class names."""


def open_cifar(
    name: str,
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: int = SIDE,
    augment: str = "none",
    seed: int = 0,
    size: int | None = None,
    md5: Mapping[str, str | Sequence[str]] | Sequence[str] | None = None,
) -> ArrayDataset:
    """Opens CIFAR-100; "val" is the official test file. `augment`: see `ArrayDataset`.

    image_size: 32 × 32, as they are; of another side they are resized, see `ArrayDataset`.
    md5: sums accepted for the pickles beside the official ones: of any file, or by file.
    """
    images, labels, classes = read(resolve(root, name, SOURCE), split, md5)
    if size is not None:
        chosen = spread(len(labels), size, name)
        images, labels = images[chosen], labels[chosen]
    opened = ArrayDataset(images, labels, classes=classes, mean=MEAN, std=STD, augment=augment, seed=seed)
    return opened.at(image_size)


def read(
    root: Path, split: str, md5: Mapping[str, str | Sequence[str]] | Sequence[str] | None = None
) -> Arrays:
    """The "train" or "val" images of `root`/cifar-100-python, or else of `root`/cifar-100-binary.

    Raises FileNotFoundError for a missing file; ValueError for another sum or content.
    """
    file = "train" if split == "train" else "test"
    binary, pickled = root / "cifar-100-binary", root / "cifar-100-python"
    extra = dict(md5) if isinstance(md5, Mapping) else dict.fromkeys(MD5, md5 or ())
    try:
        if binary.is_dir() and not pickled.is_dir():
            return _read_binary(binary, file)
        return _read_pickles(pickled, file, extra)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"cifar100: {error.filename}: {error.strerror}: make it readable") from error


def _read_pickles(folder: Path, name: str, extra: Mapping[str, str | Sequence[str]]) -> Arrays:
    if unknown := sorted(set(extra) - set(MD5)):
        raise ValueError(f"cifar100: md5 names {', '.join(unknown)}: its files are train, test and meta")
    file, meta = folder / name, folder / "meta"
    content = pickles.loads(_checked(file, extra), str(file))
    names = pickles.loads(_checked(meta, extra), str(meta)).get("fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        names = []
    classes = tuple(name.decode("latin1") if isinstance(name, bytes) else name for name in names)
    if len(set(classes)) != 100:
        raise ValueError(f"{meta}: not the names of CIFAR-100's 100 classes (fine_label_names): get {SOURCE}")
    data, labels = content.get("data"), content.get("fine_labels")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or not isinstance(labels, list)
        or not all(type(label) is int and 0 <= label < 100 for label in labels)
        or not labels
        or data.shape != (len(labels), 3 * 32 * 32)
    ):
        raise ValueError(f"{file}: not CIFAR-100's data (uint8 [N, 3072]) and fine_labels: get {SOURCE}")
    return _images(data), np.array(labels, dtype=np.int64), classes


def _read_binary(folder: Path, name: str) -> Arrays:
    """Each image is a coarse label, a fine label and 3072 pixels, a byte each.

    In place of a sum: the size, as many images of each class, and one coarse label for each fine one.
    """
    file, names = folder / f"{name}.bin", folder / "fine_label_names.txt"
    for needed in (file, names):
        _exists(needed)
    rows, count = np.fromfile(file, dtype=np.uint8), IMAGES[name]
    if len(rows) != count * 3074:
        raise ValueError(f"cifar100: {file} has {len(rows)} bytes, wanted {count * 3074}: get {SOURCE}")
    rows = rows.reshape(count, 3074)
    coarse, fine = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    pairs = np.unique(coarse * 256 + fine)
    if (
        len(pairs) != 100
        or (pairs >= 20 * 256).any()
        or (np.bincount(fine, minlength=256)[:100] != count // 100).any()
    ):
        raise ValueError(
            f"cifar100: {file} has not {count // 100} images of each of 100 classes in 20 groups: "
            f"get {SOURCE}"
        )
    classes = tuple(names.read_text(encoding="latin1").split())
    if len(classes) != 100:
        raise ValueError(f"cifar100: {names} has {len(classes)} names, wanted 100: get {SOURCE}")
    return _images(rows[:, 2:]), fine, classes


def _images(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, 3072], channels outermost, → [N, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _exists(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"cifar100: {file} is missing: its folder must hold {SOURCE}")


def _checked(file: Path, extra: Mapping[str, str | Sequence[str]]) -> bytes:
    _exists(file)
    raw = file.read_bytes()
    given = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    also = extra.get(file.name, ())
    wanted = (MD5[file.name], *((also,) if isinstance(also, str) else also))
    if given not in wanted:
        raise ValueError(
            f"cifar100: {file} has md5 {given}, wanted {' or '.join(wanted)}: get {SOURCE}, "
            f"or name its sum in `md5` if you trust it"
        )
    return raw
