"""A detector's backbone from weights that were trained on something else (BoTNet §4.1, footnote 6)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attneck.models.features import Pyramid
from attneck.models.weights import Loaded, load_matching


def load_backbone(detector: Any, weights: Mapping[str, Tensor] | str | Path) -> Loaded:
    """`load_matching` into the backbone of `detector`, whose layers that attention replaced stay random.

    Args:
        detector: one whose `backbone` is an `FPN`, SSD300 or StairNet.
        weights: of the backbone alone, as `load_matching` takes them; errors are its own, too.
    """
    return load_matching(_backbone(detector), weights)


def _backbone(detector: Any) -> nn.Module:
    """What has the names of a classifier's weights."""
    body = detector.backbone
    for inner in ("trunk", "body", "pyramid"):  # of StairNet, an FPN, MobileNet's SSD
        body = getattr(body, inner, body)
    found: nn.Module = body.model if isinstance(body, Pyramid) else body
    return found
