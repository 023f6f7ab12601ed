"""What each family of networks can be asked for: frozen dataclasses, free of torch.

A catalog row is one of these with its values filled in, so a misspelt model, option or value, and options
that do not fit each other, are answered before anything heavy is imported. An option that would change
nothing is refused, never ignored.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from attneck.errors import suggestion

Position = Literal["relative", "absolute", "none"]
Activation = Literal["relu", "silu"]
BlockKind = Literal["basic", "bottleneck"]
StrideOn = Literal["3x3", "1x1"]
Inserted = Literal["none", "bot", "non_local"]


@dataclass(frozen=True, kw_only=True)
class FamilyOptions:
    """What every family has."""

    dropout: float = 0.0  # before the classifier

    def __post_init__(self) -> None:
        """ValueError for values out of range, or that do not fit each other."""
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name, 0) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted a probability, 0 or more and below 1")

    def _idle(self, names: tuple[str, ...], wanted: str) -> None:
        """ValueError if an option was changed that nothing in this network would see."""
        for field in dataclasses.fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)!r} would change nothing without {wanted}"
                )


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(FamilyOptions):
    """How MHSA is built wherever a network has it (BoTNet Fig. 4, Tables 4 and 19)."""

    heads: int = 4  # Fig. 4
    position: Position = "relative"
    content: bool = True

    def _check_attention(self, widths: list[int], wanted: str) -> None:
        """ValueError unless these options fit MHSA layers of `widths` channels (none: no attention)."""
        if not widths:
            self._idle(("heads", "position", "content"), wanted)
        if self.position == "none" and not self.content:
            raise ValueError("position='none' with content=False leaves no logits: keep one of them")
        for width in widths:
            if self.heads < 1 or width % self.heads:
                raise ValueError(
                    f"heads={self.heads} do not divide {width} channels: wanted a divisor of {width}"
                )


@dataclass(frozen=True, kw_only=True)
class BAMOptions(FamilyOptions):
    """How BAM is built wherever a network has it (BAM §3, Table 1)."""

    # Table 2: a BAM at each bottleneck, or BAM-C, one in every block.
    bam: Literal["none", "stages", "blocks"] = "none"
    bam_reduction: int = 16  # Table 1a
    bam_dilation: int = 4  # Table 1a
    # Table 1b. The default is the variant's own: the paper's sum, the official code's product.
    bam_combine: Literal["default", "sum", "prod", "max"] = "default"
    bam_branches: Literal["both", "channel", "spatial"] = "both"  # Table 1b
    bam_variant: Literal["paper", "official"] = "paper"

    def _check_bam(self, widths: list[int]) -> None:
        """ValueError unless these options fit BAMs of `widths` channels."""
        if self.bam == "none":
            shape = ("bam_reduction", "bam_dilation", "bam_combine", "bam_branches", "bam_variant")
            return self._idle(shape, "a BAM: bam='stages', or a model called …_bam")
        if self.bam_variant == "official" and (
            self.bam_branches != "both" or self.bam_combine not in ("default", "prod")
        ):
            raise ValueError(
                "bam_variant='official' multiplies both branches: leave bam_combine and bam_branches out"
            )
        if self.bam_branches != "both" and self.bam_combine != "default":
            raise ValueError(f"bam_combine={self.bam_combine!r} would change nothing without both branches")
        if self.bam_branches == "channel":
            self._idle(("bam_dilation",), "the spatial branch")
        if not 1 <= self.bam_reduction <= min(widths):
            raise ValueError(
                f"bam_reduction={self.bam_reduction}: wanted 1 to {min(widths)}, the narrowest map's"
            )
        if self.bam_dilation < 1:
            raise ValueError(f"bam_dilation={self.bam_dilation}: wanted 1 or more")
        return None


@dataclass(frozen=True, kw_only=True)
class ResNetOptions(AttentionOptions, BAMOptions):
    """ImageNet ResNets on timm's trunk, and everything both papers make of them. Stages are c2 to c5."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    block: BlockKind = "bottleneck"
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 1
    base_width: int = 64
    stride_on: StrideOn = "3x3"
    attend: tuple[int, ...] = ()  # a 1 or 0 for each c5 block; a single one stands for all of them
    c5_stride: Literal[1, 2] = 2
    c5_dilation: Literal[1, 2] = 1  # of the 3×3 convs that saw a map of half the size before c5_stride=1
    insert_c4: Inserted = "none"  # between the last two blocks of the stage (BoTNet Table 8)
    insert_c5: Inserted = "none"
    se: tuple[int, ...] = ()  # stages that have squeeze-excitation, 2 to 5
    se_in_bot: bool = False  # and whether c5's attention blocks are among them
    activation: Activation = "relu"
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_stages(self.depths, self.widths, count=(4,))
        if self.block == "basic":
            self._idle(("groups", "base_width", "stride_on", "attend"), "block='bottleneck'")
            if "bot" in (self.insert_c4, self.insert_c5):
                raise ValueError("a 'bot' block is inserted among bottlenecks only: block='bottleneck'")
        if min(self.groups, self.base_width) < 1:
            raise ValueError(f"groups={self.groups}, base_width={self.base_width}: wanted 1 or more")
        if len(self.attend) not in (0, 1, self.depths[3]) or not {*self.attend} <= {0, 1}:
            raise ValueError(
                f"attend={self.attend}: wanted a 1 or 0, or one for each of {self.depths[3]} c5 blocks"
            )
        if not {*self.se} <= {2, 3, 4, 5}:
            raise ValueError(f"se={self.se}: wanted stages from 2 to 5")
        if self.se_in_bot and (5 not in self.se or not any(self.attend)):
            raise ValueError("se_in_bot=True would change nothing: wanted attend, and 5 among se")
        if self.bam == "blocks" and self.se:
            raise ValueError("bam='blocks' and se want the same place in the block: choose one")
        if self.c5_dilation == 2 and not (self.c5_stride == 1 and self.dilatable):
            raise ValueError(
                "c5_dilation=2 would change nothing: wanted c5_stride=1, and a 3×3 conv in a later c5 block"
            )
        for stage, inserted in ((2, self.insert_c4), (3, self.insert_c5)):
            if inserted != "none" and self.depths[stage] < 2:
                raise ValueError(
                    f"insert_c{stage + 2} wants two blocks to stand between: depths={self.depths}"
                )
        attention = [
            int(self.widths[3] * self.base_width / 64) * self.groups if any(self.attend) else 0,
            self.widths[2] if self.insert_c4 == "bot" else 0,
            self.widths[3] if self.insert_c5 == "bot" else 0,
        ]
        self._check_attention([width for width in attention if width], "attention: attend=(1,)")
        expansion = 4 if self.block == "bottleneck" else 1
        self._check_bam([expansion * width for width in self.widths])

    @property
    def dilatable(self) -> bool:
        """Whether c5 has a 3×3 conv behind the place where it strides."""
        return self.block == "basic" or 0 in self.c5_flags[1:]

    @property
    def c5_flags(self) -> tuple[int, ...]:
        """`attend` with a flag for each c5 block."""
        return (self.attend or (0,)) * self.depths[3] if len(self.attend) < 2 else self.attend


