"""BAM's gate (arXiv 1807.06514, eq. 1 and 2): a map plus itself times its attention.

Letters: B batch, C channels, H x W map.
"""

from collections.abc import Callable

import torch
from torch import Tensor

COMBINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "prod": torch.mul,
    "max": torch.maximum,
}
"""How the two branches meet (BAM, Table 1); the paper settles on the sum."""


def gate(x: Tensor, c: Tensor | None, p: Tensor | None, combine: str = "sum") -> Tensor:
    """x + x * sigmoid(combine(c, p)), the branches broadcast over the map; x's memory format is kept.

    Args:
        x: [B, C, H, W].
        c: channel logits [B, C], or None for the spatial branch alone.
        p: spatial logits [B, 1, H, W], or None for the channel branch alone.
        combine: "sum", "prod" or "max"; unused with one branch.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: for shapes that do not fit, no branch at all, or an unknown `combine`.
    """
    # x stands first: where operands disagree about the memory format, PyTorch follows the first.
    return torch.addcmul(x, x, gate_weights(x, c, p, combine))  # [B, C, H, W]


def gate_weights(x: Tensor, c: Tensor | None, p: Tensor | None, combine: str = "sum") -> Tensor:
    """sigmoid(combine(c, p)), broadcastable to x: [B, C, H, W], [B, C, 1, 1] (no p) or [B, 1, H, W] (no c).

    Arguments and errors as `gate`; of x only the shape is read.
    """
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}, wanted a batch of maps [B, C, H, W]")
    B, C, H, W = x.shape
    if c is not None and c.shape != (B, C):
        raise ValueError(f"c has shape {list(c.shape)}, wanted one logit a channel, [B, C] = [{B}, {C}]")
    if p is not None and p.shape != (B, 1, H, W):
        raise ValueError(
            f"p has shape {list(p.shape)}, wanted one logit a place, [B, 1, H, W] = [{B}, 1, {H}, {W}]"
        )
    if combine not in COMBINES:
        raise ValueError(f"unknown combine {combine!r}; choose one of {', '.join(COMBINES)}")
    if c is not None and p is not None:
        return COMBINES[combine](c[:, :, None, None], p).sigmoid()  # [B, C, H, W]
    if c is not None:
        return c[:, :, None, None].sigmoid()  # [B, C, 1, 1]
    if p is not None:
        return p.sigmoid()  # [B, 1, H, W]
    raise ValueError("c and p are both None; a gate needs the channel logits, the spatial logits, or both")
