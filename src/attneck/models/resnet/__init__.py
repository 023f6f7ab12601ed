"""ImageNet ResNets and what the papers make of them, BoTNet and BAM among others: options, free of torch."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from attneck.models.options import (
    AsTuple,
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

EachStage = Field(min_length=4, max_length=4)  # c2 to c5
Stride = Annotated[int, Field(ge=1, le=2)]
Inserted = Literal["none", "bot", "non_local"]


class ResNetOptions(AttentionOptions, BAMOptions):
    """ImageNet ResNets on timm's trunk, and everything both papers make of them. Stages are c2 to c5."""

    builder: ClassVar[str] = "attneck.models.resnet.network:build_resnet"

    depths: Annotated[Depths, EachStage] = (3, 4, 6, 3)
    block: BlockKind = "bottleneck"
    widths: Annotated[Numbers, EachStage] = (64, 128, 256, 512)
    groups: Positive = 1
    base_width: Positive = 64
    stride_on: StrideOn = "3x3"
    # A 1 or 0 for each c5 block; a single one stands for all of them.
    attend: Annotated[tuple[Annotated[int, Field(ge=0, le=1)], ...], AsTuple, Field(max_length=512)] = ()
    c5_stride: Stride = 2
    c5_dilation: Stride = 1  # of the 3×3 convs that saw a map of half the size before c5_stride=1
    insert_c4: Inserted = "none"  # between the last two blocks of the stage (BoTNet Table 8)
    insert_c5: Inserted = "none"
    # Stages that have squeeze-excitation.
    se: Annotated[tuple[Annotated[int, Field(ge=2, le=5)], ...], AsTuple, Field(max_length=4)] = ()
    se_in_bot: bool = False  # and whether c5's attention blocks are among them
    activation: Literal["relu", "silu"] = "relu"
    drop_path: Probability = 0.0

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> Self:
        if self.block == "basic":
            self._refuse_idle(("groups", "base_width", "stride_on", "attend"), "block='bottleneck'")
            if "bot" in (self.insert_c4, self.insert_c5):
                raise ValueError("a 'bot' block is inserted among bottlenecks only: block='bottleneck'")
        if len(self.attend) not in (0, 1, self.depths[3]):
            raise ValueError(
                f"attend={reprlib.repr(self.attend)}: wanted a 1 or 0, or one for each of "
                f"{self.depths[3]} c5 blocks"
            )
        if self.se_in_bot and (5 not in self.se or not any(self.attend)):
            raise ValueError("se_in_bot=True would change nothing: wanted attend, and 5 among se")
        if self.bam == "blocks" and self.se:
            raise ValueError("bam='blocks' and se want the same slot in the block: choose one")
        if self.c5_dilation == 2 and not (self.c5_stride == 1 and self.dilatable):
            raise ValueError(
                "c5_dilation=2 would change nothing: wanted c5_stride=1, and a 3×3 conv in a later c5 block"
            )
        for stage, inserted in ((2, self.insert_c4), (3, self.insert_c5)):
            if inserted != "none" and self.depths[stage] < 2:
                raise ValueError(
                    f"insert_c{stage + 2} wants two blocks to stand between: depths={self.depths}"
                )
        return self

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the blocks, and the classifier."""
        basic = self.block == "basic"
        mids = tuple(width * self.base_width // 64 * self.groups for width in self.widths)
        outs = tuple(width * (1 if basic else 4) for width in self.widths)
        blocks = residual_parameters(self.depths, mids, outs, 64, basic, self.groups)
        return blocks + num_classes * outs[-1]

    @property
    def attends(self) -> bool:
        """Whether a c5 block does, or one that is inserted."""
        return any(self.attend) or "bot" in (self.insert_c4, self.insert_c5)

    @property
    def c5_flags(self) -> tuple[int, ...]:
        """`attend` with a flag for each c5 block."""
        return (self.attend or (0,)) * self.depths[3] if len(self.attend) < 2 else self.attend

    @property
    def dilatable(self) -> bool:
        """Whether c5 has a 3×3 conv after the one that strides."""
        return self.block == "basic" or 0 in self.c5_flags[1:]

    def at_stride_16(self) -> dict[str, Any]:
        """c5 stays at c4's size: attention as in BoTNet-S1, convs dilated by 2."""
        return {"c5_stride": 1, "c5_dilation": 2 if self.dilatable else 1}
