"""DenseNet-BC for 32×32 images: options, free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from attneck.models.options import BAMOptions, Numbers, Positive


class DenseNetOptions(BAMOptions):
    """DenseNet-BC for 32×32 images (Huang et al. 2017); BAM before and after each transition (BAM §4.2)."""

    builder: ClassVar[str] = "attneck.models.densenet.network:build_densenet"

    depths: Annotated[Numbers, Field(min_length=2, max_length=4)] = (16, 16, 16)
    growth: Positive = 12
    bam: Literal["none", "stages"] = "none"

    @property
    def feature_cfg(self) -> dict[str, Any]:
        """Every stage's map: timm's own default is five."""
        return {"out_indices": tuple(range(len(self.depths)))}
