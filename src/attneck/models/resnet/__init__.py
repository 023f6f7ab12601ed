"""ImageNet ResNets and what the papers make of them, BoTNet and BAM among others: options, free of torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from attneck.errors import brief
from attneck.models.options import (
    AsTuple,
    AttentionOptions,
    BAMOptions,
    BlockKind,
    Depths,
    Numbers,
    OutputStride,
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
    """Blocks of c2, c3, c4 and c5."""
    block: BlockKind = "bottleneck"
    """basic: two 3×3 convs; bottleneck: 1×1, 3×3, 1×1."""
    widths: Annotated[Numbers, EachStage] = (64, 128, 256, 512)
    """Channels of each stage's 3×3 convs; a bottleneck's result has four times as many."""
    groups: Positive = 1
    """Groups of a bottleneck's 3×3 convs (ResNeXt)."""
    base_width: Positive = 64
    """Channels of one group in a stage of width 64 (ResNeXt, Wide ResNet)."""
    stride_on: StrideOn = "3x3"
    """The conv of a bottleneck that strides."""
    attend: Annotated[tuple[Annotated[int, Field(ge=0, le=1)], ...], AsTuple, Field(max_length=512)] = ()
    """The c5 blocks that attend: a 1 or 0 for each, or one that stands for all (BoTNet Table 5)."""
    c5_stride: Stride = 2
    """1: c5 stays at c4's size, nothing dilated, as in BoTNet-S1 (BoTNet §4.8)."""
    output_stride: OutputStride = 32
    """Less: later stages do not stride, their 3×3 convs are dilated, as timm's."""
    insert_c4: Inserted = "none"
    """A block between the last two of c4 (BoTNet Table 8)."""
    insert_c5: Inserted = "none"
    """A block between the last two of c5 (BoTNet Table 8)."""
    nl_value: bool = False
    """Whether a non_local block has a value projection (BoTNet A.5)."""
    se: Annotated[tuple[Annotated[int, Field(ge=2, le=5)], ...], AsTuple, Field(max_length=4)] = ()
    """The stages that have squeeze-excitation, such as 2 3 4."""
    se_in_bot: bool = False
    """Whether c5's attention blocks have it too."""
    shortcut_act: bool = False
    """Whether an activation follows the projection beside c5's first attention block, as in the code that
    BoTNet's A.1 names; its text and figures have none."""
    activation: Literal["relu", "silu"] = "relu"
    """What stands after each norm."""
    zero_init_last: bool = True
    """Whether the last norm of each branch starts at 0, as in BoTNet's codebase; if not at 1, as in BAM's."""
    drop_path: Probability = 0.0
    """Probability of leaving the last block out in training; it rises linearly to there."""
    drop_block: Probability = 0.0
    """Probability of dropping blocks of c4's and c5's maps in training, as timm's."""

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> Self:
        if self.block == "basic":
            self._refuse_idle(("groups", "base_width", "stride_on", "attend"), "block='bottleneck'")
            if "bot" in (self.insert_c4, self.insert_c5):
                raise ValueError("a 'bot' block is inserted among bottlenecks only: block='bottleneck'")
        if len(self.attend) not in (0, 1, self.depths[3]):
            raise ValueError(
                f"attend={brief(self.attend)}: wanted a 1 or 0, or one for each of {self.depths[3]} c5 blocks"
            )
        if self.se_in_bot and (5 not in self.se or not any(self.attend)):
            raise ValueError("se_in_bot=True would change nothing: wanted attend, and 5 among se")
        if self.shortcut_act and not self.c5_flags[0]:
            raise ValueError(
                "shortcut_act=True would change nothing: wanted attend with a 1 for c5's first block"
            )
        if self.c5_stride == 1 and self.output_stride != 32 and not all(self.c5_flags):
            raise ValueError(
                f"c5_stride=1 and output_stride={self.output_stride}: either keeps c5 at c4's size, the one "
                "with nothing dilated and the other with its 3×3 convs dilated; leave one out"
            )
        if "non_local" not in (self.insert_c4, self.insert_c5):
            self._refuse_idle(("nl_value",), "'non_local' for insert_c4 or insert_c5")
        if self.bam == "blocks" and self.se:
            raise ValueError("bam='blocks' and se want the same slot in the block: choose one")
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

    def shortest(self) -> Self:
        """One flag, or none, stands for c5 blocks that are all alike."""
        flags = self.c5_flags
        if all(flags) or not any(flags):
            flags = (1,) if flags[0] else ()
        return super().shortest().replace(attend=flags)

    @property
    def c4_stride(self) -> int:
        """Pixels of a position of c4's map, along each side."""
        return min(16, self.output_stride)

    @property
    def last_stride(self) -> int:
        """Of c5's map."""
        return min(self.output_stride, 16 * self.c5_stride)
