"""Whether a detector's heads answer with finite numbers; what is not, torchvision drops without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attneck.errors import OVERFLOW, NotFinite

HEADS = ("rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor", "head")
"""Where torchvision's detectors, and those of this package, have the layers that answer."""


@contextmanager
def finite_heads(model: nn.Module) -> Iterator[list[Tensor]]:
    """Fills the list, for each call of a head within, with whether all of its numbers are finite.

    A network whose heads lie elsewhere leaves it empty.
    """
    seen: list[Tensor] = []

    def look(module: nn.Module, given: Any, answer: Any) -> None:
        seen.extend(one.isfinite().all() for one in _tensors(answer))

    inner = getattr(model, "module", model)  # DistributedDataParallel's
    hooks = [part.register_forward_hook(look) for name, part in inner.named_modules() if name in HEADS]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def finite(model: nn.Module) -> Iterator[None]:
    """Raises NotFinite at the end where a detector's heads, run within, say what is not finite."""
    with finite_heads(model) as heads:
        yield
    if not all_finite(heads):
        raise NotFinite(f"an image has scores or boxes that are not finite: {OVERFLOW}")


def all_finite(seen: list[Tensor]) -> bool:
    """Whether what `finite_heads` saw was finite; forgets it."""
    found = not seen or bool(torch.stack(seen).all())
    seen.clear()
    return found


def _tensors(answer: Any) -> Iterator[Tensor]:
    """The tensors of a head's answer, however it holds them."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, dict | list | tuple):
        for part in answer.values() if isinstance(answer, dict) else answer:
            yield from _tensors(part)
