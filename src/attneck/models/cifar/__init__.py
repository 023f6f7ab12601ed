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
    """Blocks a stage."""
    block: BlockKind = "basic"
    """basic: two 3×3 convs; bottleneck: 1×1, 3×3, 1×1."""
    order: Literal["post", "pre"] = "post"
    """The activation stands after the addition (post), or before each conv (pre)."""
    stem: Positive = 16
    """Channels of the first conv."""
    mids: Numbers = (16, 32, 64)
    """Channels of the 3×3 convs, a number a stage."""
    outs: Numbers = (16, 32, 64)
    """Channels of the blocks' results, a number a stage."""
    groups: Positive = 1
    """Groups of a bottleneck's 3×3 convs (ResNeXt)."""
    stride_on: StrideOn = "3x3"
    """The conv of a bottleneck that strides."""
    shortcut: Literal["raw", "activated", "A"] = "raw"
    """Where a block changes the shape. raw projects its input; activated a pre-activation block's first
    BatchNorm and ReLU of it; A, without weights, leaves out every second row and column and adds channels of
    zeros, half before and half after (He et al. 2016, option A)."""
    attend: bool = False
    """MHSA for the last 3×3 of each block of the last stage."""
    drop_path: Probability = 0.0
    """Probability of leaving the last block out in training; it rises linearly to there."""
    se: bool = False
    """Squeeze-excitation after every block's branch, reduction 16, with biases (BAM Table 5)."""

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> Self:
        if not len(self.depths) == len(self.mids) == len(self.outs):
            raise ValueError(
                f"depths={self.depths}, mids={self.mids}, outs={self.outs}: wanted one number a stage in each"
            )
        if self.block == "basic":
            self._refuse_idle(("groups", "stride_on"), "block='bottleneck'")
        if self.order == "post" and self.shortcut == "activated":
            self._refuse_idle(("shortcut",), "order='pre'")
        widths = [self.stem, *self.outs]
        if self.shortcut == "A" and widths != sorted(widths):
            raise ValueError(
                f"stem={self.stem}, outs={self.outs}: shortcut='A' takes no channels away, wanted widths "
                "that never fall"
            )
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
