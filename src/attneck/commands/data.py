"""attneck data: find a data set and check it."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import tyro

from attneck.commands.arguments import call
from attneck.commands.progress import shown
from attneck.data.table import SETS, Name
from attneck.errors import UserError

SHOWN = 50
"""Problems that are printed; more are only counted."""

KINDS = {
    "empty": "images without objects",
    "crowd": "crowds",
    "difficult": "difficult objects",
    "degenerate": "boxes of no size, left out of training",
}


def inspect(
    action: Annotated[Literal["check", "where"], tyro.conf.Positional],
    name: Annotated[Name, tyro.conf.Positional],
    /,
    root: str | None = None,
    md5: tuple[str, ...] = (),
    max_pixels: int | None = None,
    no_masks: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json_: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Find a data set and check it.

    Args:
        action: where says the folder that would be read; check reads every image of it, and
            holds its annotations against them.
        name: the data set.
        root: where it lies; ATTNECK_DATA if not given.
        md5: sums of downloaded files to accept beside the official ones.
        max_pixels: of a set of image files: a larger image is a problem; 178,956,970 if not given.
        no_masks: of coco, pass objects that have no mask: what detectors of boxes alone train on.
        json_: print one JSON document and nothing else.
    """
    from attneck.data.classification import open_dataset
    from attneck.data.root import resolve

    try:
        if root is not None and SETS[name].drawn:
            raise ValueError(f"{name}: root is given, but it is drawn by the program: leave it out")
        if action == "where":
            place = (
                "drawn by the program, nothing to download"
                if SETS[name].drawn
                else str(resolve(root, name, SETS[name].source))
            )
            print(json.dumps({"name": name, "where": place}) if json_ else place)
            return
        detection = SETS[name].kinds.get("detection")
        if no_masks and not (detection and detection.masks and not SETS[name].drawn):
            raise ValueError(f"{name}: no-masks is given, but only coco's objects have masks: leave it out")
        if "classification" not in SETS[name].kinds:
            if md5:
                raise ValueError(f"{name}: md5 is given, but only cifar100's files are checked: leave it out")
            masked = bool(detection and detection.masks) and not no_masks
            _check_detection(name, root, max_pixels, masked, json_)
            return
        found = {}
        for split in ("train", "val"):
            dataset = open_dataset(name, split, root=root, md5=md5 or None, max_pixels=max_pixels)
            for index in shown(range(len(dataset)), f"{name} {split}", quiet=json_):
                dataset[0, index]
            found[split] = {
                "images": len(dataset),
                "classes": len(dataset.classes),
                "size": dataset.image_size,
            }
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    if json_:
        print(json.dumps({"name": name, **found}))
    else:
        for split, facts in found.items():
            print(f"{name} {split}: {facts['images']:,} images, {facts['classes']} classes, all readable")


def _check_detection(name: str, root: str | None, max_pixels: int | None, masks: bool, quiet: bool) -> None:
    """Every annotation against its image; prints what does not fit, and refuses the set."""
    from attneck.data.check import check_annotations

    found, problems = check_annotations(
        name,
        root,
        lambda records, split: shown(records, f"{name} {split}", quiet=quiet),
        max_pixels,
        masks=masks,
    )
    if quiet:
        print(json.dumps({"name": name, **found, "problems": problems}))
    else:
        for split, counts in found.items():
            details = [f"{what}: {counts[key]:,}" for key, what in KINDS.items() if counts[key]]
            print(
                f"{name} {split}: {counts['images']:,} images, {counts['objects']:,} objects, "
                f"{counts['classes']} classes{' (' * bool(details)}{', '.join(details)}{')' * bool(details)}"
            )
        print(*problems[:SHOWN], *["…"] * (len(problems) > SHOWN), sep="\n", end="\n" * bool(problems))
    if problems:
        count = f"{len(problems):,} problem{'s' * (len(problems) > 1)}"
        raise UserError(f"{name}: {count}, listed above: mend the annotations or take them out")


def main(words: list[str]) -> None:
    """Parse and run."""
    call(inspect, "attneck data", words)
