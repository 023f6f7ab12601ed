"""The global pool before a classifier, by timm's words: a mean, a maximum, both, or none.

Letters: B batch, C channels, H×W map.
"""

from __future__ import annotations

from typing import get_args

from torch import Tensor, cat, nn
from torch.nn import functional as F

from attneck.errors import brief
from attneck.models.options import MAP_TO_CLASSIFIER, Pool

POOLS: tuple[str, ...] = get_args(Pool)


class GlobalPool(nn.Module):
    """[B, C, H, W] → [B, C], or [B, 2C] where mean and maximum stand side by side; the map itself for "".

    Args:
        pool_type: "avg", "max", "avgmax" (the average of both), "catavgmax" (side by side), or "".

    Raises:
        ValueError: another one.
    """

    def __init__(self, pool_type: str) -> None:
        super().__init__()
        if pool_type not in POOLS:
            raise ValueError(f"global_pool={brief(pool_type)}: wanted one of {', '.join(map(repr, POOLS))}")
        self.pool_type = pool_type

    def feat_mult(self) -> int:
        """How many times as many channels come out."""
        return 2 if self.pool_type == "catavgmax" else 1

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        if not self.pool_type:
            return x
        if self.pool_type == "avg":
            return x.mean(dim=(2, 3))
        most = F.adaptive_max_pool2d(x, 1).flatten(1)
        if self.pool_type == "max":
            return most
        mean = x.mean(dim=(2, 3))
        return 0.5 * (mean + most) if self.pool_type == "avgmax" else cat((mean, most), dim=1)

    def extra_repr(self) -> str:
        return repr(self.pool_type)


def pool_of(network: nn.Module) -> str | None:
    """The `pool_type` of a network's pool; None where somebody put a pool of another kind in its place."""
    return getattr(network.global_pool, "pool_type", None)


def check_head(num_classes: int, global_pool: str | None) -> None:
    """ValueError for a classifier behind no pool, "": it would be given a map. None is a pool kept."""
    if num_classes and global_pool == "":
        raise ValueError(MAP_TO_CLASSIFIER)
