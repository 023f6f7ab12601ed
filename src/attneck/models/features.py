"""The feature maps at the ends of a network's last stages, for detectors and other uses of a backbone."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn


class Pyramid(nn.Module):
    """A catalog model as its last feature maps, finest first: x [B, 3, H, W] → [[B, C, H', W'], …].

    The entries are those of the model's `feature_info`; for a ResNet or BoTNet the last four are c2 to c5. A
    stage's map is the next stage's input, so it comes after a BAM. The model itself is changed: what these
    maps do not need (the classifier, a final norm) is removed, so every parameter left has a gradient.

    Attributes:
        channels: C of each map.
        reductions: the stride of each map: the pixels of a position, along each side.

    Args:
        model: any network with timm's `feature_info`, `forward_intermediates` and
            `prune_intermediate_layers`; every model of the catalog has them.
        stages: how many of its last entries (all, where it has no more), or which.

    Raises:
        ValueError: a model without them, or stages that it does not have.
    """

    def __init__(self, model: nn.Module, stages: int | list[int] = 4) -> None:
        super().__init__()
        for name in ("feature_info", "forward_intermediates", "prune_intermediate_layers"):
            if not hasattr(model, name):
                raise ValueError(
                    f"{type(model).__name__} has no {name}: give a model of attneck's catalog or of timm, "
                    "or, to FPN and mask_rcnn, a module with channels and reductions that returns its maps"
                )
        self.model = cast(Any, model)
        info = list(self.model.feature_info)
        wanted = list(range(-min(stages, len(info)), 0)) if isinstance(stages, int) else stages
        if not wanted or not all(-len(info) <= index < len(info) for index in wanted):
            raise ValueError(
                f"stages={stages}: this model has {len(info)}; give how many of the last, or which"
            )
        self.indices = sorted({index % len(info) for index in wanted})
        self.model.prune_intermediate_layers(self.indices, prune_norm=True)
        self.channels: list[int] = [info[index]["num_chs"] for index in self.indices]
        self.reductions: list[int] = [info[index]["reduction"] for index in self.indices]

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [B, 3, H, W] → one map a stage, [B, channels[i], ~H / reductions[i], ~W / reductions[i]]."""
        maps: list[Tensor] = self.model.forward_intermediates(
            x, indices=self.indices, intermediates_only=True
        )
        return maps
