"""Grad-CAM (arXiv 1610.02391): what speaks for a class in a network's last map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attneck.surgery.trace import trace


def grad_cam(model: nn.Module, image: Tensor, label: int | None = None) -> tuple[int, NDArray[np.floating]]:
    """The class, and its Grad-CAM on the last map [H, W], 0 and more (the paper's equations 1 and 2).

    That map may be [B, C, H, W], as convolutions make it, or [B, H, W, C] (Swin Transformers).

    Args:
        model: a classifier, in evaluation mode; it stays as it is.
        image: as it takes it, [3, H, W].
        label: the class; the likeliest where None.

    Raises:
        ValueError: a network without such a map near its end, one that finds no classes, or as
            `attneck.surgery.trace.trace`.
    """
    name, call, axis = _last_map(model, (image.shape[1], image.shape[2]))
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        kept.append(result)
        return result.clone()  # what comes next may write into it

    # The image asks for gradients, as all weights may be frozen.
    batch = image[None].to(next(model.parameters()).device).requires_grad_()  # [1, 3, H, W]
    handle = model.get_submodule(name).register_forward_hook(keep)
    with torch.enable_grad():
        try:
            logits = model(batch)  # [1, classes]
        finally:
            handle.remove()
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ValueError(
                f"this {type(model).__name__} gives no logits [B, classes]: Grad-CAM is of a class"
            )
        label = int(logits[0].argmax()) if label is None else label
        (gradients,) = torch.autograd.grad(logits[0, label], kept[call])
    gradients, values = gradients[0].movedim(axis - 1, 0), kept[call][0].movedim(axis - 1, 0)  # [C, H, W]
    found = (gradients.mean((1, 2), keepdim=True) * values).sum(0).relu()  # [H, W]
    return label, found.detach().float().cpu().numpy()


def _last_map(model: nn.Module, image_size: tuple[int, int]) -> tuple[str, int, int]:
    """The module that gives it, in which of its calls (from 0 on), and the axis of its channels.

    All of what the image says goes through it: the middle of a branch beside a shortcut is none.
    """
    seen = trace(model, image_size)
    whole = seen.steps[0]
    for step in sorted(seen.calls(), key=lambda step: -step.end):
        if not step.name or not isinstance(step.result, Tensor) or len(step.outputs) != 1:
            continue
        number = step.outputs[0]
        shape, axis = seen.shapes[number], seen.axes[number]
        if len(shape) != 4 or axis not in (1, 3) or shape.numel() == shape[0] * shape[axis]:
            continue
        if 2 * step.end < whole.end:
            break  # the patches of a ViT, say: most of it is still to come, and not on maps
        if not seen.is_made_without(whole.outputs, number):
            earlier = sum(other.module is step.module and other.end < step.end for other in seen.calls())
            return step.name, earlier, axis
    raise ValueError(
        f"this {type(model).__name__} has no map near its end that its classes are made from, which Grad-CAM "
        "is drawn on: a ViT's tokens are none"
    )
