"""What lies in folders of images: class folders, the images in them at any depth, and what is left out."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attneck.data.readers.decode import SUFFIXES
from attneck.data.readers.shards import INDEX, PackedImages, Place, is_packed, read_index
from attneck.data.root import resolve
from attneck.data.table import SETS
from attneck.errors import say, shown_path

LAYOUT = SETS["folder"].source
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"})
"""What folders of splits are called here and elsewhere, in small letters."""


@dataclass
class Left:
    """What is in a folder and is not read, as paths in it: other files, linked folders, and what begins with
    a dot.

    `packed`: the folder's images are in shards, and what lies beside them is left out, whatever it is.
    """

    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    packed: bool = False

    def line(self, where: str = "images") -> str:
        """How many, and which first; "" where nothing is left out. `where`: where images would lie."""
        named = f"{INDEX} names all images" if self.packed else f"{where} end in {' '.join(SUFFIXES)}"
        parts = []
        for paths, why in ((self.others, named), (self.links, "links to folders are not followed")):
            if paths:
                more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
                parts.append(f"{shown_path(paths[0])}{more} ({why})")
        if self.hidden:
            more = ", …" * (len(self.hidden) > 1)
            parts.append(f"{len(self.hidden):,} hidden ({shown_path(self.hidden[0])}{more})")
        return "; ".join(parts)


@dataclass
class Tree:
    """The images of a split, sorted by class, then by path.

    Attributes:
        folder: what the names begin under.
        classes: their names, in the order of the labels.
        names: of each image, its path in `folder`: CLASS/…/FILE.
        labels: the number of each image's class.
        left: what is in the folder beside.
        shards, packed: where the images are in shards, the tars and the table of `PackedImages`.
    """

    folder: Path
    classes: tuple[str, ...]
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    left: Left = field(default_factory=Left)
    shards: list[str] = field(default_factory=list)
    packed: NDArray[np.int64] | None = None

    @property
    def paths(self) -> Sequence[Place]:
        """Of each image, or its place in a shard."""
        if self.packed is not None:
            return PackedImages(self.shards, self.packed, self.names)
        return [os.path.join(self.folder, name) for name in self.names]


def scan(
    root: Path,
    split: str,
    classes: Sequence[str] | None = None,
    skip_bad: bool = False,
    val_share: float | None = None,
) -> Tree:
    """The images of root/<split>/<class>/…, or with `val_share` those of a split of root/<class>/….

    A label is the position of its class among the sorted names, or in `classes` where given. What begins with
    a dot is left out: `._1.jpg` is macOS's, and no image. A link to a folder inside a class is not followed.

    A folder that holds the index of `attneck data pack` has its images in shards: the same ones, in the same
    order.

    With `val_share` an image is held out if the hash of its name in root is below that share: adding a file
    moves no other. Where root holds train/ alone, that is the root.

    Raises FileNotFoundError for a missing folder; ValueError for no images, for a class without any, for one
    whose name cannot be printed, for classes that are not those of the other split or of `classes`, for a
    folder that may not be read, for a root that is split already and a class that `val_share` leaves no
    training image, and, without `skip_bad`, for what has an image's name and is no regular file.
    """
    try:
        if val_share is None:
            folder = root / split
            found, left = _class_names(folder, root)
            if classes is None:
                other = root / ("val" if split == "train" else "train")
                if other.is_dir():
                    _same_classes(folder, found, _class_names(other, root)[0], str(other))
        else:
            folder = _unsplit(root)
            found, left = _class_names(folder, folder)
        if classes is not None:
            _same_classes(folder, found, classes, "the classes asked for")
        tree = _read(Tree(folder, tuple(found if classes is None else classes), left=left), skip_bad)
    except FileNotFoundError:
        raise
    except OSError as error:
        where = shown_path(error.filename or root / split)
        raise ValueError(f"folder: {where}: {error.strerror}: make it readable") from error
    return tree if val_share is None else _part(tree, split, val_share)


def every_split(root: Path) -> dict[str, Tree]:
    """The images of train and val, those that are there, or under "" of a root of class folders.

    Raises ValueError for one of the two with folders in it and others than test beside: either may be the
    classes; and for folders that are splits by other names.
    """
    folders = _folders(root)
    splits = [name for name in folders if name in ("train", "val")]
    there = {*folders}
    if not ({"train", "val"} <= there or there <= {"train", "test"}) and (own := _named_otherwise(root)):
        raise ValueError(f"folder: {shown_path(root)}: {own}")
    nested = [split for split in splits if _folders(root / split) or is_packed(root / split)]
    beside = [name for name in folders if name not in (*splits, "test")]
    if len(nested) == 2 or (splits and not beside):
        return {split: scan(root, split) for split in splits}
    if nested:
        raise ValueError(
            f"folder: {shown_path(root)} has {nested[0]} with folders in it, and {shown_path(beside[0])} "
            "beside: give a root of train and val, or one whose folders are classes"
        )
    names, left = _class_names(root, root)
    return {"": _read(Tree(root, tuple(names), left=left), skip_bad=False)}


def held_out(name: str, share: float) -> bool:
    """Whether the image of that name in its root is held out: a function of the two alone."""
    digest = blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def files_under(folder: Path) -> tuple[list[str], Left]:
    """The images in a folder at any depth, as sorted paths in it, and what else is there.

    Raises OSError for a folder that may not be read.
    """
    left = Left()
    return [name for name, _ in _images(folder, "", left)], left


def tell_left(left: Left, where: str) -> None:
    """A line on stderr, of the first of many processes, about what is not read."""
    if line := left.line("images lie in a class's folder and"):
        say(f"folder: not read in {where}: {line}", once=True)


def _read(tree: Tree, skip_bad: bool) -> Tree:
    if is_packed(tree.folder):
        return _read_packed(tree)
    for label, name in sorted(enumerate(tree.classes), key=lambda pair: pair[1]):
        inside = tree.folder / name
        loop = inside.resolve() in [tree.folder.resolve(), *tree.folder.resolve().parents]
        images = [] if loop else _images(inside, f"{name}/", tree.left)
        if bad := next((file for file, regular in images if not (regular or skip_bad)), None):
            raise ValueError(
                f"folder: {shown_path(tree.folder / bad)} has an image's name and is no regular file: remove "
                "it"
            )
        if not images:
            raise ValueError(
                f"folder: {shown_path(inside)} has no images ({' '.join(SUFFIXES)}): add some or remove it"
            )
        tree.names += [file for file, _ in images]
        tree.labels += [label] * len(images)
    return tree


def _read_packed(tree: Tree) -> Tree:
    tree.shards, names, tree.packed = read_index(tree.folder)
    tree.names = list(names)
    labels = {name: label for label, name in enumerate(tree.classes)}
    tree.labels = [labels[name.partition("/")[0]] for name in names]
    return tree


def _images(folder: Path, prefix: str, left: Left) -> list[tuple[str, bool]]:
    """Paths that begin with `prefix`, of what has an image's name, and whether it is a regular file."""
    found: list[tuple[str, bool]] = []
    folders = [(folder, prefix)]
    while folders:
        for entry in _entries(*(here := folders.pop()), left):
            name = here[1] + entry.name
            if entry.name.lower().endswith(SUFFIXES):
                found.append((name, _is(entry.is_file)))
            elif entry.is_dir(follow_symlinks=False):
                folders.append((Path(entry.path), f"{name}/"))
            elif _is(entry.is_dir):
                left.links.append(name)
            else:
                left.others.append(name)
    return sorted(found)


