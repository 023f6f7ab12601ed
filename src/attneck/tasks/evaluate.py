"""A model that is in memory, scored on images whose classes or objects are known."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attneck.checks import one_of, whole
from attneck.data import ClassificationDataset, Normalise, open_dataset
from attneck.data.detection import open_detection
from attneck.data.table import SETS, names_for
from attneck.errors import brief, is_out_of_memory, one_line, say
from attneck.layers.modes import evaluating
from attneck.models.origin import bare, is_detector
from attneck.tasks import classification, detection
from attneck.tasks.described import facts_of
from attneck.tasks.task import Evaluation, Facts
from attneck.training.distributed import World, world
from attneck.training.report import Watch, unseen

BATCH = 256
"""Images of a classification at a time, at most."""
OPTIONS = {
    *("val_share", "size", "classes", "problem", "crop_pct", "interpolation", "masks"),
    *("max_pixels", "md5"),
}
"""Of data sets, those of an evaluation: augmented images, or others in the place of bad ones, say nothing."""


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
        options: of the data set, as `attneck.data.open_dataset` takes them: `OPTIONS`. `masks`: False scores
            boxes alone, as is done of a set without masks.

    Raises:
        ValueError: no such data, other classes than the model's, a model that does not say which images it
            takes, or does not take them, an image that cannot be read.
        FileNotFoundError: data that is not there.
    """
    network = bare(model)
    facts = facts_of(network)
    for option in options:
        one_of("option", option, sorted(OPTIONS))
    if root is not None:
        options["root"] = os.fspath(root)
    weight = next(network.parameters(), torch.zeros(()))
    detects = is_detector(network)
    if not isinstance(data, str | None):
        raise ValueError(f"data={brief(data)}: wanted a data set's name")
    if workers is not None:
        whole("workers", workers, least=0)
    if isinstance(model, DistributedDataParallel):  # it would have all processes wait for each other's images
        model = model.module
    if detects:
        images = _with_objects(network, facts, data, split, image_size, options)
        if weight.dtype != torch.float32:
            raise ValueError(f"a detector is scored in float32, not {weight.dtype}: give model.float()")
    else:
        images = _with_classes(facts, data or "folder", split, image_size, options)
    with _among(weight.device) as everyone, evaluating(model), torch.inference_mode():
        count = len(facts["category_ids"]) if detects else _logits(network, weight, images.image_size)
        _check_classes(facts, count, images.classes, data or "folder")
        if detects:
            rule = SETS[data or ""].kinds["detection"].ap[split]
            return detection.report(model, images, everyone, rule, workers, watch)
        prepare = _prepared(images, weight)
        return classification.report(
            model, images, everyone, prepare, most=BATCH, workers=workers, watch=watch
        )


@contextmanager
def _among(device: torch.device) -> Iterator[World]:
    """This process among those of its group, on the device that the network is on."""
    with world() as alike:
        yield World(alike.rank, alike.size, device)


def _with_objects(
    network: nn.Module, facts: Facts, name: str | None, split: str, image_size: int | None, options: Facts
) -> Any:
    """Images as they are, drawn ones of the detector's size; masks where both it and the set have some."""
    if name is None:
        raise ValueError(f"which data? A detector's is one of {', '.join(names_for('detection'))}")
    if image_size is not None:
        raise ValueError(
            "image_size is of classifiers: a detector resizes images itself, to what it was made or loaded "
            "with; leave it out"
        )
    side = facts["image_size"] if name in SETS and SETS[name].drawn else None
    kind = SETS[name].kinds.get("detection") if name in SETS else None
    makes_masks = getattr(getattr(network, "roi_heads", None), "has_mask", bool)()
    if options.get("masks") and not makes_masks:
        raise ValueError("masks=True: this detector makes no masks, so leave masks out")
    own = {"image_size": side, "masks": bool(makes_masks and kind and kind.masks)}
    return open_detection(name, split, **own | options)


def _with_classes(facts: Facts, name: str, split: str, image_size: int | None, options: Facts) -> Any:
    """Images as a classifier's `facts` want them, class folders in the order of its classes."""
    side = facts["image_size"] if image_size is None else whole("image_size", image_size)
    if name == "folder":
        own = {"image_size": side} | {key: facts[key] for key in ("crop_pct", "interpolation")}
        if len({*facts["classes"]}) == len(facts["classes"]) > 0:
            own["classes"] = facts["classes"]
        options = own | options
    else:
        options = {"image_size": side} | options
    images = open_dataset(name, split, **options)
    images.normalise(tuple(facts["mean"]), tuple(facts["std"]))
    return images


def _logits(network: nn.Module, weight: Tensor, side: int) -> int:
    """How many classes it tells apart, by an empty image; ValueError where it takes none of that size."""
    head = getattr(network, "get_classifier", nn.Identity)()
    if getattr(network, "num_classes", None) == 0 and isinstance(head, nn.Identity):
        raise ValueError("it has no classifier, as with num_classes=0: give a model with one")
    try:
        found = network(torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype))
    except Exception as error:  # its own checks, or whatever an operation says of shapes
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"it does not take images of 3 × {side} × {side} ({one_line(error, 100)}): give image_size, or "
            "another model"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise ValueError(f"it gives {brief(type(found).__name__)} for an image: wanted logits [B, classes]")
    return found.shape[1]


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
