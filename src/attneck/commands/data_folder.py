"""attneck data check folder: every image of every class is read, many at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

from attneck.commands.progress import shown

SHOWN = 50
"""Classes that are printed."""


def read_folder(
    root: str | None, val_share: float | None, max_pixels: int | None, *, quiet: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What is in each split, after every image was read, and a line for each that cannot be.

    Says on stderr what is left out.

    Raises ValueError and FileNotFoundError as `attneck.data.readers.tree.scan`.
    """
    from attneck.data.check_images import Reading
    from attneck.data.readers.tree import LAYOUT, scan, tell_left
    from attneck.data.root import resolve

    if val_share is not None and not 0 < val_share < 1:
        raise ValueError(f"--val-share {val_share}: give a share between 0 and 1")
    trees = {
        split: scan(resolve(root, "folder", LAYOUT), split, skip_bad=True, val_share=val_share)
        for split in ("val", "train")
    }
    found: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for split in ("train", "val"):
        tree = trees[split]
        if val_share is None or split == "train":
            tell_left(tree.left, split if val_share is None else "the classes")
        reading = Reading(tree.paths, "folder", max_pixels)
        bad = [line for line in shown(reading, f"folder {split}", quiet=quiet) if line is not None]
        counts = Counter(tree.classes[label] for label in tree.labels)
        found[split] = {
            "images": len(tree.paths),
            "classes": len(tree.classes),
            "by_class": {name: counts[name] for name in tree.classes},
            "unreadable": len(bad),
            "left_out": len(tree.left.others) + len(tree.left.links) + len(tree.left.hidden),
        }
        problems += bad
    return found, problems


def by_class(found: dict[str, dict[str, Any]]) -> str:
    """A line for each class with its images in each split, the fewest first; of many also the most alone."""
    rows = [
        (name, *(facts["by_class"][name] for facts in found.values())) for name in found["train"]["by_class"]
    ]
    rows.sort(key=lambda row: row[1])
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0].ljust(width)}  {'  '.join(f'{count:>7,}' for count in row[1:])}" for row in rows]
    if len(lines) > SHOWN:
        lines = [*lines[: SHOWN // 2], "…", *lines[-SHOWN // 2 :]]
    return "\n".join([f"{'class'.ljust(width)}  {'  '.join(split.rjust(7) for split in found)}", *lines])
