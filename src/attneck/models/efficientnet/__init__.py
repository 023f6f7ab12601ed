"""timm's EfficientNet (Tan & Le 2019); BoTNet compares with it (Table 14)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from attneck.models.options import FamilyOptions, OutputStride, Probability


class EfficientNetOptions(FamilyOptions):
    """EfficientNet B0 to B7."""

    builder: ClassVar[str] = "attneck.models.efficientnet.network:build_efficientnet"
    first_conv: ClassVar[str] = "conv_stem"
    classifier: ClassVar[str] = "classifier"

    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0"
    """Which of the family."""
    drop_path: Probability = 0.0
    """Probability of leaving the last block out in training; it rises linearly to there."""
    output_stride: OutputStride = 32
    """Less: later stages do not stride, their convs are dilated."""

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the classifier."""
        return 1280 * num_classes

    @property
    def last_stride(self) -> int:
        """As asked for."""
        return self.output_stride

    @property
    def feature_cfg(self) -> dict[str, Any]:
        """Its maps come out of one Sequential, so timm's getter reads them."""
        return {"feature_cls": "getter"}