@dataclass(frozen=True, kw_only=True)
class CifarResNetOptions(AttentionOptions, BAMOptions):
    """Residual nets for 32×32 images: a 3×3 stem, no max-pool, stages at 32, 16, 8 (and 4)."""

    depths: tuple[int, ...] = (3, 3, 3)
    block: BlockKind = "basic"
    order: Literal["post", "pre"] = "post"  # the activation stands after the addition, or before each conv
    stem: int = 16
    mids: tuple[int, ...] = (16, 32, 64)
    outs: tuple[int, ...] = (16, 32, 64)
    groups: int = 1
    stride_on: StrideOn = "3x3"
    shortcut: Literal["raw", "activated"] = "raw"  # what the projection of a pre-activation block sees
    attend: bool = False  # MHSA for the last 3×3 of each block of the last stage
    se: bool = False  # after every block's branch, reduction 16, with biases (BAM Table 5)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_stages(self.depths, self.mids, self.outs, count=(2, 3, 4, 5))
        if self.block == "basic":
            self._idle(("groups", "stride_on"), "block='bottleneck'")
        if self.order == "post":
            self._idle(("shortcut",), "order='pre'")
        if self.stem < 1 or self.groups < 1 or any(mid % self.groups for mid in self.mids):
            raise ValueError(
                f"stem={self.stem}, groups={self.groups}: wanted positive numbers, the second a divisor of "
                f"each of {self.mids}"
            )
        if self.bam == "blocks" and self.se:
            raise ValueError("bam='blocks' and se want the same place in the block: choose one")
        if self.attend and self.block == "basic" and self.mids[-1] != self.outs[-1]:
            raise ValueError(
                f"attend in a basic block wants mids and outs of the last stage alike, not "
                f"{self.mids[-1]}, {self.outs[-1]}: attention does not change the width"
            )
        self._check_attention([self.mids[-1]] if self.attend else [], "attention: attend=True")
        self._check_bam(list(self.outs))


