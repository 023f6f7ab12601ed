"""ViT, and so DeiT, as timm has them (BoTNet Figures 7 to 9).

Letters: B batch, N tokens, C width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from attneck.models import parts
from attneck.models.vit import ViTOptions


class ViT(VisionTransformer):
    """timm's `VisionTransformer`, for `torch.compile` at a changing image size in training too.

    PyTorch cannot compile the gradient of the antialiased resize for a symbolic size, so resampling of the
    position embeddings runs in eager mode. A state dict with embeddings for another square image loads: they
    are resampled.
    """

    def _pos_embed(self, x: Tensor) -> Tensor:
        rows, columns = self.patch_embed.grid_size
        compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        fits = not compiling or (
            statically_known_true(x.shape[1] == rows) and statically_known_true(x.shape[2] == columns)
        )
        return super()._pos_embed(x) if fits else _left_to_eager(super()._pos_embed, x)  # [B, N, C]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given, own = state_dict.get(prefix + "pos_embed"), self.get_parameter("pos_embed")
        if given is not None and given.ndim == 3 and given.shape[1] != own.shape[1]:
            side = math.isqrt(max(0, given.shape[1] - self.num_prefix_tokens))
            if side * side + self.num_prefix_tokens == given.shape[1]:  # if not, PyTorch refuses it
                state_dict[prefix + "pos_embed"] = resample_abs_pos_embed(
                    given, self.patch_embed.grid_size, (side, side), self.num_prefix_tokens
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.compiler.disable
def _left_to_eager(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def build_vit(
    options: ViTOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> ViT:
    """timm's VisionTransformer (BoTNet Figures 7 to 9), by timm's names.

    Its position embeddings are made for `image_size` and resampled for any other; an image that the patches
    do not divide is padded.
    """
    rows, columns = parts.map_size(image_size, options.patch)
    return ViT(
        img_size=(rows * options.patch, columns * options.patch),
        patch_size=options.patch,
        embed_dim=options.width,
        depth=options.depth,
        num_heads=options.heads,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=options.dropout,
        drop_path_rate=options.drop_path,
        global_pool=options.global_pool,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
