"""The statistics of a network's BatchNorms, taken anew from images such as it is to see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attneck.errors import one_line
from attneck.layers.modes import evaluating

Network = TypeVar("Network", bound=nn.Module)
STATISTICS = ("running_mean", "running_var")


def recalibrate(network: Network, batches: Iterable[Any]) -> Network:
    """Take each BatchNorm's running mean and variance from these images, in place; gives the network back.

    What a BatchNorm saw in training may not be what it sees in images of another size, or of another camera.
    Its statistics need no labels and no gradients, so they can follow; no weight changes. Attention and BAM
    gained much by it, and a plain network lost a little in some sizes (docs/when-to-attend.md): compare.

    They are the means over batches of what each saw, as in training; a batch counts by its images. A norm
    that sees none, or learns nothing, keeps what it had. Dropout and drop path stay off. "PreciseBN" of Wu
    and Johnson (2021, arXiv 2105.07576, section 3), and for other images "AdaBN" of Li et al. (2016, arXiv
    1603.04779).

    Args:
        network: in whatever mode, which it keeps.
        batches: what the network takes, on its device, such as images [B, C, H, W], normalised; two or more
            at a time for BAM. Several hundred images of all classes, in no order.

    Raises:
        ValueError: no BatchNorm with statistics, no images, images that leave statistics which are not
            finite, or DataParallel over several devices. The statistics are then those of before, as with
            whatever else the network raises.
    """
    norms = [
        norm
        for norm in network.modules()
        if isinstance(norm, _BatchNorm) and norm.track_running_stats
        if norm.running_mean is not None and norm.running_var is not None
    ]
    if not norms:
        raise ValueError(f"this {type(network).__name__} has no BatchNorm with statistics to be taken anew")
    if any(isinstance(one, nn.DataParallel) and len(one.device_ids) > 1 for one in network.modules()):
        raise ValueError("DataParallel's replicas see a part of each batch: give the model itself (.module)")
    seen: list[_Seen] = []
    try:
        seen.extend(map(_Seen, norms))
        with evaluating(network), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for norm in norms:
                norm.training = True  # and not what hangs on it, such as a dropout
            _show(network, batches)
        for one in seen:
            one.write()
        if not all(value.isfinite().all() for norm in norms for value in norm.buffers(recurse=False)):
            raise ValueError("statistics of these images are not finite: give others, or take float32")
    except BaseException:
        for one in seen:
            one.restore()
        raise
    finally:
        for one in seen:
            one.leave()
    return network


def _show(network: nn.Module, batches: Iterable[Any]) -> None:
    """Run it on each batch; ValueError where there is none, and for images with labels."""
    given = False
    for batch in batches:
        try:
            network(batch)
        except TypeError as error:
            if not isinstance(batch, (list, tuple)):
                raise
            raise ValueError(
                f"a batch is a {type(batch).__name__} of {len(batch)} ({one_line(error, 90)}): where "
                f"{type(network).__name__} takes images alone, give (images for images, labels in loader)"
            ) from error
        given = True
    if not given:
        raise ValueError("no images were given to take statistics from")


class _Seen:
    """What a BatchNorm sees: sums over images of its batches' means and variances, in float32 or better."""

    def __init__(self, norm: Any) -> None:
        self.norm, self.images = norm, 0
        self.before = {name: value.clone() for name, value in norm.named_buffers(recurse=False)}
        self.sums: dict[str, Tensor | float] = dict.fromkeys(STATISTICS, 0.0)
        finite = all(getattr(norm, name).isfinite().all() for name in STATISTICS)
        self.momentum, norm.momentum = norm.momentum, 1.0  # so that it learns a batch's, whole
        if not finite:  # 0 times NaN would stay
            norm.running_mean.zero_()
            norm.running_var.fill_(1)
        self.hook = norm.register_forward_hook(self._add, with_kwargs=True)

    def _add(self, norm: Any, given: tuple[Tensor, ...], named: dict[str, Tensor], _: Any) -> None:
        count = len(next(iter((*given, *named.values()))))
        self.images += count
        for name in STATISTICS if count else ():
            mean = getattr(norm, name)
            mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
            self.sums[name] = self.sums[name] + count * mean

    def write(self) -> None:
        """The means over all images; what has seen none keeps what it had."""
        for name, total in self.sums.items():
            value = getattr(self.norm, name)
            value.copy_(total / self.images if self.images else self.before[name])

    def restore(self) -> None:
        for name, value in self.norm.named_buffers(recurse=False):
            value.copy_(self.before[name])

    def leave(self) -> None:
        self.norm.momentum = self.momentum
        self.hook.remove()
