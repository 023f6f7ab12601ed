"""Grad-CAM (arXiv 1610.02391) by captum: what speaks for a class in a network's last map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def grad_cam(model: nn.Module, image: Tensor, label: int | None = None) -> tuple[int, NDArray[np.floating]]:
    """The class, and its Grad-CAM on the last map [h, w], 0 and more.

    Args:
        model: a classifier, in evaluation mode; it stays as it is.
        image: as it takes it, [3, H, W].
        label: the class; the likeliest where None.

    Raises:
        ModuleNotFoundError: captum is not there.
        ValueError: a network without a map.
    """
    from captum.attr import LayerGradCam

    batch = image[None].to(next(model.parameters()).device)  # [1, 3, H, W]
    last: list[nn.Module] = []

    def note(module: nn.Module, args: Any, result: Any) -> None:
        if isinstance(result, Tensor) and result.ndim == 4 and result.shape[2] * result.shape[3] > 1:
            last[:] = [module]  # a stage is done after its last block

    handles = [module.register_forward_hook(note) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            logits = model(batch)  # [1, classes]
    finally:
        for handle in handles:
            handle.remove()
    if not last or logits.ndim != 2:
        raise ValueError(f"this {type(model).__name__} has no map that its classes are made from")
    label = int(logits[0].argmax()) if label is None else label
    with torch.enable_grad():
        found = LayerGradCam(model, last[0]).attribute(batch, target=label, relu_attributions=True)
    return label, found[0, 0].detach().float().cpu().numpy()
