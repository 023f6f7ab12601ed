"""The options of each family of detectors, as `options.py` has those of the backbones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attneck.models.options import BAMOptions, FamilyOptions

Trunk = Literal["vgg16", "mobilenet"]


@dataclass(frozen=True, kw_only=True)
class DetectorOptions(FamilyOptions):
    """The options of every detector."""

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
    bam: Literal["none", "stages"] = "none"  # one right before every classifier (§4.6)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_bam([self.channels])

    @property
    def channels(self) -> int:
        """The channels of each of the six refined maps."""
        return {"vgg16": 256, "mobilenet": 128}[self.trunk]


@dataclass(frozen=True, kw_only=True)
class RCNNOptions(DetectorOptions):
    """Faster and Mask R-CNN on a feature pyramid. The options of the backbone are given beside these."""

    backbone: FamilyOptions | None = None  # None where a module is given
    masks: bool = True
    # "botnet": BoTNet's A.2, BatchNorm in pyramid and heads. "torchvision": torchvision's default detector,
    # no norms there, one convolution in the RPN, two fully connected layers for boxes.
    variant: Literal["botnet", "torchvision"] = "botnet"
    channels: int = 256  # of the pyramid, and of every convolution after it
    rpn_convs: int = 2
    box_convs: int = 4
    box_features: int = 1024  # of each fully connected layer
    mask_convs: int = 4  # 8 for the paper's best model
    proposals: int = 1000  # of an image, given to the heads; torchvision's variant trains with twice as many
    rois: int = 512  # sampled from these for the losses of the heads
    norm_momentum: float = 0.003  # of every BatchNorm that learns; TensorFlow calls it 0.997
    freeze_norms: bool = False  # the backbone's BatchNorms keep the weights and statistics that were loaded

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.masks:
            self._idle(("mask_convs",), "masks=True")
        if self.variant == "torchvision":
            self._idle(("rpn_convs", "box_convs"), "variant='botnet'")
            if self.freeze_norms:
                self._idle(
                    ("norm_momentum",), "a BatchNorm that learns: variant='botnet', or freeze_norms=False"
                )
        counts = ("channels", "rpn_convs", "box_convs", "box_features", "mask_convs", "proposals", "rois")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted 1 or more")
        if not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum={self.norm_momentum}: wanted more than 0, and 1 at most")
