"""What each family of detectors can be asked for. Their networks are in `attneck.detection`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from attneck.models.options import BAMOptions, FamilyOptions, Positive

Trunk = Literal["vgg16", "mobilenet"]


class DetectorOptions(FamilyOptions):
    """What every detector has."""

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        self._refuse_idle(("dropout",), "a classifier of whole images")
        return self


class SSDOptions(DetectorOptions):
    """SSD300 (Liu et al. 2016) as BAM's Table 4b counts it."""

    builder: ClassVar[str] = "attneck.detection.ssd:build"

    trunk: Trunk = "vgg16"


class StairNetOptions(DetectorOptions, BAMOptions):
    """StairNet (Woo et al. 2018) as BAM's Table 4b counts it."""

    builder: ClassVar[str] = "attneck.detection.stairnet:build"

    trunk: Trunk = "vgg16"
    bam: Literal["none", "stages"] = "none"  # a stage is a map: one right before every classifier (§4.6)

    @property
    def channels(self) -> int:
        """Of every map that is refined."""
        return {"vgg16": 256, "mobilenet": 128}[self.trunk]


class RCNNOptions(DetectorOptions):
    """Faster and Mask R-CNN on a feature pyramid, as BoTNet's A.2 sets them up.

    What the backbone can be asked for is asked for beside these.
    """

    builder: ClassVar[str] = "attneck.detection.rcnn:build"

    backbone: FamilyOptions | None = None  # None where a module is given
    masks: bool = True
    channels: Positive = 256  # of the pyramid, and of every convolution after it
    rpn_convs: Positive = 2
    box_convs: Positive = 4
    box_features: Positive = 1024  # of the fully connected layer after them
    mask_convs: Positive = 4  # 8 for the paper's best model
    proposals: Positive = 1000  # of an image, that the heads are given
    rois: Positive = 512  # of these, what they learn from
    # Of every BatchNorm; TensorFlow calls it 0.997.
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.003

    @model_validator(mode="after")
    def _masks_are_learned(self) -> Self:
        if not self.masks:
            self._refuse_idle(("mask_convs",), "masks=True")
        return self
