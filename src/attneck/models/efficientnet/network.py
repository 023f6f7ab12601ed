"""EfficientNets, built by timm."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import efficientnet as timm_efficientnet
from torch import nn

from attneck.models.efficientnet import EfficientNetOptions
from attneck.models.recomputing import recompute


class EfficientNet(timm_efficientnet.EfficientNet):
    """timm's `EfficientNet`; checkpointing leaves BatchNorm's statistics alone."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the maps inside a block again in backward instead of keeping them."""
        for stage in self.blocks:
            recompute(stage, enable)


def build_efficientnet(
    options: EfficientNetOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> nn.Module:
    """timm's EfficientNet, by timm's names."""
    model: Any = timm.create_model(
        f"efficientnet_{options.variant}",
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=options.dropout,
        drop_path_rate=options.drop_path,
        global_pool=options.global_pool,
        output_stride=options.output_stride,
    )
    model.__class__ = EfficientNet
    network: nn.Module = model
    return network
