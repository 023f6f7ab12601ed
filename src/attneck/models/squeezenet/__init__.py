"""SqueezeNet 1.1: options, free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from attneck.models.options import BAMOptions, Probability


class SqueezeNetOptions(BAMOptions):
    """SqueezeNet 1.1 as torchvision has it, and as BAM's Table 3 counts it."""

    builder: ClassVar[str] = "attneck.models.squeezenet.network:build_squeezenet"
    first_conv: ClassVar[str] = "features.0"
    classifier: ClassVar[str] = "classifier.1"
    fits_fpn: ClassVar[bool] = False  # its last map stands for 16 pixels

    dropout: Probability = 0.5
    """Probability of it before the classifier (Iandola et al. 2016)."""
    stem_padding: Annotated[int, Field(ge=0, le=1)] = 0
    """1: maps of 112, 56, 28, 14 at 224; BAM's figure needs it."""
    pool: Literal["logits", "features"] = "logits"
    """What the global pool averages; BAM's figure needs features."""
    global_pool: Literal["avg", "max", "avgmax", ""] = "avg"
    """What pools the last map; avg and max side by side (catavgmax) would double the logits."""
    bam: Literal["none", "stages"] = "none"
    """stages: a BAM after fire3 and fire5."""

    @model_validator(mode="after")
    def _norms_are_bam_s(self) -> Self:
        if self.bam == "none":
            self._refuse_idle(("bn_momentum", "bn_eps"), "a BatchNorm, which it has in a BAM only")
        return self

    @property
    def last_stride(self) -> int:
        """It has no fifth stage."""
        return 16

    def last_map(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Its 3×3 stem and pools go to where they fit; a pool's last window may reach over the border."""
        height, width = ((side + 2 * self.stem_padding - 3) // 2 + 1 for side in image_size)
        for _ in range(3):
            height, width = -(-(height - 3) // 2) + 1, -(-(width - 3) // 2) + 1
        return height, width

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the classifier, a 1×1 conv."""
        return 512 * num_classes

    @property
    def feature_cfg(self) -> dict[str, Any]:
        """Its four maps, each inside the one Sequential."""
        return {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)}
