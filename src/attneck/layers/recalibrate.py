"""The statistics of a network's BatchNorms, taken anew from images such as it is to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attneck.layers.modes import evaluating

Network = TypeVar("Network", bound=nn.Module)


def recalibrate(network: Network, batches: Iterable[Any]) -> Network:
    """Take each BatchNorm's running mean and variance from these images, in place; gives the network back.

    What a BatchNorm saw in training may not be what it sees in images of another size, or of another camera.
    Its statistics need no labels and no gradients, so they can follow; no weight changes. Attention and BAM
    gained much by it, and a plain network lost a little in some sizes (docs/when-to-attend.md): compare.

    They are the means over batches of what each saw, as in training; a batch counts by its images. A norm
    that sees none keeps what it had. Dropout and drop path stay off. "PreciseBN" of Wu and Johnson (2021,
    arXiv 2105.07576, section 3), and for other images "AdaBN" of Li et al. (2016, arXiv 1603.04779).

    Args:
        network: in whatever mode, which it keeps.
        batches: what the network takes, on its device, such as images [B, C, H, W], normalised; two or more
            at a time for BAM. Several hundred images of all classes, in no order.

    Raises:
        ValueError: no BatchNorm with statistics, no images, or images that leave statistics which are not
            finite. The statistics are then those of before, as with whatever else the network raises.
    """
    norms = [
        norm
        for norm in network.modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    ]
    if not norms:
        raise ValueError(f"this {type(network).__name__} has no BatchNorm with statistics to be taken anew")
    before = [{name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms]
    shares = [norm.momentum for norm in norms]
    seen: Counter[nn.Module] = Counter()

    def weigh(norm: Any, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        """Its running means become those over all that it has seen, this batch too."""
        count = len(next(iter((*given, *named.values()))))
        seen[norm] += count
        norm.momentum = count / max(1, seen[norm])

    hooks = [norm.register_forward_pre_hook(weigh, with_kwargs=True) for norm in norms]
    given = False
    try:
        with evaluating(network), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for norm in norms:
                norm.training = True  # and not what hangs on it, such as a dropout
            for batch in batches:
                network(batch)
                given = True
        if not given:
            raise ValueError("no images were given to take statistics from")
        if not all(value.isfinite().all() for norm in norms for value in norm.buffers(recurse=False)):
            raise ValueError("statistics of these images are not finite: give others, or take float32")
    except BaseException:
        for norm, kept in zip(norms, before, strict=True):
            for name, value in norm.named_buffers(recurse=False):
                value.copy_(kept[name])
        raise
    finally:
        for hook, norm, share in zip(hooks, norms, shares, strict=True):
            hook.remove()
            norm.momentum = share
    return network