@dataclass(frozen=True, kw_only=True)
class DenseNetOptions(BAMOptions):
    """DenseNet-BC for 32×32 images (Huang et al. 2017); BAM before and after each transition (BAM §4.2)."""

    depths: tuple[int, ...] = (16, 16, 16)
    growth: int = 12
    bam: Literal["none", "stages"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_stages(self.depths, count=(2, 3, 4))
        if self.growth < 1:
            raise ValueError(f"growth={self.growth}: wanted 1 or more")
        channels, widths = 2 * self.growth, []
        for depth in self.depths[:-1]:
            channels += depth * self.growth
            widths += [channels, channels // 2]
            channels //= 2
        self._check_bam(widths)


@dataclass(frozen=True, kw_only=True)
class MobileNetOptions(BAMOptions):
    """MobileNet v1 (Howard et al. 2017)."""

    alpha: float = 1.0  # every width is ⌊width · alpha⌋
    bam: Literal["none", "stages"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 8:
            raise ValueError(f"alpha={self.alpha}: wanted a width multiplier above 0, such as 0.7")
        self._check_bam([max(1, int(128 * self.alpha))])


@dataclass(frozen=True, kw_only=True)
class SqueezeNetOptions(BAMOptions):
    """SqueezeNet 1.1 as torchvision has it, and as BAM's Table 3 counts it."""

    dropout: float = 0.5  # Iandola et al. 2016
    stem_padding: Literal[0, 1] = 0  # 1: maps of 112, 56, 28, 14 at 224; BAM's figure needs it
    pool: Literal["logits", "features"] = "logits"  # what the global pool averages; BAM's figure: features
    bam: Literal["none", "stages"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_bam([128])


@dataclass(frozen=True, kw_only=True)
class EfficientNetOptions(FamilyOptions):
    """EfficientNet from timm (Tan & Le 2019), which BoTNet's Table 14 compares with."""

    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0"
    drop_path: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ViTOptions(FamilyOptions):
    """ViT and DeiT from timm, which BoTNet's Figures 7 to 9 compare with; one network, trained two ways."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.width, self.depth, self.heads, self.patch) < 1 or self.width % self.heads:
            raise ValueError(
                f"width={self.width}, depth={self.depth}, heads={self.heads}, patch={self.patch}: wanted "
                "positive numbers, and heads that divide the width"
            )


Options = TypeVar("Options", bound=FamilyOptions)


def override(options: Options, given: dict[str, Any], name: str) -> Options:
    """`options` with the `given` values in place; where a detector has none of that name, its backbone's.

    Raises:
        ValueError: an option that this model does not have (with the nearest one that it has), a value
            that is not of the option's kind or not among its choices, or values that do not fit each other.
    """
    backbone: Any = getattr(options, "backbone", None)
    own, inner = _hints(options), _hints(backbone) if backbone else {}
    values: dict[str, Any] = {}
    within: dict[str, Any] = {}
    for key, value in given.items():
        if key not in own | inner:
            known = sorted(own | inner)
            raise ValueError(
                f"{name} has no option {key!r}{suggestion(key, known)} (its options: {', '.join(known)})"
            )
        (values if key in own else within)[key] = _checked((inner | own)[key], value, f"{name}: {key}")
    try:
        if within:
            values["backbone"] = dataclasses.replace(backbone, **within)
        return dataclasses.replace(options, **values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _hints(options: FamilyOptions) -> dict[str, Any]:
    """The options that can be given by name, with their types; a detector's backbone is no such."""
    return {key: hint for key, hint in typing.get_type_hints(type(options)).items() if key != "backbone"}


def _checked(hint: Any, value: Any, what: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices or isinstance(value, bool):
            near = suggestion(value, list(choices)) if isinstance(value, str) else ""
            raise ValueError(f"{what}={value!r}: wanted one of {', '.join(map(repr, choices))}{near}")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or not all(type(item) is int for item in value):
            raise ValueError(f"{what}={value!r}: wanted a list of whole numbers")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{what}={value!r}: wanted a {hint.__name__}")
    return value


def _check_stages(depths: tuple[int, ...], *widths: tuple[int, ...], count: tuple[int, ...]) -> None:
    """ValueError unless there is one positive number a stage, and a fitting number of stages."""
    if len(depths) not in count or any(len(row) != len(depths) for row in widths):
        wanted = " or ".join(map(str, count))
        raise ValueError(f"depths and widths {(depths, *widths)}: wanted {wanted} stages, one number each")
    if any(number < 1 for row in (depths, *widths) for number in row):
        raise ValueError(f"depths and widths {(depths, *widths)}: wanted 1 or more everywhere")
