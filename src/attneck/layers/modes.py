"""A network in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards every module is in the mode that it was in.

    Each is told so by its own `train`, which may do more than to set a flag: torchvision's feature extractors
    change their graph, layers of LoRA take their product out of the weight again.
    """
    before = {module: module.training for module in network.modules()}  # outer ones first
    network.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            if module.training != training:
                module.train(training)
