"""DenseNet-BC for 32×32 images: options, free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from attneck.models.options import BAMOptions, Depths, Positive


class DenseNetOptions(BAMOptions):
    """DenseNet-BC for 32×32 images (Huang et al. 2017); BAM before and after each transition (BAM §4.2)."""

    builder: ClassVar[str] = "attneck.models.densenet.network:build_densenet"

    depths: Annotated[Depths, Field(min_length=2, max_length=4)] = (16, 16, 16)
    """Layers a dense block."""
    growth: Positive = 12
    """Channels that each layer adds, k."""
    bam: Literal["none", "stages"] = "none"
    """stages: a BAM before and after each transition (BAM §4.2)."""

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the stem, the dense layers and the classifier."""
        k, channels = self.growth, 2 * self.growth
        total = 9 * in_chans * channels
        for index, depth in enumerate(self.depths):
            channels //= 1 if index == 0 else 2  # a transition
            total += sum((channels + layer * k) * 4 * k + 9 * 4 * k * k for layer in range(depth))
            channels += depth * k
        return total + num_classes * channels

    @property
    def last_stride(self) -> int:
        """Every stage but the first strides by 2."""
        return 2 ** (len(self.depths) - 1)

    @property
    def feature_cfg(self) -> dict[str, Any]:
        """Every stage's map: timm's own default is five."""
        return {"out_indices": tuple(range(len(self.depths)))}
