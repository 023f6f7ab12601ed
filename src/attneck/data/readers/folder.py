"""Images in one folder a class: root/{train,val}/<class>/…, or root/<class>/… and a share held out."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attneck.data.augment.inception import Inception
from attneck.data.augment.scale_crop import ScaleCrop
from attneck.data.classification import ClassificationDataset
from attneck.data.fingerprint import Fingerprint, of_files
from attneck.data.readers.decode import decode, decode_part
from attneck.data.readers.shards import Place
from attneck.data.readers.tree import LAYOUT, scan, tell_left
from attneck.data.root import resolve
from attneck.data.sampling import Key, item_seeds, split_keys, spread
from attneck.data.skipping import Skipped, skips
from attneck.imagenet import MEAN, STD


class FolderDataset(ClassificationDataset):
    """Images decoded as they are asked for; normalised with ImageNet's mean and std.

    augment "none": the shorter side resized to image_size / crop_pct, then the centre, as ImageNet is scored.
    "inception", "randaugment": see `Inception`; "scale_crop": see `ScaleCrop`. A JPEG is then decoded smaller
    where its part allows it, see `decode_part`.

    Attributes:
        paths: of each image, or its place in a shard.
        names: of each image, in the folder of the classes: CLASS/…/FILE.
    """

    def __init__(
        self,
        paths: Sequence[Place],
        labels: NDArray[np.int64],
        *,
        names: list[str],
        classes: tuple[str, ...],
        image_size: int,
        augment: str,
        seed: int,
        randaugment_layers: int,
        randaugment_magnitude: int,
        max_pixels: int | None,
        skip_bad: bool,
        crop_pct: float,
        interpolation: str,
    ) -> None:
        super().__init__(classes=classes, mean=MEAN, std=STD, image_size=image_size, labels=labels)
        self.paths, self.names, self.crop_pct, self.interpolation = paths, names, crop_pct, interpolation
        self.augment, self.seed, self.max_pixels = augment, seed, max_pixels
        self.skipped = Skipped(len(paths), self._file) if skip_bad else None
        # Built here, so that forked workers inherit the import of torchvision.
        layers = randaugment_layers if augment == "randaugment" else 0
        self._transform: Inception | None = None
        if augment == "scale_crop":
            self._transform = ScaleCrop(image_size)
        elif augment != "none":
            self._transform = Inception(image_size, layers, randaugment_magnitude)

    def at(self, side: int) -> Self:
        other = super().at(side)
        other._transform = self._transform and self._transform.at(side)
        return other

    def pixels(self, keys: Sequence[Key]) -> NDArray[np.uint8]:
        transform = self._transform
        if transform is None:
            return np.stack([self._read(index, self._evaluated) for _, index in keys])
        with transform.generators() as reseed:

            def augmented(seed: int, index: int) -> NDArray[np.uint8]:
                reseed(seed)
                place, size = self.paths[index], self.image_size
                return transform(decode_part(place, "folder", transform.box, size, self.max_pixels))

            seeds = item_seeds(self.seed, *split_keys(keys))
            return np.stack(
                [
                    self._read(index, partial(augmented, seed))
                    for (_, index), seed in zip(keys, seeds, strict=True)
                ]
            )

    def _evaluated(self, index: int) -> NDArray[np.uint8]:
        """From all pixels, as published scores are."""
        whole = self.whole(index)
        return np.array(resize_and_centre(whole, self.image_size, self.crop_pct, self.interpolation))

    def _read(self, index: int, read: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return read(index) if self.skipped is None else self.skipped.first(self._from(index), read)

    def whole(self, index: int) -> Image.Image:
        return decode(self.paths[index], "folder", self.max_pixels)

    def fingerprint(self) -> Fingerprint:
        inside = [name.partition("/")[2] for name in self.names]
        return of_files(self.paths, self.labels, self.classes, inside)

    def _file(self, index: int) -> str:
        return str(self.paths[index])

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
    val_share: float | None = None,
    crop_pct: float = 0.875,
    interpolation: str = "bilinear",
) -> FolderDataset:
    """Opens root/{train,val}/<class>/…, the images in a class's folder at any depth, or in shards of these.

    augment: see `FolderDataset`; RandAugment's layers and magnitude are BoTNet section 4.8's unless given.
    classes: the class names expected, in the order of the labels; else these follow the sorted names.
    max_pixels: see `decode`.
    on_bad_image: "stop" with UnreadableImage, or "skip": another one of its class takes its place, see
        `Skipped`.
    crop_pct: see `FolderDataset`.
    interpolation: how images are resized without augmentation, by the names that timm has for Pillow's ways.
    val_share: in place of the folders train and val: this share of root/<class>/… is "val", see `scan`.

    Says on stderr what it leaves out: files of other endings, or not in a class's folder, and hidden ones.
    """
    skip_bad = skips(on_bad_image)
    if val_share is not None and not 0 < val_share <= 1:
        raise ValueError(f"folder: val_share is {val_share}: give a share between 0 and 1, or 1 for all")
    if not 0 < crop_pct <= 2:
        raise ValueError(
            f"folder: crop_pct is {crop_pct}: give a share between 0 and 1, 1 for all, or up to 2 for black "
            "around it"
        )
    resampling(interpolation)
    tree = scan(resolve(root, name, LAYOUT), split, classes, skip_bad, val_share)
    if val_share is None or split == "val":  # else a run would say it twice
        tell_left(tree.left, split if val_share is None else "the classes")
    paths, names, labels = tree.paths, tree.names, np.array(tree.labels, dtype=np.int64)
    if size is not None:
        chosen = spread(len(labels), size, name)
        paths, names, labels = [paths[i] for i in chosen], [names[i] for i in chosen], labels[chosen]
    return FolderDataset(
        paths,
        labels,
        names=names,
        classes=tree.classes,
        image_size=image_size,
        augment=augment,
        seed=seed,
        randaugment_layers=randaugment_layers,
        randaugment_magnitude=randaugment_magnitude,
        max_pixels=max_pixels,
        skip_bad=skip_bad,
        crop_pct=crop_pct,
        interpolation=interpolation,
    )


LONG = 8
"""Where a photo's longer side would become more than so many sizes, only what is cut out is resized: of one
pixel by thousands the whole would fill the memory. Of others the whole is, which rounds otherwise."""


def resize_and_centre(
    image: Image.Image, size: int, crop_pct: float, interpolation: str = "bilinear"
) -> Image.Image:
    """The square of `size` in the middle; raises what `resampling` raises."""
    (width, height), (left, top) = centre(image.size, size, crop_pct)
    way = resampling(interpolation)
    if max(width, height) <= LONG * size:
        return image.resize((width, height), way).crop((left, top, left + size, top + size))
    across, down = image.width / width, image.height / height
    x, y, wide, high = max(left, 0), max(top, 0), min(size, width), min(size, height)
    part = image.resize((wide, high), way, (x * across, y * down, (x + wide) * across, (y + high) * down))
    return part.crop((left - x, top - y, left - x + size, top - y + size))


def resampling(interpolation: str) -> Image.Resampling:
    """Pillow's by timm's name for it: ValueError where there is none."""
    ways = {way.name.lower(): way for way in Image.Resampling}
    if interpolation not in ways:
        raise ValueError(f"interpolation={interpolation!r}: wanted one of {', '.join(ways)}")
    return ways[interpolation]


def centre(of: tuple[int, int], size: int, crop_pct: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """What `resize_and_centre` makes of an image `of` (width, height): the (width, height) that it is resized
    to, and the (left, top) of the square of `size` that is cut out of that, black where it is smaller.

    They are rounded as torchvision's Resize and CenterCrop and timm's transforms round, whose scores are
    published.
    """
    shorter = int(size / crop_pct)
    width, height = (shorter if side == min(of) else int(shorter * side / min(of)) for side in of)
    left, top = (
        round((side - size) / 2) if side >= size else -((size - side) // 2) for side in (width, height)
    )
    return (width, height), (left, top)
