"""CIFAR-100 in its official pickle layout (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attneck.data.readers import pickles

SOURCE = "cifar-100-python, from https://www.cs.toronto.edu/~kriz/cifar.html"
MEAN = (0.50707516, 0.48654887, 0.44091784)
STD = (0.26733429, 0.25643846, 0.27615047)
"""Of the 50,000 training images, by channel, in [0, 1]."""

# The official distribution's, as torchvision.datasets.CIFAR100 lists them.
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


def read(
    root: Path, split: str, md5: Mapping[str, str | Sequence[str]] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Images uint8 [N, 32, 32, 3], fine labels int64 [N] and the 100 class names of "train" or "val".

    Reads `root`/cifar-100-python; "val" is the official test file. `md5` maps file names (train, test, meta)
    to sums that are accepted beside the official ones.

    Raises FileNotFoundError for a missing file; ValueError for another sum or content.
    """
    folder, extra = root / "cifar-100-python", dict(md5 or {})
    if unknown := sorted(set(extra) - set(MD5)):
        raise ValueError(f"cifar100: md5 names {', '.join(unknown)}: its files are train, test and meta")
    file = folder / ("train" if split == "train" else "test")
    content = pickles.loads(_checked(file, extra), str(file))
    meta = folder / "meta"
    names = pickles.loads(_checked(meta, extra), str(meta)).get("fine_label_names", [])
    classes = tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)
    data, labels = content.get("data"), np.array(content.get("fine_labels", []), dtype=np.int64)
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.shape != (len(labels), 3 * 32 * 32)
        or len(classes) != 100
        or not ((labels >= 0) & (labels < 100)).all()
    ):
        raise ValueError(f"{file}: not CIFAR-100's data (uint8 [N, 3072]) and fine_labels: get {SOURCE}")
    images = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, labels, classes


def _checked(file: Path, extra: Mapping[str, str | Sequence[str]]) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"cifar100: {file} is missing: its folder must hold {SOURCE}")
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
