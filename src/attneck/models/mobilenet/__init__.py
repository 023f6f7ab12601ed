"""MobileNet v1: options, free of torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from attneck.models.options import BAMOptions, OutputStride


class MobileNetOptions(BAMOptions):
    """MobileNet v1 (Howard et al. 2017)."""

    builder: ClassVar[str] = "attneck.models.mobilenet.network:build_mobilenet"

    alpha: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Every width is ⌊width · alpha⌋."""
    output_stride: OutputStride = 32
    """Less: later stages do not stride, their 3×3 convs are dilated."""
    bam: Literal["none", "stages"] = "none"
    """stages: a BAM at the end of the stages of 128, 256 and 512 channels."""

    @property
    def last_stride(self) -> int:
        """As asked for."""
        return self.output_stride

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the last 1×1 conv and the classifier."""
        width = int(1024 * self.alpha)
        return width * (width + num_classes)
