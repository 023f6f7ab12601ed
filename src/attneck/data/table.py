"""The data sets, each once: what it serves, its splits, its augmentations, and the function that opens it.

Recipes, commands and tasks read this table; a new data set is one reader and one row. Nothing heavy is
imported here: a reader comes in when its set is opened.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from attneck.checks import whole

Rule = Literal["coco", "11-point", "area"]


@dataclass(frozen=True)
class Kind:
    """A data set as one task has it.

    Args:
        opener: `module:function` that opens it: (name, split, *, options). Its signature is the list of the
            options that the set takes.
        splits: of the images.
        augments: of the training images; each set has "none".
        annotations: detection from files: `module:function` that reads the annotations: (name, split, root,
            masks) → `Annotations`. `attneck data check` uses it too.
        masks: detection: each object has a mask.
        ap: detection: the rule of each split's AP: "coco", or that of VOC's devkit of the images' year,
            "11-point" (2007) or "area" (since 2010).
    """

    opener: str
    splits: tuple[str, ...]
    augments: tuple[str, ...]
    annotations: str = ""
    masks: bool = False
    ap: Mapping[str, Rule] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """A row.

    Args:
        source: what must lie in the data folder, and where it comes from; "" for a drawn set.
        kinds: a `Kind` for each task that the set serves, "classification" or "detection".
        endless: each epoch draws other images, when they are asked for.
    """

    source: str
    kinds: Mapping[str, Kind]
    endless: bool = False

    @property
    def drawn(self) -> bool:
        """The program draws it: there is nothing to download."""
        return not self.source


SMALL = ("none", "crop_flip")
BOXES = ("none", "flip", "scale_jitter", "ssd")
HALVES = ("train", "val")


def _voc(year: str, ap: Mapping[str, Rule]) -> DataSet:
    opener, annotations = "attneck.data.annotated:open_annotated", "attneck.data.readers.voc:read_annotations"
    source = f"VOCdevkit/VOC{year}, from http://host.robots.ox.ac.uk/pascal/VOC"
    return DataSet(source, {"detection": Kind(opener, tuple(ap), BOXES, annotations, ap=ap)})


SETS: Mapping[str, DataSet] = {
    "shapes": DataSet(
        "",
        {
            "classification": Kind("attneck.data.drawn.shapes:open_shapes", HALVES, SMALL),
            "detection": Kind(
                "attneck.data.drawn.scenes:open_scenes",
                HALVES,
                BOXES,
                masks=True,
                ap=dict.fromkeys(HALVES, "coco"),
            ),
        },
    ),
    "clear_shapes": DataSet(
        "", {"classification": Kind("attneck.data.drawn.shapes:open_shapes", HALVES, SMALL)}
    ),
    "relations": DataSet(
        "",
        {"classification": Kind("attneck.data.drawn.relations:open_relations", HALVES, ("none",))},
        endless=True,
    ),
    "cifar100": DataSet(
        "cifar-100-python or cifar-100-binary, from https://www.cs.toronto.edu/~kriz/cifar.html",
        {"classification": Kind("attneck.data.readers.cifar:open_cifar", HALVES, SMALL)},
    ),
    "folder": DataSet(
        "train/<class>/ and val/<class>/ with images, or <class>/ and a val_share",
        {
            "classification": Kind(
                "attneck.data.readers.folder:open_folder",
                HALVES,
                ("none", "inception", "randaugment", "scale_crop"),
            )
        },
    ),
    "coco": DataSet(
        "coco/{train2017,val2017,annotations}, from https://cocodataset.org",
        {
            "detection": Kind(
                "attneck.data.annotated:open_annotated",
                HALVES,
                BOXES,
                "attneck.data.readers.coco:read_annotations",
                masks=True,
                ap=dict.fromkeys(HALVES, "coco"),
            )
        },
    ),
    "voc2007": _voc("2007", dict.fromkeys(("train", "val", "trainval", "test"), "11-point")),
    # The objects of its test images are not public.
    "voc2012": _voc("2012", dict.fromkeys(("train", "val", "trainval"), "area")),
    # Both years; its test images are those of 2007.
    "voc0712": _voc("{2007,2012}", {"train": "area", "val": "area", "trainval": "area", "test": "11-point"}),
}

ONLY_WITH = {
    "jitter": "scale_jitter",
    "randaugment_layers": "randaugment",
    "randaugment_magnitude": "randaugment",
}
"""Options that one augmentation alone has."""


def _all(choices: Callable[[Kind], Iterable[str]]) -> tuple[str, ...]:
    kinds = [kind for data_set in SETS.values() for kind in data_set.kinds.values()]
    return tuple(dict.fromkeys(choice for kind in kinds for choice in choices(kind)))


NAMES = tuple(SETS)
SPLITS = _all(lambda kind: kind.splits)
AUGMENTS = _all(lambda kind: kind.augments)

# What a recipe and a command line may name. A type checker cannot know the table: to it they are strings.
if TYPE_CHECKING:
    Name = str
    HeldOutSplit = str
    TrainingSplit = str
    Augment = str
else:
    Name, HeldOutSplit, Augment = Literal[NAMES], Literal[SPLITS], Literal[AUGMENTS]
    TrainingSplit = Literal[tuple(split for split in SPLITS if split != "test")]


def names_for(task: str) -> list[str]:
    """The data sets that serve "classification" or "detection"."""
    return [name for name, data_set in SETS.items() if task in data_set.kinds]


def open_data(task: str, name: str, split: str, **options: Any) -> Any:
    """Opens a data set for "classification" or "detection"; an option of None is not given.

    Options that most sets take; each opener's docstring has its own:
        root: the folder that holds what the row's `source` says, or is it; $ATTNECK_DATA when None, and a
            relative one is looked for there too.
        image_size: side in pixels.
        augment: one of the row's `augments`. `seed` is of the augmentation alone.
        size: this many images only, evenly spread over the set; of a drawn set, how many are drawn.

    Raises ValueError or FileNotFoundError, with one line that says what to do.
    """
    _choose("data set", name, names_for(task))
    kind = SETS[name].kinds[task]
    given = {option: value for option, value in options.items() if value is not None}
    augment = given.get("augment", "none")
    _choose(f"split of {name}", split, kind.splits)
    _choose(f"augment for {name}", augment, kind.augments)
    opener = resolve_name(kind.opener)
    takes = [option for option in inspect.signature(opener).parameters if option not in ("name", "split")]
    for option, value in given.items():
        if option not in takes:
            raise ValueError(f"{name}: {option} is given, but it takes {', '.join(takes)}: leave it out")
        if ONLY_WITH.get(option, augment) != augment:
            raise ValueError(
                f"{name}: {option} goes with augment {ONLY_WITH[option]}, not {augment}: leave it out"
            )
        if option in ("image_size", "size"):
            whole(f"{name}: {option}", value, most=1 << 31)
    return opener(name, split, **given)


def _choose(what: str, given: str, choices: Sequence[str]) -> None:
    if given not in choices:
        raise ValueError(f"{what} is {given!r}: choose {', '.join(choices)}")
