"""Residual networks for 32×32 images: options, free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from attneck.models.options import (
    AttentionOptions,
    BAMOptions,
    BlockKind,
    Depths,
    Numbers,
    Positive,
    Probability,
    StrideOn,
    residual_parameters,
)


class CifarResNetOptions(AttentionOptions, BAMOptions):
    """Residual nets for 32×32 images: a 3×3 stem, no max-pool, stages at 32, 16, 8 (and 4)."""

    builder: ClassVar[str] = "attneck.models.cifar.network:build_cifar_resnet"

    depths: Annotated[Depths, Field(min_length=2, max_length=5)] = (3, 3, 3)
    block: BlockKind = "basic"
    order: Literal["post", "pre"] = "post"  # the activation stands after the addition, or before each conv
    stem: Positive = 16
    mids: Numbers = (16, 32, 64)
    outs: Numbers = (16, 32, 64)
    groups: Positive = 1
    stride_on: StrideOn = "3x3"
    shortcut: Literal["raw", "activated"] = "raw"  # what the projection of a pre-activation block sees
    attend: bool = False  # MHSA for the last 3×3 of each block of the last stage
    drop_path: Probability = 0.0
    se: bool = False  # after every block's branch, reduction 16, with biases (BAM Table 5)

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> Self:
        if not len(self.depths) == len(self.mids) == len(self.outs):
            raise ValueError(
                f"depths={self.depths}, mids={self.mids}, outs={self.outs}: wanted one number a stage in each"
            )
        if self.block == "basic":
            self._refuse_idle(("groups", "stride_on"), "block='bottleneck'")
        if self.order == "post":
            self._refuse_idle(("shortcut",), "order='pre'")
        if self.bam == "blocks" and self.se:
            raise ValueError("bam='blocks' and se want the same slot in the block: choose one")
        if self.attend and self.block == "basic" and self.mids[-1] != self.outs[-1]:
            raise ValueError(
                f"attend in a basic block wants mids and outs of the last stage alike, not "
                f"{self.mids[-1]}, {self.outs[-1]}: attention does not change the width"
            )
        return self

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the stem, the blocks and the classifier."""
        basic = self.block == "basic"
        blocks = residual_parameters(self.depths, self.mids, self.outs, self.stem, basic, self.groups)
        return blocks + 9 * in_chans * self.stem + num_classes * sum(self.outs[-1:])

    @property
    def attends(self) -> bool:
        """Whether the last stage does."""
        return self.attend

    @property
    def last_stride(self) -> int:
        """Every stage but the first strides by 2."""
        return 2 ** (len(self.depths) - 1)

    @property
    def feature_cfg(self) -> dict[str, Any]:
        """Every stage's map: timm's own default is five."""
        return {"out_indices": tuple(range(len(self.depths)))}
