"""What a detector starts from: a backbone that was trained on something else, or another detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attneck.models.features import Pyramid
from attneck.models.weights import Loaded, load_matching, read_weights


def load_weights(detector: Any, weights: Mapping[str, Tensor] | str | Path) -> Loaded:
    """`load_matching` into the backbone of `detector`, or into all of it.

    Args:
        detector: one whose `backbone` is an `FPN`, SSD300 or StairNet.
        weights: as `load_matching` takes them, and with its errors. Of a network by its own names, the
            backbone alone is filled (BoTNet §4.1, footnote 6), and what attention replaced stays random. Of
            a detector, pyramid and heads are too, but for the last layers where the classes are not as many.
    """
    given = read_weights(weights)
    whole = any(name.startswith("backbone.") for name in given)
    return load_matching(detector if whole else _backbone(detector), given)


def _backbone(detector: Any) -> nn.Module:
    """What has the names of a classifier's weights."""
    body = detector.backbone
    for inner in ("trunk", "body", "pyramid"):  # of StairNet, an FPN, MobileNet's SSD
        body = getattr(body, inner, body)
    found: nn.Module = body.model if isinstance(body, Pyramid) else body
    return found
