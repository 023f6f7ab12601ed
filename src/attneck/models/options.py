"""What each family of networks can be asked for: frozen dataclasses, free of torch.

A catalog row is one of these with its values filled in, so a misspelt model or option is answered
before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from attneck.errors import suggestion

Position = Literal["relative", "absolute", "none"]
Activation = Literal["relu", "silu"]
StrideOn = Literal["3x3", "1x1"]


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """How MHSA is built wherever a network has it (BoTNet Fig. 4, Tables 4 and 19)."""

    heads: int = 4  # Fig. 4
    position: Position = "relative"
    content: bool = True


@dataclass(frozen=True, kw_only=True)
class BAMOptions:
    """How BAM is built wherever a network has it (BAM §3, Table 1)."""

    bam: Literal["none", "stages", "blocks"] = "none"  # Table 2: BAM at the bottlenecks; BAM-C in every block
    bam_reduction: int = 16  # Table 1a
    bam_dilation: int = 4  # Table 1a
    bam_combine: Literal["sum", "prod", "max"] = "sum"  # Table 1b
    bam_branches: Literal["both", "channel", "spatial"] = "both"  # Table 1b
    bam_variant: Literal["paper", "official"] = "paper"


@dataclass(frozen=True, kw_only=True)
class ResNetOptions(AttentionOptions, BAMOptions):
    """ImageNet ResNets on timm's trunk, and everything both papers make of them."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 1
    base_width: int = 64
    stride_on: StrideOn = "3x3"
    attend: tuple[int, ...] = ()  # one flag a c5 block; a single flag stands for all of them
    c5_stride: Literal[1, 2] = 2
    insert_c4: Literal["none", "bot", "non_local"] = "none"
    insert_c5: Literal["none", "bot", "non_local"] = "none"
    se: tuple[int, ...] = ()  # stages 2..5 that have squeeze-excitation
    se_in_bot: bool = False
    activation: Activation = "relu"
    drop_path: float = 0.0
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CifarResNetOptions(AttentionOptions, BAMOptions):
    """Residual nets for 32×32 images: a 3×3 stem, no max-pool, three or four stages."""

    depths: tuple[int, ...] = (3, 3, 3)
    block: Literal["basic", "bottleneck"] = "basic"
    order: Literal["post", "pre"] = "post"  # where the activation stands: after the addition, or before each conv
    stem: int = 16
    mids: tuple[int, ...] = (16, 32, 64)
    outs: tuple[int, ...] = (16, 32, 64)
    groups: int = 1
    stride_on: StrideOn = "1x1"  # BAM's multiply-adds say so for each of its bottleneck nets
    shortcut: Literal["raw", "activated"] = "raw"  # what the projection of a pre-activation block sees
    attend: bool = False  # MHSA for the last 3×3 of each block of the last stage
    se: bool = False  # after every block's branch, reduction 16, with biases (BAM Table 5)
    extra_block: bool = False  # one more same-shape block where a BAM would stand (BAM Table 1c)
    dropout: float = 0.0


Options = TypeVar("Options", bound=AttentionOptions | BAMOptions)


def override(options: Options, given: dict[str, Any], name: str) -> Options:
    """`options` with the `given` values in place.

    Raises:
        ValueError: an option that this model does not have (with the nearest one that it has), or a value
            that is not of the option's kind or not among its choices.
    """
    hints = typing.get_type_hints(type(options))
    values = {}
    for key, value in given.items():
        if key not in hints:
            known = sorted(hints)
            raise ValueError(
                f"{name} has no option {key!r}{suggestion(key, known)} (its options: {', '.join(known)})"
            )
        values[key] = _checked(hints[key], value, f"{name}: {key}")
    return dataclasses.replace(options, **values)


def _checked(hint: Any, value: Any, what: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ValueError(f"{what}={value!r}: wanted one of {', '.join(map(repr, choices))}")
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
