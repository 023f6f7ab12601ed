"""What is kept of a data set, so that another one in its place is noticed, and the difference in words.

A fingerprint has a row for each class (of detectors' sets one row, called ""): the number of images, a digest
of their names, and one of names and sizes. Images in files are not opened; of those in memory the pixels
count.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from attneck.data.readers.shards import Packed, Place

Row = list[Any]
"""[images, digest of names, digest of names and sizes]; the names of images in memory are ""."""
Fingerprint = dict[str, Row]

THREADS, CHUNK = 16, 1000
"""Sizes are asked for so many at a time: ImageNet's 1.28 M over a network would take minutes one by one."""


def of_files(
    paths: Sequence[Place], labels: NDArray[np.int64], classes: Sequence[str], names: Sequence[str]
) -> Fingerprint:
    """Of images in files, their labels int64 [N], the names of the labels, and of each file in its class.

    The same images in shards have the same fingerprint.
    """
    sizes = _sizes(paths)
    found = {}
    for label, name in enumerate(classes):
        chosen = np.flatnonzero(labels == label)
        rows = [(names[i], str(sizes[i])) for i in chosen.tolist()]
        found[name] = _row(rows)
    return found


def of_arrays(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str]) -> Fingerprint:
    """Of images in memory, uint8 [N, H, W, 3], their labels int64 [N], and the names of the labels."""
    sums = [blake2b(digest_size=8) for _ in classes]
    for image, label in zip(images, labels, strict=True):
        sums[label].update(np.ascontiguousarray(image))
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    rows = zip(classes, counts, sums, strict=True)
    return {name: [count, "", total.hexdigest()] for name, count, total in rows}


def of_annotated(paths: Sequence[str], annotations: Iterable[bytes]) -> Fingerprint:
    """Of images in files, and what is annotated of each."""
    names = map(os.path.basename, paths)
    sizes = map(str, _sizes(paths))
    told = (blake2b(content, digest_size=8).hexdigest() for content in annotations)
    return {"": _row([(name, f"{size} {what}") for name, size, what in zip(names, sizes, told, strict=True)])}


def of_options(images: int, **options: Any) -> Fingerprint:
    """Of images that are drawn when they are asked for."""
    return {"": [images, "", _digest(f"{name} {value}" for name, value in sorted(options.items()))]}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """How the data that `new` describes is not that of `old`, in words; nothing where it is the same.

    Both have "classes", in the order of their labels, and "data": the fingerprint of each part of the data.
    What `old` does not have is not compared.
    """
    before, now = old.get("data", {}), new["data"]
    renamed = renames(old, new)
    found = [
        f"class {_name(was)} is now {_name(name)}"
        + " (the same letters in another Unicode form)" * (normalize("NFC", was) == normalize("NFC", name))
        for name, was in renamed.items()
    ]
    known = set(renamed) | set(renamed.values())
    found += [
        f"class {_name(name)} is gone" for name in old["classes"] if name not in {*new["classes"], *known}
    ]
    found += [
        f"class {_name(name)} is new" for name in new["classes"] if name not in {*old["classes"], *known}
    ]
    if not found and list(old["classes"]) != list(new["classes"]):
        found.append("the classes are in another order")
    for part in (part for part in now if part in before):
        rows = {name: row for name, row in before[part].items() if name not in renamed.values()}
        rows |= {name: before[part][was] for name, was in renamed.items() if was in before[part]}
        if words := _row_changes(rows, now[part]):
            found.append(f"{part} images: {', '.join(words)}")
    return found


def renames(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """The old name of each new class: of the one that had its images, or of the only one that is gone."""
    gone = [name for name in old["classes"] if name not in new["classes"]]
    come = [name for name in new["classes"] if name not in old["classes"]]
    found: dict[str, str] = {}
    for part in (part for part in new["data"] if part in old.get("data", {})):
        owners = _owners({name: old["data"][part][name] for name in gone if name in old["data"][part]})
        for name in come:
            was = owners.pop(tuple(new["data"][part].get(name, ())), None)
            if was is not None and was not in found.values():
                found.setdefault(name, was)
    if len(gone) == len(come) == 1:
        found[come[0]] = gone[0]
    return found


def relabelled(old: Fingerprint, new: Fingerprint) -> list[str]:
    """Classes that have all the images which another one had, in words."""
    return [f"{_name(name)} has those that {_name(was)} had" for name, was in _moved(old, new).items()]


def shortened(words: list[str], limit: int = 110) -> str:
    """As many of them as fit into so many characters, one at least, and how many more there are."""
    count = min(1, len(words))
    while count < len(words) and len("; ".join(words[: count + 1])) <= limit:
        count += 1
    said = "; ".join(words[:count])
    if len(said) > limit:
        said = f"{said[: limit - 1]}…"
    return said + (f"; and {len(words) - count} more" if count < len(words) else "")


def _moved(old: Fingerprint, new: Fingerprint) -> dict[str, str]:
    """Which class had the images of another one that has them no more, by that other one's name."""
    owners = _owners(old)
    found = {name: owners.get(tuple(row)) for name, row in new.items() if row != old.get(name)}
    return {name: was for name, was in found.items() if was is not None and new.get(was) != old[was]}


def _owners(rows: Fingerprint) -> dict[tuple[Any, ...], str]:
    """Whose each row of images is; without those of several, whose files have the same names and sizes."""
    count = Counter(map(tuple, rows.values()))
    return {tuple(row): name for name, row in rows.items() if row[0] and count[tuple(row)] == 1}


def _row_changes(old: Fingerprint, new: Fingerprint) -> list[str]:
    found, moved = relabelled(old, new), _moved(old, new)
    for name in (name for name in new if name in old and name not in moved):
        (count, names, files), (was, old_names, old_files) = new[name], old[name]
        where = f" in {_name(name)}" if name else ""
        if count != was:
            found.append(f"{abs(count - was):,} {'more' if count > was else 'fewer'}{where}")
        elif names != old_names:
            found.append(f"other names{where}")
        elif files != old_files:
            found.append(
                f"other {'sizes' if names else 'pixels'}{where}" if name else "other sizes or annotations"
            )
    return found


def _name(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:39]}…")


def _row(images: Sequence[tuple[str, str]]) -> Row:
    """Of (name, what else counts) of each image."""
    return [len(images), _digest(name for name, _ in images), _digest(" ".join(image) for image in images)]


def _digest(words: Iterable[str]) -> str:
    total = blake2b(digest_size=8)
    for word in words:
        total.update(word.encode(errors="surrogateescape") + b"\0")
    return total.hexdigest()


def _sizes(paths: Sequence[Place]) -> list[int]:
    """Bytes of each file; -1 of one that cannot be asked: reading it says why."""
    chunks = [paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [
            size
            for sizes in pool.map(lambda chunk: [_size(path) for path in chunk], chunks)
            for size in sizes
        ]


def _size(path: Place) -> int:
    if isinstance(path, Packed):
        return path.size
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
