"""ViT and DeiT: options, free of torch."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import model_validator

from attneck.models.options import FamilyOptions, Positive, Probability


class ViTOptions(FamilyOptions):
    """timm's ViT, also trained as DeiT; BoTNet compares with both (Figures 7 to 9)."""

    builder: ClassVar[str] = "attneck.models.vit.network:build_vit"
    first_conv: ClassVar[str] = "patch_embed.proj"
    classifier: ClassVar[str] = "head"
    global_pool: ClassVar[str] = "token"

    width: Positive = 768
    depth: Positive = 12
    heads: Positive = 12
    patch: Positive = 16
    drop_path: Probability = 0.0

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:  # timm only asserts it
            raise ValueError(f"heads={self.heads}, width={self.width}: wanted heads that divide the width")
        return self

    @property
    def feature_cfg(self) -> dict[str, Any]:
        """The last three blocks' maps."""
        return {"feature_cls": "getter", "out_indices": 3}
