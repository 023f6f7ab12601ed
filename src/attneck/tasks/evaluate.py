"""A model that is in memory, scored on images whose classes or objects are known."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attneck.data import ClassificationDataset, Normalise, open_dataset
from attneck.data.detection import open_detection
from attneck.data.table import SETS, names_for
from attneck.errors import say
from attneck.models.origin import bare
from attneck.tasks import classification, detection
from attneck.tasks.described import facts_of, finds_objects
from attneck.tasks.task import Evaluation, Facts
from attneck.training.distributed import World, world
from attneck.training.report import Watch, unseen

BATCH = 256
"""Images of a classification at a time, at most."""


def evaluate(
    model: nn.Module,
    data: str | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "val",
    image_size: int | None = None,
    workers: int | None = None,
    watch: Watch = unseen,
    **options: Any,
) -> Evaluation:
    """What images with known classes, or objects, say of `model`; public as `attneck.evaluate`.

    A classifier's images are resized, cut and normalised as its `pretrained_cfg` says, which timm's models
    and this library's have; a detector resizes and normalises them itself. It runs where it is, in evaluation
    mode, and is left as it was. Under torchrun the processes share the images.

    Args:
        model: a classifier of this library's or of timm's, with surgery or without, or a detector of
            `create_model`'s or `load`'s; also inside `torch.compile` or an `AveragedModel`.
        data: a data set's name; a classifier's is "folder" where none is given.
        root: where it lies; ATTNECK_DATA where not given.
        split: of its images.
        image_size: a classifier's: the side of its images in pixels, if another than it says.
        workers: as a recipe's `data.workers`.
        watch: is given the DataLoader, and gives its batches on: to show how far it is.
        options: of the data set, as `attneck.data.open_dataset` takes them: `val_share`, `size`,
            `max_pixels`, `problem`, or of "folder" another `crop_pct` than the model says, say.

    Raises:
        ValueError: no such data, other classes than the model's, a model that does not say which images it
            takes, an image that cannot be read.
        FileNotFoundError: data that is not there.
    """
    network = bare(model)
    facts = facts_of(network)
    detects = finds_objects(network)
    if root is not None:
        options["root"] = os.fspath(root)
    name = data or ("" if detects else "folder")
    images = (_with_objects if detects else _with_classes)(network, facts, name, split, image_size, options)
    count = len(facts["category_ids"]) if detects else getattr(network, "num_classes", 0)
    _check_classes(facts, count, images.classes, name)
    weight = next(network.parameters())
    modes = [(module, module.training) for module in model.modules()]
    with _among(weight.device) as everyone:
        try:
            model.eval()
            with torch.inference_mode():
                if detects:
                    rule = SETS[name].kinds["detection"].ap[split]
                    return detection.report(model, images, everyone, rule, workers, watch)
                return classification.report(
                    model,
                    images,
                    everyone,
                    _prepared(images, weight),
                    most=BATCH,
                    workers=workers,
                    watch=watch,
                )
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def _among(device: torch.device) -> Iterator[World]:
    """This process among those of its group, which a program may have made before."""
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), device)
    else:
        with world() as alike:
            yield World(alike.rank, alike.size, device)


def _with_objects(
    network: nn.Module, facts: Facts, name: str, split: str, image_size: int | None, options: Facts
) -> Any:
    """Images as they are, drawn ones of the detector's size; masks where it makes some."""
    if not name:
        raise ValueError(f"which data? A detector's is one of {', '.join(names_for('detection'))}")
    if image_size is not None:
        raise ValueError(
            "image_size is of classifiers: a detector resizes images itself, to what it was made or loaded "
            "with; leave it out"
        )
    side = facts["image_size"] if name in SETS and SETS[name].drawn else None
    masks = bool(getattr(getattr(network, "roi_heads", None), "has_mask", bool)())
    return open_detection(name, split, image_size=side, masks=masks, **options)


def _with_classes(
    network: nn.Module, facts: Facts, name: str, split: str, image_size: int | None, options: Facts
) -> Any:
    """Images as a classifier's `facts` want them, class folders in the order of its classes.

    ValueError where the set has images of its own size alone, and that is another.
    """
    side = image_size or facts["image_size"]
    if name == "folder":
        own = {"image_size": side} | {key: facts[key] for key in ("crop_pct", "interpolation")}
        if len({*facts["classes"]}) == len(facts["classes"]) > 0:
            own["classes"] = facts["classes"]
        options = own | options
    elif name in SETS and SETS[name].drawn:
        options = {"image_size": side} | options
    images = open_dataset(name, split, **options)
    if images.image_size != side:
        raise ValueError(
            f"{name}'s images are of {images.image_size} pixels, and the model's of {side}: give "
            f"image_size={images.image_size} if it takes these too"
        )
    images.normalise(tuple(facts["mean"]), tuple(facts["std"]))
    return images


def _prepared(images: ClassificationDataset, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """uint8 images → normalised, where a model with such a weight is and as it computes."""
    normalise = Normalise(images.mean, images.std).to(weight.device)

    def prepare(batch: Tensor) -> Tensor:
        found: Tensor = normalise(batch.to(weight.device, non_blocking=True))
        return found.to(weight.dtype)

    return prepare


def _check_classes(facts: Facts, count: int, classes: Sequence[str], name: str) -> None:
    """ValueError unless a label of the data is the same class of the model's, as far as that can be known."""
    if count != len(classes):
        raise ValueError(
            f"the model tells {count:,} classes apart, and {name} has {len(classes):,}: give it one of these "
            "classes"
        )
    named = facts["classes"]
    if not named:
        say(f"the model's classes have no names: {name}'s are taken for them in their order", once=True)
    elif wrong := [pair for pair in zip(named, classes, strict=True) if pair[0] != pair[1]]:
        raise ValueError(
            f"the model's classes are not those of {name} (the first that differs is {wrong[0][0]!r}, and "
            f"there {wrong[0][1]!r}), their scores would be wrong: give the data of its classes"
        )
