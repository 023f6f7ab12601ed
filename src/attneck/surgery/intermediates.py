"""Whether timm's `forward_intermediates`, a network's second way to its maps, runs what surgery put in.

Most networks go the same way in both. timm's aligned Xceptions run the parts of a block one by one there, so
that a child which follows the block is left out, and one which follows its last part moves where a map is
taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from attneck.layers.meta import meta_copy
from attneck.surgery.trace import Trace


@dataclass(frozen=True)
class Maps:
    """What `forward_intermediates` gives, and what it runs."""

    shapes: list[torch.Size]
    ran: set[str]
    """Modules, by their dotted names."""


class LeftOutWarning(UserWarning):
    """`forward_intermediates` goes around a new module, or gives other maps than before."""


def maps_of(skeleton: nn.Module, trace: Trace) -> Maps | None:
    """Those of a copy without storage; None where it has no such method, or that fails.

    Args:
        skeleton: of the network that `trace` is of, before or after it was changed.
        trace: which image it takes.
    """
    if not hasattr(skeleton, "forward_intermediates"):
        return None
    dtype = next(p.dtype for p in skeleton.parameters() if p.is_floating_point())
    image = torch.empty(2, trace.image_channels, *trace.image_size, device="meta", dtype=dtype)
    ran: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, given, name=name: ran.add(name))
        for name, module in skeleton.named_modules()
    ]
    try:
        with trace.running():
            maps = skeleton.forward_intermediates(image, intermediates_only=True)  # type: ignore[operator]
        return Maps([one.shape for one in maps], ran)
    except Exception:  # somebody else's method, of any kind
        return None
    finally:
        for hook in hooks:
            hook.remove()


def warn_of_others(network: nn.Module, before: Maps | None, trace: Trace, new: Sequence[str]) -> None:
    """LeftOutWarning where one of the `new` modules does not run there, or a map has another shape."""
    if before is None:
        return
    after = maps_of(meta_copy(network).eval(), trace)
    around = [name for name in new if after is not None and name not in after.ran]
    if after is not None and not around and after.shapes == before.shapes:
        return
    what = "fails now"
    if after is not None:
        what = f"leaves out {', '.join(around)}" if around else "gives maps of other sizes now"
    warnings.warn(
        f"forward_intermediates of this {type(trace.skeleton).__name__} {what}, and forward does not: take "
        "its maps of a network made with features_only=True, or by hooks",
        LeftOutWarning,
        stacklevel=2,
    )
