"""What all detectors share: the check of their classes, float32 results, and empty detections."""

from __future__ import annotations

import torch
from torch import Tensor

from attneck.checks import whole
from attneck.models.options import MAX_CLASSES


def check_classes(num_classes: int) -> None:
    """ValueError unless it is a whole number, of a class or more besides the background."""
    if whole("num_classes", num_classes, least=0, most=MAX_CLASSES) < 2:
        raise ValueError(f"num_classes={num_classes}: wanted the background and one class more, 2 at least")


def precise(x: Tensor) -> Tensor:
    """x in float32 at least: in bfloat16 a coordinate near 1000 is rounded to four pixels."""
    return x.to(at_least_float32(x.dtype))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 in place of bfloat16 and float16, which autocast makes; float64 stays."""
    return torch.promote_types(dtype, torch.float32)


def nothing_found(batch: Tensor, masks: bool = False) -> list[dict[str, Tensor]]:
    """An empty detection for each image of a batch [B, …]; with `masks` the batch is [B, C, H, W]."""
    boxes = batch.new_empty(0, 4)
    empty = {"boxes": boxes, "labels": boxes[:, 0].long(), "scores": boxes[:, 0]}
    if masks:
        empty["masks"] = batch.new_empty(0, 1, *batch.shape[2:])
    return [dict(empty) for _ in batch]