def has_halves(root: str | os.PathLike[str], name: str) -> bool:
    """Whether the images to score lie apart in this root of the set `name`: in a folder val."""
    with suppress(FileNotFoundError):
        return name == "folder" and (resolve(root, name, LAYOUT) / "val").is_dir()
    return False


def _unsplit(root: Path) -> Path:
    """The folder that holds the classes, of a root that nobody has split."""
    if (root / "val").is_dir():
        raise ValueError(
            f"folder: {shown_path(root)} has a val folder, and val_share is given: leave val_share out, or "
            "give a root of class folders alone"
        )
    train = root / "train"
    if is_packed(root):
        return root
    if own := _named_otherwise(root):
        raise ValueError(f"folder: {shown_path(root)}: {own}")
    if train.is_dir() and (is_packed(train) or _folders(train)):
        if _folders(root) != ["train"]:
            raise ValueError(
                f"folder: {shown_path(root)} has train with folders in it, and others beside: give data.root "
                f"{shown_path(train)}, or one whose folders are classes"
            )
        return train
    return root


def _named_otherwise(root: Path) -> str:
    """What to do with a root whose folders are splits by other names than train and val; "" for another."""
    names = _folders(root)
    if len(names) < 2 or not {name.lower() for name in names} <= SPLITS:
        return ""
    call = "call them train and val"
    if names == ["test", "train"]:  # test may have no classes
        call = f"call the one to score val, or give data.root {shown_path(root / 'train')} and a val_share"
    return f"its folders ({', '.join(names)}) are splits and no classes: {call}"


