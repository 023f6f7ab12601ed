"""The networks that BoTNet compares itself with, as timm has them: EfficientNet, and ViT (and so DeiT)."""

from __future__ import annotations

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from attneck.models import parts
from attneck.models.options import EfficientNetOptions, ViTOptions


def build_efficientnet(
    options: EfficientNetOptions, *, num_classes: int, image_size: tuple[int, int]
) -> nn.Module:
    """timm's EfficientNet B0 to B7 (BoTNet Table 14), by timm's names."""
    model: nn.Module = timm.create_model(
        f"efficientnet_{options.variant}",
        num_classes=num_classes,
        drop_rate=options.dropout,
        drop_path_rate=options.drop_path,
    )
    return model


def build_vit(options: ViTOptions, *, num_classes: int, image_size: tuple[int, int]) -> VisionTransformer:
    """timm's VisionTransformer (BoTNet Figures 7 to 9), by timm's names.

    Its position embeddings are made for `image_size` and resampled for any other; an image that the patches
    do not divide is padded.
    """
    rows, columns = parts.map_size(image_size, options.patch)
    return VisionTransformer(
        img_size=(rows * options.patch, columns * options.patch),
        patch_size=options.patch,
        embed_dim=options.width,
        depth=options.depth,
        num_heads=options.heads,
        num_classes=num_classes,
        drop_rate=options.dropout,
        drop_path_rate=options.drop_path,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
