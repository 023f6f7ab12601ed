"""ViT and DeiT: options, free of torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from attneck.models.options import Depth, FamilyOptions, Positive, Probability


class ViTOptions(FamilyOptions):
    """timm's ViT, also trained as DeiT; BoTNet compares with both (Figures 7 to 9)."""

    builder: ClassVar[str] = "attneck.models.vit.network:build_vit"
    first_conv: ClassVar[str] = "patch_embed.proj"
    classifier: ClassVar[str] = "head"

    global_pool: Literal["token", "avg", "max", "avgmax", ""] = "token"  # type: ignore[assignment]
    """What becomes the classifier's input: the class token, or what pools the others."""
    width: Positive = 768
    """Channels of a token."""
    depth: Depth = 12
    """Blocks."""
    heads: Positive = 12
    """Attention heads of each block."""
    patch: Positive = 16
    """Side of a patch in pixels."""
    drop_path: Probability = 0.0
    """Probability of leaving the last block out in training; it rises linearly to there."""

    @model_validator(mode="after")
    def _has_no_batch_norm(self) -> Self:
        self._refuse_idle(("bn_momentum", "bn_eps"), "a BatchNorm, of which a ViT has none")
        return self

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:  # timm only asserts it
            raise ValueError(f"heads={self.heads}, width={self.width}: wanted heads that divide the width")
        return self

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the blocks, the patches' projection and positions, and the classifier."""
        positions = (image_size[0] // self.patch) * (image_size[1] // self.patch)
        pixels = in_chans * self.patch**2
        return self.width * (12 * self.width * self.depth + pixels + positions + num_classes)

    @property
    def last_stride(self) -> int:
        """A patch's side."""
        return self.patch

    def last_map(self, image_size: tuple[int, int]) -> None:
        """It ends in tokens."""

    @property
    def feature_cfg(self) -> dict[str, Any]:
        """The last three blocks' maps."""
        return {"feature_cls": "getter", "out_indices": 3}
