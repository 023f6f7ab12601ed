"""What all detectors have in common with torchvision's."""

from __future__ import annotations

from torch import Tensor


def check_classes(num_classes: int) -> None:
    """ValueError unless there is a class beside the background."""
    if num_classes < 2:
        raise ValueError(
            f"num_classes={num_classes}: a detector wants the background and one class more, 2 at least"
        )


def nothing_found(batch: Tensor, masks: bool = False) -> list[dict[str, Tensor]]:
    """A detection without boxes for each image of a batch [B, …], [B, C, H, W] where there are masks."""
    boxes = batch.new_empty(0, 4)
    empty = {"boxes": boxes, "labels": boxes[:, 0].long(), "scores": boxes[:, 0]}
    if masks:
        empty["masks"] = batch.new_empty(0, 1, *batch.shape[2:])
    return [dict(empty) for _ in batch]