def _part(tree: Tree, split: str, share: float) -> Tree:
    """The images of a split; ValueError for a class that has none to train on, or where none is held out.

    Where a share of 1 is scored, nothing is to be trained on.
    """
    chosen = [held_out(name, share) for name in tree.names]
    trained = {label for label, out in zip(tree.labels, chosen, strict=True) if not out}
    scored = {label for label, out in zip(tree.labels, chosen, strict=True) if out}
    for kept, what, change in ((trained, "training", "smaller"), (scored, "held-out", "larger")):
        lacking = [name for label, name in enumerate(tree.classes) if label not in kept]
        if split == "val" and share == 1 and what == "training":
            continue
        if lacking and (what == "training" or not kept):
            raise ValueError(
                f"folder: data.val_share {share:g} leaves {shown_path(lacking[0])} no {what} image"
                f"{f', and {len(lacking) - 1} more classes' * (len(lacking) > 1)}: add images, or give a "
                f"{change} share"
            )
        if lacking and split == "val":
            more = ", …" * (len(lacking) > 1)
            say(
                f"folder: data.val_share {share:g} holds out no image of {len(lacking)} of "
                f"{len(tree.classes)} classes ({shown_path(lacking[0])}{more}): trained on, and not scored",
                once=True,
            )
    part = [index for index, out in enumerate(chosen) if out == (split == "val")]
    tree.names, tree.labels = [tree.names[i] for i in part], [tree.labels[i] for i in part]
    if tree.packed is not None:
        tree.packed = tree.packed[part]
    return tree


def _class_names(folder: Path, root: Path) -> tuple[list[str], Left]:
    """The names of the class folders in a folder, sorted, and what is beside them."""
    if not folder.is_dir():
        own = _named_otherwise(root)
        if not own and (_folders(root) or is_packed(root)):
            own = "for its folders as classes give --data.val-share 0.2 (to score all: 1)"
        raise FileNotFoundError(
            f"folder: {shown_path(folder)} is missing: {shown_path(root)} must hold {LAYOUT}"
            f"{f'; {own}' if own else ''}"
        )
    names: list[str] = []
    left = Left()
    if is_packed(folder):
        shards, images, _ = read_index(folder)
        read, left.packed = {INDEX, *map(os.path.basename, shards)}, True
        left.others += [entry.name for entry in _entries(folder, "", left) if entry.name not in read]
        return sorted({name.partition("/")[0] for name in images}), left
    for entry in _entries(folder, "", left):
        (names if _is(entry.is_dir) else left.others).append(entry.name)
    if not names:
        tars = any(name.endswith(".tar") for name in left.others)
        raise ValueError(
            f"folder: {shown_path(folder)} has no class folders: {shown_path(root)} must hold {LAYOUT}"
            f"{'; only tars that attneck data pack wrote are read: unpack others' * tars}"
        )
    for name in names:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise ValueError(
                f"folder: {shown_path(folder / name)}: a class's name must be text that can be printed: "
                "rename it"
            )
    return names, left


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return [entry.name for entry in _entries(folder, "", Left()) if _is(entry.is_dir)]


def _entries(folder: Path, prefix: str, left: Left) -> list[os.DirEntry[str]]:
    """What is in a folder and is not hidden, by name; what is hidden is noted."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    left.hidden += [prefix + entry.name for entry in found if entry.name[0] == "."]
    return [entry for entry in found if entry.name[0] != "."]


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
        alike = {unicodedata.normalize("NFC", name) for name in extra} & {
            unicodedata.normalize("NFC", name) for name in missing
        }
        raise ValueError(
            f"folder: the classes of {folder} are not those of {whose}: {', '.join(differences)}"
            f"{', the same letters in another Unicode form (NFC, NFD)' * bool(alike)}: make them the same"
        )
