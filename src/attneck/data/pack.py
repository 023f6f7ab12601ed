"""A folder of images becomes tar shards that are read in its place: the same images, order and bits."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from attneck.data.readers.shards import COLUMNS, INDEX, is_packed, member
from attneck.data.readers.tree import Tree, every_split, tell_left
from attneck.data.sampling import order
from attneck.errors import UserError, shown_path
from attneck.files import write_csv, writing

Progress = Callable[[Iterable[int], str], Iterable[int]]


def pack(root: Path, out: Path, shard_bytes: int, progress: Progress) -> dict[str, dict[str, int]]:
    """Write the images of root/{train,val}/<class>/…, or root/<class>/…, into tars under `out`; their counts.

    Each image's bytes are untouched, under a number with its own ending; beside it, as webdataset has it, its
    label in a `.cls`. The tars have the classes mixed, for readers that stream; `attneck` reads by the index.

    Args:
        out: a new folder; it is there when all of it is whole.
        shard_bytes: of a tar, about.

    Raises:
        UserError, ValueError: a folder that `scan` refuses or that is packed already, a name that is no text,
            an `out` that holds something.
        NotWritten: no room, say.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{shown_path(out)} is there already: give a new folder for the shards")
    if not out.absolute().parent.is_dir():
        raise UserError(
            f"{shown_path(out)}: there is no folder {shown_path(out.absolute().parent)}; make it first"
        )
    for folder in (root, root / "train", root / "val"):
        if is_packed(folder):
            raise UserError(f"{shown_path(folder)} is packed already: give a folder of images")
    aside = out.absolute().with_name(f".{out.name}.{os.getpid()}.tmp")
    found = {}
    try:
        for split, tree in every_split(root).items():
            tell_left(tree.left, split or "the classes")
            found[split or "all"] = _pack(tree, aside / split, split or "all", shard_bytes, progress)
        with writing(out):
            os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found


def _pack(tree: Tree, folder: Path, split: str, shard_bytes: int, progress: Progress) -> dict[str, int]:
    """One split, the classes mixed; its images, shards and bytes."""
    rows: list[tuple[str, int, int, str]] = [("", 0, 0, "")] * len(tree.names)
    shards: list[Path] = []
    with writing(folder):
        folder.mkdir(parents=True)
    with ExitStack() as held:
        tar: tarfile.TarFile | None = None
        for index in progress(order(0, 0, len(tree.names)).tolist(), f"pack {split}"):
            name = tree.names[index]
            try:
                name.encode()
                content = (tree.folder / name).read_bytes()
            except UnicodeEncodeError:
                raise ValueError(
                    f"folder: {shown_path(tree.folder / name)}: the name is no text: rename it"
                ) from None
            except OSError as error:
                where = shown_path(tree.folder / name)
                raise ValueError(f"folder: {where}: {error.strerror}: make it readable") from error
            if tar is None or tar.offset + len(content) > shard_bytes:
                _close(held, shards)
                shards.append(folder / f"{len(shards):06d}.tar")
                with writing(shards[-1]):
                    tar = held.enter_context(tarfile.open(shards[-1], "w", format=tarfile.USTAR_FORMAT))
            with writing(shards[-1]):
                rows[index] = (shards[-1].name, tar.offset + tarfile.BLOCKSIZE, len(content), name)
                _add(tar, member(index, name), content)
                _add(tar, member(index, name, ".cls"), str(tree.labels[index]).encode())
        _close(held, shards)
    for shard in shards:
        with writing(shard), shard.open("rb") as file:
            os.fsync(file.fileno())
    write_csv(folder / INDEX, [COLUMNS, *rows])
    return {
        "images": len(rows),
        "shards": len(shards),
        "bytes": sum(shard.stat().st_size for shard in shards),
    }


def _close(held: ExitStack, shards: list[Path]) -> None:
    """The tar under way, the last of `shards`, if there is one."""
    if shards:
        with writing(shards[-1]):
            held.close()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Nothing of the machine is in it: the same folder makes the same tars."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
