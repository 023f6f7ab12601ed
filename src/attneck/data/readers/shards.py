"""Images packed into tar shards, webdataset's format, each read by its place: any image at any time.

webdataset's own reader goes through a shard from its beginning and mixes what it has in a buffer, so the
order of an epoch is not a function of (seed, epoch), and a run cannot go on in its middle with the same bits.
Here shards.csv says where each image lies, and one read of a plain file brings it.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

INDEX = "shards.csv"
"""Beside the shards: a row for each image, in the order that its folder had: sorted by class, then path."""
COLUMNS = ["shard", "offset", "size", "name"]
"""Of the index: the tar, where the image's bytes begin and how many there are, CLASS/…/FILE."""
BLOCK = tarfile.BLOCKSIZE
_SIZE = slice(124, 136)
"""Of a tar's header: where the size is, in octal digits; the name is at its beginning."""
OPEN = 64
"""Shards that a process keeps open."""


class Packed(NamedTuple):
    """An image in a shard: the tar's path, the member's name, and where its bytes lie; `name` is its own."""

    shard: str
    member: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return os.path.join(self.shard, self.name)

    def read(self) -> bytes:
        """The image's bytes; ValueError where the shard has something else in their place."""
        shard = _shard(self.shard)  # held while it is read: another thread's may take its place
        content = _read(shard.handle, self.offset - BLOCK, BLOCK + self.size)
        name, size = self.member.encode() + b"\0", b"%011o\0" % self.size
        # tarfile's own reader of headers takes far longer.
        same = content.startswith(name) and content[_SIZE] == size
        if not same or len(content) < BLOCK + self.size:
            raise ValueError(f"the shard has changed since {INDEX} was written")
        if not self.size:
            raise ValueError("it is empty")
        return content[BLOCK:]


Place = str | Packed
"""Where an image is: a path, or a place in a shard."""


class PackedImages(Sequence[Packed]):
    """The images of shards, in their order; each is made when it is asked for.

    Args:
        shards: the tars' paths.
        table: int64 [N, 4], of each image: its row in the index, its shard's number, offset and size.
        names: of each image.
    """

    def __init__(self, shards: Sequence[str], table: NDArray[np.int64], names: Sequence[str]) -> None:
        self.shards, self.table, self.names = shards, table, names

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Packed: ...
    @overload
    def __getitem__(self, index: slice) -> list[Packed]: ...
    def __getitem__(self, index: int | slice) -> Packed | list[Packed]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, shard, offset, size = self.table[index].tolist()
        name = self.names[index]
        return Packed(self.shards[shard], member(row, name), offset, size, name)


def member(row: int, name: str, ending: str | None = None) -> str:
    """What an image is called in its shard: a number, for webdataset's keys end at a name's first dot."""
    return f"{row:08d}{os.path.splitext(name)[1].lower() if ending is None else ending}"


def is_packed(folder: Path) -> bool:
    """Whether the images of a folder are in shards."""
    return (folder / INDEX).is_file()


def read_index(folder: Path) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """The shards' paths, the images' names, and the table of `PackedImages`.

    Raises ValueError for an index that is not whole or has other images than a shard, and for a shard that is
    missing or cut.
    """
    index = folder / INDEX
    found = index.stat()
    shards, names, table = _parsed(index, found.st_mtime_ns, found.st_size)
    _shard.cache_clear()  # a shard may have been written anew
    paths = [os.path.join(folder, shard) for shard in shards]
    for number, path in enumerate(paths):
        rows = table[table[:, 1] == number]
        wanted = int((rows[:, 2] + rows[:, 3]).max())
        try:
            there = os.stat(path)
        except FileNotFoundError:
            raise ValueError(f"folder: {path} is missing, {INDEX} has images of it: copy it again") from None
        if not stat.S_ISREG(there.st_mode) or there.st_size < wanted:
            raise ValueError(
                f"folder: {path} is cut or no tar: {there.st_size:,} bytes, {INDEX} wants {wanted:,}: "
                "copy it again"
            )
        if not _has_all(rows, path):
            raise ValueError(f"folder: {index} has not all images of {path}, or others: copy both again")
    return paths, names, table


def _has_all(rows: NDArray[np.int64], path: str) -> bool:
    """Whether these images, each with its class behind it, follow each other in a shard up to its end."""
    offsets, sizes = rows[np.argsort(rows[:, 2])][:, 2:].T
    ends = offsets + -(-sizes // BLOCK) * BLOCK + 2 * BLOCK  # of the class: a header, and a block
    if offsets[0] != BLOCK or not (offsets[1:] - BLOCK == ends[:-1]).all():
        return False
    return not any(_read(_shard(path).handle, int(ends[-1]), BLOCK))  # another image's header is not empty


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError


@lru_cache(maxsize=4)
def _parsed(index: Path, changed: int, size: int) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Names of the shards and of the images, and the table, of an index of that time and size."""
    try:
        rows = list(csv.reader(io.StringIO(index.read_bytes().decode(), newline=""), strict=True))
        _check(rows.pop(0) == COLUMNS)
        numbers = {shard: number for number, shard in enumerate(sorted({row[0] for row in rows}))}
        table = np.array(
            [
                (row, numbers[shard], int(offset), int(size))
                for row, (shard, offset, size, _) in enumerate(rows)
            ],
            dtype=np.int64,
        ).reshape(-1, 4)
        names = [row[3] for row in rows]
        _check(bool(names))
        _check(all(os.path.basename(shard) == shard and shard.endswith(".tar") for shard in numbers))
        _check(all("/" in name[1:] for name in names))
        in_order = [(name.partition("/")[0], name) for name in names]
        _check(all(one < other for one, other in pairwise(in_order)))
        _check(bool((table[:, 2] >= BLOCK).all() and (table[:, 3] >= 0).all()))
    except (ValueError, IndexError, csv.Error, OverflowError):
        raise ValueError(
            f"folder: {index} is no index that attneck data pack has written, or not whole: copy it again"
        ) from None
    return list(numbers), names, table


class _Shard:
    """A file that is open for reading, as long as somebody has it."""

    def __init__(self, path: str) -> None:
        self.handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


_shard = lru_cache(maxsize=OPEN)(_Shard)


def _read(handle: int, offset: int, count: int) -> bytes:
    """So many bytes from there on, fewer at the file's end; a mounted bucket may bring them in parts."""
    found = b""
    while len(found) < count and (part := os.pread(handle, count - len(found), offset + len(found))):
        found = found + part if found else part
    return found
