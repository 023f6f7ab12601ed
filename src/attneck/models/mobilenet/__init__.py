"""MobileNet v1: options, free of torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from attneck.models.options import BAMOptions


class MobileNetOptions(BAMOptions):
    """MobileNet v1 (Howard et al. 2017)."""

    builder: ClassVar[str] = "attneck.models.mobilenet.network:build_mobilenet"

    alpha: Annotated[float, Field(gt=0, le=8)] = 1.0  # every width is ⌊width · alpha⌋
    bam: Literal["none", "stages"] = "none"
