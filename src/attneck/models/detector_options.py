"""What each family of detectors can be asked for, as `options.py` has it for the networks under them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attneck.models.options import BAMOptions, FamilyOptions

Trunk = Literal["vgg16", "mobilenet"]


@dataclass(frozen=True, kw_only=True)
class DetectorOptions(FamilyOptions):
    """What every detector has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._idle(("dropout",), "a classifier of whole images")


@dataclass(frozen=True, kw_only=True)
class SSDOptions(DetectorOptions):
    """SSD300 (Liu et al. 2016) as BAM's Table 4b counts it."""

    trunk: Trunk = "vgg16"


@dataclass(frozen=True, kw_only=True)
class StairNetOptions(DetectorOptions, BAMOptions):
    """StairNet (Woo et al. 2018) as BAM's Table 4b counts it."""

    trunk: Trunk = "vgg16"
    bam: Literal["none", "stages"] = "none"  # a stage is a map: one right before every classifier (§4.6)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_bam([self.channels])

    @property
    def channels(self) -> int:
        """Of every map that is refined."""
        return {"vgg16": 256, "mobilenet": 128}[self.trunk]


@dataclass(frozen=True, kw_only=True)
class RCNNOptions(DetectorOptions):
    """Faster and Mask R-CNN on a feature pyramid, as BoTNet's A.2 sets them up.

    What the backbone can be asked for is asked for beside these.
    """

    backbone: FamilyOptions | None = None  # None where a module is given
    masks: bool = True
    channels: int = 256  # of the pyramid, and of every convolution behind it
    rpn_convs: int = 2
    box_convs: int = 4
    box_features: int = 1024  # of the fully connected layer behind them
    mask_convs: int = 4  # 8 for the paper's best model
    proposals: int = 1000  # of an image, that the heads are given
    rois: int = 512  # of these, what they learn from
    norm_momentum: float = 0.003  # of every BatchNorm; TensorFlow calls it 0.997

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.masks:
            self._idle(("mask_convs",), "masks=True")
        counts = ("channels", "rpn_convs", "box_convs", "box_features", "mask_convs", "proposals", "rois")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted 1 or more")
        if not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum={self.norm_momentum}: wanted more than 0, and 1 at most")
