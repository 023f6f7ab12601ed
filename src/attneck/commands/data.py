"""attneck data: find a data set and check it; pack one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from attneck.commands.arguments import Flag, Json, call, check_first
from attneck.commands.data_folder import by_class, read_folder
from attneck.commands.data_sheet import check_sheet, draw_sheet
from attneck.commands.progress import shown
from attneck.data.table import SETS, Name
from attneck.errors import UserError

SHOWN = 50
"""Problems of annotations that are printed; more are only counted."""

KINDS = {
    "empty": "images without objects",
    "crowd": "crowds",
    "difficult": "difficult objects",
    "degenerate": "boxes of no size, left out of training",
    "tiny": "boxes under a pixel a side, which scale_jitter may leave out of training",
    "blank": "masks without a pixel, left out of training",
    "lying": "photos annotated as they lie in the file, before EXIF turns them",
    "turned": "photos that EXIF turns to the same size, whose boxes are taken to be of the upright one",
}


def inspect(
    action: Annotated[Literal["check", "where"], tyro.conf.Positional],
    name: Annotated[Name, tyro.conf.Positional],
    /,
    root: Annotated[str | None, tyro.conf.arg(aliases=["--data.root"])] = None,
    md5: tuple[str, ...] = (),
    max_pixels: int | None = None,
    no_masks: Flag = False,
    val_share: Annotated[float | None, tyro.conf.arg(aliases=["--data.val-share"])] = None,
    sheet: Path | None = None,
    augmented: str | None = None,
    json_: Json = False,
) -> None:
    """Find a data set and check it, or pack a folder of images into shards: attneck data pack --help.

    check reads a folder's images with all processors, and lists every one that cannot be read.

    Args:
        action: where says the folder in which the set is looked for; check reads every image of it, and
            holds its annotations against them.
        name: the data set.
        root: where it lies; ATTNECK_DATA if not given.
        md5: sums of downloaded files to accept beside the official ones.
        max_pixels: of a set of image files: a larger image is a problem; 178,956,970 if not given.
        no_masks: of coco, pass objects that have no mask: what detectors of boxes alone train on.
        val_share: of folder, the share of ROOT/CLASS/* that is held out, where there is no train and val.
        sheet: of sets of classes, a new PNG with training images, evenly spread over the classes.
        augmented: the recipe (a name, a file or a run) as whose training sees them the sheet shows them.
        json_: print one JSON document and nothing else.
    """
    kinds = SETS[name].kinds
    classes = "classification" in kinds
    if root is not None and SETS[name].drawn:
        raise UserError(f"{name}: root is given, but it is drawn by the program: leave it out")
    if augmented is not None and sheet is None:
        raise UserError("--augmented is given without --sheet: it is what the sheet shows")
    if sheet is not None and (action == "where" or not classes):
        raise UserError("--sheet is of check, and of sets of classes: leave it out")
    if val_share is not None and name != "folder":
        raise UserError(f"{name}: --val-share is of folder: leave it out")
    if action == "where":
        checks = {"--md5": md5, "--max-pixels": max_pixels is not None, "--no-masks": no_masks}
        if idle := [flag for flag, given in (checks | {"--val-share": val_share}).items() if given]:
            raise UserError(f"{idle[0]} is of check: leave it out")
        _tell_where(name, root, json_)
        return
    masked = not classes and kinds["detection"].masks
    if no_masks and not masked:
        raise UserError(f"{name}: no-masks is given, but only coco's objects have masks: leave it out")
    if md5 and (name == "folder" or not classes):
        raise UserError(f"{name}: md5 is given, but only cifar100's files are checked: leave it out")
    if classes:
        _check_classes(name, root, md5, max_pixels, val_share, sheet, augmented, json_)
    else:
        _check_detection(name, root, max_pixels, masked and not no_masks, json_)


def _tell_where(name: str, root: str | None, as_json: bool) -> None:
    """The folder in which a set is looked for."""
    from attneck.data.root import resolve

    place = "drawn by the program, nothing to download"
    if not SETS[name].drawn:
        with _faults():
            place = str(resolve(root, name, SETS[name].source))
    print(json.dumps({"name": name, "where": place}) if as_json else place)


def _check_classes(
    name: str,
    root: str | None,
    md5: tuple[str, ...],
    max_pixels: int | None,
    val_share: float | None,
    sheet: Path | None,
    augmented: str | None,
    quiet: bool,
) -> None:
    """Every image; prints what is there and what cannot be read, draws the sheet, and refuses the set."""
    with _faults():
        if sheet is not None:
            check_sheet(sheet, name, augmented)
        if name == "folder":
            found, problems = read_folder(root, val_share, max_pixels, quiet=quiet)
        else:
            found, problems = _read_arrays(name, root, md5, max_pixels, quiet=quiet), []
        if sheet is not None:
            sums = {"md5": md5} if md5 else {}
            draw_sheet(sheet, name, augmented, root=root, val_share=val_share, max_pixels=max_pixels, **sums)
    if quiet:
        pictures = {} if sheet is None else {"sheet": str(sheet)}
        print(json.dumps({"name": name, **found, "problems": problems, **pictures}))
    else:
        _tell(name, found)
        if sheet is not None:
            print(f"sheet  {sheet}")
        print(*problems, sep="\n", end="\n" * bool(problems))
    if problems:
        count = f"{len(problems):,} image{'s' * (len(problems) > 1)}"
        raise UserError(f"{name}: {count} cannot be read, listed above, the first: {problems[0]}")


@contextmanager
def _faults() -> Iterator[None]:
    """What a data set or its disk says is the user's to mend."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def _tell(name: str, found: dict[str, dict[str, Any]]) -> None:
    """A line for each split, and the classes' counts."""
    for split, facts in found.items():
        bad = facts.get("unreadable", 0)
        read = f"{bad:,} that cannot be read" if bad else "all readable"
        print(f"{name} {split}: {facts['images']:,} images, {facts['classes']} classes, {read}")
    if any("by_class" in facts for facts in found.values()):
        print(by_class(found))


def _read_arrays(
    name: str,
    root: str | None,
    md5: tuple[str, ...],
    max_pixels: int | None,
    *,
    quiet: bool,
) -> dict[str, dict[str, Any]]:
    """What is in each split of a set that is held in memory."""
    from attneck.data.classification import open_dataset

    found = {}
    for split in ("train", "val"):
        dataset = open_dataset(name, split, root=root, md5=md5 or None, max_pixels=max_pixels)
        for index in shown(range(len(dataset)), f"{name} {split}", quiet=quiet):
            dataset[0, index]
        found[split] = {
            "images": len(dataset),
            "classes": len(dataset.classes),
            "size": dataset.image_size,
        }
    return found


def _check_detection(name: str, root: str | None, max_pixels: int | None, masks: bool, quiet: bool) -> None:
    """Every annotation against its image; prints what does not fit, and refuses the set."""
    from attneck.data.check import check_annotations
    from attneck.data.readers.coco import NO_MASK

    with _faults():
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
        boxes = any(problem.endswith(NO_MASK) for problem in problems)
        raise UserError(
            f"{name}: {count}, listed above: mend the annotations or take them out"
            + ", or give --no-masks, for a detector of boxes alone" * boxes
        )


def main(words: list[str]) -> None:
    """Parse and run."""
    if words[:1] == ["pack"]:
        from attneck.commands import data_pack

        data_pack.main(words[1:])
        return
    check_first("attneck data", words, ("check", "where", "pack"))
    call(inspect, "attneck data", words)
