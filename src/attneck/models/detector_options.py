"""The options of each family of detectors, whose networks are in `attneck.detection`: free of torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from attneck.models.options import BAMOptions, Depth, FamilyOptions, Positive

Trunk = Literal["vgg16", "mobilenet"]


class DetectorOptions(FamilyOptions):
    """The options of every detector, and what its training needs to know."""

    loader: ClassVar[str] = "attneck.detection.weights:load_weights"

    resizes: ClassVar[bool] = True
    """Whether it resizes images in training too, to its own size."""

    @property
    def least_images(self) -> int:
        """Images that a forward pass needs in training, if BatchNorm is not synchronised."""
        return 1

    @property
    def needs_weights(self) -> bool:
        """Whether its training has to start from weights."""
        return False

    @property
    def finds_masks(self) -> bool:
        """Whether it has a mask head."""
        return False

    @model_validator(mode="after")
    def _no_head_of_whole_images(self) -> Self:
        self._refuse_idle(("dropout", "global_pool"), "a classifier of whole images")
        self._refuse_idle(("bn_momentum", "bn_eps"), "a classifier: an R-CNN has norm_momentum")
        return self


class SSDOptions(DetectorOptions):
    """SSD300 (Liu et al. 2016) as BAM's Table 4b counts it."""

    builder: ClassVar[str] = "attneck.detection.ssd:build_ssd"

    trunk: Trunk = "vgg16"
    """The network under it."""

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the classifiers of the first two maps: 3×3 convs on VGG16, 1×1 on MobileNet."""
        return (9 if self.trunk == "vgg16" else 1) * 6 * (512 + 1024) * num_classes


class StairNetOptions(DetectorOptions, BAMOptions):
    """StairNet (Woo et al. 2018) as BAM's Table 4b counts it."""

    builder: ClassVar[str] = "attneck.detection.stairnet:build_stairnet"

    trunk: Trunk = "vgg16"
    """The network under it."""
    bam: Literal["none", "stages"] = "none"
    """stages: a BAM right before every classifier (BAM §4.6)."""

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the classifiers of six maps: 3×3 convs on VGG16, 1×1 on MobileNet."""
        return (9 if self.trunk == "vgg16" else 1) * 6 * 4 * self.channels * num_classes

    @property
    def least_images(self) -> int:
        """Its coarsest map has one position."""
        return 2

    @property
    def channels(self) -> int:
        """The channels of each of the six refined maps."""
        return {"vgg16": 256, "mobilenet": 128}[self.trunk]


class RCNNOptions(DetectorOptions):
    """Faster and Mask R-CNN; the backbone's options are given beside these."""

    builder: ClassVar[str] = "attneck.detection.rcnn:build_rcnn"
    resizes: ClassVar[bool] = False

    backbone: FamilyOptions | None = None
    """Options of the network under it; None where a module is given."""
    masks: bool = True
    """Whether there is a mask head: Mask R-CNN, else Faster R-CNN."""
    variant: Literal["botnet", "cloud_tpu", "torchvision", "c4"] = "botnet"
    """botnet: BatchNorm in pyramid and heads (BoTNet A.2), else as torchvision. cloud_tpu: also the pyramid,
    anchors, regions, losses of boxes, first weights and least score of the code base that A.2 names.
    torchvision: its default detector, no norms there, one convolution in the RPN, two fully connected layers
    for boxes. c4: a ResNet without a pyramid, whose last stage is the head of boxes (BAM Table 4a)."""
    channels: Positive = 256
    """Channels of the pyramid, and of every convolution after it; c4: of the RPN's alone."""
    rpn_convs: Depth = 2
    """Convolutions of the region proposal network."""
    box_convs: Depth = 4
    """Convolutions of the box head."""
    box_features: Positive = 1024
    """Features of each fully connected layer of the box head; c4 has none."""
    mask_convs: Depth = 4
    """Convolutions of the mask head; 8 for BoTNet's best model."""
    proposals: Positive = 1000
    """Boxes of an image that are given to the heads; torchvision's variant trains with twice as many, c4 with
    2000."""
    candidates: Positive = 2000
    """Best boxes of each map that non-maximum suppression is given in training; else 1000, by c4 6000."""
    rois: Positive = 512
    """Boxes that are sampled from these for the losses of the heads."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.003
    """Momentum of every BatchNorm that learns; 0.003 is what TensorFlow calls 0.997."""
    freeze_norms: bool = False
    """The backbone's BatchNorms keep the weights and statistics that were loaded."""

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> Self:
        if not self.masks:
            self._refuse_idle(("mask_convs",), "masks=True")
        if self.variant == "c4":
            self._refuse_idle(("box_features",), "another variant than 'c4'")
            if self.masks:
                raise ValueError("variant='c4' has no masks: take a fasterrcnn_…, or another variant")
        if self.variant in ("torchvision", "c4"):
            self._refuse_idle(("rpn_convs", "box_convs"), "variant='botnet' or 'cloud_tpu'")
            if self.freeze_norms:
                self._refuse_idle(
                    ("norm_momentum",), "a BatchNorm that learns: another variant, or freeze_norms=False"
                )
        return self

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """Those of the backbone's blocks, the heads and the classifier of boxes."""
        body = self.backbone.least_parameters(0, image_size) if self.backbone is not None else 0
        if self.variant == "c4":
            return body + 9 * self.channels
        convs = self.rpn_convs if self.variant == "torchvision" else self.rpn_convs + self.box_convs
        convs += self.mask_convs if self.masks else 0
        boxes = self.box_features * (49 * self.channels + 5 * num_classes)
        return body + 9 * self.channels**2 * convs + boxes

    def shortest(self) -> Self:
        """The backbone's too."""
        return self.replace(backbone=self.backbone.shortest()) if self.backbone is not None else self

    @property
    def training_proposals(self) -> int:
        """Boxes of an image that regions are sampled from: torchvision's, and Ren et al.'s (§3.3)."""
        return {"torchvision": 2 * self.proposals, "c4": 2000}.get(self.variant, self.proposals)

    @property
    def finds_masks(self) -> bool:
        """As asked for."""
        return self.masks

    @property
    def least_images(self) -> int:
        """A BAM's channel branch has one value an image and channel, of which its BatchNorm learns."""
        own = self.backbone
        channels = isinstance(own, BAMOptions) and own.bam != "none" and own.bam_branches != "spatial"
        return 2 if channels and not self.freeze_norms else 1

    @property
    def needs_weights(self) -> bool:
        """A frozen norm that nothing was loaded into would stay as it was initialised."""
        return self.freeze_norms


class ThinRCNNOptions(RCNNOptions):
    """Of a …_thin backbone, for `shapes`, in minutes.

    BatchNorm must settle within its few steps, and with torchvision's 2000 candidates a level these took a
    tenth longer for the same AP (results/detection).
    """

    channels: Positive = 64
    box_features: Positive = 256
    proposals: Positive = 200
    candidates: Positive = 500
    rois: Positive = 64
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
