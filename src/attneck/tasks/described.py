"""What a model that is in memory says of the images that it takes, and of its classes."""

from __future__ import annotations

from typing import Any

from attneck.data.readers.folder import resampling
from attneck.models.origin import is_detector
from attneck.tasks.task import Facts


def facts_of(model: Any) -> Facts:
    """As a task describes its data, of a model that is not inside another.

    Of a classifier `classes` (empty where they have no names), `image_size`, `mean`, `std`, `crop_pct` and
    `interpolation`; of a detector `classes`, the background not counted, `category_ids` and `image_size`.

    Raises:
        ValueError: it does not say, or its images are not squares of three colours, cut out of the middle.
    """
    known = dict(getattr(model, "pretrained_cfg", None) or {})
    classes = tuple(known.get("label_names") or ())
    if len(classes) != getattr(model, "num_classes", len(classes)):
        classes = ()  # those of a classifier that was taken off
    kind = type(model).__name__
    if is_detector(model):
        if (origin := getattr(model, "origin", None)) is None:
            raise ValueError(f"this {kind} does not say how many classes it has, as create_model's do")
        ids = [*range(1, origin.num_classes)]
        return {"classes": classes[1:], "category_ids": ids, "image_size": max(origin.image_size)}
    if missing := [key for key in ("input_size", "mean", "std") if key not in known]:
        raise ValueError(
            f"this {kind} does not say which images it takes: its pretrained_cfg has no {missing[0]} "
            "(input_size, mean, std, crop_pct, interpolation, as timm has them)"
        )
    channels, height, width = known["input_size"]
    if channels != 3 or height != width:
        raise ValueError(f"it takes {channels} × {height} × {width}: wanted square images of 3 colours")
    if known.get("crop_mode", "center") != "center":
        raise ValueError(
            f"it wants images in crop_mode {known['crop_mode']}, and here their centre is cut out: save it "
            "with a pretrained_cfg that says center, if that does for it"
        )
    way = known.get("interpolation") or "bicubic"  # as timm
    try:
        resampling(way)
    except ValueError as error:
        raise ValueError(f"{error}; save it with the one that it was trained by") from error
    return {
        "classes": classes,
        "image_size": height,
        "mean": known["mean"],
        "std": known["std"],
        "crop_pct": known.get("crop_pct") or 0.875,
        "interpolation": way,
    }
