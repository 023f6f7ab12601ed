"""What an exported file says of itself: what its results mean, and what images it wants."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

INSIDE = (
    "an RGB image, values from 0 to 1, of any height and width; the graph resizes and normalises it, and "
    "boxes and masks are in the image's own pixels"
)
CUT = {
    "center": "the shorter side resized to size / crop_pct, the centre of size cut out",
    "squash": "both sides resized to size / crop_pct, whatever its shape, the centre of size cut out",
    "border": "the longer side resized to size / crop_pct, the centre of size cut out, or filled up to size "
    "with the mean colour",
}
"""By the `crop_mode` of timm's `pretrained_cfg`."""
OUTSIDE = "values from 0 to 1, then (value - mean) / std by channel"


def metadata(
    model: nn.Module, size: tuple[int, int], detects: bool, logits: int | None = None
) -> dict[str, str]:
    """By name: `attneck` (its version), `task`, `preprocessing`, and as far as the model knows them as JSON
    `classes`, `mean`, `std`, `size` ([height, width]), `crop_pct`, `crop_mode`, `interpolation`, `model`,
    `surgery`.

    `mean` and `std` are what the caller normalises with: a detector's graph does it itself, so they are 0 and
    1. The classes of a detector have the background at 0.

    Args:
        logits: how many a classifier makes of an image; None of a network that makes none, which has no task.
    """
    from attneck import __version__
    from attneck.models.origin import Origin

    known: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    origin: Origin | None = getattr(model, "origin", None)
    about: dict[str, Any] = {"size": list(size)}
    names = list(known.get("label_names") or ())
    if names and (detects or len(names) == logits):  # else those of a classifier that was taken off
        about["classes"] = names
    if detects:
        about |= {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    else:
        keys = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
        about |= {key: known[key] for key in keys if known.get(key) is not None}
    if origin is not None:
        about["model"] = {"name": origin.name, "options": origin.options}
        if origin.surgery != "none":
            about["surgery"] = {"name": origin.surgery, "options": origin.surgery_options}
    words = {"attneck": __version__}
    if detects or logits is not None:
        words["task"] = "detection" if detects else "classification"
    if detects or "mean" in about:
        colours = "" if len(known.get("mean") or ()) != 3 else "RGB, "
        cut = CUT.get(known.get("crop_mode") or "center", "to size")
        words["preprocessing"] = INSIDE if detects else f"{colours}{cut}, {OUTSIDE}"
    return words | {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}
